"""Content digests (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import Self

from boxwright.errors import InvalidInputError

CANONICAL = "sha256"
_LENGTHS = {CANONICAL: 64, "sha384": 96, "sha512": 128}
ALGORITHMS = tuple(_LENGTHS)
_HEX = re.compile(r"[0-9a-f]+\Z")


def new_hash(algorithm: str) -> hashlib._Hash:
    """Begin a hash.

    Raises:
        InvalidInputError: digests can't be of this algorithm.
    """
    if algorithm not in _LENGTHS:
        raise InvalidInputError("unsupported digest algorithm", detail=repr(algorithm[:200]))
    return hashlib.new(algorithm)


class Digest(str):
    """A validated ``algorithm:hex`` string; compares and hashes as the string it is."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Validate ``text``.

        Raises:
            InvalidInputError: the algorithm is unknown or the hex part malformed.
        """
        algorithm, _, hexpart = text.partition(":")
        if _LENGTHS.get(algorithm) != len(hexpart) or not _HEX.match(hexpart):
            raise InvalidInputError("invalid digest", detail=repr(text[:200]))
        return super().__new__(cls, text)

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Self:
        """Return the sha256 digest of ``data``."""
        return cls.from_hex(hashlib.sha256(data).hexdigest())

    @classmethod
    def from_hex(cls, hexpart: str) -> Self:
        """Wrap a trusted sha256 hex string without validating it again."""
        return super().__new__(cls, "sha256:" + hexpart)

    @classmethod
    def of_hash(cls, algorithm: str, hexpart: str) -> Self:
        """Wrap what a hash of a known algorithm found without validating it again."""
        return super().__new__(cls, f"{algorithm}:{hexpart}")

    def matches(self, data: bytes | bytearray | memoryview) -> bool:
        """Return whether ``data`` has this digest, by the digest's own algorithm."""
        return hashlib.new(self.algorithm, data).hexdigest() == self.hex

    @property
    def algorithm(self) -> str:
        """The part before the colon."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The part after the colon."""
        return self.partition(":")[2]
