"""Makes the solver's ops from vertices."""

from __future__ import annotations

from boxwright.executor.executor import Executor
from boxwright.llb.graph import Vertex
from boxwright.ops.errors import InvalidOpError
from boxwright.ops.execmounts import MountWorld
from boxwright.ops.execop import ExecOp
from boxwright.ops.graphops import BuildOp, DiffOp, FileOp, MergeOp, PassthroughOp, SourceOp
from boxwright.ops.slots import Slots
from boxwright.ops.stepgate import StepGate
from boxwright.session.manager import SessionManager
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.snapshots.manager import SnapshotManager
from boxwright.solver.types import Op
from boxwright.sources.base import SourceResolver


class OpFactory:
    """One per engine; ``max_parallelism`` limits commands, copies and fetches together."""

    def __init__(
        self,
        snapshots: SnapshotManager,
        executor: Executor,
        sources: SourceResolver,
        sessions: SessionManager,
        *,
        max_parallelism: int = 0,
    ) -> None:
        self._snapshots = snapshots
        self._executor = executor
        self._sources = sources
        self._sessions = sessions
        self._slots = Slots(max_parallelism)
        self.gate = StepGate(snapshots.store.room, executor)
        cache_mounts = snapshots.cache_mounts or CacheMounts(snapshots)
        self._world = MountWorld(snapshots, cache_mounts, executor.run_dir)

    def resolve(self, vertex: Vertex) -> Op:
        """Return the op of a vertex.

        Raises:
            InvalidOpError: its kind is unknown.
        """
        match vertex.op.WhichOneof("op"):
            case "exec":
                return ExecOp(
                    vertex, self._executor, self._world, self._sessions, self._slots, self.gate
                )
            case "file":
                return FileOp(vertex, self._snapshots, self._slots)
            case "source":
                return SourceOp(vertex, self._sources, self._sessions, self._slots)
            case "merge":
                return MergeOp(vertex, self._snapshots)
            case "diff":
                return DiffOp(vertex, self._snapshots)
            case "build":
                return BuildOp(vertex)
            case "passthrough":
                return PassthroughOp(vertex)
        raise InvalidOpError("no op for this vertex", detail=vertex.name)
