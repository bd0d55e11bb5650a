"""Cache export: the chains of keys, links and results that lead to a result.

A target receives one record per key: the root key of its digest, the records of its inputs
under their selectors, and the blobs of its results. The walk goes inputs first and visits each
key once. Records whose inputs can't all be named are left out: nobody could find them.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from boxwright.core.cacheinfo import RANDOM_PREFIX, root_key
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, InvalidInputError

if TYPE_CHECKING:
    from boxwright.solver.cachekey import CacheKey
    from boxwright.solver.cachemanager import LocalCacheManager
    from boxwright.solver.edge import EdgeNode
    from boxwright.solver.types import CacheRecord, Remote, Result

logger = logging.getLogger(__name__)


class ExportMode(enum.Enum):
    """Which results get blobs that they do not have yet."""

    MIN = "min"
    """The topmost one, and of the rest what already has blobs."""
    MAX = "max"
    """All."""
    REMOTE_ONLY = "remote-only"
    """None: only results that already have blobs."""


@dataclass(frozen=True, slots=True)
class ExportResult:
    """The blobs of one result. ``created_at`` in ns; vertex and index tell where it is from."""

    created_at: int
    remote: Remote
    vertex: str
    index: int


@dataclass(frozen=True, slots=True)
class ExportLink:
    """The record of an input, and the selector under which it leads on."""

    record: object
    selector: str


class CacheExportTarget(Protocol):
    """Something that takes records, such as the writer of a cache manifest."""

    def add(
        self,
        digest: str,
        deps: Sequence[Sequence[ExportLink]],
        results: Sequence[ExportResult],
    ) -> object | None:
        """Take a record and return what stands for it in links; None if it is not wanted."""
        ...


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """How to export.

    Attributes:
        resolve_remotes: Makes blobs for a result, best first.
        mode: Which results get blobs.
        all_variants: Export every compression variant of a result, not only the best.
        export_roots: Whether results of vertices without inputs are exported too.
        ignore_backlinks: Leave out other chains to the same results, from earlier builds.
        context: Handed to :meth:`ResultStorage.load_remotes` (compression, sessions).
    """

    resolve_remotes: Callable[[Result], Awaitable[list[Remote]]]
    mode: ExportMode = ExportMode.MIN
    all_variants: bool = False
    export_roots: bool = False
    ignore_backlinks: bool = False
    context: object = None


class CacheExporter(Protocol):
    """Something that can export the chain of records behind a key."""

    def open_frame(self, options: ExportOptions) -> Frame:
        """Return the state of one visit."""
        ...


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

    def open_frame(self, options: ExportOptions) -> Frame:
        """Return the state of one visit."""
        return _KeyFrame(self, options)


class MergedExporter:
    """Several exporters that act as one."""

    def __init__(self, exporters: Sequence[CacheExporter]) -> None:
        self.exporters = tuple(exporters)

    def open_frame(self, options: ExportOptions) -> Frame:
        """Return the state of one visit."""
        return _MergedFrame(self, options)


@dataclass(slots=True)
class ExportWalk:
    """One export to one target. Visits what several results share only once."""

    target: CacheExportTarget
    done: dict[CacheExporter, list[object]] = field(default_factory=dict)
    backlinks: dict[tuple[object, str], list[object]] = field(default_factory=dict)

    async def export(self, exporter: CacheExporter, options: ExportOptions) -> list[object]:
        """Export all that leads to one key and return its records.

        Raises:
            BoxwrightError: the blobs of the key's own result can't be made. What fails for
                the inputs' results only leaves those out.
        """
        if exporter in self.done:
            return self.done[exporter]
        stack = [await self._enter(exporter, options)]
        while True:
            frame = stack[-1]
            child = frame.next_child()
            if child is None:
                records = frame.finish(self)
                self.done[frame.exporter] = records
                stack.pop()
                if not stack:
                    return records
                stack[-1].accept(records)
            elif child[0] in self.done:
                frame.accept(self.done[child[0]])
            else:
                try:
                    stack.append(await self._enter(*child))
                except BoxwrightError as error:
                    while stack and not stack[-1].can_do_without:
                        stack.pop()
                    if not stack:
                        raise
                    logger.warning("cache export leaves out an input: %s", error)
                    stack[-1].accept([])

    async def _enter(self, exporter: CacheExporter, options: ExportOptions) -> Frame:
        self.done[exporter] = []
        frame = exporter.open_frame(options)
        await frame.prepare()
        return frame

    def add(
        self,
        digest: str,
        deps: Sequence[Sequence[ExportLink]],
        results: Sequence[ExportResult],
    ) -> list[object]:
        """Give a record to the target; keys of one session only are nobody else's business."""
        if digest.startswith(RANDOM_PREFIX):
            return []
        record = self.target.add(digest, deps, results)
        return [] if record is None else [record]

    def add_backlinks(self, manager: LocalCacheManager, start: str) -> list[object]:
        """Export all chains that lead to a key in a storage, and return its records."""
        stack: list[_Backlinks] = []
        if (manager, start) not in self.backlinks:
            stack.append(self._open_backlinks(manager, start))
        while stack:
            top = stack[-1]
            if top.pending:
                key_id, link_digest, index, selector = top.pending.pop()
                if (manager, key_id) not in self.backlinks:
                    top.pending.append((key_id, link_digest, index, selector))
                    stack.append(self._open_backlinks(manager, key_id))
                else:
                    records = self.backlinks[manager, key_id]
                    top.accept(link_digest, index, selector, records)
            else:
                self.backlinks[manager, top.key_id] = self._close_backlinks(top)
                stack.pop()
        return self.backlinks[manager, start]

    def _open_backlinks(self, manager: LocalCacheManager, key_id: str) -> _Backlinks:
        self.backlinks[manager, key_id] = []  # a circle finds nothing
        found = manager.storage.backlinks(key_id)
        pending = [(source, li.digest, li.input, li.selector) for source, li in reversed(found)]
        return _Backlinks(key_id, pending, is_root=not found)

    def _close_backlinks(self, found: _Backlinks) -> list[object]:
        if found.is_root:
            return self.add(found.key_id, (), ()) if _is_digest(found.key_id) else []
        records: list[object] = []
        for digest, deps in found.deps.items():
            if all(deps):
                records.extend(self.add(digest, deps, ()))
        return records


