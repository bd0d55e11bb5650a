"""Layers of an export, of an image or a cache, made while later steps of the build still run.

When a build's frontend has said what the result will be, the steps whose trees become its layers
are known, and so is the form in which the outputs want them. As soon as such a step is done, its
layer is compressed and hashed into the store, one at a time in the whole engine and with low
priority. The export then finds it. Nothing leaves the machine here, and nothing depends on
it: what fails or is not ready in time is made by the export as if this did not exist.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.engine.results import FrontendResult
from boxwright.errors import BoxwrightError
from boxwright.exporters.base import Exporter, ExportSource
from boxwright.llb.graph import Edge
from boxwright.ops.layerchain import layer_edges
from boxwright.remotecache.attributes import CacheExport, Place
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.exporter import ExportMode
from boxwright.solver.types import Result
from boxwright.store import Store

if TYPE_CHECKING:
    from boxwright.snapshots.layers import LayerForm

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Order:
    ref: ImmutableRef
    form: LayerForm


class EarlyLayers:
    """The early layers of one build; :meth:`close` before the build's results are released.

    Args:
        store: where blobs go.
        slots: shared by all builds of an engine.
        exporters: the outputs of the build.
        caches: its cache exports.
    """

    def __init__(
        self,
        store: Store,
        slots: asyncio.Semaphore,
        exporters: Sequence[Exporter],
        caches: Sequence[CacheExport] = (),
    ) -> None:
        self._store = store
        self._slots = slots
        self._exporters = exporters
        self._caches = [cache for cache in caches if cache.place is not Place.INLINE]
        # by digest and output: another build may have brought its own vertex for the same step
        self._forms: dict[tuple[Digest, int], list[LayerForm]] = {}
        self._orders: deque[_Order] = deque()
        self._task: asyncio.Task[None] | None = None
        self._open = True
        self._hurry = threading.Event()

    def expect(self, result: FrontendResult) -> None:
        """Note what the export of ``result`` will need; its steps need not have run."""
        refs = {"": result.ref} if result.refs is None else result.refs
        source = ExportSource(
            refs=dict.fromkeys(result.refs or ()), metadata=dict(result.metadata)
        )
        for exporter in self._exporters:
            try:
                forms = exporter.layer_forms(source)
            except BoxwrightError as error:  # the export will say so, when the steps have run
                _log.debug("no early layers for %s: %s", exporter.name, error)
                continue
            for key, form in forms.items():
                lazy = refs.get(key)
                if lazy is not None:
                    self._expect(layer_edges(lazy.edge), form)
        if self._caches:
            self._expect_caches([lazy.edge for lazy in refs.values() if lazy is not None])

    def _expect_caches(self, roots: Sequence[Edge]) -> None:
        from boxwright.snapshots.layers import LayerForm

        for cache in self._caches:
            find = _step_edges if cache.mode is ExportMode.MAX else layer_edges
            for root in roots:
                self._expect(find(root), LayerForm(cache.compression))

    def _expect(self, edges: Iterable[Edge], form: LayerForm) -> None:
        for edge in edges:
            known = self._forms.setdefault((edge.vertex.digest, edge.index), [])
            if form not in known:
                known.append(form)

    def completed(self, edge: Edge, result: Result) -> None:
        """Take notice of a step's result (:data:`boxwright.solver.types.Watch`)."""
        ref = result.value
        if not self._open or not isinstance(ref, ImmutableRef):
            return
        for form in self._forms.get((edge.vertex.digest, edge.index), ()):
            self._orders.append(_Order(ref.clone(), form))
        if self._orders and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run(), name="early layers")

    async def _run(self) -> None:
        while self._orders:
            async with self._slots:
                if self._orders:
                    await self._make(self._orders.popleft())
        self._task = None

    async def _make(self, order: _Order) -> None:
        # Not at start: it loads the compressors.
        from boxwright.snapshots.layers import ensure_blobs

        try:
            await ensure_blobs(
                order.ref,
                store=self._store,
                compression=order.form.compression,
                epoch_s=order.form.epoch_s,
                keep_diff_ids=order.form.keep_diff_ids,
                lazy=True,
                hurry=self._hurry,
            )
        except Exception as error:  # noqa: BLE001 - the export tries again, and reports
            _log.info("an early layer was not made: %s", error)
        finally:
            await order.ref.release()

    async def finish(self) -> None:
        """Begin nothing more: the export makes what is left. What runs is no longer held back."""
        self._open = False
        self._hurry.set()
        await self._drop()

    async def close(self) -> None:
        """End what still runs and wait for that."""
        await self.finish()
        task = self._task
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _drop(self) -> None:
        while self._orders:
            await self._orders.popleft().ref.release()


def _step_edges(root: Edge) -> set[Edge]:
    """Return ``root`` and all edges below it but sources: what a cache has results of."""
    found: set[Edge] = set()
    pending = [root]
    while pending:
        edge = pending.pop()
        if edge not in found and edge.vertex.inputs:
            found.add(edge)
            pending += edge.vertex.inputs
    return found
