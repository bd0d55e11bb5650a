"""Stopping commands when the disk is low, with real processes, with and without control groups."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path

import pytest

from boxwright.executor.errors import ExecFailedError
from boxwright.executor.executor import Attached, Executor, ExecutorConfig
from boxwright.executor.process import ProcessSpec
from boxwright.linux import files

pytestmark = [pytest.mark.root, pytest.mark.peer("busybox"), pytest.mark.peer("crun")]

LIMIT_S = 60
COUNT = "echo up; n=0; while [ $n -lt 100000000 ]; do n=$((n+1)); done"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with a shell."""
    path = tmp_path / "root"
    (path / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", path / "bin/busybox")
    (path / "bin/sh").symlink_to("busybox")
    (tmp_path / "run").mkdir()
    return path


def states(needle: str) -> list[str]:
    """Return the states and wait channels of all processes with this in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if needle in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    found.append((entry / "stat").read_text().rpartition(")")[2].split()[0])
            except OSError:
                continue
    return found


def ticks(needle: str) -> int:
    """Return how long they have run, in clock ticks."""
    total = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if needle in (entry / "cmdline").read_bytes().decode(errors="replace"):
                    total += int((entry / "stat").read_text().rpartition(")")[2].split()[11])
            except OSError:
                continue
    return total


class Step:
    """A command that runs for ever (or does ``work``), and says when it does."""

    def __init__(
        self, executor: Executor, root: Path, name: str, *, stoppable: bool, work: str = COUNT
    ) -> None:
        self.up = asyncio.Event()
        self.needle = f"{name}-{os.getpid()}"
        spec = ProcessSpec(("/bin/sh", "-c", f": {self.needle}; {work}"), env=("PATH=/bin",))
        self.task = asyncio.create_task(
            executor.run(
                name,
                root,
                spec,
                stdout=lambda _data: self.up.set(),
                stderr=lambda _data: None,
                attached=Attached(is_stoppable=stoppable),
            )
        )

    async def stands_still(self) -> bool:
        for _ in range(10):  # one that waited for a processor is frozen when it gets one
            before = ticks(self.needle)
            for _ in range(20):
                await asyncio.sleep(0.02)
            if ticks(self.needle) == before:
                return True
        return False

    async def goes_on(self) -> None:
        """Return when it has run some more, however long others have the processors."""
        before = ticks(self.needle)
        async with asyncio.timeout(LIMIT_S):
            while ticks(self.needle) <= before:  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.02)


def with_executor(tmp_path: Path, use, *, cgroups: bool) -> None:
    async def main() -> None:
        executor = Executor.open(ExecutorConfig(tmp_path / "run", cgroups=cgroups))
        try:
            await use(executor)
        finally:
            await executor.close()

    asyncio.run(main())


async def brake(executor: Executor, path: Path) -> int:
    """Have the brake hit at once; return what it says is free."""
    low: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    mark = files.statfs(path).total_bytes + 1
    await executor.watch_disk(path, mark, low.set_result)
    return await low


@pytest.mark.parametrize("cgroups", [True, False])
def test_what_is_stoppable_stops_and_goes_on(tmp_path, root, cgroups):
    async def use(executor: Executor) -> None:
        steps = [Step(executor, root, f"step{n}", stoppable=True) for n in range(2)]
        other = Step(executor, root, "other", stoppable=False)
        for step in (*steps, other):
            await step.up.wait()
        free = await brake(executor, tmp_path)
        assert free <= files.statfs(tmp_path).total_bytes
        assert [await step.stands_still() for step in steps] == [True, True]
        await other.goes_on()
        await executor.resume(["step1"], 0)
        await steps[1].goes_on()
        assert await steps[0].stands_still()
        for step in (*steps, other):  # a stopped one can be killed, too
            step.task.cancel()
        await asyncio.gather(*(s.task for s in (*steps, other)), return_exceptions=True)
        assert states(steps[0].needle) == []

    with_executor(tmp_path, use, cgroups=cgroups)


@pytest.mark.parametrize("cgroups", [True, False])
def test_what_comes_while_the_disk_is_low_waits(tmp_path, root, cgroups):
    async def use(executor: Executor) -> None:
        first = Step(executor, root, "first", stoppable=True)
        await first.up.wait()
        await brake(executor, tmp_path)
        late = [Step(executor, root, f"late{n}", stoppable=True) for n in range(3)]
        other = Step(executor, root, "other", stoppable=False)
        await other.up.wait()  # what was asked for later has started: the late ones do wait
        assert not any(step.up.is_set() for step in late)
        await executor.resume(["late0"], 0)
        await late[0].up.wait()
        assert not any(step.up.is_set() for step in late[1:])
        late[1].task.cancel()  # what has not started can be ended
        await asyncio.gather(late[1].task, return_exceptions=True)
        await executor.resume(None, 0)
        await late[2].up.wait()
        await first.goes_on()
        assert not late[1].up.is_set()
        for step in (first, *late, other):
            step.task.cancel()
        await asyncio.gather(*(s.task for s in (first, *late, other)), return_exceptions=True)
        assert states(late[0].needle) == []

    with_executor(tmp_path, use, cgroups=cgroups)


def test_what_waited_ends_while_others_stand_still(tmp_path, root):
    async def use(executor: Executor) -> None:
        first = Step(executor, root, "first", stoppable=True)
        await first.up.wait()
        await brake(executor, tmp_path)
        late = Step(executor, root, "late", stoppable=True, work="echo up")
        other = Step(executor, root, "other", stoppable=False)  # starts while the late one waits
        await other.up.wait()
        await executor.resume(["late"], 0)
        async with asyncio.timeout(LIMIT_S):
            await late.task
        for step in (first, other):
            step.task.cancel()
        await asyncio.gather(first.task, other.task, return_exceptions=True)

    with_executor(tmp_path, use, cgroups=True)


@pytest.mark.parametrize("cgroups", [True, False])
def test_what_is_stopped_ends_with_the_engine(tmp_path, root, cgroups):
    needles = []

    async def use(executor: Executor) -> None:
        step = Step(executor, root, "step", stoppable=True)
        await step.up.wait()
        await brake(executor, tmp_path)
        needles.append(step.needle)
        await executor.close()
        with pytest.raises((ExecFailedError, Exception)):
            await step.task

    with_executor(tmp_path, use, cgroups=cgroups)
    assert states(needles[0]) == []


def test_a_lost_supervisor_leaves_nothing_frozen(tmp_path, root):
    needles = []

    async def use(executor: Executor) -> None:
        step = Step(executor, root, "step", stoppable=True)
        await step.up.wait()
        await brake(executor, tmp_path)
        needles.append(step.needle)
        assert executor._link is not None
        os.kill(executor._link.pid, 9)
        with pytest.raises(Exception, match="supervisor"):
            await step.task

    with_executor(tmp_path, use, cgroups=True)
    # The kernel ends them after it has closed the supervisor's socket.
    end = time.monotonic() + LIMIT_S
    while states(needles[0]) and time.monotonic() < end:
        time.sleep(0.01)
    assert states(needles[0]) == []
