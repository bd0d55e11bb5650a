"""What is left when processes are killed, and entering user namespaces, with real processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

import boxwright
from boxwright.linux.mount import list_mounts
from boxwright.sandbox import cgroups

BUSYBOX = shutil.which("busybox")
SOURCE = Path(boxwright.__file__).parent.parent

ENGINE = """
import asyncio, json, os, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
{enter}
from boxwright.linux import mount
from boxwright.executor.executor import Executor, ExecutorConfig
from boxwright.executor.process import DataMount, ProcessSpec

async def main():
    base = Path(sys.argv[2])
    (base / "run").mkdir(exist_ok=True)
    executor = Executor.open(ExecutorConfig(base / "run"))
    await executor.ready()
    # Mounted after the supervisor was started: it must arrive there all the same.
    for name in ("upper", "work", "merged"):
        (base / name).mkdir(exist_ok=True)
    mount.overlay(base / "merged", lower=[base / "root"], upper=base / "upper",
                  work=base / "work", userxattr=os.environ.get("USERXATTR") == "1")
    def say(data):
        sys.stdout.write(data.decode())
        sys.stdout.flush()
    process = ProcessSpec(("/bin/sh", "-c", sys.argv[3]), env=("PATH=/bin",),
                          mounts=(DataMount("/run/secret", b"s"),))
    try:
        await executor.run("step", base / "merged", process, stdout=say, stderr=say)
    finally:
        await executor.close()
        mount.umount(base / "merged")

asyncio.run(main())
"""
AS_ROOT = "from boxwright.linux import namespaces; namespaces.isolate_mounts()"
AS_USER = """
from boxwright.sandbox import userns
before = os.getpid()
entered = userns.enter()
print(json.dumps({"uid": os.getuid(), "same": before == os.getpid(),
                  "warnings": list(entered.warnings),
                  "map": open("/proc/self/uid_map").read().split()}), flush=True)
from boxwright.linux import namespaces; namespaces.isolate_mounts()
"""


def make_root(path: Path) -> Path:
    (path / "bin").mkdir(parents=True)
    shutil.copy(str(BUSYBOX), path / "bin/busybox")
    for name in ("sh", "cat", "id", "ls", "sleep", "chown", "touch", "stat"):
        (path / "bin" / name).symlink_to("busybox")
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    if BUSYBOX is None or shutil.which("crun") is None:
        pytest.skip("needs busybox and crun")
    make_root(tmp_path / "root")
    return tmp_path


def start(
    base: Path, script: str, enter: str = AS_ROOT, **options: object
) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", ENGINE.format(enter=enter), str(SOURCE), str(base), script]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload, no-any-return]


def descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # of a thread that has ended
            for child in children.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def wait_for_end(pidfds: list[int]) -> None:
    """Wait until all processes have ended; a hang fails the test."""
    poll = select.poll()
    for fd in pidfds:
        poll.register(fd, select.POLLIN)
    waiting = set(pidfds)
    while waiting:
        events = poll.poll(60_000)
        assert events, "processes are still alive"
        for fd, _ in events:
            poll.unregister(fd)
            os.close(fd)
            waiting.discard(fd)


def step_groups(base: Path) -> list[Path]:
    """Return the control groups of this engine's step; others on this machine have their own."""
    key = hashlib.sha256(os.fsencode(base / "run")).hexdigest()[:12]
    found = (Path(each).glob(f"boxwright-{key}/step") for each in cgroups.hierarchies())
    return list(chain.from_iterable(found))


@pytest.mark.root
@pytest.mark.parametrize("victim", ["engine", "supervisor", "first process"])
def test_killing_leaves_no_process_mount_or_group(base: Path, victim: str) -> None:
    script = "sleep 1001 & sleep 1002 & (sleep 1003 &) ; echo started; sleep 1004"
    with start(base, script) as engine:
        assert engine.stdout is not None
        assert engine.stdout.readline() == "started\n"
        below = descendants(engine.pid)
        assert len(below) >= 6  # two of the supervisor, the runtime, and the step's own
        pidfds = [os.pidfd_open(pid) for pid in below]
        target = {"engine": engine.pid, "supervisor": below[0], "first process": below[1]}[victim]
        os.kill(target, signal.SIGKILL)
        wait_for_end(pidfds)
        engine.wait(60)
        assert engine.returncode != 0
    assert [m.mount_point for m in list_mounts(base)] == []
    with start(base, "echo again") as engine:
        assert engine.stdout is not None
        assert engine.stdout.read() == "again\n"
    assert engine.returncode == 0
    assert step_groups(base) == []
    assert list((base / "run/sandbox").iterdir()) == []


@pytest.fixture
def user() -> Iterator[str]:
    """A real ordinary user with subordinate ids of its own."""
    name = f"bw-test-{os.getpid()}"
    if os.geteuid() != 0 or shutil.which("useradd") is None:
        pytest.skip("needs root to make a user")
    subprocess.run(["useradd", "--create-home", name], check=True)
    try:
        yield name
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


