"""Cache keys: a cache-map digest, an output, and the keys of the inputs.

A key without inputs is named by its root key, the same on every machine. A key with inputs
has no name of its own: each storage gives it one and finds it again by following the links
from its inputs' keys. That is how a hit on a content key reaches the definition keys too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from boxwright.core.cacheinfo import root_key
from boxwright.core.dataclass import dataclass

if TYPE_CHECKING:
    from boxwright.solver.exporter import CacheExporter


class CacheKey:
    """One key of one output. Compared by identity; storages compare it by links."""

    __slots__ = ("deps", "digest", "id", "ids", "index_ids", "output", "vertex")

    def __init__(
        self,
        digest: str,
        output: int,
        *,
        vertex: str = "",
        key_id: str = "",
        deps: list[list[SelectedKey]] | None = None,
    ) -> None:
        self.digest = digest
        self.output = output
        self.vertex = vertex
        self.id = key_id or root_key(digest, output)
        self.deps: list[list[SelectedKey]] = deps if deps is not None else []
        self.ids: dict[object, str] = {}
        """The id that each cache manager knows this key by."""
        self.index_ids: list[str] = []
        """Where the index of running edges has it."""

    def clone(self) -> CacheKey:
        """Return the key without its inputs, known to the same storages."""
        key = CacheKey(self.digest, self.output, vertex=self.vertex, key_id=self.id)
        key.ids = dict(self.ids)
        return key

    def __repr__(self) -> str:
        """Return enough to tell two keys apart in a log."""
        return f"CacheKey({self.id[:19]}, {self.digest[:19]}@{self.output}, {len(self.deps)})"


@dataclass(frozen=True, slots=True, eq=False)
class ExportableKey:
    """A key and what can export the chain of records that leads to it."""

    key: CacheKey
    exporter: CacheExporter


@dataclass(frozen=True, slots=True, eq=False)
class SelectedKey:
    """A key of an input, narrowed by a selector digest (empty: the whole input)."""

    key: CacheKey
    exporter: CacheExporter
    selector: str = ""


def select(keys: list[ExportableKey], selector: str) -> list[SelectedKey]:
    """Narrow every key by the same selector."""
    return [SelectedKey(k.key, k.exporter, selector) for k in keys]
