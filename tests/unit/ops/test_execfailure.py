"""What is kept of a failed command, and what becomes of what can't be kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from boxwright.executor.errors import ExecFailedError
from boxwright.ops.execfailure import keep_failure
from boxwright.ops.result import RefResult
from boxwright.solver.failure import failure_of
from boxwright.store.errors import DiskFullError
from boxwright.wire.pb import ops_pb2 as pb


class FakeRef:
    """A handle that counts, by the id of its snapshot."""

    def __init__(self, world: World, snapshot_id: str) -> None:
        self._world, self.id = world, snapshot_id
        world.held.append(snapshot_id)

    def clone(self) -> FakeRef:
        return FakeRef(self._world, self.id)

    async def release(self) -> None:
        self._world.held.remove(self.id)


class FullTree:
    """A tree for whose commit there is no room."""

    async def commit(self) -> FakeRef:
        raise DiskFullError(Path("/state"))


class World:
    """Snapshots, and the build that cleans up at its end."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.deleted: list[str] = []
        self._cleanups: list[Callable[[], Awaitable[None]]] = []

    def on_cleanup(self, cleanup: Callable[[], Awaitable[None]]) -> None:
        self._cleanups.append(cleanup)

    async def delete(self, snapshot_id: str) -> None:
        self.deleted.append(snapshot_id)

    async def end(self) -> None:
        for cleanup in self._cleanups:
            await cleanup()

    async def keep(
        self,
        error: ExecFailedError,
        mounts: list[pb.Mount],
        given: list[FakeRef],
        results: list[str],
        others: dict[int, FullTree] | None = None,
    ) -> None:
        op = SimpleNamespace(exec=SimpleNamespace(mounts=mounts))
        await keep_failure(
            error,
            cast("Any", SimpleNamespace(op=op)),
            cast("Any", given),
            [RefResult(cast("Any", FakeRef(self, name))) for name in results],
            cast("Any", others or {}),
            cast("Any", self),
            cast("Any", self),
        )


def test_what_a_command_left_unchanged_is_not_removed_from_the_cache():
    async def main() -> None:
        world, error = World(), ExecFailedError(["false"], 1)
        given = [FakeRef(world, "base"), FakeRef(world, "data")]
        mounts = [pb.Mount(input=0, dest="/", output=0), pb.Mount(input=1, dest="/d", output=1)]
        await world.keep(error, mounts, given, ["changed", "data"])
        kept = [each.id for each in failure_of(error).mounts if each is not None]
        assert kept == ["changed", "data"]
        await world.end()
        assert world.held == ["base", "data"]  # the caller's own
        assert world.deleted == ["changed"]

    asyncio.run(main())


def test_nothing_is_held_for_ever_if_a_tree_can_not_be_kept():
    async def main() -> None:
        world, error = World(), ExecFailedError(["false"], 1)
        given = [FakeRef(world, "base")]
        mounts = [
            pb.Mount(input=-1, dest="/scratch", output=-1),
            pb.Mount(input=0, dest="/", output=0),
        ]
        with pytest.raises(DiskFullError):
            await world.keep(error, mounts, given, ["changed"], {0: FullTree()})
        await world.end()
        assert world.held == ["base"]

    asyncio.run(main())
