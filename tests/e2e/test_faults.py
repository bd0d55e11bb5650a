"""Programs are killed at any point: nothing is left, and the next build goes on from there."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from leftovers import (
    Process,
    assert_recovers,
    children_of,
    files_below,
    groups,
    steps_that_ran,
)
from programs import PROGRAM, Buildx, Cli, Context, Daemon, Layout, Registry, wait_until

from boxwright.errors import EXIT_CODES, Code

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("crun"),
]

# The second step hangs the first time it is run, and only then: the cache mount remembers.
HANGS_ONCE = """
FROM base
RUN echo one > /one
RUN --mount=type=cache,target=/c test -e /c/again || { \
  echo > /c/again; echo begun-$((1+1)); sleep 3600; }; echo two > /two
"""
RUNNING = "begun-2"
LARGE = "FROM base\nRUN dd if=/dev/urandom of=/large bs=1000000 count=300\n"

Starter = Callable[..., Process]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    """Start programs that are ended with the test."""
    with contextlib.ExitStack() as stack:
        count = 0

        def starter(argv: list[str], **env: str) -> Process:
            nonlocal count
            count += 1
            process = Process(argv, tmp_path / f"process{count}.log", env)
            stack.callback(process.close)
            return process

        yield starter


@pytest.fixture
def start_build(start: Starter, cli: Cli) -> Starter:
    """Start ``boxwright build`` on the embedded engine."""

    def starter(*argv: str) -> Process:
        env = {"BOXWRIGHT_ROOT": str(cli.root), **cli.env}
        return start([PROGRAM, "build", "--progress", "plain", *map(str, argv)], **env)

    return starter


@pytest.fixture
def start_buildx(start: Starter, buildx: Buildx) -> Starter:
    """Start a stock buildx on our daemon."""

    def starter(*argv: str) -> Process:
        env = {
            "BUILDX_CONFIG": str(buildx.config),
            "HOME": str(buildx.config),
            "BUILDX_BUILDER": "remote",
            "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        }
        return start([buildx.program, "build", "--progress", "plain", *map(str, argv)], **env)

    return starter


def sleeps_below(pid: int) -> bool:
    """Whether the step's command runs: its shell says that it does before it has started it."""
    return any(line[0] == "sleep" for line in children_of(pid).values())


def has_large_ingest(root: Path) -> bool:
    """Whether a blob is being written right now, larger than what the base makes."""
    with contextlib.suppress(FileNotFoundError):
        return any(path.stat().st_size > 20_000_000 for path in (root / "ingest").iterdir())
    return False


