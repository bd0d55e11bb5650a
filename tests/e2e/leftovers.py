"""What a killed build must not leave behind, looked for from outside."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from programs import PROGRAM, TIMEOUT_S, run, wait_until


class Process:
    """A program that runs while the test does something to it."""

    def __init__(self, argv: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                # Whoever runs the tests may have been started with SIGINT ignored.
                ["env", "--default-signal=INT", *map(str, argv)],
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def text(self) -> str:
        """What it wrote so far, on both streams."""
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until something is true while the program runs."""

        def holds() -> bool:
            assert self._process.poll() is None, f"ended before {what}:\n{self.text[-4000:]}"
            return condition()

        wait_until(holds, what)

    def wait_for_text(self, text: str) -> None:
        """Wait until the program wrote this."""
        self.wait_for(lambda: text in self.text, repr(text))

    def end(self, how: int) -> int:
        """Send a signal and return the exit status."""
        self._process.send_signal(how)
        return self.wait()

    def wait(self, timeout_s: float = TIMEOUT_S) -> int:
        """Return the exit status."""
        return self._process.wait(timeout_s)

    def close(self) -> None:
        """End it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder that others change meanwhile: what goes away is passed over."""
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def processes_with(mark: str) -> list[int]:
    """Return the processes whose command line contains ``mark``, in any namespace."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if mark.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def children_of(pid: int) -> dict[int, list[str]]:
    """Return the command lines of all descendants."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int(
                    (entry / "stat").read_text().rpartition(") ")[2].split()[1]
                )
    below: dict[int, list[str]] = {}
    todo = [pid]
    while todo:
        parent = todo.pop()
        for child, its_parent in parents.items():
            if its_parent == parent:
                todo.append(child)
                with contextlib.suppress(OSError):
                    raw = (Path("/proc") / str(child) / "cmdline").read_bytes()
                    below[child] = raw.decode(errors="replace").split("\0")
    return below


def mounts_of(root: Path) -> list[str]:
    """Return the mounts under ``root`` in any process's mount namespace."""
    found: set[str] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                table = (entry / "mountinfo").read_text()
                found.update(line for line in table.splitlines() if f" {root}/" in line)
    return sorted(found)


def groups(root: Path) -> list[str]:
    """Return the control groups of the engine of a state folder, in every hierarchy."""
    key = hashlib.sha256(os.fsencode(root / "run")).hexdigest()[:12]
    # Other tests' groups come and go meanwhile: os.walk passes over what is gone.
    name = f"boxwright-{key}"
    walked = os.walk("/sys/fs/cgroup")
    return [f"{folder}/{name}" for folder, children, _ in walked if name in children]


def unfinished(root: Path) -> list[str]:
    """Return what of a state folder is half-done or belongs to nobody."""
    found = [f"ingest/{path.name}" for path in (root / "ingest").iterdir()]
    for blob in (root / "blobs/sha256").iterdir():
        if hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
            found.append(f"blob {blob.name} has other content")
    with contextlib.closing(sqlite3.connect(f"file:{root}/state.db?mode=ro", uri=True)) as base:
        known = {row[0] for row in base.execute("SELECT id FROM snapshots")}
        blobs = {row[0].partition(":")[2] for row in base.execute("SELECT digest FROM blobs")}
    found += [
        f"snapshot {path.name} is in no row"
        for path in (root / "snapshots").iterdir()
        if path.name not in known
    ]
    found += [
        f"blob {path.name} is in no row"
        for path in (root / "blobs/sha256").iterdir()
        if path.name not in blobs
    ]
    return found


def assert_recovers(root: Path) -> None:
    """Start and end an engine on the state folder; nothing of the last one may be left then."""
    wait_until(lambda: not processes_with(str(root)), "all processes of the engine end")
    run([PROGRAM, "--root", str(root), "du"]).ok()
    assert mounts_of(root) == []
    assert unfinished(root) == []
    assert groups(root) == []


def steps_that_ran(text: str) -> set[str]:
    """Return the names of the steps that were not cached, of plain progress."""
    names: dict[str, str] = {}
    cached: set[str] = set()
    for line in text.splitlines():
        number, _, rest = line.partition(" ")
        if rest.startswith("[") and "internal" not in rest:
            names[number] = rest
        elif rest == "CACHED":
            cached.add(number)
    return {name for number, name in names.items() if number not in cached}
