"""What cache metadata is made of: results of a key and links between keys.

The solver computes these values and a store keeps them; both speak them, so they live here.
Digests are plain strings: besides ``sha256:…`` there are ``random:…`` ones, which mark keys
that mean nothing outside one session (a local context) and are never exported.
"""

from __future__ import annotations

from typing import NamedTuple

from boxwright.core.digest import Digest

RANDOM_PREFIX = "random:"


class CacheInfoLink(NamedTuple):
    """The condition under which one key leads to another.

    From a key of input ``input``, narrowed by ``selector``, the op with cache-map digest
    ``digest`` makes the target key for its output ``output``.
    """

    input: int
    output: int
    digest: str
    selector: str = ""


class CacheResult(NamedTuple):
    """A result stored under a key: its id and when it was made, in ns since the epoch."""

    id: str
    created_at: int


def root_key(digest: str, output: int) -> str:
    """Return the id of the key of an op without inputs (BuildKit: ``rootKey``)."""
    if digest.startswith(RANDOM_PREFIX):
        return digest
    return Digest.of(f"{digest}@{output}".encode())
