"""Content digests (OCI image-spec, descriptor.md, "Digests")."""

from __future__ import annotations

import hashlib
import re
from typing import Self

from boxwright.errors import InvalidInputError

_LENGTHS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+\Z")


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

    @property
    def algorithm(self) -> str:
        """The part before the colon."""
        return self.partition(":")[0]

    @property
    def hex(self) -> str:
        """The part after the colon."""
        return self.partition(":")[2]
