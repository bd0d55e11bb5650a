"""The operations that only rearrange trees, and those that run elsewhere."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from google.protobuf.message import DecodeError

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError
from boxwright.linux.files import openat2_in_root
from boxwright.llb.graph import Vertex
from boxwright.ops.cachemap import cache_map, source_cache_map
from boxwright.ops.errors import FileOpError, InvalidOpError, from_os_error
from boxwright.ops.fileop import FileOpRun
from boxwright.ops.keys import to_cache_map
from boxwright.ops.result import RefResult, ref_of
from boxwright.ops.slots import Slots
from boxwright.session.manager import SessionManager
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.types import CacheMap, JobContext, OpSlot, Result
from boxwright.sources.base import Source, SourceContext, SourceResolver
from boxwright.sources.resolutions import Resolutions
from boxwright.wire.pb import ops_pb2 as pb

_EMPTY = -1
_LLB_BUILDER = -1
_LLB_INPUT = "buildkit.llb.definition"
_LLB_FILE_ATTR = "llbbuild.filename"
_LLB_DEFAULT_FILE = "/buildkit.llb.definition"
_MAX_DEFINITION_BYTES = 64 << 20


class _KeyedOp:
    """An op whose key follows from its definition alone."""

    def __init__(self, vertex: Vertex, slots: Slots | None = None) -> None:
        self._vertex = vertex
        self._slots = slots

    async def cache_map(self, _ctx: JobContext, _index: int) -> tuple[CacheMap, bool]:
        """Return the key; see :mod:`boxwright.ops.cachemap`."""
        vertex = self._vertex
        spec = cache_map(vertex.op, len(vertex.inputs), vertex.platform)
        return to_cache_map(spec), True

    async def acquire(self) -> OpSlot | None:
        """Wait for a slot, if this kind of op counts."""
        return await self._slots.acquire() if self._slots is not None else None


class FileOp(_KeyedOp):
    """COPY, ADD, WORKDIR and other file operations."""

    def __init__(self, vertex: Vertex, snapshots: SnapshotManager, slots: Slots) -> None:
        super().__init__(vertex, slots)
        self._snapshots = snapshots

    async def exec(self, ctx: JobContext, inputs: Sequence[Result]) -> list[Result]:
        """Do the actions; see :class:`boxwright.ops.fileop.FileOpRun`."""
        refs = [ref_of(item) for item in inputs]
        actions = self._vertex.op.file.actions
        async with FileOpRun(self._snapshots, refs, actions, self._vertex.name) as run:
            try:
                return list(await run.run())
            except BoxwrightError as error:
                await run.keep_failure(error, ctx)
                raise


class MergeOp(_KeyedOp):
    """Lay trees over each other."""

    def __init__(self, vertex: Vertex, snapshots: SnapshotManager) -> None:
        super().__init__(vertex)
        self._snapshots = snapshots

    async def exec(self, _ctx: JobContext, inputs: Sequence[Result]) -> list[Result]:
        """Return the merged tree; empty ones do not count.

        Of nothing but empty trees there is no result, as upstream has it: whoever wants one fails.
        """
        refs = [ref for ref in map(ref_of, inputs) if ref is not None]
        if not refs:
            return []
        merged = self._snapshots.merge(refs, description=self._vertex.name)
        return [RefResult(merged)]


class DiffOp(_KeyedOp):
    """Take what one tree has over another."""

    def __init__(self, vertex: Vertex, snapshots: SnapshotManager) -> None:
        super().__init__(vertex)
        self._snapshots = snapshots

    async def exec(self, _ctx: JobContext, inputs: Sequence[Result]) -> list[Result]:
        """Return the difference as a tree."""
        pending = list(inputs)
        sides: list[ImmutableRef | None] = []
        for side in (self._vertex.op.diff.lower, self._vertex.op.diff.upper):
            if side.input == _EMPTY:
                sides.append(None)
            elif pending:
                sides.append(ref_of(pending.pop(0)))
            else:
                raise InvalidOpError("invalid input index for diff op")
        lower, upper = sides
        same = lower is not None and upper is not None and lower.id == upper.id
        if same or (lower is None and upper is None):
            return [RefResult(None)]
        return [RefResult(self._snapshots.diff(lower, upper, description=self._vertex.name))]


class PassthroughOp(_KeyedOp):
    """Hand inputs on under other indexes."""

    async def exec(self, _ctx: JobContext, inputs: Sequence[Result]) -> list[Result]:
        """Return the chosen inputs."""
        chosen = self._vertex.op.passthrough.outputs
        if any(not 0 <= index < len(inputs) for index in chosen):
            raise InvalidOpError("invalid passthrough output input index")
        return [inputs[index].clone() for index in chosen]


class BuildOp(_KeyedOp):
    """Solve a graph that lies as a file in an input."""

    async def exec(self, ctx: JobContext, inputs: Sequence[Result]) -> list[Result]:
        """Return the result of the graph.

        Raises:
            InvalidOpError: the file is missing or is no definition.
        """
        op = self._vertex.op.build
        if op.builder != _LLB_BUILDER:
            raise InvalidOpError("only LLB builder is currently allowed")
        if _LLB_INPUT not in op.inputs:
            raise InvalidOpError(f"no llb definition input {_LLB_INPUT} found")
        index = op.inputs[_LLB_INPUT].input
        if not 0 <= index < len(inputs):
            raise InvalidOpError(f"invalid index {index}")
        ref = ref_of(inputs[index])
        if ref is None:
            raise InvalidOpError("the llb definition input is empty")
        path = op.attrs.get(_LLB_FILE_ATTR, _LLB_DEFAULT_FILE)
        async with ref.mounted() as root:
            data = await to_worker(_read_definition, str(root), path)
        built = await ctx.build(await ctx.admit(_parse_definition(data, path)))
        return [built.result]


def _parse_definition(data: bytes, path: str) -> pb.Definition:
    try:
        return pb.Definition.FromString(data)
    except DecodeError as exc:
        raise InvalidOpError(f"{path} is not a build definition", detail=str(exc)) from exc


def _read_definition(root: str, path: str) -> bytes:
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = openat2_in_root(root_fd, path, os.O_RDONLY | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            data = file.read(_MAX_DEFINITION_BYTES + 1)
    except OSError as exc:
        if exc.errno == errno.EISDIR:
            raise FileOpError(f"{path} is not a regular file", path=path) from exc
        raise from_os_error("open", path, exc) from exc
    finally:
        os.close(root_fd)
    if len(data) > _MAX_DEFINITION_BYTES:
        raise FileOpError(f"{path} exceeds {_MAX_DEFINITION_BYTES} bytes", path=path)
    return data


class SourceOp:
    """FROM an image, a local context, …: something from outside the graph."""

    def __init__(
        self, vertex: Vertex, sources: SourceResolver, sessions: SessionManager, slots: Slots
    ) -> None:
        self._vertex = vertex
        self._sources = sources
        self._sessions = sessions
        self._slots = slots
        self._source: Source | None = None
        self.pin = ""

    async def cache_map(self, ctx: JobContext, index: int) -> tuple[CacheMap, bool]:
        """Return the key number ``index`` of what the source resolved to."""
        key = await self._resolved().cache_key(self._context(ctx), index)
        self.pin = self.pin or key.pin
        return to_cache_map(source_cache_map(key.key)), key.done

    async def acquire(self) -> OpSlot | None:
        """Wait until another source may be fetched."""
        return await self._slots.acquire()

    async def exec(self, ctx: JobContext, _inputs: Sequence[Result]) -> list[Result]:
        """Return the source's tree."""
        return [RefResult(await self._resolved().snapshot(self._context(ctx)))]

    def _resolved(self) -> Source:
        if self._source is None:
            op = self._vertex.op.source
            self._source = self._sources.resolve(
                op.identifier, dict(op.attrs), self._vertex.platform
            )
        return self._source

    def _context(self, ctx: JobContext) -> SourceContext:
        return SourceContext(
            self._sessions.group(ctx.sessions()),
            ctx.progress,
            ctx.on_cleanup,
            tuple(map(Resolutions.of, ctx.job_values())),
        )
