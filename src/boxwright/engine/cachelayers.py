"""Layers of a cache export, made on all cores before the export is written down.

An export visits one record after the other. Visiting all of them once before, only to see which
results will need blobs, lets these be made side by side; the export itself then finds them.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from boxwright.errors import BoxwrightError
from boxwright.fsutil.compress import Compression
from boxwright.ops.result import ref_of
from boxwright.remotecache.snapshotlayers import make_remote
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.exporter import (
    ExportLink,
    ExportMode,
    ExportOptions,
    ExportResult,
    ExportWalk,
)
from boxwright.solver.types import CachedResult, Remote, Result
from boxwright.store.leases import Lease
from boxwright.store.store import Store

_log = logging.getLogger(__name__)

_COMING = Remote((), None)


class _Nowhere:
    """A target that takes every record and keeps none."""

    def add(
        self,
        digest: str,
        deps: Sequence[Sequence[ExportLink]],
        results: Sequence[ExportResult],
    ) -> object | None:
        """Accept a record."""
        return self


async def make_layers(
    results: Sequence[CachedResult],
    store: Store,
    compression: Compression,
    mode: ExportMode,
    lease: Lease,
) -> None:
    """Make the blobs that an export of ``results`` needs and that are not there.

    What can't be made is left to the export, which knows whether that matters.
    """
    limit = asyncio.Semaphore(os.cpu_count() or 1)

    async def make(ref: ImmutableRef) -> None:
        try:
            async with limit:
                await make_remote(ref, store, compression, lease)
        except BoxwrightError as error:
            _log.debug("a layer is left to the cache export: %s", error)

    refs: list[ImmutableRef] = []
    try:
        async with asyncio.TaskGroup() as group:

            async def begin(made: Result) -> list[Remote]:
                ref = ref_of(made)
                if ref is None:
                    return []
                refs.append(ref.clone())
                group.create_task(make(refs[-1]))
                return [_COMING]

            options = ExportOptions(begin, mode, ignore_backlinks=True, context=compression)
            await _visit(results, options)
    finally:
        # Not in the tasks: one that is cancelled at once never gets to run.
        for ref in refs:
            await ref.release()


async def _visit(results: Sequence[CachedResult], options: ExportOptions) -> None:
    walk = ExportWalk(_Nowhere())
    for result in results:
        if result.cache_keys:
            try:
                await walk.export(result.cache_keys[0].exporter, options)
            except BoxwrightError as error:
                _log.debug("a result is left to the cache export: %s", error)