@dataclass(slots=True)
class _Backlinks:
    """The visit of one key on the way up its backlinks."""

    key_id: str
    pending: list[tuple[str, str, int, str]]
    is_root: bool
    deps: dict[str, list[list[ExportLink]]] = field(default_factory=dict)

    def accept(self, digest: str, index: int, selector: str, records: list[object]) -> None:
        deps = self.deps.setdefault(digest, [])
        while len(deps) <= index:
            deps.append([])
        deps[index].extend(ExportLink(record, selector) for record in records)


class Frame(Protocol):
    """One exporter being visited: prepared, fed with its children's records, finished."""

    exporter: CacheExporter
    can_do_without: bool
    """Whether a child that fails is only left out."""

    async def prepare(self) -> None:
        """Find what is to be exported."""
        ...

    def next_child(self) -> tuple[CacheExporter, ExportOptions] | None:
        """Return the next exporter whose records are needed."""
        ...

    def accept(self, records: list[object]) -> None:
        """Take the records of the child that was returned last."""
        ...

    def finish(self, walk: ExportWalk) -> list[object]:
        """Add this exporter's records to the target and return them."""
        ...


class _MergedFrame:
    can_do_without = False

    def __init__(self, exporter: MergedExporter, options: ExportOptions) -> None:
        self.exporter: CacheExporter = exporter
        self._children = list(reversed(exporter.exporters))
        self._options = options
        self._records: list[object] = []

    async def prepare(self) -> None:
        """Nothing of its own to find."""

    def next_child(self) -> tuple[CacheExporter, ExportOptions] | None:
        return (self._children.pop(), self._options) if self._children else None

    def accept(self, records: list[object]) -> None:
        self._records.extend(records)

    def finish(self, walk: ExportWalk) -> list[object]:
        return self._records


