"""Upstream's own programs as peers: BUILDCTL and BUILDKITD name them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from programs import PROGRAM, Run, run, wait_until

HITS = "cache hits"
"""The property under which tests tell how many steps a cache has saved."""


@dataclass(frozen=True)
class Daemons:
    """Both daemons, each on a state folder of its own."""

    ours: str
    upstream: str


@dataclass(frozen=True)
class Client:
    """One buildctl: ours or upstream's."""

    name: str
    program: str

    def __call__(self, address: str, *argv: str | Path) -> Run:
        """Run it against a daemon."""
        return run([self.program, "--addr", address, *map(str, argv)], env={"NO_COLOR": "1"})

    def build(self, address: str, folder: Path, *argv: str | Path) -> Run:
        """Run ``buildctl build`` with the Dockerfile frontend."""
        return self(
            address,
            "build",
            "--progress",
            "plain",
            "--frontend",
            "dockerfile.v0",
            "--local",
            f"context={folder}",
            "--local",
            f"dockerfile={folder}",
            *argv,
        )


def _answers(address: str) -> bool:
    argv = [os.environ["BUILDCTL"], "--addr", address, "debug", "workers"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def daemons(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemons]:
    """Start both daemons once."""
    folder = tmp_path_factory.mktemp("daemons")
    ours, upstream = f"unix://{folder}/ours.sock", f"unix://{folder}/upstream.sock"
    allowed = [
        item
        for name in ("network.host", "security.insecure", "device")
        for item in ("--allow-insecure-entitlement", name)
    ]
    commands = [
        [PROGRAM, "daemon", "--root", f"{folder}/ours", "--addr", ours, *allowed],
        [
            os.environ["BUILDKITD"],
            "--root",
            f"{folder}/upstream",
            "--addr",
            upstream,
            "--oci-worker-net",
            "host",
            "--oci-worker-binary",
            "runc",
            *allowed,
        ],
    ]
    processes = []
    with (folder / "log").open("wb") as log:
        for argv in commands:
            processes.append(subprocess.Popen(argv, stdout=log, stderr=log))
    try:
        for address in (ours, upstream):
            wait_until(lambda address=address: _answers(address), address)
        yield Daemons(ours, upstream)
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)


@pytest.fixture(params=["ours", "upstream"])
def client(request: pytest.FixtureRequest, tmp_path: Path) -> Client:
    """Each client in turn."""
    if request.param == "upstream":
        return Client("upstream", os.environ["BUILDCTL"])
    link = tmp_path / "buildctl"
    link.symlink_to(PROGRAM)
    return Client("ours", str(link))


@pytest.fixture(params=["ours", "upstream"])
def daemon_address(request: pytest.FixtureRequest, daemons: Daemons) -> str:
    """Each daemon in turn."""
    return daemons.ours if request.param == "ours" else daemons.upstream
