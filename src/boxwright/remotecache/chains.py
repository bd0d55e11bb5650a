"""The graph of records behind a cache config: built by an export or by reading a document.

Records are nodes; a link leads from the record of an input, under a selector, to the record of
the op that takes it as its ``index``-th input. A record that another one stands for already
(reached by the same links from all inputs) is the same record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import NamedTuple, Protocol, runtime_checkable

from boxwright.core.cacheinfo import RANDOM_PREFIX
from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.oci import mediatypes
from boxwright.remotecache.format import (
    CacheConfig,
    CacheFormatError,
    CacheInput,
    CacheLayer,
    CacheRecord,
    CacheResult,
    sort_config,
)
from boxwright.solver.exporter import ExportLink, ExportResult
from boxwright.solver.types import Remote


@runtime_checkable
class BlobProvider(Protocol):
    """Delivers the blobs of a :class:`~boxwright.solver.types.Remote`."""

    async def ensure(self, descriptor: Descriptor) -> None:
        """Have the blob in the store.

        Raises:
            BoxwrightError: it can't be had any more.
        """
        ...

    def origin(self, descriptor: Descriptor) -> Mapping[str, str]:
        """Return the labels that the blob gets in the store: which repositories have it."""
        ...


@runtime_checkable
class BlobLookup(Protocol):
    """A provider that can tell what it has."""

    async def is_there(self, descriptor: Descriptor) -> bool:
        """Return whether a blob is here or can be had, without fetching it."""
        ...


class Link(NamedTuple):
    """How an item leads to its children."""

    selector: str
    input: int
    digest: str


class Parent(NamedTuple):
    """An item that leads here, and under which selector."""

    item: Item
    selector: str


@dataclass(eq=False, slots=True)
class Item:
    """One record of the graph."""

    digest: str
    children: dict[Link, dict[Item, None]] = field(default_factory=dict)
    parents: list[dict[Parent, None]] = field(default_factory=list)
    results: list[ExportResult] = field(default_factory=list)

    def add_child(self, child: Item, index: int, selector: str) -> None:
        """Make this item lead to ``child`` as its ``index``-th input."""
        self.children.setdefault(Link(selector, index, child.digest), {})[child] = None
        while len(child.parents) <= index:
            child.parents.append({})
        child.parents[index][Parent(self, selector)] = None

    def add_result(self, result: ExportResult) -> None:
        """Add a result unless it has the same layers of the same time already."""
        digests = [d.digest for d in result.remote.descriptors]
        for known in self.results:
            same = [d.digest for d in known.remote.descriptors] == digests
            if same and known.created_at == result.created_at:
                return
        self.results.append(result)

    def best_result(self, lost: AbstractSet[Digest] = frozenset()) -> ExportResult | None:
        """Return the newest result without lost layers; of equals the one added last."""
        best: ExportResult | None = None
        for result in self.results:
            if lost and any(d.digest in lost for d in result.remote.descriptors):
                continue
            if best is None or result.created_at >= best.created_at:
                best = result
        return best

    def descendants(self) -> set[Item]:
        """Return this item and all that it leads to."""
        found = {self}
        pending = [self]
        while pending:
            for group in pending.pop().children.values():
                fresh = [item for item in group if item not in found]
                found.update(fresh)
                pending.extend(fresh)
        return found

    def ancestors(self) -> Iterator[Item]:
        """Yield this item and all that lead to it, each once."""
        found = {self}
        pending = [self]
        while pending:
            item = pending.pop()
            yield item
            for group in item.parents:
                for parent in group:
                    if parent.item not in found:
                        found.add(parent.item)
                        pending.append(parent.item)


@dataclass(slots=True)
class Blob:
    """A layer of the document and what delivers it; None: the store has it."""

    descriptor: Descriptor
    provider: BlobProvider | None


class CacheChains:
    """A graph of records (:class:`~boxwright.solver.exporter.CacheExportTarget`)."""

    def __init__(self) -> None:
        self._roots: dict[str, Item] = {}

    def __bool__(self) -> bool:
        """Return whether there is any record."""
        return bool(self._roots)

    def add(
        self,
        digest: str,
        deps: Sequence[Sequence[ExportLink]],
        results: Sequence[ExportResult],
    ) -> Item | None:
        """Take a record; keys of one session only are refused with None.

        Raises:
            CacheFormatError: an input has no record.
        """
        if digest.startswith(RANDOM_PREFIX):
            return None
        if not deps:
            item = self._roots.setdefault(digest, Item(digest))
        else:
            item = self._place(digest, deps)
        for result in results:
            item.add_result(result)
        return item

    def _place(self, digest: str, deps: Sequence[Sequence[ExportLink]]) -> Item:
        sources: list[list[tuple[Item, str]]] = []
        for links in deps:
            if not links:
                raise CacheFormatError("a cache record has an empty input", detail=digest)
            sources.append([(_item(link.record), link.selector) for link in links])
        matches = _matches(digest, sources)
        if not matches:
            item, below = Item(digest), set[Item]()
        else:
            item, *others = matches
            for other in others:
                _merge(other, item)
            below = item.descendants()
        for index, found in enumerate(sources):
            for source, selector in found:
                if source not in below:  # a link from below would close a circle
                    source.add_child(item, index, selector)
        return item

    def items(self) -> list[Item]:
        """Return all records, each after all that lead to it."""
        order: list[Item] = []
        state: dict[Item, bool] = {}
        for root in self._all():
            stack = [root]
            while stack:
                item = stack[-1]
                if state.get(item):
                    stack.pop()
                    continue
                waiting = [p.item for group in item.parents for p in group if p.item not in state]
                if waiting and item not in state:
                    state[item] = False
                    stack.extend(waiting)
                else:
                    state[item] = True
                    order.append(item)
                    stack.pop()
        return order

    def _all(self) -> list[Item]:
        found: dict[Item, None] = {}
        pending = list(self._roots.values())
        while pending:
            item = pending.pop()
            if item not in found:
                found[item] = None
                pending.extend(child for group in item.children.values() for child in group)
        return list(found)

    def marshal(
        self, lost: AbstractSet[Digest] = frozenset()
    ) -> tuple[CacheConfig, dict[Digest, Blob]]:
        """Return the document and the blobs of its layers.

        Of each record the newest result is kept. Media types of layers are OCI's.

        Args:
            lost: layers that can't be had: results with one of them are left out.
        """
        layers = _Layers()
        numbers: dict[Item, int] = {}
        records: list[CacheRecord] = []
        for item in self.items():
            inputs = tuple(
                tuple(
                    CacheInput(numbers[parent.item], parent.selector)
                    for parent in group
                    if parent.item in numbers
                )
                for group in item.parents
            )
            best = item.best_result(lost)
            layer = layers.add(best.remote) if best is not None else None
            results = (CacheResult(layer, best.created_at),) if best and layer is not None else ()
            numbers[item] = len(records)
            records.append(CacheRecord(item.digest, inputs, results))
        return sort_config(CacheConfig(layers.layers, records)), layers.blobs


class _Layers:
    """The layers of a document, each chain once."""

    def __init__(self) -> None:
        self.layers: list[CacheLayer] = []
        self.blobs: dict[Digest, Blob] = {}
        self._known: dict[tuple[int, Digest], int] = {}

    def add(self, remote: Remote) -> int | None:
        """Return the index of the top layer; None for a result without layers."""
        parent = -1
        provider = remote.provider if isinstance(remote.provider, BlobProvider) else None
        for descriptor in remote.descriptors:
            self.blobs.setdefault(descriptor.digest, Blob(_as_oci(descriptor), provider))
            key = (parent, descriptor.digest)
            if key not in self._known:
                self._known[key] = len(self.layers)
                self.layers.append(CacheLayer(descriptor.digest, parent))
            parent = self._known[key]
        return parent if remote.descriptors else None


def _as_oci(descriptor: Descriptor) -> Descriptor:
    media_type = mediatypes.convert_layer(descriptor.media_type, oci=True)
    return Descriptor(media_type, descriptor.digest, descriptor.size, descriptor.annotations)


def _item(record: object) -> Item:
    if not isinstance(record, Item):
        raise CacheFormatError("a cache record links to something else", detail=repr(record)[:80])
    return record


def _matches(digest: str, sources: Sequence[Sequence[tuple[Item, str]]]) -> list[Item]:
    """Return the items that every input leads to already."""
    common: dict[Item, None] | None = None
    for index, found in enumerate(sources):
        reached: dict[Item, None] = {}
        for source, selector in found:
            reached.update(source.children.get(Link(selector, index, digest), {}))
        common = reached if common is None else {i: None for i in common if i in reached}
        if not common:
            return []
    return list(common or ())


def _merge(other: Item, main: Item) -> None:
    """Let ``main`` stand for ``other`` too."""
    for link, group in other.children.items():
        main.children.setdefault(link, {}).update(group)
        for child in group:
            parents = child.parents[link.input]
            parents.pop(Parent(other, link.selector), None)
            parents[Parent(main, link.selector)] = None
    for result in other.results:
        main.add_result(result)
    for index, parents in enumerate(other.parents):
        for parent, selector in parents:
            children = parent.children.get(Link(selector, index, other.digest), {})
            children.pop(other, None)
            parent.add_child(main, index, selector)


def build_chains(config: CacheConfig, blobs: Mapping[Digest, Blob]) -> CacheChains:
    """Return the graph of a document; results whose layers are not in ``blobs`` are left out.

    Raises:
        CacheFormatError: indexes lead nowhere or in a circle.
    """
    chains = CacheChains()
    made: dict[int, Item | None] = {}
    for number in _in_order(config.records):
        record = config.records[number]
        deps = []
        for inputs in record.inputs:
            found = [(made[i.link], i.selector) for i in inputs]
            deps.append([ExportLink(item, sel) for item, sel in found if item is not None])
        if not all(deps):
            made[number] = None  # stands on a key of one session
            continue
        made[number] = chains.add(record.digest, deps, list(_results(config, record, blobs)))
    return chains


def _in_order(records: Sequence[CacheRecord]) -> Iterator[int]:
    """Yield the records' numbers, each after those of its inputs."""
    state: dict[int, bool] = {}
    for start in range(len(records)):
        stack = [start]
        while stack:
            number = stack[-1]
            if state.get(number):
                stack.pop()
                continue
            fresh = number not in state
            state[number] = False
            waiting = [
                i.link
                for inputs in records[number].inputs
                for i in inputs
                if not state.get(_checked(i.link, len(records)), False)
            ]
            if waiting and not fresh:
                raise CacheFormatError("cache records lead in a circle", detail=str(number))
            if waiting:
                if any(link in state for link in waiting):
                    raise CacheFormatError("cache records lead in a circle", detail=str(number))
                stack.extend(dict.fromkeys(waiting))
                continue
            state[number] = True
            stack.pop()
            yield number


