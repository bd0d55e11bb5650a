"""SSH signatures as OpenSSH makes them (files made by sshsig/make.sh), and spoilt ones."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given
from hypothesis import strategies as st

from boxwright.errors import Code
from boxwright.sources.openpgp import SignatureError
from boxwright.sources.ssh_signature import verify_ssh

DATA = Path(__file__).parent / "sshsig"
CONTENT = (DATA / "content").read_bytes()
GOOD = (DATA / "ed25519.sig").read_bytes()
KEY = (DATA / "ed25519.pub").read_bytes()


def read(name: str) -> bytes:
    return (DATA / name).read_bytes()


def string(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data


def armored(body: bytes) -> bytes:
    text = base64.encodebytes(body)
    return b"-----BEGIN SSH SIGNATURE-----\n" + text + b"-----END SSH SIGNATURE-----\n"


@pytest.mark.parametrize("name", ["ed25519", "rsa", "p256", "p384", "p521"])
def test_good_ones(name: str) -> None:
    verify_ssh(CONTENT, read(f"{name}.sig"), read(f"{name}.pub"))
    with pytest.raises(SignatureError, match="does not fit"):
        verify_ssh(CONTENT + b"x", read(f"{name}.sig"), read(f"{name}.pub"))


def test_the_other_hash() -> None:
    verify_ssh(CONTENT, read("sha256.sig"), KEY)


def test_one_of_several_keys_with_options_and_comments() -> None:
    keys = b'# who may\nnamespaces="git" ' + read("rsa.pub") + b'\nrestrict,from="a b" ' + KEY
    verify_ssh(CONTENT, GOOD, keys)


@pytest.mark.parametrize(
    ("signature", "key", "why"),
    [
        (GOOD, read("rsa.pub"), "public key does not match"),
        (GOOD, b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n", "failed to parse ssh public key"),
        (GOOD, b"", "failed to parse ssh public key"),
        (read("file.sig"), KEY, "unexpected SSH signature namespace: b'file'"),
        (read("short.sig"), read("short.pub"), "RSA key too short: 1024 bits"),
        (b"-----BEGIN SSH SIGNATURE-----\n", KEY, "failed to decode"),
        (armored(b"SSHSIG\0\0\0\2"), KEY, "unsupported SSH signature version: 2"),
        (armored(b"SSHSIG\0\0\0\1\0\0\xff\xff"), KEY, "ends early"),
        (armored(b"GPGSIG"), KEY, "not an SSH signature"),
    ],
    ids="other-key pgp-key no-key namespace short-rsa cut version lengths magic".split(),
)
def test_refused(signature: bytes, key: bytes, why: str) -> None:
    with pytest.raises(SignatureError, match=why) as caught:
        verify_ssh(CONTENT, signature, key)
    assert caught.value.code is Code.SIGNATURE


def test_hardware_tokens() -> None:
    private = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    kind, application = b"sk-ssh-ed25519@openssh.com", b"ssh:"
    point = private.public_key().public_bytes_raw()
    key = string(kind) + string(point) + string(application)
    digest = hashlib.sha512(CONTENT).digest()
    parts = (b"git", b"", b"sha512", digest)
    signed = b"SSHSIG" + b"".join(map(string, parts))
    flags = b"\x01\0\0\0\x07"
    made = private.sign(
        hashlib.sha256(application).digest() + flags + hashlib.sha256(signed).digest()
    )
    blob = string(kind) + string(made) + flags
    body = b"SSHSIG\0\0\0\1" + b"".join(map(string, (key, b"git", b"", b"sha512", blob)))
    line = kind + b" " + base64.b64encode(key) + b" token"
    verify_ssh(CONTENT, armored(body), line)
    with pytest.raises(SignatureError, match="does not fit"):
        verify_ssh(CONTENT, armored(body[:-1] + b"\x08"), line)


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_refused(body: bytes, key: bytes) -> None:
    for signature in (body, armored(body), armored(b"SSHSIG\0\0\0\1" + body)):
        with pytest.raises(SignatureError):
            verify_ssh(CONTENT, signature, key)


def test_no_bit_of_a_signature_can_be_changed() -> None:
    good = base64.b64decode(b"".join(GOOD.splitlines()[1:-1]))
    for bit in range(8 * len(good)):
        raw = bytearray(good)
        raw[bit // 8] ^= 1 << bit % 8
        with pytest.raises(SignatureError):
            verify_ssh(CONTENT, armored(bytes(raw)), KEY)
