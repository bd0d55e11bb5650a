"""Real programs against real programs: our command line, our daemon, stock clients."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from boxwright.linux import unixpath
from boxwright.testing import peers
from boxwright.testing.ports import kept_port

PROGRAM = str(Path(sys.executable).with_name("boxwright"))
TIMEOUT_S = 120


def find_peer(name: str) -> str:
    """Return a stock program's path; tests that use it carry the ``peer`` mark."""
    found = peers.find_peer(name)
    assert found, name
    return found


def wait_until(condition, what: str = "condition") -> None:
    """Poll something outside this process that has no event to wait for.

    The limit is for what never comes true, and far beyond what a busy machine needs.
    """
    end = time.monotonic() + TIMEOUT_S
    is_last = False
    while not condition():
        if is_last:
            raise AssertionError(f"{what} did not come true within {TIMEOUT_S} s")
        is_last = time.monotonic() > end  # what came true meanwhile is seen
        time.sleep(0.02)


@dataclass
class Run:
    """How a program ended."""

    argv: list[str]
    status: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """Both streams."""
        return self.out + self.err

    def ok(self) -> Run:
        """Fail the test unless it succeeded."""
        assert self.status == 0, f"{self.argv} ended with {self.status}\n{self.text[-6000:]}"
        return self


