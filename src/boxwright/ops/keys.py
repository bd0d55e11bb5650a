"""From the pure key description of an op to what the solver asks: digests of real content."""

from __future__ import annotations

from boxwright.ops.cachemap import CacheMapSpec, DepSpec, Selector, content_key
from boxwright.ops.result import ref_of
from boxwright.snapshots.contenthash import Selection, checksum, content_hashes
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.types import CacheMap, CacheMapDep, JobContext, Result


def to_cache_map(spec: CacheMapSpec) -> CacheMap:
    """Return the solver's cache map for ``spec``."""
    return CacheMap(spec.digest, tuple(_dep(dep) for dep in spec.deps))


def _dep(dep: DepSpec) -> CacheMapDep:
    return CacheMapDep(
        selector=dep.selector,
        compute=ContentKey(dep.content) if dep.content is not None else None,
        preprocess=_extract if dep.preprocess else None,
    )


async def _extract(result: Result, _context: JobContext) -> None:
    """Have an input's layers on the disk before the op that reads them runs."""
    ref = ref_of(result)
    if ref is not None:
        await ref.extract()


class ContentKey:
    """Computes the content key of one input, from what its selectors take of it."""

    __slots__ = ("selectors",)

    def __init__(self, selectors: tuple[Selector, ...]) -> None:
        self.selectors = selectors

    async def __call__(self, result: Result, _context: JobContext) -> str:
        """Return the content key of ``result``."""
        ref = ref_of(result)
        return content_key([await _digest(ref, each) for each in self.selectors])


async def _digest(ref: ImmutableRef | None, selector: Selector) -> str:
    if ref is None:
        return await checksum(None, selector.path)
    return await content_hashes(ref.manager).checksum(ref, selector.path, selection_of(selector))


def selection_of(selector: Selector) -> Selection:
    """Return a selector in the words of the content digests."""
    return Selection(
        selector.follow_links,
        selector.wildcard,
        selector.include,
        selector.exclude,
        selector.required,
    )
