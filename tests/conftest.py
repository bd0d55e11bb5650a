"""What all tests share: what this machine can do, found out by trying it."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from hypothesis import HealthCheck, settings

from boxwright.store.database import Database
from boxwright.testing.peers import find_peer

# The same examples on every run, however slow the machine: a red test is never a dice roll.
# BOXWRIGHT_EXPLORE=1 looks for new ones.
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("explore" if os.environ.get("BOXWRIGHT_EXPLORE") else "steady")


@functools.cache
def can_mount_as_root() -> bool:
    """Try to mount a tmpfs in a mount namespace of a child."""
    if os.geteuid() != 0:
        return False
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@functools.cache
def can_enter_userns() -> bool:
    """Try to make a user namespace as an ordinary user, with subordinate ids at hand."""
    if shutil.which("newuidmap") is None:
        return False
    argv = ["unshare", "--user", "--map-root-user", "true"]
    if os.geteuid() == 0:
        argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", *argv]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


PROBES = {"root": can_mount_as_root, "userns": can_enter_userns}


def pytest_report_header() -> str:
    """Say what this machine can do."""
    found = {name: "yes" if probe() else "no" for name, probe in PROBES.items()}
    peers = (
        "docker-buildx",
        "buildctl",
        "buildkitd",
        "crun",
        "runc",
        "skopeo",
        "umoci",
        "buildah",
    )
    found |= {name: "yes" if find_peer(name) else "no" for name in peers}
    return "capabilities: " + ", ".join(f"{k}={v}" for k, v in found.items())


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what can't run here; fail where the lane promised that it can."""
    promised = set(os.environ.get("BOXWRIGHT_TEST_REQUIRE", "").split(","))
    missing = [
        name for name, probe in PROBES.items() if item.get_closest_marker(name) and not probe()
    ]
    missing += [
        str(mark.args[0]) for mark in item.iter_markers("peer") if not find_peer(mark.args[0])
    ]
    for name in missing:
        if name in promised:
            pytest.fail(f"this lane promised {name!r}, but it is not available")
        pytest.skip(f"needs {name}")


@contextmanager
def _looking_at_all(database: Database) -> Iterator[list[str]]:
    said: list[str] = []
    found: list[str] = []
    database.scan("SELECT 1")
    assert database._scanner is not None
    connections = (database._connection, database._scanner)
    for connection in connections:
        connection.set_trace_callback(said.append)
    try:
        yield found
    finally:
        for connection in connections:
            connection.set_trace_callback(None)
    for sql in said:
        if sql.split(None, 1)[0] in {"SELECT", "WITH", "UPDATE", "DELETE"}:
            for *_, step in database.execute(f"EXPLAIN QUERY PLAN {sql}"):
                if step.startswith(("SCAN", "LIST SUBQUERY")) and "CONSTANT" not in step:
                    found.append(f"{step}: {sql}")


@pytest.fixture
def looking_at_all() -> Callable[[Database], AbstractContextManager[list[str]]]:
    """Collect the steps of a block's queries that read whole tables, with the queries."""
    return _looking_at_all
