"""OpenPGP signatures as GnuPG makes them (files made by openpgp/make.sh), and spoilt ones."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.errors import Code
from boxwright.sources.openpgp import read_public_keys, verify_detached
from boxwright.sources.openpgp_packets import SignatureError, packets

DATA = Path(__file__).parent / "openpgp"


def read(name: str) -> bytes:
    return (DATA / name).read_bytes()


CONTENT = read("content")


def opened(data: bytes = CONTENT) -> Callable[[], BinaryIO]:
    return lambda: io.BytesIO(data)


def unarmored(text: bytes) -> bytes:
    lines = text.partition(b"\n\n")[2].splitlines()[:-1]
    return base64.b64decode(b"".join(line for line in lines if not line.startswith(b"=")))


def armored(body: bytes, kind: str = "SIGNATURE") -> bytes:
    text = base64.encodebytes(body).decode()
    return f"-----BEGIN PGP {kind}-----\n\n{text}-----END PGP {kind}-----\n".encode()


@pytest.mark.parametrize("name", ["rsa", "ed", "p256", "p521", "brain", "subkey"])
def test_good_ones(name: str) -> None:
    verify_detached(opened(), read(f"{name}.asc"), read(f"{name}.pub"), reject_expired=True)
    with pytest.raises(SignatureError, match="does not fit the content"):
        verify_detached(opened(CONTENT + b"x"), read(f"{name}.asc"), read(f"{name}.pub"))


def test_another_hash_and_several_keys_in_any_order() -> None:
    keys = read("ed.pub") + b"\nsome text\n" + read("rsa.pub").replace(b"\n", b"\r\n")
    for name in ("rsa", "sha512", "ed"):
        verify_detached(opened(), read(f"{name}.asc"), keys)
    merged = unarmored(read("ed.pub")) + unarmored(read("rsa.pub"))
    verify_detached(opened(), read("rsa.asc"), armored(merged, "PUBLIC KEY BLOCK"))


@pytest.mark.parametrize("piece", [1, 8, 9, 100])
def test_text_signatures_do_not_depend_on_line_ends(piece: int) -> None:
    class Pieces(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(piece)

    for data in (CONTENT, CONTENT.replace(b"\n", b"\r\n")):
        verify_detached(lambda data=data: Pieces(data), read("text.asc"), read("rsa.pub"))
    with pytest.raises(SignatureError):
        verify_detached(opened(CONTENT.replace(b"\n", b" ")), read("text.asc"), read("rsa.pub"))


@pytest.mark.parametrize(
    ("signature", "key", "why"),
    [
        ("rsa", "ed", "by an unknown key.*no key for signing with this id"),
        ("ed", "certonly", "by an unknown key"),
        ("sha1", "rsa", "rejecting weak/unknown hash: 2"),
        ("weak", "weak", "RSA key too short: 1024 bits"),
        ("late", "rsa", "signature creation time is in the future"),
        ("revoked", "revoked", "key revoked"),
    ],
)
def test_refused(signature: str, key: str, why: str) -> None:
    with pytest.raises(SignatureError, match=why) as caught:
        verify_detached(opened(), read(f"{signature}.asc"), read(f"{key}.pub"))
    assert caught.value.code is Code.SIGNATURE


@pytest.mark.parametrize(
    ("signature", "key", "why"),
    [("expired", "expired", "key expired"), ("short", "rsa", "signature expired")],
)
def test_what_has_expired_is_refused_on_request(signature: str, key: str, why: str) -> None:
    texts = read(f"{signature}.asc"), read(f"{key}.pub")
    verify_detached(opened(), *texts)
    with pytest.raises(SignatureError, match=why):
        verify_detached(opened(), *texts, reject_expired=True)


def test_a_revoked_key_is_good_without_its_revocation() -> None:
    parts = list(packets(unarmored(read("revoked.pub"))))
    kept = [part for part in parts if not (part[0] == 2 and part[1][1] == 0x20)]
    assert len(kept) == len(parts) - 1
    verify_detached(opened(), read("revoked.asc"), armored(framed(kept), "PUBLIC KEY BLOCK"))


def framed(parts: list[tuple[int, bytes]]) -> bytes:
    return b"".join(
        bytes([0xC0 | tag, 0xFF]) + len(body).to_bytes(4) + body for tag, body in parts
    )


def test_a_subkey_must_be_bound_by_both_sides() -> None:
    parts = list(packets(unarmored(read("subkey.pub"))))
    numbers = [number for number, (tag, body) in enumerate(parts) if tag == 2 and body[1] == 0x18]
    tag, body = parts[numbers[-1]]
    other = next(body for tag, body in packets(unarmored(read("rsa.pub"))) if tag == 6)
    cases = [
        parts[: numbers[-1]],
        [*parts[:-1], (tag, body[:-1] + bytes([body[-1] ^ 1]))],
        [(6, other), *parts[1:]],
    ]
    for kept in cases:
        key = armored(framed(kept), "PUBLIC KEY BLOCK")
        with pytest.raises(SignatureError):
            verify_detached(opened(), read("subkey.asc"), key)


def test_a_key_for_certification_alone_is_read_but_does_not_sign() -> None:
    (key,) = read_public_keys(read("certonly.pub"))
    assert list(key.signers(key.primary.key_id)) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "no armored data found"),
        (read("rsa.asc"), "expected PGP PUBLIC KEY BLOCK, got PGP SIGNATURE"),
        (read("rsa.pub").replace(b"m", b"!"), "failed to read armored public key"),
        (armored(b"\xc6\x05\x06abcd", "PUBLIC KEY BLOCK"), "version 6 are not supported"),
        (b"ssh-ed25519 AAAA user\n", "failed to read armored public key"),
    ],
    ids="nothing signature not-base64 version-6 ssh".split(),
)
def test_no_public_keys(text: bytes, why: str) -> None:
    with pytest.raises(SignatureError, match=why):
        verify_detached(opened(), read("rsa.asc"), text)


@pytest.mark.parametrize("text", [b"", b"junk", read("rsa.pub"), armored(b""), armored(b"x")])
def test_no_signatures(text: bytes) -> None:
    with pytest.raises(SignatureError):
        verify_detached(opened(), text, read("rsa.pub"))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(body: bytes) -> None:
    for text in (body, armored(body), armored(framed([(2, body)]))):
        with pytest.raises(SignatureError):
            verify_detached(opened(), text, read("rsa.pub"))
        with pytest.raises(SignatureError):
            verify_detached(opened(), read("rsa.asc"), armored(body, "PUBLIC KEY BLOCK"))


def test_no_authenticated_bit_of_a_signature_can_be_changed() -> None:
    good = unarmored(read("ed.asc"))
    _, body = next(packets(good))
    start = len(good) - len(body)
    hashed_end = start + 6 + int.from_bytes(body[4:6])
    proof = hashed_end + 2 + int.from_bytes(good[hashed_end : hashed_end + 2])
    # After the first octets of the hash: two numbers, each with its length in bits.
    second = proof + 4 + (int.from_bytes(good[proof + 2 : proof + 4]) + 7) // 8
    lengths = {proof + 2, proof + 3, second, second + 1}
    places = {*range(start, hashed_end), *range(proof, len(good))} - lengths
    for place in sorted(places):
        for bit in range(8):
            raw = bytearray(good)
            raw[place] ^= 1 << bit
            with pytest.raises(SignatureError):
                verify_detached(opened(), armored(bytes(raw)), read("ed.pub"))