def run(
    argv: list[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    timeout_s: float = TIMEOUT_S,
) -> Run:
    """Run a program to its end."""
    done = subprocess.run(
        [str(a) for a in argv],
        env={**os.environ, **(env or {})},
        cwd=cwd,
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    return Run(
        [str(a) for a in argv],
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
    )


@dataclass
class Context:
    """A build context on disk."""

    path: Path

    def write(self, name: str, content: str | bytes, mode: int = 0o644) -> Path:
        """Write a file, making folders."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)
        target.chmod(mode)
        return target

    def dockerfile(self, text: str, *, base: bool = True) -> None:
        """Write the Dockerfile; ``base`` puts a stage named base with a busybox in front."""
        head = "FROM scratch AS base\nCOPY .base/ /\nENV PATH=/bin\n" if base else ""
        if base:
            bin_folder = self.path / ".base/bin"
            bin_folder.mkdir(parents=True, exist_ok=True)
            if not (bin_folder / "busybox").exists():
                shutil.copy(shutil.which("busybox") or "/bin/busybox", bin_folder / "busybox")
                for name in (
                    "sh",
                    "cat",
                    "echo",
                    "true",
                    "false",
                    "ls",
                    "id",
                    "sleep",
                    "env",
                    "mkdir",
                    "rm",
                    "grep",
                    "stat",
                    "touch",
                    "cp",
                    "date",
                    "wc",
                    "sed",
                    "sha256sum",
                    "dd",
                    "chown",
                    "chmod",
                    "mv",
                    "ln",
                    "find",
                    "kill",
                ):
                    (bin_folder / name).symlink_to("busybox")
        self.write("Dockerfile", head + text)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """An empty build context."""
    path = tmp_path / "context"
    path.mkdir()
    return Context(path)


@dataclass
class Cli:
    """Our command line with a state folder of its own."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def __call__(self, *argv: str | Path, **options: Any) -> Run:
        """Run ``boxwright`` with these arguments."""
        env = {"BOXWRIGHT_ROOT": str(self.root), "NO_COLOR": "1", **self.env}
        env |= options.pop("env", {})
        return run([PROGRAM, *map(str, argv)], env=env, **options)

    def build(self, *argv: str | Path, **options: Any) -> Run:
        """Run ``boxwright build --progress plain``."""
        return self("build", "--progress", "plain", *argv, **options)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """A state folder; nothing of it may stay mounted or running."""
    root = tmp_path / "state"
    yield root
    assert str(root) not in Path("/proc/self/mountinfo").read_text()
    assert_no_process_uses(str(root))


def assert_no_process_uses(text: str) -> None:
    """Fail if a process other than this one has ``text`` in its command line."""

    def users() -> list[str]:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    line = (
                        (entry / "cmdline")
                        .read_bytes()
                        .replace(b"\0", b" ")
                        .decode(errors="replace")
                    )
                    if text in line:
                        found.append(f"{entry.name}: {line}")
        return found

    with contextlib.suppress(AssertionError):
        wait_until(lambda: not users())
    assert users() == []


@pytest.fixture
def cli(state: Path, tmp_path: Path) -> Cli:
    """Our command line."""
    home = tmp_path / "home"
    home.mkdir()
    return Cli(state, {"HOME": str(home), "DOCKER_CONFIG": str(home / ".docker")})


@dataclass
class Daemon:
    """Our daemon as a process."""

    root: Path
    address: str
    argv: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Daemon:
        """Start it and wait until it listens."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        path = self.address.removeprefix("unix://")

        def answers() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            with socket.socket(socket.AF_UNIX) as probe, unixpath.usable(path) as name:
                return probe.connect_ex(name) == 0

        try:
            wait_until(answers, "the daemon listens")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end."""
        if self.process is None:
            return 0
        self.process.send_signal(how)
        status = self.process.wait(TIMEOUT_S)
        self.process = None
        return status


@pytest.fixture
def daemon(state: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon of ours."""
    address = f"unix://{tmp_path}/d.sock"
    argv = [PROGRAM, "daemon", "--root", str(state), "--addr", address]
    made = Daemon(state, address, argv, tmp_path / "daemon.log")
    made.start()
    try:
        yield made
    finally:
        made.stop()


@dataclass
class Buildx:
    """A stock docker-buildx with a builder that points at one daemon."""

    program: str
    config: Path
    address: str

    def __call__(self, *argv: str | Path, **options: Any) -> Run:
        """Run buildx with these arguments."""
        env = {
            "BUILDX_CONFIG": str(self.config),
            "DOCKER_CONFIG": str(self.config / "docker"),
            "BUILDX_BUILDER": "remote",
            "NO_COLOR": "1",
            "HOME": str(self.config),
            "BUILDX_NO_DEFAULT_ATTESTATIONS": "false",
            **options.pop("env", {}),
        }
        return run([self.program, *map(str, argv)], env=env, **options)

    def build(self, *argv: str | Path, **options: Any) -> Run:
        """Run ``buildx build --progress plain``."""
        return self("build", "--progress", "plain", *argv, **options)


@pytest.fixture
def buildx(daemon: Daemon, tmp_path: Path) -> Buildx:
    """A stock docker-buildx that drives our daemon."""
    made = Buildx(find_peer("docker-buildx"), tmp_path / "buildx", daemon.address)
    made.config.mkdir()
    made("create", "--name", "remote", "--driver", "remote", daemon.address).ok()
    return made


@dataclass
class Registry:
    """A foreign registry (CNCF distribution) on loopback."""

    host: str
    data: Path


@contextlib.contextmanager
def running_registry(folder: Path) -> Iterator[Registry]:
    """Run a docker-registry that keeps its files in ``folder``."""
    with kept_port() as port:
        yield from _running_registry(folder, port)


def _running_registry(folder: Path, port: int) -> Iterator[Registry]:
    data = folder / "registry"
    config = folder / "registry.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {data}}}\n"
        f"  delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:{port}\n"
    )
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            [find_peer("docker-registry"), "serve", str(config)], stdout=log, stderr=log
        )

    def answers() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(answers, "the registry listens")
        yield Registry(f"127.0.0.1:{port}", data)
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """A running docker-registry."""
    with running_registry(tmp_path) as made:
        yield made


@dataclass
class Layout:
    """An OCI layout: what an output really contains."""

    path: Path

    @classmethod
    def unpack(cls, archive: Path) -> Layout:
        """Unpack an OCI archive beside itself."""
        target = archive.with_suffix(".d")
        target.mkdir()
        subprocess.run(["tar", "-xf", str(archive), "-C", str(target)], check=True)
        return cls(target)

    def blob(self, digest: str) -> bytes:
        """Return a blob."""
        return (self.path / "blobs" / digest.replace(":", "/")).read_bytes()

    @property
    def descriptor(self) -> dict[str, Any]:
        """The first entry of the index."""
        return json.loads((self.path / "index.json").read_text())["manifests"][0]

    @property
    def manifest(self) -> dict[str, Any]:
        """The image manifest."""
        return json.loads(self.blob(self.descriptor["digest"]))

    @property
    def config(self) -> dict[str, Any]:
        """The image config."""
        return json.loads(self.blob(self.manifest["config"]["digest"]))

    def files(self) -> dict[str, str]:
        """Return the image's files with mode, owner, size and link target, layers applied."""
        found: dict[str, str] = {}
        for layer in self.manifest["layers"]:
            blob = self.path / "blobs" / layer["digest"].replace(":", "/")
            listing = subprocess.run(
                ["tar", "--numeric-owner", "-tvf", str(blob)], capture_output=True, check=True
            ).stdout.decode()
            for line in listing.splitlines():
                mode, owner, size, _, _, name = line.split(None, 5)
                name, _, target = name.partition(" -> ")
                path = name.rstrip("/").removeprefix("./")
                folder, _, leaf = path.rpartition("/")
                if leaf.startswith(".wh."):
                    found.pop(f"{folder}/{leaf[4:]}".lstrip("/"), None)
                    continue
                found[path] = f"{mode} {owner} {size} {target}".strip()
        return found
