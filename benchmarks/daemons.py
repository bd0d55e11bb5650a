"""Start and stop the daemons under measurement, and ask the kernel what they used."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Daemon:
    """A running daemon: its address, state folder and process."""

    name: str
    address: str
    root: Path
    process: subprocess.Popen[bytes] | None = None
    start_s: float = 0.0

    def memory_mib(self) -> float:
        """Return the resident memory of the daemon's own process in MiB."""
        if self.process is None:
            return float("nan")
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        for line in status.splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
        return float("nan")

    def cpu_s(self) -> float:
        """Return the CPU seconds of the daemon and of all below it, living or reaped."""
        if self.process is None:
            return float("nan")
        children: dict[int, list[int]] = {}
        ticks: dict[int, int] = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = entry.read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.parent.name))
                ticks[int(entry.parent.name)] = sum(int(fields[at]) for at in (11, 12, 13, 14))
        found, pending = 0, [self.process.pid]
        while pending:
            pid = pending.pop()
            found += ticks.get(pid, 0)
            pending += children.get(pid, [])
        return found / os.sysconf("SC_CLK_TCK")


def wait_until_it_answers(buildctl: str, address: str, deadline_s: float = 60) -> float:
    """Poll ListWorkers; return how long the first answer took."""
    began = time.perf_counter()
    while time.perf_counter() - began < deadline_s:
        done = subprocess.run(
            [buildctl, "--addr", address, "debug", "workers"], capture_output=True, check=False
        )
        if done.returncode == 0:
            return time.perf_counter() - began
        time.sleep(0.01)
    raise SystemExit(f"error: {address} does not answer within {deadline_s} s")


@contextlib.contextmanager
def running(
    name: str, argv: list[str], root: Path, address: str, buildctl: str
) -> Iterator[Daemon]:
    """Run a daemon while the block runs; it is asked to stop, then killed."""
    log = (root / "daemon.log").open("wb")
    # Byte code is kept, as in any installation.
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(argv, stdout=log, stderr=log, env=env)
    daemon = Daemon(name, address, root, process)
    try:
        daemon.start_s = wait_until_it_answers(buildctl, address)
        yield daemon
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        log.close()


def start(
    stack: contextlib.ExitStack, name: str, argv: list[str], work: Path, buildctl: str
) -> Daemon:
    """Run a daemon on an empty state folder below ``work`` for as long as ``stack`` is open.

    ``argv`` may hold ``{root}`` and ``{address}``.
    """
    root = work / name
    root.mkdir()
    address = f"unix://{root}/d.sock"
    filled = [each.format(root=root, address=address) for each in argv]
    return stack.enter_context(running(name, filled, root, address, buildctl))


def start_both(
    stack: contextlib.ExitStack, work: Path, buildctl: str, buildkitd: str
) -> list[Daemon]:
    """Run our daemon and a stock one, as :func:`start` does."""
    pairs = (("ours", our_argv()), ("theirs", their_argv(buildkitd)))
    return [start(stack, name, argv, work, buildctl) for name, argv in pairs]


@contextlib.contextmanager
def listening(argv: list[str], address: str) -> Iterator[None]:
    """Run a server while the block runs, which starts when something listens."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(address)
        yield
    finally:
        process.terminate()
        process.wait(30)


def _wait_for(address: str) -> None:
    host, _, port = address.rpartition(":")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as one:
            if one.connect_ex((host, int(port))) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"error: nothing listens at {address}")


def free_address() -> str:
    """Return an address of this machine at which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@contextlib.contextmanager
def registry(work: Path) -> Iterator[str]:
    """Run a registry while the block runs; yield its address, or nothing without a program."""
    program = shutil.which("docker-registry") or shutil.which("registry")
    if program is None:
        yield ""
        return
    address = free_address()
    config = work / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nhttp: {{addr: '{address}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: '{work / 'registry'}'}}}}\n"
    )
    with listening([program, "serve", str(config)], address):
        yield address


def our_argv(runtime: str = "") -> list[str]:
    """Return the command line of our daemon."""
    program = Path(sys.executable).with_name("boxwright")
    argv = [str(program), "daemon", "--root", "{root}", "--addr", "{address}"]
    return argv + (["--oci-worker-binary", runtime] if runtime else [])


def their_argv(buildkitd: str, runtime: str = "") -> list[str]:
    """Return the command line of a stock daemon with the same network mode."""
    argv = [buildkitd, "--root", "{root}", "--addr", "{address}", "--oci-worker-net", "host"]
    return argv + (["--oci-worker-binary", runtime] if runtime else [])