def as_user(name: str, argv: list[str], **env: str) -> subprocess.Popen[str]:
    """Run ``argv`` as the user, with a Python that it may execute."""
    identity = ["--reuid", name, "--regid", name, "--init-groups", "--reset-env"]
    return subprocess.Popen(
        ["setpriv", *identity, "env", *(f"{k}={v}" for k, v in env.items()), *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd="/",
    )


@pytest.fixture
def home(user: str) -> Path:
    """The user's home with our sources and a root file system, all its own."""
    path = Path(f"~{user}").expanduser()
    shutil.copytree(SOURCE / "boxwright", path / "src/boxwright", ignore=ignore_caches)
    make_root(path / "root")
    subprocess.run(["chown", "-R", f"{user}:", str(path)], check=True)
    return path


def ignore_caches(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "__pycache__"]


def system_python() -> str:
    """An interpreter that other users can execute."""
    for candidate in ("/usr/bin/python3", sys.executable):
        if Path(candidate).exists():
            done = subprocess.run(
                ["setpriv", "--reuid", "65534", "--clear-groups", candidate, "-c", CHECK_VERSION],
                check=False,
                capture_output=True,
            )
            if done.returncode == 0:
                return candidate
    pytest.skip("needs a python from 3.11 on that other users can run")


CHECK_VERSION = "import sys; sys.exit(sys.version_info < (3, 11))"


@pytest.mark.userns
def test_an_ordinary_user_runs_steps_as_root_and_as_others(user: str, home: Path) -> None:
    script = "id -u; touch /f; chown 1000:2000 /f; stat -c '%u %g' /f; cat /run/secret"
    argv = [system_python(), "-c", ENGINE.format(enter=AS_USER), str(home / "src"), str(home)]
    with as_user(user, [*argv, script], USERXATTR="1", PATH=os.environ["PATH"]) as engine:
        assert engine.stdout is not None
        text = engine.stdout.read()
    first, *rest = text.splitlines()
    facts = json.loads(first)
    assert facts["uid"] == 0
    assert facts["same"]
    assert facts["warnings"] == []
    assert facts["map"][:3] == ["0", str(home.stat().st_uid), "1"]
    assert rest == ["0", "1000 2000", "s"]
    assert engine.returncode == 0


@pytest.mark.userns
def test_without_subordinate_ids_one_user_still_works_with_a_warning(
    user: str, home: Path
) -> None:
    for path in ("/etc/subuid", "/etc/subgid"):
        flag = "--del-subuids" if path.endswith("uid") else "--del-subgids"
        for line in Path(path).read_text().splitlines():
            name, first, count = line.split(":")
            if name == user:
                last = int(first) + int(count) - 1
                subprocess.run(["usermod", flag, f"{first}-{last}", user], check=True)
    argv = [system_python(), "-c", ENGINE.format(enter=AS_USER), str(home / "src"), str(home)]
    script = "id -u; touch /f; stat -c '%u %g' /f; ! chown 7 /f 2>/dev/null"
    with as_user(user, [*argv, script], USERXATTR="1", PATH=os.environ["PATH"]) as engine:
        assert engine.stdout is not None
        text = engine.stdout.read()
    first_line, *rest = text.splitlines()
    facts = json.loads(first_line)
    assert len(facts["warnings"]) == 1
    assert "usermod --add-subuids" in facts["warnings"][0]
    assert rest == ["0", "0 0"]


@pytest.mark.userns
def test_killing_a_rootless_engine_leaves_nothing(user: str, home: Path) -> None:
    argv = [system_python(), "-c", ENGINE.format(enter=AS_USER), str(home / "src"), str(home)]
    script = "sleep 1001 & echo started; sleep 1004"
    with as_user(user, [*argv, script], USERXATTR="1", PATH=os.environ["PATH"]) as engine:
        assert engine.stdout is not None
        engine.stdout.readline()
        assert engine.stdout.readline() == "started\n"
        pidfds = [os.pidfd_open(pid) for pid in descendants(engine.pid)]
        engine.kill()
        wait_for_end(pidfds)
    assert [m.mount_point for m in list_mounts(home)] == []


@pytest.mark.userns
def test_refused_namespaces_are_explained(user: str, home: Path) -> None:
    """With a limit of zero namespaces, set in a namespace of our own for this test."""
    argv = [
        system_python(),
        "-c",
        f"""
import sys
sys.path.insert(0, {str(home / "src")!r})
from boxwright.sandbox import userns
try:
    userns.enter()
except userns.UserNamespaceError as exc:
    print(exc.code.value, "|", exc.detail, "|", exc.hint)
""",
    ]
    inner = (
        f"echo 0 > /proc/sys/user/max_user_namespaces && exec {' '.join(map(shell_quote, argv))}"
    )
    with as_user(user, ["unshare", "--user", "--map-root-user", "sh", "-c", inner]) as process:
        assert process.stdout is not None
        text = process.stdout.read()
    assert text.startswith("environment | ")
    assert "user.max_user_namespaces=0" in text
    assert "sudo sysctl -w user.max_user_namespaces" in text


def shell_quote(text: str) -> str:
    import shlex

    return shlex.quote(text)
