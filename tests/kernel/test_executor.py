"""The executor with real runtimes, namespaces and control groups."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from boxwright.errors import Code
from boxwright.executor import bpf, capabilities, hosts, seccomp
from boxwright.executor.errors import (
    ExecFailedError,
    OutOfMemoryError,
    RuntimeFailedError,
    SandboxLostError,
    UserLookupError,
)
from boxwright.executor.executor import Attached, Executor, ExecutorConfig
from boxwright.executor.process import (
    BindMount,
    DataMount,
    NetworkMode,
    ProcessSpec,
    Resources,
    SecurityMode,
    TmpfsMount,
    Ulimit,
)
from boxwright.executor.streams import InputPipe
from boxwright.linux import mount, namespaces
from boxwright.sandbox import cgroups

pytestmark = pytest.mark.root

BUSYBOX = shutil.which("busybox")
ENV = ("PATH=/bin",)
LIMIT_S = 60
Scenario = Callable[["World"], Awaitable[None]]


class Output(list[bytes]):
    @property
    def text(self) -> str:
        return b"".join(self).decode()


class World:
    """An executor and a busybox root file system."""

    def __init__(self, executor: Executor, root: Path, run_dir: Path) -> None:
        self.executor = executor
        self.root = root
        self.run_dir = run_dir
        self.count = 0

    async def run(self, *args: str, out: Output | None = None, **spec: object) -> Output:
        output = Output() if out is None else out
        self.count += 1
        process = ProcessSpec(args, **({"env": ENV} | spec))  # type: ignore[arg-type]
        await self.executor.run(
            f"t{self.count}", self.root, process, stdout=output.append, stderr=output.append
        )
        return output

    async def sh(self, script: str, **spec: object) -> str:
        return (await self.run("/bin/sh", "-c", script, **spec)).text


async def spoken(started: asyncio.Event, run: asyncio.Task[object]) -> None:
    """Return when a step printed something; a step that ends before it did is raised."""
    waiting = asyncio.create_task(started.wait())
    await asyncio.wait((waiting, run), return_when=asyncio.FIRST_COMPLETED)
    if not waiting.done():
        waiting.cancel()
        raise AssertionError(f"the step ended in silence: {await run}")


@pytest.fixture(scope="module", autouse=True)
def _own_mounts() -> None:
    """Keep what the tests mount out of the machine's own mount table."""
    namespaces.unshare(namespaces.CLONE_NEWNS)
    mount.make_slave("/")


def make_root(path: Path) -> Path:
    (path / "bin").mkdir(parents=True)
    shutil.copy(str(BUSYBOX), path / "bin/busybox")
    for (
        name
    ) in "sh cat id ls env sleep true false touch mkdir rm head dd stat hostname kill".split():
        (path / "bin" / name).symlink_to("busybox")
    (path / "etc").mkdir()
    (path / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nbob:x:1001:1002::/home/bob:/bin/sh\n"
    )
    (path / "etc/group").write_text("root:x:0:\nbob:x:1002:\nwheel:x:10:bob\nstaff:x:50:bob\n")
    return path


