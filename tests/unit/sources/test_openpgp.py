"""OpenPGP signatures as GnuPG makes them (files made by openpgp/make.sh), and spoilt ones."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pysequoia import Cert, Profile, Sig, SignatureMode, Tsk, sign
from pysequoia.packet import PacketPile, SignatureType

from boxwright.errors import Code
from boxwright.sources.openpgp import MAX_BYTES, SignatureError, check, verify_detached

DATA = Path(__file__).parent / "openpgp"


def read(name: str) -> bytes:
    return (DATA / name).read_bytes()


CONTENT = read("content")


def unarmored(text: bytes) -> bytes:
    lines = text.partition(b"\n\n")[2].splitlines()[:-1]
    return base64.b64decode(b"".join(line for line in lines if not line.startswith(b"=")))


def armored(body: bytes, kind: str = "SIGNATURE") -> bytes:
    text = base64.encodebytes(body).decode()
    return f"-----BEGIN PGP {kind}-----\n\n{text}-----END PGP {kind}-----\n".encode()


def is_good(
    signature: bytes, keys: bytes, data: bytes | Path = CONTENT, *, reject_expired: bool = False
) -> bool:
    check(data, signature, keys, reject_expired=reject_expired)
    return True


@pytest.mark.parametrize("name", ["rsa", "ed", "p256", "p521", "subkey"])
def test_good_ones(name: str) -> None:
    signature, key = read(f"{name}.asc"), read(f"{name}.pub")
    assert is_good(signature, key, reject_expired=True)
    assert is_good(signature, key, DATA / "content")
    with pytest.raises(SignatureError, match="does not fit the content"):
        is_good(signature, key, CONTENT + b"x")


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    texts = read("rsa.asc"), read("rsa.pub")
    verify_detached(CONTENT, *texts)
    verify_detached(DATA / "content", *texts, reject_expired=True)
    with pytest.raises(SignatureError, match=r"does not fit the content$") as caught:
        verify_detached(DATA / "rsa.pub", *texts)
    assert caught.value.code is Code.SIGNATURE
    with pytest.raises(SignatureError, match="key expired"):
        verify_detached(CONTENT, read("expired.asc"), read("expired.pub"), reject_expired=True)
    with pytest.raises(SignatureError, match="too large"):
        verify_detached(CONTENT, texts[0], bytes(MAX_BYTES + 1))
    with pytest.raises(SignatureError):
        verify_detached(tmp_path / "missing", *texts)


def test_another_hash_and_several_keys_in_any_order() -> None:
    keys = read("ed.pub") + b"\nsome text\n" + read("rsa.pub").replace(b"\n", b"\r\n")
    for name in ("rsa", "sha512", "ed"):
        assert is_good(read(f"{name}.asc"), keys)
    merged = unarmored(read("ed.pub")) + unarmored(read("rsa.pub"))
    assert is_good(read("rsa.asc"), armored(merged, "PUBLIC KEY BLOCK"))


def test_the_first_of_several_signatures_whose_key_is_given_counts() -> None:
    both = armored(unarmored(read("rsa.asc")) + unarmored(read("ed.asc")))
    for name in ("rsa", "ed"):
        assert is_good(both, read(f"{name}.pub"))
    spoilt = armored(unarmored(read("text.asc")) + unarmored(read("ed.asc")))
    with pytest.raises(SignatureError, match="does not fit"):
        is_good(spoilt, read("rsa.pub") + read("ed.pub"), b"other")
    with pytest.raises(SignatureError, match="unknown key"):
        is_good(both, read("p256.pub"))


def test_text_signatures_do_not_depend_on_line_ends() -> None:
    for data in (CONTENT, CONTENT.replace(b"\n", b"\r\n")):
        assert is_good(read("text.asc"), read("rsa.pub"), data)
    with pytest.raises(SignatureError):
        is_good(read("text.asc"), read("rsa.pub"), CONTENT.replace(b"\n", b" "))


@pytest.mark.parametrize(
    ("signature", "key", "why"),
    [
        ("rsa", "ed", "by an unknown key.*no key with this id"),
        ("ed", "certonly", "by an unknown key"),
        ("sha1", "rsa", "rejecting weak/unknown hash: SHA1"),
        ("weak", "weak", "the key is refused: RSA1024 is not considered secure"),
        ("sha1bound", "sha1bound", "the key is refused: SHA1 is not considered secure"),
        ("dsa", "dsa", "rejecting unsupported pubkey algorithm: DSA"),
        ("brain", "brain", "the key is refused"),
        ("late", "rsa", "signature creation time is in the future"),
        ("short", "rsa", "signature expired"),
        ("revoked", "revoked", "key revoked"),
    ],
)
def test_refused(signature: str, key: str, why: str) -> None:
    with pytest.raises(SignatureError, match=why):
        is_good(read(f"{signature}.asc"), read(f"{key}.pub"))


@pytest.mark.parametrize(
    ("name", "why"),
    [("expired", "key expired"), ("subexpired", "key expired"), ("subrevoked", "key revoked")],
)
def test_keys_that_are_no_longer_good_are_refused_on_request(name: str, why: str) -> None:
    texts = read(f"{name}.asc"), read(f"{name}.pub")
    assert is_good(*texts)
    with pytest.raises(SignatureError, match=why):
        is_good(*texts, reject_expired=True)


def test_a_subkey_must_be_bound_by_both_sides() -> None:
    raw = unarmored(read("subkey.pub"))
    other = unarmored(read("rsa.pub"))
    primary = raw[: 3 + int.from_bytes(raw[1:3])]
    spoilt = bytearray(raw)
    spoilt[-1] ^= 1
    for key in (bytes(spoilt), other[: 3 + int.from_bytes(other[1:3])] + raw[len(primary) :]):
        with pytest.raises(SignatureError):
            is_good(read("subkey.asc"), armored(key, "PUBLIC KEY BLOCK"))


def test_version_6_and_a_key_that_is_given_twice() -> None:
    key = Tsk.generate("six <six@example.com>", profile=Profile.RFC9580)
    signature = sign(key.signer(), CONTENT, mode=SignatureMode.DETACHED)
    assert Sig.from_bytes(signature).version == 6
    cert = str(Cert.from_bytes(bytes(key))).encode()
    assert is_good(signature, cert + cert, reject_expired=True)
    revoked = read("revoked.pub")
    with pytest.raises(SignatureError, match="key revoked"):
        is_good(read("revoked.asc"), without_revocation(revoked) + revoked)
    assert is_good(read("revoked.asc"), without_revocation(revoked))


def without_revocation(key: bytes) -> bytes:
    packets = list(PacketPile.from_bytes(key))
    kept = [p for p in packets if p.signature_type != SignatureType.KeyRevocation]
    assert len(kept) == len(packets) - 1
    return str(Cert.from_packets(kept)).encode()


def test_packed_packets_can_not_fill_the_memory() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    begin = packer.compress(b"\xcb\xff" + (6 + (700 << 20)).to_bytes(4) + b"b" + bytes(5))
    begin += packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    body = b"\x01" + begin + 700 * piece + packer.flush()
    packed = b"\xc8\xff" + len(body).to_bytes(4) + body
    with pytest.raises(SignatureError, match="could not be checked"):
        verify_detached(CONTENT, armored(packed), read("rsa.pub"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no armored data found"),
        (read("rsa.asc"), "failed to read armored public key"),
        (read("rsa.pub").replace(b"m", b"!"), "failed to read armored public key"),
        (b"ssh-ed25519 AAAA user\n", "failed to read armored public key"),
    ],
    ids="nothing signature not-base64 ssh".split(),
)
def test_no_public_keys(text: bytes, why: str) -> None:
    with pytest.raises(SignatureError, match=why):
        is_good(read("rsa.asc"), text)


@pytest.mark.parametrize("text", [b"", b"junk", read("rsa.pub"), armored(b""), armored(b"x")])
def test_no_signatures(text: bytes) -> None:
    with pytest.raises(SignatureError):
        is_good(text, read("rsa.pub"))


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(body: bytes) -> None:
    for text in (body, armored(body)):
        with pytest.raises(SignatureError):
            is_good(text, read("rsa.pub"))
    with pytest.raises(SignatureError):
        is_good(read("rsa.asc"), armored(body, "PUBLIC KEY BLOCK"))