def _checked(index: int, count: int) -> int:
    if not 0 <= index < count:
        raise CacheFormatError("the cache config has a bad index", detail=f"{index} of {count}")
    return index


def _results(
    config: CacheConfig, record: CacheRecord, blobs: Mapping[Digest, Blob]
) -> Iterator[ExportResult]:
    for result in record.results:
        numbers: list[int] = []
        current = result.layer
        while current != -1:
            if current in numbers or len(numbers) > len(config.layers):
                raise CacheFormatError("cache layers lead in a circle", detail=str(current))
            numbers.append(current)
            current = config.layers[_checked(current, len(config.layers))].parent
        found = _remote(config, reversed(numbers), blobs)
        if found is not None:
            yield ExportResult(result.created_ns, found, "", 0)
    for chain in record.chains:
        found = _remote(config, chain.layers, blobs)
        if found is not None:
            yield ExportResult(chain.created_ns, found, "", 0)


def _remote(
    config: CacheConfig, numbers: Iterable[int], blobs: Mapping[Digest, Blob]
) -> Remote | None:
    found = []
    for number in numbers:
        blob = blobs.get(config.layers[_checked(number, len(config.layers))].blob)
        if blob is None:
            return None
        found.append(blob)
    if not found:
        return None
    return Remote(tuple(blob.descriptor for blob in found), found[0].provider)