@pytest.fixture(params=["crun", "runc"])
def play(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Scenario], None]:
    """Run a scenario with an executor over one runtime."""
    if shutil.which(request.param, path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip(f"needs {request.param}")
    if BUSYBOX is None:
        pytest.skip("needs busybox")

    def start(scenario: Scenario) -> None:
        async def main() -> None:
            run_dir = tmp_path / "run"
            run_dir.mkdir()
            executor = Executor.open(ExecutorConfig(run_dir, runtimes=(request.param,)))
            try:
                await scenario(World(executor, make_root(tmp_path / "root"), run_dir))
            finally:
                await executor.close()
            assert os.listdir(run_dir / "sandbox") == []
            assert cgroups.leftovers(f"/{executor._cgroup_name}") == []

        asyncio.run(main())

    return start


def test_output_is_complete_and_in_order(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        text = await world.sh("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")
        assert text.splitlines() == [f"line {i}" for i in range(20000)]

    play(scenario)


def test_stdout_and_stderr_are_apart(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        out, err = Output(), Output()
        process = ProcessSpec(("/bin/sh", "-c", "echo out; echo err >&2"), env=ENV)
        status = await world.executor.run(
            "x", world.root, process, stdout=out.append, stderr=err.append
        )
        assert (out.text, err.text, status.code) == ("out\n", "err\n", 0)

    play(scenario)


def test_stdin_is_what_the_caller_feeds(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        pipe, out = InputPipe(), Output()
        process = ProcessSpec(("/bin/cat",), env=ENV)
        async with asyncio.TaskGroup() as group:
            group.create_task(
                world.executor.run(
                    "x",
                    world.root,
                    process,
                    stdout=out.append,
                    stderr=out.append,
                    attached=Attached(stdin=pipe),
                )
            )
            await pipe.write(b"data " * 40000)
            pipe.close()
        assert out.text == "data " * 40000

    play(scenario)


def test_exit_codes(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(ExecFailedError) as caught:
            await world.run("/bin/sh", "-c", "exit 3")
        assert caught.value.process_exit_code == 3
        assert caught.value.code is Code.EXEC_FAILED
        assert str(caught.value) == (
            'process "/bin/sh -c exit 3" did not complete successfully: exit code: 3'
        )
        await world.run("/bin/sh", "-c", "exit 3", valid_exit_codes=frozenset((3, 4)))
        with pytest.raises(ExecFailedError) as caught:
            await world.run("/bin/true", valid_exit_codes=frozenset((3,)))
        assert caught.value.process_exit_code == 0

    play(scenario)


def test_a_command_that_does_not_exist_is_the_users_fault(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(ExecFailedError) as caught:
            await world.run("/no/such/program")
        assert "/no/such/program" in caught.value.detail
        with pytest.raises(ExecFailedError):
            await world.run("/etc/passwd")

    play(scenario)


def test_user_group_and_supplementary_groups(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        ids = "id -u; id -g; id -G"
        assert (await world.sh(ids)).split() == ["0", "0", "0"]
        assert (await world.sh(ids, user="bob")).split() == ["1001", "1002", "1002", "10", "50"]
        assert (await world.sh(ids, user="bob:staff")).split() == ["1001", "50", "50"]
        assert (await world.sh(ids, user="77:88")).split() == ["77", "88", "88"]
        assert "HOME=/home/bob\n" in await world.sh("env", user="bob")
        with pytest.raises(UserLookupError):
            await world.sh("id", user="nobody-here")

    play(scenario)


def test_working_folder_is_made_for_the_user(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        (world.root / "link").symlink_to("/real")
        assert await world.sh("pwd", cwd="/link/new", user="bob") == "/real/new\n"
        info = (world.root / "real/new").stat()
        assert (info.st_uid, info.st_gid, info.st_mode & 0o777) == (1001, 1002, 0o755)

    play(scenario)


def test_name_resolution_files_and_hostname(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        assert await world.sh("hostname") == "buildkitsandbox\n"
        assert await world.sh("hostname", hostname="box") == "box\n"
        text = await world.sh("cat /etc/hosts", extra_hosts=(("db", "10.0.0.9"),))
        assert text.startswith("127.0.0.1\tlocalhost buildkitsandbox\n")
        assert text.endswith("10.0.0.9\tdb\n")
        assert (await world.sh("cat /etc/resolv.conf")).encode() == hosts.resolv_conf()

    play(scenario)


def test_mount_stubs_do_not_stay(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        kept = world.root / "etc"
        os.utime(kept, ns=(10**18, 10**18))
        before = sorted(str(path) for path in world.root.rglob("*"))
        mounts = (TmpfsMount("/tmpfs"), DataMount("/run/secrets/a", b"x"))
        await world.sh(
            "touch /tmpfs/x; cat /run/secrets/a",
            mounts=mounts,
            remove_mount_stubs_recursive=True,
        )
        after = {str(path) for path in world.root.rglob("*")} - {
            str(world.root / name) for name in ("proc", "sys", "dev")
        }
        assert sorted(after) == before
        assert kept.stat().st_mtime_ns > 10**18  # when the stubs were made, as under BuildKit

    play(scenario)


def test_what_a_step_writes_beside_a_stub_stays(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        mounts = (DataMount("/run/secrets/a", b"x"),)
        await world.sh("echo own > /run/own", mounts=mounts, remove_mount_stubs_recursive=True)
        assert (world.root / "run/own").read_text() == "own\n"
        assert not (world.root / "run/secrets/a").exists()

    play(scenario)


def test_secret_is_on_no_disk(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        value = os.urandom(16).hex()
        gate, out = asyncio.Event(), Output()

        def see(data: bytes) -> None:
            out.append(data)
            if value in out.text:
                gate.set()

        secret = DataMount("/run/secret", value.encode(), 0o440, 7, 8)
        process = ProcessSpec(
            ("/bin/sh", "-c", "stat -c '%a %u %g' /run/secret; cat /run/secret; exec sleep 60"),
            env=ENV,
            mounts=(secret,),
        )
        task = asyncio.create_task(
            world.executor.run("s", world.root, process, stdout=see, stderr=see)
        )
        await gate.wait()
        assert out.text.startswith("440 7 8\n")
        files = [p for p in world.run_dir.parent.rglob("*") if p.is_file() and p.name != "busybox"]
        assert [p for p in files if value.encode() in p.read_bytes()] == []
        assert value not in repr(process)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    play(scenario)


def test_networks(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        own = os.readlink("/proc/self/ns/net")
        script = "busybox readlink /proc/self/ns/net"
        assert (await world.sh(script)).strip() == own
        assert (await world.sh(script, network=NetworkMode.HOST)).strip() == own
        assert (await world.sh(script, network=NetworkMode.NONE)).strip() != own
        links = await world.sh("busybox ip -o link", network=NetworkMode.NONE)
        assert [line.split()[1] for line in links.splitlines()] == ["lo:"]
        assert "LOWER_UP" in links

    play(scenario)


def test_default_confinement(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        status = await world.sh("cat /proc/self/status")
        fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        assert capabilities.names(int(fields["CapEff"], 16)) == tuple(
            name for name in capabilities.names(-1) if name in capabilities.DEFAULT
        )
        assert fields["Seccomp"] == "2"
        assert fields["NoNewPrivs"] == "0"
        denied = "busybox unshare -r true; busybox mount -t tmpfs x /mnt; echo > /proc/sys/kernel/hostname"
        await world.sh(f"{denied}; exit 0")
        with pytest.raises(ExecFailedError):
            await world.sh("busybox unshare -m true")
        with pytest.raises(ExecFailedError):
            await world.sh("busybox mknod /disk b 254 0 && head -c 1 /disk")

    play(scenario)


def test_insecure_mode_has_everything(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        script = "busybox unshare -m busybox mount -t tmpfs x /proc; cat /proc/self/status"
        status = await world.sh(script, security=SecurityMode.INSECURE)
        fields = dict(line.split(":\t") for line in status.splitlines() if ":\t" in line)
        assert set(capabilities.names(int(fields["CapEff"], 16))) == set(capabilities.current())
        assert fields["Seccomp"] == "0"

    play(scenario)


def test_read_only_root_and_mounts(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        shared = world.run_dir / "shared"
        shared.mkdir()
        mounts = (BindMount("/rw", shared), BindMount("/ro", shared, read_only=True))
        script = "touch /rw/a && ! touch /ro/b && ! touch /c"
        await world.sh(script, mounts=mounts, read_only_root=True)
        assert [path.name for path in shared.iterdir()] == ["a"]

    play(scenario)


def test_tmpfs_size(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        script = "! dd if=/dev/zero of=/t/x bs=1024 count=200 && rm /t/x && touch /t/y"
        await world.sh(script, mounts=(TmpfsMount("/t", size_bytes=100 << 10),))

    play(scenario)


def test_ulimits(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        limits = (Ulimit("nofile", 123, 456),)
        assert await world.sh("ulimit -Sn; ulimit -Hn", ulimits=limits) == "123\n456\n"

    play(scenario)


def test_terminal(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        text = await world.sh("test -t 0 && test -t 1 && echo yes", tty=True)
        assert text.strip() == "yes"

    play(scenario)


def test_out_of_memory_names_limit_and_peak(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        if cgroups.mode() == "none":
            pytest.skip("needs control groups")
        limit = 16 << 20
        with pytest.raises(OutOfMemoryError) as caught:
            await world.sh(
                "dd if=/dev/zero of=/dev/null bs=64M count=1",
                resources=Resources(memory_bytes=limit, memory_swap_bytes=0),
            )
        assert caught.value.limit_bytes == limit
        assert caught.value.peak_bytes > limit // 2

    play(scenario)


def test_cancel_kills_everything_at_once(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        started, out = asyncio.Event(), Output()

        def see(data: bytes) -> None:
            out.append(data)
            started.set()

        script = "sleep 1000 & trap '' TERM INT; echo go; while :; do sleep 1000; done"
        process = ProcessSpec(("/bin/sh", "-c", script), env=ENV)
        task = asyncio.create_task(
            world.executor.run("c", world.root, process, stdout=see, stderr=see)
        )
        await spoken(started, task)
        assert processes_in(world.root)
        async with asyncio.timeout(LIMIT_S):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert processes_in(world.root) == []

    play(scenario)


def test_cancel_at_any_moment_leaves_nothing(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        await world.executor.ready()
        for step in range(12):
            process = ProcessSpec(("/bin/sleep", "1000"), env=ENV)
            out = Output()
            task = asyncio.create_task(
                world.executor.run(
                    f"m{step}", world.root, process, stdout=out.append, stderr=out.append
                )
            )
            for _ in range(step * step):
                await asyncio.sleep(0)
            task.cancel()
            async with asyncio.timeout(LIMIT_S):
                await asyncio.wait([task])
            assert task.cancelled()
        assert processes_in(world.root) == []

    play(scenario)


def test_killed_runtime_fails_the_step_and_takes_the_container_along(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(world: World) -> None:
        started = asyncio.Event()
        process = ProcessSpec(("/bin/sh", "-c", "echo go; sleep 1000"), env=ENV)
        task = asyncio.create_task(
            world.executor.run(
                "k", world.root, process, stdout=lambda _: started.set(), stderr=print
            )
        )
        await spoken(started, task)
        name = (await world.executor.ready()).path.encode()
        # only this test's: other builds may be running on the machine
        ours = os.fsencode(world.run_dir)
        runtimes = [pid for pid, line in command_lines() if name in line and ours in line]
        assert runtimes
        for pid in runtimes:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(RuntimeFailedError):
            await task
        assert processes_in(world.root) == []
        assert await world.sh("echo again") == "again\n"

    play(scenario)


def test_killed_supervisor_fails_the_step_and_is_replaced(
    play: Callable[[Scenario], None],
) -> None:
    async def scenario(world: World) -> None:
        started = asyncio.Event()
        process = ProcessSpec(("/bin/sh", "-c", "echo go; sleep 1000"), env=ENV)
        task = asyncio.create_task(
            world.executor.run(
                "k", world.root, process, stdout=lambda _: started.set(), stderr=print
            )
        )
        await spoken(started, task)
        assert world.executor._link is not None
        os.kill(world.executor._link.pid, signal.SIGKILL)
        with pytest.raises(SandboxLostError):
            await task
        assert await world.sh("echo again") == "again\n"
        # The kernel ends them after it has closed the supervisor's socket.
        async with asyncio.timeout(LIMIT_S):
            while processes_in(world.root):  # noqa: ASYNC110 - the kernel tells nobody
                await asyncio.sleep(0.01)

    play(scenario)


def test_many_steps_at_once(play: Callable[[Scenario], None], tmp_path: Path) -> None:
    async def scenario(world: World) -> None:
        roots = [make_root(tmp_path / f"root{n}") for n in range(12)]

        async def one(n: int) -> str:
            out = Output()
            process = ProcessSpec(("/bin/sh", "-c", f"echo {n}; exit 0"), env=ENV)
            await world.executor.run(
                f"p{n}", roots[n], process, stdout=out.append, stderr=out.append
            )
            return out.text

        texts = await asyncio.gather(*(one(n) for n in range(12)))
        assert texts == [f"{n}\n" for n in range(12)]

    play(scenario)


def test_exec_in_a_running_container(play: Callable[[Scenario], None]) -> None:
    async def scenario(world: World) -> None:
        from boxwright.executor.users import User

        started, out = asyncio.Event(), Output()
        process = ProcessSpec(("/bin/sh", "-c", "echo hi > /mark; echo go; sleep 1000"), env=ENV)
        task = asyncio.create_task(
            world.executor.run(
                "e", world.root, process, stdout=lambda _: started.set(), stderr=print
            )
        )
        await spoken(started, task)
        await world.executor.exec_in(
            "e",
            ProcessSpec(("/bin/cat", "/mark"), env=ENV),
            exec_id="e-1",
            user=User(),
            stdout=out.append,
            stderr=out.append,
        )
        assert out.text == "hi\n"
        task.cancel()
        await asyncio.wait([task])

    play(scenario)


@pytest.mark.peer("crun")
def test_our_compiled_filter_is_the_one_that_crun_compiles(tmp_path: Path) -> None:
    """The annotation replaces crun's own work, so it must say the same."""
    profile = seccomp.plan_seccomp(capabilities.DEFAULT)
    assert profile is not None
    compiled = bpf.compile_filter(profile)
    if compiled is None:
        pytest.skip("needs libseccomp")
    make_root(tmp_path / "rootfs")
    held = {name: list(capabilities.DEFAULT) for name in ("bounding", "effective", "permitted")}
    config = {
        "ociVersion": "1.0.2",
        "process": {"args": ["/bin/true"], "cwd": "/", "capabilities": held},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}], "seccomp": profile},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    hybrid = cgroups.mode() == "hybrid"
    if hybrid:  # crun before 1.9 refuses such hosts
        mount.mount("tmpfs", f"{cgroups.ROOT}/unified", "tmpfs")
    crun = ["crun", "--root", str(tmp_path / "state"), "--cgroup-manager=disabled"]
    try:
        create = [*crun, "create", "--bundle", str(tmp_path), "filter"]
        subprocess.run(create, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        theirs = (tmp_path / "state/filter/seccomp.bpf").read_bytes()
    finally:
        subprocess.run([*crun, "delete", "--force", "filter"], check=False)
        if hybrid:
            mount.umount(f"{cgroups.ROOT}/unified")
    assert base64.b64decode(compiled) == theirs


def command_lines() -> list[tuple[int, bytes]]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((int(entry.name), (entry / "cmdline").read_bytes()))
            except OSError:
                continue
    return found


def processes_in(root: Path) -> list[int]:
    """Processes whose root is the step's, whatever namespace they are in."""
    wanted = (root.stat().st_dev, root.stat().st_ino)
    found = []
    for pid, _ in command_lines():
        try:
            info = os.stat(f"/proc/{pid}/root/.")
        except OSError:
            continue
        if (info.st_dev, info.st_ino) == wanted:
            found.append(pid)
    return found