class _KeyFrame:
    can_do_without = True

    def __init__(self, exporter: KeyExporter, options: ExportOptions) -> None:
        self.exporter: CacheExporter = exporter
        self._own = exporter
        self._options = options
        self._results: list[ExportResult] = []
        self._used: CacheRecord | None = None
        self._sources: list[list[ExportLink]] = [[] for _ in exporter.key.deps]
        self._children: list[tuple[int, str, CacheExporter, ExportOptions]] = []
        self._current: tuple[int, str] = (0, "")

    async def prepare(self) -> None:
        await self._find_results()
        key, options = self._own.key, self._options
        if self._results and options.mode is ExportMode.MIN:
            options = replace(options, mode=ExportMode.REMOTE_ONLY)
        extra = self._own.node.extra_keys if self._own.node is not None else []
        self._children = [
            (index, dep.selector, dep.exporter, options)
            for index, selected in enumerate(key.deps)
            for dep in selected
        ] + [(index, dep.selector, dep.exporter, options) for index, dep in extra]
        self._children.reverse()

    async def _find_results(self) -> None:
        own = self._own
        wanted = own.override if own.override is not None else True
        if not wanted or not (own.key.deps or self._options.export_roots):
            self._used = own.record
            return
        records = sorted(own.records, key=lambda r: (-r.created_at, -r.priority))
        for record in ([own.record] if own.record is not None else []) + records:
            manager = record.manager
            stored = manager.storage.load(manager.key_id(record.key), record.id)
            if stored is None:
                continue
            self._used = record
            remotes = await manager.results.load_remotes(stored, self._options.context)
            may_make = self._options.mode is not ExportMode.REMOTE_ONLY
            if may_make and (not remotes or self._options.all_variants):
                remotes = [*remotes, *await self._make_remotes(record)]
            chosen = remotes if self._options.all_variants else remotes[:1]
            # The best one last: targets take the last of equals.
            for remote in (*chosen[1:], *chosen[:1]):
                self._results.append(
                    ExportResult(record.created_at, remote, own.key.vertex, own.key.output)
                )
            return

    async def _make_remotes(self, record: CacheRecord) -> list[Remote]:
        try:
            result = await record.manager.load(record)
        except BoxwrightError as error:
            logger.info("cached result %s is not exported: %s", record.id, error)
            return []
        try:
            return await self._options.resolve_remotes(result)
        finally:
            await result.release()

    def next_child(self) -> tuple[CacheExporter, ExportOptions] | None:
        if not self._children:
            return None
        index, selector, exporter, options = self._children.pop()
        self._current = (index, selector)
        return exporter, options

    def accept(self, records: list[object]) -> None:
        index, selector = self._current
        self._sources[index].extend(ExportLink(record, selector) for record in records)

    def finish(self, walk: ExportWalk) -> list[object]:
        key = self._own.key
        if not self._options.ignore_backlinks:
            for manager, key_id in list(key.ids.items()):
                walk.add_backlinks(_as_manager(manager), key_id)
        if not all(self._sources):
            return []
        if not key.deps and self._used is not None:
            self._add_equal_roots(walk, self._used)
        return walk.add(root_key(key.digest, key.output), self._sources, self._results)

    def _add_equal_roots(self, walk: ExportWalk, used: CacheRecord) -> None:
        """A source may have several keys; all of them lead to its result."""
        storage = used.manager.storage
        own_id = used.manager.key_id(used.key)
        for key_id in storage.ids_by_result(used.id):
            if key_id != own_id and _is_digest(key_id) and not storage.backlinks(key_id):
                walk.add(key_id, (), self._results)


def _as_manager(manager: object) -> LocalCacheManager:
    from boxwright.solver.cachemanager import LocalCacheManager

    assert isinstance(manager, LocalCacheManager)
    return manager


def _is_digest(text: str) -> bool:
    try:
        Digest(text)
    except InvalidInputError:
        return False
    return True
