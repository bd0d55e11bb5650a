"""Push an image with everything it refers to, then prove that it can be pulled.

Order: blobs (several at a time, mounted from another repository of the same registry where the
store knows one), then manifests, then the root under its tag, so that a tag never points at
something incomplete. Afterwards every manifest is fetched back by digest and every blob asked
for through the endpoint that pullers use; only then is the push a success.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from boxwright.core.clock import Clock
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.core.workers import to_worker
from boxwright.engine.parallel import gather_or_cancel
from boxwright.engine.verify import ImageGraph, verify_push
from boxwright.errors import InvalidInputError, named
from boxwright.oci.manifest import Index, Manifest
from boxwright.oci.mediatypes import is_index
from boxwright.progress.step import StepProgress
from boxwright.sources.registry import SOURCE_LABEL, Clients, origin_labels
from boxwright.store.store import Store

if TYPE_CHECKING:
    from boxwright.registry.client import RegistryClient
    from boxwright.snapshots.layerblobs import SnapshotBlobs

_PARALLEL_BLOBS = 4
_CHUNK_BYTES = 1 << 20


class Pusher:
    """Pushes from the store on behalf of the sessions of one build (``PushTarget``)."""

    def __init__(
        self, store: Store, clients: Clients, session_ids: Sequence[str], clock: Clock
    ) -> None:
        self._store = store
        self._clients = clients
        self._session_ids = tuple(session_ids)
        self._clock = clock

    async def push(
        self,
        name: str,
        descriptor: Descriptor,
        *,
        insecure: bool,
        by_digest: bool,
        step: StepProgress,
        absent: SnapshotBlobs | None = None,
    ) -> None:
        """Push and verify ``descriptor`` under ``name``.

        Raises:
            RegistryError: by cause.
            PushVerificationError: what was pushed can't be pulled.
        """
        with named(f"failed to push {name}"):
            ref = Reference.parse(name)
            if by_digest and (ref.tag or ref.digest):
                raise InvalidInputError(f"can't push tagged ref {ref} by digest")
            if not by_digest:
                ref = ref.with_default_tag()
            allow_insecure = True if insecure else None
            graph = await to_worker(self._read_graph, descriptor)
            async with self._clients(self._session_ids) as client:
                with step.part("pushing layers"):
                    await self._push_blobs(client, ref, graph, allow_insecure, step, absent)
                label = f"pushing manifest for {ref.familiar}@{descriptor.digest}"
                with step.part(label):
                    for manifest in graph.manifests:
                        body = await to_worker(self._store.blobs.read, manifest.digest)
                        is_root = manifest.digest == descriptor.digest
                        await client.push_manifest(
                            ref,
                            manifest.media_type,
                            body,
                            insecure=allow_insecure,
                            by_digest=by_digest or not is_root,
                            digest=manifest.digest,
                        )
                with step.part("verifying that it can be pulled"):
                    await verify_push(
                        client,
                        ref,
                        descriptor,
                        graph,
                        insecure=allow_insecure,
                        by_digest=by_digest,
                    )
            origin = origin_labels(ref.host, ref.path)
            for manifest in graph.manifests:
                await to_worker(self._store.blobs.set_labels, manifest.digest, origin)

    def _read_graph(self, root: Descriptor) -> ImageGraph:
        graph = ImageGraph()
        self._visit(root, graph)
        return graph

    def _visit(self, descriptor: Descriptor, graph: ImageGraph) -> None:
        body = self._store.blobs.read(descriptor.digest)
        if is_index(descriptor.media_type):
            for child in Index.decode(body).manifests:
                self._visit(child, graph)
        else:
            manifest = Manifest.decode(body)
            for blob in (manifest.config, *manifest.layers):
                if not blob.urls:
                    graph.blobs[blob.digest] = blob
        if all(known.digest != descriptor.digest for known in graph.manifests):
            graph.manifests.append(descriptor)

    async def _push_blobs(
        self,
        client: RegistryClient,
        ref: Reference,
        graph: ImageGraph,
        insecure: bool | None,  # noqa: FBT001
        step: StepProgress,
        absent: SnapshotBlobs | None,
    ) -> None:
        slots = asyncio.Semaphore(_PARALLEL_BLOBS)

        async def push_one(blob: Descriptor) -> None:
            async with slots:
                label = SOURCE_LABEL + ref.host
                labels = await self._labels(blob, absent)
                mount_from = labels.get(label, "")
                with _shown(step, self._clock, blob) as on_progress:
                    await client.push_blob(
                        ref,
                        blob,
                        lambda: self._read(blob.digest),
                        insecure=insecure,
                        mount_from="" if mount_from == ref.path else mount_from,
                        on_progress=on_progress,
                        prepare=partial(absent.ensure, blob) if absent is not None else None,
                    )
                    on_progress(blob.size)
                if not mount_from and self._store.blobs.stat(blob.digest) is not None:
                    # The same layers under the next name are mounted from here.
                    known = {label: ref.path}
                    await to_worker(self._store.blobs.set_labels, blob.digest, known)

        await gather_or_cancel([push_one(blob) for blob in graph.blobs.values()])

    async def _labels(self, blob: Descriptor, absent: SnapshotBlobs | None) -> Mapping[str, str]:
        if absent is not None and self._store.blobs.stat(blob.digest) is None:
            return absent.origin(blob)
        return await to_worker(self._store.blobs.labels, blob.digest)

    async def _read(self, digest: Digest) -> AsyncIterator[bytes]:
        with self._store.blobs.open(digest) as file:
            while data := await to_worker(file.read, _CHUNK_BYTES):
                yield data


@contextlib.contextmanager
def _shown(step: StepProgress, clock: Clock, blob: Descriptor) -> Iterator[Callable[[int], None]]:
    """Show what is sent of a blob; it ends also when it fails, as every part of a step."""
    shown, started = f"pushing layer {blob.digest}", clock.now_ns()
    sent: int | None = None

    def on_progress(count: int) -> None:
        nonlocal sent
        sent = count
        step.status(shown, current=count, total=blob.size, started_ns=started)

    try:
        yield on_progress
    finally:
        if sent is not None:
            now = clock.now_ns()
            step.status(shown, current=sent, total=blob.size, started_ns=started, completed_ns=now)
