"""From the pure key description of an op to what the solver asks: digests of real content."""

from __future__ import annotations

from boxwright.ops.cachemap import CacheMapSpec, DepSpec, Selector, content_key
from boxwright.ops.result import ref_of
from boxwright.snapshots.contenthash import checksum
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.types import CacheMap, CacheMapDep, JobContext, Result


def to_cache_map(spec: CacheMapSpec) -> CacheMap:
    """Return the solver's cache map for ``spec``."""
    return CacheMap(spec.digest, tuple(_dep(dep) for dep in spec.deps))


def _dep(dep: DepSpec) -> CacheMapDep:
    return CacheMapDep(
        selector=dep.selector,
        compute=_ContentKey(dep.content) if dep.content is not None else None,
        preprocess=_extract if dep.preprocess else None,
    )


async def _extract(result: Result, _context: JobContext) -> None:
    """Have an input's layers on the disk before the op that reads them runs."""
    ref = ref_of(result)
    if ref is not None:
        await ref.extract()


class _ContentKey:
    """Computes the content key of one input."""

    __slots__ = ("_selectors",)

    def __init__(self, selectors: tuple[Selector, ...]) -> None:
        self._selectors = selectors

    async def __call__(self, result: Result, _context: JobContext) -> str:
        ref = ref_of(result)
        return content_key([await _digest(ref, each) for each in self._selectors])


async def _digest(ref: ImmutableRef | None, selector: Selector) -> str:
    return await checksum(
        ref,
        selector.path,
        wildcard=selector.wildcard,
        follow_links=selector.follow_links,
        include=selector.include,
        exclude=selector.exclude,
        required=selector.required,
    )
