"""Commands with every kind of mount, over real snapshots and a real runtime."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from boxwright.core.digest import Digest
from boxwright.executor.errors import ExecFailedError
from boxwright.executor.executor import Executor, ExecutorConfig
from boxwright.linux import mount, namespaces, unixpath
from boxwright.llb.graph import Edge, Vertex
from boxwright.ops.execmounts import MountWorld
from boxwright.ops.execop import ExecOp
from boxwright.ops.result import RefResult
from boxwright.ops.slots import Slots
from boxwright.ops.stepgate import StepGate
from boxwright.session.base import SecretNotFoundError, SshAgentNotFoundError
from boxwright.session.manager import SessionManager
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.store.store import Store
from boxwright.wire.pb import ops_pb2 as pb

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
SECRET = b"very-secret-value"


@pytest.fixture(scope="module", autouse=True)
def _own_mounts() -> None:
    """Keep what the tests mount out of the machine's own mount table."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.make_slave("/")


class EchoPipe:
    """An "agent" that answers every request with itself."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def read(self) -> bytes:
        return await self._queue.get()

    async def write(self, data: bytes) -> None:
        await self._queue.put(data)

    async def close(self) -> None:
        await self._queue.put(b"")


class Client:
    """A client that offers one secret and one ssh agent."""

    id, name, shared_key = "client", "test", ""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def secret(self, secret_id: str) -> bytes:
        if secret_id != "token":
            raise SecretNotFoundError(secret_id)
        return SECRET

    async def ssh_check(self, agent_id: str) -> None:
        if agent_id:  # without one it is the client who says which agent is the default
            raise SshAgentNotFoundError(agent_id)

    async def ssh_forward(self, _agent_id: str) -> EchoPipe:
        return EchoPipe()


class Context:
    """What the solver tells an op, and what the op says."""

    def __init__(self, started: asyncio.Event) -> None:
        self.said: list[bytes] = []
        self.progress = self
        self.cleanups: list[Callable[[], Awaitable[None]]] = []
        self._started = started

    def on_cleanup(self, callback: Callable[[], Awaitable[None]]) -> None:
        self.cleanups.append(callback)

    def sessions(self) -> tuple[str, ...]:
        return ("client",)

    def log(self, _stream: int, data: bytes) -> None:
        self.said.append(data)
        self._started.set()


class World:
    def __init__(self, snapshots: SnapshotManager, executor: Executor, state: Path) -> None:
        self.snapshots = snapshots
        self.state = state
        self.sessions = SessionManager()
        self.sessions.attach(Client())  # type: ignore[arg-type]
        self.world = MountWorld(snapshots, CacheMounts(snapshots), executor.run_dir)
        self.executor = executor
        self.held: list[ImmutableRef] = []
        self.text = ""
        self.started = asyncio.Event()
        self.kept = 0

    async def has_spoken(self, step: asyncio.Task[list[ImmutableRef]]) -> None:
        """Return when the step printed something; a step that ends before it did is raised."""
        spoken = asyncio.create_task(self.started.wait())
        await asyncio.wait((spoken, step), return_when=asyncio.FIRST_COMPLETED)
        if not spoken.done():
            spoken.cancel()
            raise AssertionError(f"the step ended in silence: {await step}")

    async def tree(self, fill: Callable[[Path], None]) -> ImmutableRef:
        ref = self.snapshots.new(None, description="test")
        async with ref.mounted() as root:
            fill(root)
        made = await ref.commit()
        self.held.append(made)
        return made

    async def run(
        self, script: str, inputs: list[ImmutableRef | None], *mounts: pb.Mount, **meta: object
    ) -> list[ImmutableRef]:
        op = pb.Op()
        op.exec.meta.args.extend(("/bin/sh", "-ec", script))
        op.exec.meta.env.append("PATH=/bin")
        op.exec.meta.cwd = "/"
        op.exec.mounts.add(input=0, dest="/", output=0)
        op.exec.mounts.extend(mounts)
        op.exec.secretenv.extend(meta.get("secretenv", ()))  # type: ignore[arg-type]
        name = Digest.of(op.SerializeToString())
        below = Vertex(name, pb.Op())
        vertex = Vertex(name, op, tuple(Edge(below, n) for n in range(len(inputs))))
        gate = StepGate(self.snapshots.store.room, self.executor)
        command = ExecOp(vertex, self.executor, self.world, self.sessions, Slots(), gate)
        context = Context(self.started)
        results = [RefResult(ref.clone() if ref else None) for ref in inputs]
        try:
            outputs = await command.exec(context, results)  # type: ignore[arg-type]
        finally:
            self.text = b"".join(context.said).decode()
            self.kept = sum(1 for record in self.snapshots.records())
            for callback in context.cleanups:
                await callback()
            for result in results:
                await result.release()
        made = [output.value for output in outputs]
        assert all(isinstance(ref, ImmutableRef) for ref in made)
        self.held += made  # type: ignore[arg-type]
        return made  # type: ignore[return-value]


def play(tmp_path: Path, scenario: Callable[[World, ImmutableRef], Awaitable[None]]) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox")

    def base(root: Path) -> None:
        (root / "bin").mkdir()
        shutil.copy(busybox, root / "bin/busybox")
        for name in ("sh", "cat", "ls", "touch", "mkdir", "rm", "wc", "nc", "stat", "test", "env"):
            (root / "bin" / name).symlink_to("busybox")

    async def main() -> None:
        store = Store.open(tmp_path / "state")
        snapshots = SnapshotManager.open(store)
        run_dir = store.root / "run"
        run_dir.mkdir(exist_ok=True)
        executor = Executor.open(ExecutorConfig(run_dir, runtimes=("crun",)))
        world = World(snapshots, executor, store.root)
        try:
            await scenario(world, await world.tree(base))
        finally:
            for ref in world.held:
                await ref.release()
            await executor.close()
            await snapshots.close()
            store.close()

    asyncio.run(main())


def test_outputs_of_several_mounts(tmp_path: Path) -> None:
    async def scenario(world: World, base: ImmutableRef) -> None:
        other = await world.tree(lambda root: (root / "kept").write_text("k"))
        outputs = await world.run(
            "touch /made /w/new; ! touch /r/x; touch /scratch/s; touch /lost/l",
            [base, other],
            pb.Mount(input=1, dest="/w", output=1),
            pb.Mount(input=1, dest="/r", output=2, readonly=True),
            pb.Mount(input=-1, dest="/scratch", output=3),
            pb.Mount(input=1, dest="/lost", output=-1),
        )
        found = []
        for ref in outputs:
            async with ref.mounted() as root:
                found.append(sorted(path.name for path in root.iterdir()))
        assert found == [
            ["bin", "dev", "etc", "made", "proc", "sys"],
            ["kept", "new"],
            ["kept"],
            ["s"],
        ]
        assert outputs[2].id == other.id
        async with other.mounted() as root:
            assert [path.name for path in root.iterdir()] == ["kept"]

    play(tmp_path, scenario)


def test_numbers_of_outputs_may_leave_gaps_and_repeat(tmp_path: Path) -> None:
    async def scenario(world: World, base: ImmutableRef) -> None:
        outputs = await world.run(
            "touch /a/in-a /b/in-b",
            [base],
            pb.Mount(input=-1, dest="/t", output=0, mountType=pb.MountType.TMPFS),
            pb.Mount(input=-1, dest="/a", output=7),
            pb.Mount(input=-1, dest="/b", output=7),
        )
        found = []
        for ref in outputs[1:]:
            async with ref.mounted() as root:
                found.append([path.name for path in root.iterdir()])
        assert found == [["in-a"], ["in-b"]]

    play(tmp_path, scenario)


def test_mounts_lie_where_their_cleaned_paths_say(tmp_path: Path) -> None:
    async def scenario(world: World, base: ImmutableRef) -> None:
        [left] = await world.run(
            "test -d /n; touch /n/x; ! touch /t/x",
            [base],
            pb.Mount(input=-1, dest="/../m/..//n/", output=-1),
            pb.Mount(input=-1, dest="t", output=-1, mountType=pb.MountType.TMPFS, readonly=True),
        )
        async with left.mounted() as root:
            assert not {"m", "n", "t"} & {path.name for path in root.iterdir()}

    play(tmp_path, scenario)


def test_selectors_stay_inside_their_tree(tmp_path: Path) -> None:
    async def scenario(world: World, base: ImmutableRef) -> None:
        (tmp_path / "outside").mkdir()

        def fill(root: Path) -> None:
            (root / "a").mkdir()
            (root / "a/file").write_text("inside\n")
            (root / "out").symlink_to(tmp_path / "outside")
            (root / "up").symlink_to("../../../a")

        other = await world.tree(fill)
        bind = pb.Mount(input=1, dest="/m", output=-1, readonly=True)
        for selector in ("/a", "up", "../../a"):
            bind.selector = selector
            await world.run("cat /m/file", [base, other], bind)
            assert world.text == "inside\n"
        bind.selector = "/out"
        with pytest.raises(Exception, match="no such file or directory") as caught:
            await world.run("ls /m", [base, other], bind)
        assert "outside" not in str(caught.value)
        cache = pb.Mount(input=1, dest="/m", output=-1, mountType=pb.MountType.CACHE)
        cache.cacheOpt.ID, cache.selector = "c", "no/such"
        with pytest.raises(Exception, match="open /no/such: no such file") as caught:
            await world.run("ls /m", [base, other], cache)
        assert str(caught.value).startswith('process "')
        assert '" did not complete successfully: open ' in str(caught.value)

    play(tmp_path, scenario)


def test_cache_mounts(tmp_path: Path) -> None:
    async def scenario(world: World, base: ImmutableRef) -> None:
        cache = pb.Mount(input=-1, dest="/c", output=-1, mountType=pb.MountType.CACHE)
        cache.cacheOpt.ID = "one"
        [first] = await world.run("touch /c/a; ls /c", [base], cache)
        await world.run("ls /c", [base], cache)
        assert world.text == "a\n"
        async with first.mounted() as root:
            assert not (root / "c").exists()
        cache.cacheOpt.ID = "two"
        seed = await world.tree(lambda root: (root / "seed").mkdir())
        cache.input = 1
        await world.run("touch /c/b; ls /c", [base, seed], cache)
        await world.run("ls /c", [base, seed], cache)
        assert world.text == "b\nseed\n"
        cache.selector = "seed"
        await world.run("touch /c/inner", [base, seed], cache)
        cache.selector = ""
        await world.run("ls /c/seed", [base, seed], cache)
        assert world.text == "inner\n"

    play(tmp_path, scenario)


def files_with(root: Path, data: bytes) -> list[Path]:
    paths = (Path(folder, name) for folder, _, names in os.walk(root) for name in names)
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    assert files
    return [path for path in files if data in path.read_bytes()]


def test_secrets_leave_no_trace(tmp_path: Path) -> None:
    async def scenario(world: World, base: ImmutableRef) -> None:
        secret = pb.Mount(input=-1, dest="/run/s", output=-1, mountType=pb.MountType.SECRET)
        secret.secretOpt.ID, secret.secretOpt.mode, secret.secretOpt.uid = "token", 0o404, 9
        env = pb.SecretEnv(ID="token", name="TOKEN")
        script = 'stat -c \'%a %u\' /run/s; cat /run/s | wc -c; test "$TOKEN" = "$(cat /run/s)"'
        await world.run(script, [base], secret, secretenv=[env])
        assert world.text.split() == ["404", "9", str(len(SECRET))]
        assert files_with(world.state, SECRET) == []
        secret.secretOpt.ID = "missing"
        with pytest.raises(SecretNotFoundError):
            await world.run("true", [base], secret)
        secret.secretOpt.optional = True
        await world.run("! test -e /run/s", [base], secret)

    play(tmp_path, scenario)


def test_ssh_agent_is_forwarded(tmp_path: Path) -> None:
    async def scenario(world: World, base: ImmutableRef) -> None:
        agent = pb.Mount(input=-1, dest="/agent.sock", output=-1, mountType=pb.MountType.SSH)
        agent.SSHOpt.mode, agent.SSHOpt.uid = 0o600, 5
        script = "stat -c '%F %a %u' /agent.sock; exec cat /fifo"
        world.started.clear()
        step = asyncio.create_task(world.run(f"busybox mkfifo /fifo; {script}", [base], agent))
        await world.has_spoken(step)
        [path] = world.executor.run_dir.glob("ssh-*/agent.sock")
        with unixpath.usable(path) as name:
            reader, writer = await asyncio.open_unix_connection(name)
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        writer.close()
        step.cancel()
        with pytest.raises(asyncio.CancelledError):
            await step
        assert world.text == "socket 600 5\n"
        agent.SSHOpt.ID = "other"
        with pytest.raises(SshAgentNotFoundError):
            await world.run("true", [base], agent)
        agent.SSHOpt.optional = True
        await world.run("! test -e /agent.sock", [base], agent)
        assert [path.name for path in world.executor.run_dir.glob("ssh-*")] == []

    play(tmp_path, scenario)


def test_a_failed_commands_tree_goes_when_no_build_wants_it(tmp_path: Path) -> None:
    async def scenario(world: World, base: ImmutableRef) -> None:
        before = {record.id for record in world.snapshots.records()}
        with pytest.raises(ExecFailedError):
            await world.run("touch /x; exit 3", [base])
        assert world.kept == len(before) + 1
        assert {record.id for record in world.snapshots.records()} == before

    play(tmp_path, scenario)
