"""The hard cap on the state folder: real disks that are too small for what builds want."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from boxwright.errors import EXIT_CODES, Code

pytestmark = [pytest.mark.root, pytest.mark.peer("busybox"), pytest.mark.peer("crun")]
PROGRAM = str(Path(sys.executable).with_name("boxwright"))
MIB = 1 << 20
VOLUME, CAP, HEADROOM = 160 * MIB, 128 * MIB, 24 * MIB


@pytest.fixture(params=["tmpfs", "ext4"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small disk: in memory, or a file with a file system in it."""
    path = tmp_path / "disk"
    path.mkdir()
    if request.param == "tmpfs":
        argv = ["mount", "-t", "tmpfs", "-o", f"size={VOLUME}", "none", str(path)]
    else:
        if not os.path.exists("/dev/loop-control") or shutil.which("mkfs.ext4") is None:
            pytest.skip("no loop devices")
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(VOLUME)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image], check=True)
        argv = ["mount", "-o", "loop", str(image), str(path)]
    subprocess.run(argv, check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    path = tmp_path / "context"
    (path / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "/bin/busybox", path / "bin/busybox")
    for name in ("sh", "dd", "echo", "rm"):
        (path / "bin" / name).symlink_to("busybox")
    return path


def configure(tmp_path: Path, *, cap: int = CAP, gc: str = "") -> Path:
    path = tmp_path / "buildkitd.toml"
    path.write_text(f"{gc}\n[boxwright.disk]\ncap = {cap}\nheadroom = {HEADROOM}\n")
    return path


def build_argv(state: Path, config: Path, context: Path, name: str, script: str) -> list[str]:
    dockerfile = context / f"Dockerfile.{name}"
    dockerfile.write_text(
        f"FROM scratch\nCOPY bin /bin\nENV PATH=/bin\nARG NAME={name}\nRUN {script}\n"
    )
    argv = [PROGRAM, "--root", str(state), "--config", str(config), "build"]
    argv += ["--progress", "plain", "--output", "type=cacheonly"]
    return [*argv, "-f", str(dockerfile), str(context)]


def run(argv: list[str]) -> tuple[int, str]:
    done = subprocess.run(argv, capture_output=True, check=False, timeout=300)
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


class Peak:
    """The most that a disk had in use while the block ran, in bytes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.start = self.most = self._used()

    def _used(self) -> int:
        found = os.statvfs(self._path)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def _watch(self) -> None:
        while not self._end.wait(0.002):
            self.most = max(self.most, self._used())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()


def write(mebibytes: int, *, pieces: int = 1) -> str:
    """Return a command that writes files."""
    return " && ".join(
        f"dd if=/dev/zero of=/large{n} bs=65536 count={mebibytes * 16 // pieces}"
        for n in range(pieces)
    )


def until_it_answers(process: subprocess.Popen[bytes], argv: list[str]) -> None:
    """Ask a starting daemon until it answers; it has no event for other processes."""
    end = time.monotonic() + 120
    while subprocess.run(argv, capture_output=True, check=False).returncode:
        assert process.poll() is None, "the daemon ended"
        assert time.monotonic() < end, "the daemon does not answer"


@pytest.fixture
def daemon(volume: Path, tmp_path: Path) -> Iterator[list[str]]:
    """A daemon with a capped state folder; gives the arguments that reach it."""
    config = configure(tmp_path)
    address = f"unix://{tmp_path}/d.sock"
    log = (tmp_path / "daemon.log").open("wb")
    argv = [PROGRAM, "daemon", "--root", str(volume / "state"), "--addr", address]
    process = subprocess.Popen([*argv, "--config", str(config)], stdout=log, stderr=log)
    try:
        until_it_answers(process, [PROGRAM, "--addr", address, "debug", "workers"])
        yield [PROGRAM, "--addr", address]
        assert process.poll() is None, "the daemon ended"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)
        log.close()


def test_a_burst_of_eight_builds_stays_within_the_cap(daemon, volume, context, tmp_path):
    commands = []
    for number in range(8):
        argv = build_argv(tmp_path, tmp_path / "none", context, f"n{number}", write(40))
        commands.append([*daemon, *argv[argv.index("build") :]])
    with Peak(volume) as peak, contextlib.ExitStack() as stack:
        running = []
        for argv in commands:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            running.append(stack.enter_context(process))
            stack.callback(process.kill)  # where one stands still the others are not left behind
        texts = [process.communicate(timeout=200)[0].decode() for process in running]
    for process, text in zip(running, texts, strict=True):
        assert process.returncode == 0, (
            text[-3000:] + (tmp_path / "daemon.log").read_text()[-3000:]
        )
        assert "No space left" not in text
    # docs/design/store.md, "What can overshoot": on a busy machine eight steps write for
    # milliseconds before they stand still, and a volume of the cap plus the headroom has room.
    assert peak.most - peak.start <= CAP + HEADROOM


def test_a_step_that_can_not_fit_fails_with_its_own_error(volume, context, tmp_path):
    config, state = configure(tmp_path), volume / "state"
    before = build_argv(state, config, context, "small", write(20))
    assert run(before)[0] == 0
    with Peak(volume) as peak:
        status, text = run(build_argv(state, config, context, "large", write(200, pieces=4)))
    assert status == EXIT_CODES[Code.DISK_CAP], text
    assert f"code: {Code.DISK_CAP}\n" in text
    assert f"of {CAP} bytes are used" in text
    assert "No space left" not in text
    assert peak.most - peak.start <= CAP
    checked = subprocess.run(
        [PROGRAM, "--root", str(state), "store", "verify", "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(checked.stdout)["problems"] == []
    status, text = run(build_argv(state, config, context, "next", write(20)))
    assert status == 0, text


def test_cache_gives_way_to_what_is_written(volume, context, tmp_path):
    config, state = configure(tmp_path), volume / "state"
    for number in range(5):  # five times 40 MiB, one after the other, in 128
        status, text = run(build_argv(state, config, context, f"n{number}", write(40)))
        assert status == 0, text
    left = subprocess.run(
        [PROGRAM, "--root", str(state), "du", "--format", "{{json .}}"],
        capture_output=True,
        check=True,
    )
    records = json.loads(left.stdout)
    steps = [each for each in records if "dd if=" in each["description"]]
    assert 1 <= len(steps) <= 3
    assert "NAME=n4" in steps[-1]["description"] or len(steps) < 5


def test_without_a_cap_the_disk_is_the_limit(volume, context, tmp_path):
    config, state = configure(tmp_path, cap=0), volume / "state"
    for number in range(5):
        status, text = run(build_argv(state, config, context, f"n{number}", write(40)))
        assert status == 0, text
    status, text = run(build_argv(state, config, context, "large", write(200, pieces=4)))
    assert status == EXIT_CODES[Code.DISK_FULL], text
    assert "No space left" not in text


def test_collection_that_is_off_stays_off(volume, context, tmp_path):
    config = configure(tmp_path, gc="[worker.oci]\ngc = false")
    state = volume / "state"
    for name in ("one", "two"):
        assert run(build_argv(state, config, context, name, write(40)))[0] == 0
    status, text = run(build_argv(state, config, context, "three", write(40)))
    assert status == EXIT_CODES[Code.DISK_CAP], text
    assert "boxwright gc explain" in text
