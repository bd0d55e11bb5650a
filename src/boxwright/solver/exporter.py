"""Cache export: the chains of keys, links and results that lead to a result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from boxwright.solver.cachekey import CacheKey
    from boxwright.solver.edge import EdgeNode
    from boxwright.solver.types import CacheRecord


class CacheExporter(Protocol):
    """Something that can export the chain of records behind a key."""


class KeyExporter:
    """Exports one key with its results, after the keys of its inputs."""

    def __init__(
        self,
        key: CacheKey,
        *,
        record: CacheRecord | None = None,
        records: Sequence[CacheRecord] = (),
        override: bool | None = None,
        node: EdgeNode | None = None,
    ) -> None:
        self.key = key
        self.record = record
        self.records = tuple(records)
        self.override = override
        self.node = node


class MergedExporter:
    """Several exporters that act as one."""

    def __init__(self, exporters: Sequence[CacheExporter]) -> None:
        self.exporters = tuple(exporters)
