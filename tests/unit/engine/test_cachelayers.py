"""Layers of a cache export are made before the export, and only those that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from boxwright.engine import cachelayers
from boxwright.engine.cachelayers import make_layers
from boxwright.errors import NotFoundError
from boxwright.fsutil.compress import Compression
from boxwright.snapshots import ImmutableRef, SnapshotManager
from boxwright.solver.exporter import ExportMode
from boxwright.solver.types import CachedResult
from boxwright.store import Store
from boxwright.testing.graphs import FakeGraph

Check = Callable[[CachedResult, list[ImmutableRef]], Awaitable[None]]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store.open(tmp_path / "root")
    yield opened
    opened.close(drain_trash=True)


def run(store: Store, check: Check) -> None:
    """Build a source and two steps on it, one read by the other."""

    async def scenario() -> None:
        manager = SnapshotManager.open(store, backend="native")
        refs = []
        for name in ("source", "read", "last"):
            tree = manager.new(None, description=name)
            async with tree.mounted() as root:
                (root / name).write_text(name * 1000)
            refs.append(await tree.commit())
        graph = FakeGraph()
        async with graph.solver() as solver:
            job = solver.new_job("job")
            source = graph.vertex("source", value=refs[0])
            read = graph.vertex("read", source, value=refs[1])
            result = await job.build(graph.vertex("last", read, value=refs[2]))
            await check(result, refs)
            await result.release()
            await job.discard()
        await graph.close()
        for ref in refs:
            await ref.release()
        assert not any(record.in_use for record in manager.records())

    asyncio.run(asyncio.wait_for(scenario(), 60))


async def made(refs: list[ImmutableRef]) -> list[bool]:
    return [(await ref.layers())[0].blob is not None for ref in refs]


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(ExportMode.MAX, [False, True, True]), (ExportMode.MIN, [False, False, True])],
)
def test_what_an_export_takes_is_made(
    store: Store, mode: ExportMode, expected: list[bool]
) -> None:
    async def check(result: CachedResult, refs: list[ImmutableRef]) -> None:
        with store.leases.create() as lease:
            await make_layers([result], store, Compression(), mode, lease)
        assert await made(refs) == expected

    run(store, check)


def test_what_fails_is_left_to_the_export(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_args: object) -> None:
        raise NotFoundError("gone")

    async def check(result: CachedResult, refs: list[ImmutableRef]) -> None:
        monkeypatch.setattr(cachelayers, "make_remote", fail)
        with store.leases.create() as lease:
            await make_layers([result], store, Compression(), ExportMode.MAX, lease)
        assert await made(refs) == [False] * 3

    run(store, check)


def test_a_cancelled_export_holds_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(*_args: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    async def check(result: CachedResult, refs: list[ImmutableRef]) -> None:
        monkeypatch.setattr(cachelayers, "make_remote", wait)
        with store.leases.create() as lease:
            making = asyncio.ensure_future(
                make_layers([result], store, Compression(), ExportMode.MAX, lease)
            )
            await reached.wait()
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making

    reached = asyncio.Event()
    run(store, check)