def test_interrupt_ends_the_step_and_leaves_nothing(
    start_build: Starter, cli: Cli, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(HANGS_ONCE)
    output = tmp_path / "out.tar"
    build = start_build("-o", f"type=oci,dest={output}", context.path)
    build.wait_for_text(RUNNING)
    build.wait_for(lambda: sleeps_below(build.pid), "the command of the step runs")
    assert build.end(signal.SIGINT) == EXIT_CODES[Code.CANCELLED], build.text
    assert "cancelled" in build.text
    assert "Traceback" not in build.text
    assert groups(cli.root) == []
    assert not output.exists()
    assert_recovers(cli.root)
    done = cli.build("-o", f"type=oci,dest={output}", context.path).ok()
    assert not any("RUN echo one" in name for name in steps_that_ran(done.err))
    assert "two" in Layout.unpack(output).files()
    assert [path.name for path in tmp_path.glob(".out*")] == []


def test_a_second_interrupt_is_no_traceback(start_build: Starter, context: Context) -> None:
    context.dockerfile(HANGS_ONCE)
    build = start_build(context.path)
    build.wait_for_text(RUNNING)
    os.kill(build.pid, signal.SIGINT)
    with contextlib.suppress(ProcessLookupError):
        os.kill(build.pid, signal.SIGINT)
    assert build.wait() in {EXIT_CODES[Code.CANCELLED], -signal.SIGINT}
    assert "Traceback" not in build.text


def test_the_embedded_engine_is_killed_in_a_step(
    start_build: Starter, cli: Cli, context: Context
) -> None:
    context.dockerfile(HANGS_ONCE)
    build = start_build(context.path)
    build.wait_for_text(RUNNING)
    build.end(signal.SIGKILL)
    assert_recovers(cli.root)
    done = cli.build(context.path).ok()
    assert not any("RUN echo one" in name for name in steps_that_ran(done.err))


def test_the_embedded_engine_is_killed_in_an_export(
    start_build: Starter, cli: Cli, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(LARGE)
    output = tmp_path / "out.tar"
    build = start_build("-o", f"type=oci,dest={output}", context.path)
    build.wait_for(lambda: has_large_ingest(cli.root), "a layer is written")
    build.end(signal.SIGKILL)
    assert not output.exists()
    assert_recovers(cli.root)
    done = cli.build("-o", f"type=oci,dest={output}", context.path).ok()
    assert steps_that_ran(done.err) == set()
    assert "large" in Layout.unpack(output).files()


@pytest.mark.peer("docker-registry")
def test_the_embedded_engine_is_killed_in_a_push(
    start_build: Starter, cli: Cli, context: Context, registry: Registry
) -> None:
    context.dockerfile(LARGE)
    name = f"{registry.host}/app:v1"
    build = start_build("-t", name, "--push", context.path)

    def is_uploading() -> bool:
        with contextlib.suppress(FileNotFoundError):  # of a small layer, which is through
            return any(
                path.stat().st_size > 20_000_000
                for path in files_below(registry.data)
                if path.parent.parent.name == "_uploads"
            )
        return False

    build.wait_for(is_uploading, "the upload begins")
    build.end(signal.SIGKILL)
    tag = "/_manifests/tags/v1/"
    assert not any(tag in str(path) for path in files_below(registry.data))
    assert_recovers(cli.root)
    done = cli.build("-t", name, "--push", context.path).ok()
    assert steps_that_ran(done.err) == set()
    assert any(tag in str(path) for path in files_below(registry.data))


@pytest.mark.peer("docker-buildx")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
def test_the_daemon_ends_in_a_step(
    start_buildx: Starter, buildx: Buildx, daemon: Daemon, context: Context, how: int
) -> None:
    context.dockerfile(HANGS_ONCE)
    build = start_buildx(context.path)
    build.wait_for_text(RUNNING)
    daemon.stop(how)
    assert build.wait() != 0
    assert_recovers(daemon.root)
    daemon.start()
    done = buildx.build(context.path).ok()
    assert not any("RUN echo one" in name for name in steps_that_ran(done.err))


@pytest.mark.peer("docker-buildx")
def test_the_daemon_is_killed_in_an_export(
    start_buildx: Starter, buildx: Buildx, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(LARGE)
    build = start_buildx("-o", f"type=oci,dest={tmp_path}/out.tar", context.path)
    build.wait_for(lambda: has_large_ingest(daemon.root), "a layer is written")
    daemon.stop(signal.SIGKILL)
    assert build.wait() != 0
    assert_recovers(daemon.root)
    daemon.start()
    done = buildx.build("-o", f"type=oci,dest={tmp_path}/again.tar", context.path).ok()
    assert steps_that_ran(done.err) == set()


def context_bytes(root: Path) -> int:
    """How much of file trees the state folder holds, in bytes of content."""
    total = 0
    for folder in ("contexts", "snapshots"):
        for path in files_below(root / folder):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size if path.name == "large" else 0
    return total


@pytest.mark.peer("docker-buildx")
@pytest.mark.parametrize("victim", ["client", "daemon"])
def test_killed_while_the_context_is_sent(
    start_buildx: Starter, buildx: Buildx, daemon: Daemon, context: Context, victim: str
) -> None:
    context.dockerfile("FROM scratch\nCOPY large small /\n", base=False)
    context.write("small", "small")
    context.write("large", b"not only zeros, which would become a hole" * 8_000_000)
    build = start_buildx(context.path)
    build.wait_for(lambda: context_bytes(daemon.root) > 0, "content arrives")
    if victim == "client":
        build.end(signal.SIGKILL)
    else:
        daemon.stop(signal.SIGKILL)
        build.wait()
        daemon.start()
    context.write("large", "no longer large")
    buildx.build(context.path).ok()
    daemon.stop()
    assert_recovers(daemon.root)


@pytest.mark.peer("docker-buildx")
@pytest.mark.parametrize("client", ["buildx", "ours"])
def test_the_step_of_a_killed_client_ends(
    start: Starter,
    start_buildx: Starter,
    buildx: Buildx,
    daemon: Daemon,
    context: Context,
    client: str,
) -> None:
    context.dockerfile(HANGS_ONCE)
    if client == "buildx":
        build = start_buildx(context.path)
    else:
        argv = [PROGRAM, "build", "--progress", "plain", "--addr", daemon.address, context.path]
        build = start([str(arg) for arg in argv])
    build.wait_for_text(RUNNING)
    assert daemon.process is not None
    pid = daemon.process.pid
    build.wait_for(lambda: sleeps_below(pid), "the command of the step runs")
    build.end(signal.SIGKILL)
    wait_until(lambda: not sleeps_below(pid), what="the step ends")
    buildx.build(context.path).ok()
    daemon.stop()
    assert_recovers(daemon.root)


def find_victim(daemon_pid: int, victim: str) -> int:
    """Return the process of a running step that the test kills."""
    below = children_of(daemon_pid)
    supervisors = sorted(p for p, line in below.items() if any("supervisor" in a for a in line))
    match victim:
        case "runtime":
            return next(p for p, line in below.items() if line[0].endswith("crun"))
        case "step":
            return next(p for p, line in below.items() if "begun-" in " ".join(line))
        case "outer supervisor":
            return supervisors[0]
        case _:
            return supervisors[-1]


@pytest.mark.peer("docker-buildx")
@pytest.mark.parametrize("victim", ["runtime", "step", "outer supervisor", "inner supervisor"])
def test_a_part_of_the_sandbox_is_killed(
    start: Starter, daemon: Daemon, context: Context, cli: Cli, victim: str
) -> None:
    context.dockerfile(HANGS_ONCE)
    argv = [PROGRAM, "build", "--progress", "plain", "--addr", daemon.address, str(context.path)]
    build = start(argv)
    build.wait_for_text(RUNNING)
    assert daemon.process is not None
    os.kill(find_victim(daemon.process.pid, victim), signal.SIGKILL)
    status = build.wait()
    wanted = Code.EXEC_FAILED if victim == "step" else Code.RUNTIME_FAILED
    assert status == EXIT_CODES[wanted], build.text
    assert "hint: " in build.text
    pid = daemon.process.pid
    wait_until(lambda: not sleeps_below(pid), what="the step is gone")
    cli.build("--addr", daemon.address, context.path).ok()
    daemon.stop()
    assert_recovers(daemon.root)


@pytest.mark.peer("docker-buildx")
def test_a_shared_step_goes_on_when_its_first_client_is_killed(
    start_buildx: Starter, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(
        "FROM base\n"
        "RUN --mount=type=secret,id=key --mount=type=cache,target=/c "
        "cat /run/secrets/key | sha256sum > /hash; echo begun-$((1+1)); "
        "while ! test -e /c/go; do sleep 0.05; done\n"
    )
    secret = tmp_path / "key"
    secret.write_text("shared-by-two-clients")
    flags = ("--secret", f"id=key,src={secret}")
    first = start_buildx(*flags, context.path)
    first.wait_for_text(RUNNING)
    second = start_buildx(*flags, "-o", f"type=local,dest={tmp_path}/out", context.path)
    second.wait_for_text(RUNNING)
    first.end(signal.SIGKILL)
    assert daemon.process is not None
    pid = daemon.process.pid
    wait_until(lambda: "was cancelled" in daemon.log.read_text(), "the first build ends")
    assert any("begun-" in " ".join(line) for line in children_of(pid).values())
    folders = [path for path in (daemon.root / "cachemounts").glob("*") if path.is_dir()]
    targets = [path / "fs" if (path / "fs").is_dir() else path for path in folders]
    for target in targets:
        (target / "go").touch()
    assert second.wait() == 0, second.text
    assert (tmp_path / "out/hash").stat().st_size > 60
