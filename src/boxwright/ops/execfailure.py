# SPDX-License-Identifier: Apache-2.0
"""What a failed command leaves: the trees as they were when it failed, for debuggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from boxwright.errors import BoxwrightError
from boxwright.executor.errors import ExecFailedError
from boxwright.llb.graph import Vertex
from boxwright.ops.execmounts import SKIP_OUTPUT
from boxwright.ops.result import RefResult
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef, MutableRef
from boxwright.solver.failure import failure_of
from boxwright.solver.types import JobContext
from boxwright.wire.pb import ops_pb2 as pb


async def keep_failure(
    error: ExecFailedError,
    vertex: Vertex,
    refs: Sequence[ImmutableRef | None],
    results: Sequence[RefResult],
    others: Mapping[int, MutableRef],
    ctx: JobContext,
    snapshots: SnapshotManager,
) -> None:
    """Attach the state to the error; it is kept as long as a build wants the vertex.

    Args:
        error: What the build fails with.
        vertex: The command's.
        refs: Its inputs, borrowed.
        results: Its outputs in order, taken over.
        others: Trees that it wrote and that are no outputs, by the number of their mount.
        ctx: Tells when nobody wants them any more.
        snapshots: Where they are removed from then.
    """
    pending = list(results)
    inputs: list[RefResult | None] = []
    mounts: list[RefResult | None] = []
    try:
        for position, mount in enumerate(vertex.op.exec.mounts):
            given = refs[mount.input] if 0 <= mount.input < len(refs) else None
            held = RefResult(given.clone()) if given is not None else None
            if held is not None:
                ctx.on_cleanup(held.release)
            inputs.append(held)
            is_tree = mount.mountType == pb.MountType.BIND
            is_cache = mount.mountType == pb.MountType.CACHE and given is not None
            if mount.output != SKIP_OUTPUT and (is_tree or is_cache) and pending:
                left = pending.pop(0)
                is_new = given is None or left.ref is None or left.id != given.id
                ctx.on_cleanup(partial(discard, snapshots, left) if is_new else left.release)
                mounts.append(left if left.ref is not None else None)
            elif position in others:
                left = RefResult(await others[position].commit())
                ctx.on_cleanup(partial(discard, snapshots, left))
                mounts.append(left)
            else:
                mounts.append(held)
    finally:
        for unused in pending:
            await unused.release()
    failure = failure_of(error)
    failure.inputs, failure.mounts = tuple(inputs), tuple(mounts)


async def discard(snapshots: SnapshotManager, left: RefResult) -> None:
    """Release and remove a tree that no cache record can lead to; in use, it stays for the GC."""
    await left.release()
    if left.ref is not None:
        with suppress(BoxwrightError):
            await snapshots.delete(left.id)
