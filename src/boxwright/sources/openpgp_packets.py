"""OpenPGP armor and packets, as far as public keys and signatures need them (RFC 9580).

Version 4 keys and signatures are read; others are refused by name. Only what is authenticated
(the hashed area) says anything about a signature, but for hints that the check itself proves.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator

from boxwright.core.dataclass import dataclass, field
from boxwright.errors import BoxwrightError, Code

PUBLIC_KEY = "PGP PUBLIC KEY BLOCK"
SIGNATURE = "PGP SIGNATURE"

TAG_SIGNATURE = 2
TAG_PUBLIC_KEY = 6
TAG_USER_ID = 13
TAG_PUBLIC_SUBKEY = 14
TAG_USER_ATTRIBUTE = 17

RSA = frozenset({1, 3})
ECDSA = 19
EDDSA = 22
MAX_BYTES = 1 << 20

_ARMOR = re.compile(
    rb"^-----BEGIN (PGP [A-Z ]+?)-----[ \t]*\r?\n(.*?)^-----END \1-----[ \t]*\r?$",
    re.DOTALL | re.MULTILINE,
)
_MAX_PACKETS = 4096
_MAX_MPI_BITS = 16_384
_FROM_UNHASHED = frozenset({16, 32, 33})
_KNOWN = frozenset({*range(2, 8), 9, 11, 12, 16, *range(20, 36), 37, 39})
_KEY_COMPROMISED = 2


class SignatureError(BoxwrightError):
    """A signature that is missing, malformed, or not by the key that was asked for."""

    code = Code.SIGNATURE


def dearmor(data: bytes, kind: str) -> list[bytes]:
    """Return the bodies of the armored blocks in a text.

    Args:
        data: One or more blocks; text between them is skipped.
        kind: What they have to be.

    Raises:
        SignatureError: there is another block, or a body is not base64.
    """
    if len(data) > MAX_BYTES:
        raise SignatureError("armored data is too large", detail=f"{len(data)} bytes")
    found = []
    for match in _ARMOR.finditer(data):
        name = match[1].decode()
        if name != kind:
            raise SignatureError(f"expected {kind}, got {name}")
        head, _, body = match[2].replace(b"\r\n", b"\n").partition(b"\n\n")
        if not body:  # no empty line: there is no header either
            head, body = b"", head
        lines = [line.strip() for line in body.splitlines()]
        text = b"".join(line for line in lines if not line.startswith(b"="))
        try:
            found.append(base64.b64decode(text, validate=True))
        except binascii.Error as exc:
            raise SignatureError(f"{name} is not base64", detail=str(exc)) from exc
    return found


class _Reader:
    """Bytes, read from the front."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __len__(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > len(self):
            raise SignatureError("OpenPGP data ends early")
        self._at += count
        return self._data[self._at - count : self._at]

    def number(self, count: int) -> int:
        return int.from_bytes(self.take(count))

    def rest(self) -> bytes:
        return self.take(len(self))

    def mpi(self) -> int:
        bits = self.number(2)
        if bits > _MAX_MPI_BITS:
            raise SignatureError("OpenPGP number is too large", detail=f"{bits} bits")
        return self.number((bits + 7) // 8)

    def variable_length(self) -> int | None:
        """Read a length of one, two or five octets; None is a partial one."""
        first = self.number(1)
        if first < 192:
            return first
        if first < 224:
            return ((first - 192) << 8) + self.number(1) + 192
        return self.number(4) if first == 255 else None


def packets(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and body of each packet.

    Raises:
        SignatureError: the framing is broken, or of a kind that only messages have.
    """
    reader = _Reader(data)
    for _ in range(_MAX_PACKETS):
        if not len(reader):
            return
        head = reader.number(1)
        if not head & 0x80:
            raise SignatureError("not an OpenPGP packet")
        length: int | None
        if head & 0x40:
            tag, length = head & 0x3F, reader.variable_length()
        else:
            tag, kind = (head >> 2) & 0x0F, head & 0x03
            length = reader.number(1 << kind) if kind < 3 else None
        if length is None:
            raise SignatureError("OpenPGP packet without a length")
        yield tag, reader.take(length)
    raise SignatureError("too many OpenPGP packets")


@dataclass(frozen=True, slots=True)
class PgpKey:
    """A public key (RFC 9580, 5.5.2), version 4.

    Attributes:
        body: Of its packet, as fingerprints and signatures hash it.
        created_s: When it was made (s since the epoch).
        algorithm: Its number in the registry.
        numbers: ``n, e`` of RSA; the point alone of curves.
        curve: The object identifier's bytes.
    """

    body: bytes = field(repr=False)
    created_s: int
    algorithm: int
    numbers: tuple[int, ...] = field(repr=False)
    curve: bytes = b""

    @classmethod
    def parse(cls, body: bytes) -> PgpKey:
        """Read a packet.

        Raises:
            SignatureError: it is malformed, or not of version 4.
        """
        reader = _Reader(body)
        version = reader.number(1)
        if version != 4:
            raise SignatureError(f"OpenPGP keys of version {version} are not supported")
        created, algorithm = reader.number(4), reader.number(1)
        if algorithm in RSA:
            return cls(body, created, algorithm, (reader.mpi(), reader.mpi()))
        if algorithm in {ECDSA, EDDSA}:
            curve = reader.take(reader.number(1))
            return cls(body, created, algorithm, (reader.mpi(),), curve)
        return cls(body, created, algorithm, ())  # of no use here, as those that encrypt

    @property
    def framed(self) -> bytes:
        """What signatures over the key hash."""
        return b"\x99" + len(self.body).to_bytes(2) + self.body

    @property
    def fingerprint(self) -> bytes:
        """The key's fingerprint."""
        return hashlib.sha1(self.framed, usedforsecurity=False).digest()

    @property
    def key_id(self) -> bytes:
        """The last eight octets of the fingerprint."""
        return self.fingerprint[-8:]


@dataclass(frozen=True, slots=True)
class PgpSignature:
    """A signature packet (RFC 9580, 5.2.3), version 4; times in seconds.

    Attributes:
        kind: The signature type.
        suffix: What is hashed after the data.
        tag: The first two octets of the hash.
        numbers: ``s`` of RSA; ``r, s`` of curves.
        expires_s: How long it holds; 0 for ever. Likewise ``key_expires_s`` of the key.
        issuer: Id of the key that is said to have made it; empty if not said.
        flags: What the key may be used for; None if not said.
        embedded: The subkey's own signature in a binding.
        revocation: Reason code and text.
    """

    kind: int
    algorithm: int
    hash_id: int
    suffix: bytes = field(repr=False)
    tag: bytes
    numbers: tuple[int, ...] = field(repr=False)
    created_s: int
    expires_s: int = 0
    key_expires_s: int = 0
    issuer: bytes = b""
    flags: int | None = None
    is_primary_id: bool = False
    embedded: bytes = field(default=b"", repr=False)
    revocation: tuple[int, str] = (0, "")
    critical_notations: tuple[str, ...] = ()

    @classmethod
    def parse(cls, body: bytes) -> PgpSignature:
        """Read a packet.

        Raises:
            SignatureError: it is malformed, not of version 4, or needs what is not known here.
        """
        reader = _Reader(body)
        version = reader.number(1)
        if version != 4:
            raise SignatureError(f"OpenPGP signatures of version {version} are not supported")
        kind, algorithm, hash_id = reader.number(1), reader.number(1), reader.number(1)
        hashed = reader.take(reader.number(2))
        unhashed = reader.take(reader.number(2))
        tag = reader.take(2)
        numbers: tuple[int, ...] = ()
        if algorithm in RSA:
            numbers = (reader.mpi(),)
        elif algorithm in {ECDSA, EDDSA}:
            numbers = (reader.mpi(), reader.mpi())
        head = body[: 6 + len(hashed)]
        suffix = head + b"\x04\xff" + len(head).to_bytes(4)
        facts = _Facts()
        for number, critical, data in _subpackets(hashed):
            facts.take(number, data, critical=critical)
        for number, _, data in _subpackets(unhashed):
            if number in _FROM_UNHASHED:
                facts.take(number, data, critical=False)
        if facts.created_s is None:
            raise SignatureError("OpenPGP signature without a time of creation")
        return cls(
            kind,
            algorithm,
            hash_id,
            suffix,
            tag,
            numbers,
            facts.created_s,
            facts.expires_s,
            facts.key_expires_s,
            facts.issuer,
            facts.flags,
            facts.is_primary_id,
            facts.embedded,
            facts.revocation,
            tuple(facts.critical_notations),
        )

    @property
    def is_compromise(self) -> bool:
        """Whether it revokes because somebody else has the key."""
        return self.revocation[0] == _KEY_COMPROMISED


def _subpackets(area: bytes) -> Iterator[tuple[int, bool, bytes]]:
    reader = _Reader(area)
    while len(reader):
        first = reader.number(1)
        if first < 192:
            length = first
        elif first < 255:
            length = ((first - 192) << 8) + reader.number(1) + 192
        else:
            length = reader.number(4)
        if not length:
            raise SignatureError("empty OpenPGP subpacket")
        data = reader.take(length)
        yield data[0] & 0x7F, bool(data[0] & 0x80), data[1:]


@dataclass(slots=True)
class _Facts:
    """What the subpackets of a signature say (RFC 9580, 5.2.3.7)."""

    created_s: int | None = None
    expires_s: int = 0
    key_expires_s: int = 0
    issuer: bytes = b""
    flags: int | None = None
    is_primary_id: bool = False
    embedded: bytes = b""
    revocation: tuple[int, str] = (0, "")
    critical_notations: list[str] = field(default_factory=list)

    def take(self, number: int, data: bytes, *, critical: bool) -> None:
        reader = _Reader(data)
        match number:
            case 2:
                self.created_s = reader.number(4)
            case 3:
                self.expires_s = reader.number(4)
            case 9:
                self.key_expires_s = reader.number(4)
            case 16:
                self.issuer = self.issuer or reader.take(8)
            case 20:
                self._note(reader, critical=critical)
            case 25:
                self.is_primary_id = reader.number(1) > 0
            case 27:
                self.flags = data[0] if data else 0
            case 29:
                code = reader.number(1)
                self.revocation = (code, reader.rest().decode("utf-8", "replace"))
            case 32:
                self.embedded = data
            case 33:
                version = reader.number(1)
                if version == 4:
                    self.issuer = reader.take(20)[-8:]
            case _:
                if critical and number not in _KNOWN:
                    raise SignatureError(
                        "OpenPGP signature has a critical part that is not known",
                        detail=f"subpacket {number}",
                    )

    def _note(self, reader: _Reader, *, critical: bool) -> None:
        reader.take(4)
        name_length, _ = reader.number(2), reader.number(2)
        if critical:
            self.critical_notations.append(reader.take(name_length).decode("utf-8", "replace"))
