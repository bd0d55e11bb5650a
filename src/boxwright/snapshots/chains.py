"""Image chain ids (image-spec, config.md, "Layer ChainID")."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from boxwright.core.digest import Digest

DerivedKind = Literal["merge", "diff"]


def extend_chain(chain_id: str | None, diff_id: Digest) -> str:
    """Return the chain id of a chain with one more layer on top."""
    if chain_id is None:
        return str(diff_id)
    return str(Digest.of(f"{chain_id} {diff_id}".encode()))


def chain_id_of(diff_ids: Iterable[Digest]) -> str | None:
    """Return the chain id of layers from the base up, ``None`` of none."""
    chain: str | None = None
    for diff_id in diff_ids:
        chain = extend_chain(chain, diff_id)
    return chain
