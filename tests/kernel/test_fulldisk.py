"""A full disk, through the command line: its own error, and prune gets out of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from boxwright.errors import EXIT_CODES, Code

pytestmark = [pytest.mark.root, pytest.mark.peer("busybox"), pytest.mark.peer("crun")]
PROGRAM = str(Path(sys.executable).with_name("boxwright"))
_SMALL = 24 << 20


def mount_small(path: Path) -> None:
    """Mount a disk of a few MiB."""
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL}", "none", str(path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a few MiB."""
    path = tmp_path / "disk"
    mount_small(path)
    yield path
    subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """A context with a busybox base."""
    path = tmp_path / "context"
    (path / "bin").mkdir(parents=True)
    for source in ("/bin/busybox", "/usr/bin/busybox"):
        if Path(source).exists():
            (path / "bin/busybox").write_bytes(Path(source).read_bytes())
            break
    (path / "bin/busybox").chmod(0o755)
    for name in ("sh", "dd", "echo"):
        (path / "bin" / name).symlink_to("busybox")
    return path


def build(root: Path, context: Path, dockerfile: str, *flags: str) -> tuple[int, str]:
    """Run ``boxwright build`` and return its status and what it wrote."""
    (context / "Dockerfile").write_text(dockerfile)
    done = subprocess.run(
        [PROGRAM, "build", "--progress", "plain", "--root", str(root), *flags, str(context)],
        capture_output=True,
        env={**os.environ, "NO_COLOR": "1"},
        check=False,
        timeout=120,
    )
    return done.returncode, (done.stdout + done.stderr).decode()


def make_large(context: Path, size: int) -> None:
    (context / "large").write_bytes(os.urandom(size))


BASE = "FROM scratch AS base\nCOPY bin /bin\nENV PATH=/bin\n"


def assert_disk_full(status: int, text: str) -> None:
    """It is told as what it is."""
    assert status == EXIT_CODES[Code.DISK_FULL], text
    assert text.endswith(f"code: {Code.DISK_FULL}\n"), text
    assert "hint: " in text
    assert "Traceback" not in text


def assert_works_again(root: Path, context: Path) -> None:
    """After pruning, a small build succeeds on the same disk."""
    (context / "large").unlink(missing_ok=True)
    pruned = subprocess.run(
        [PROGRAM, "--root", str(root), "prune", "--all"], capture_output=True, check=False
    )
    assert pruned.returncode == 0, pruned.stderr.decode()
    status, text = build(root, context, BASE + "FROM base\nRUN echo small > /small\n")
    assert status == 0, text


def test_a_copy_that_does_not_fit(disk: Path, context: Path) -> None:
    make_large(context, _SMALL + 1)
    assert_disk_full(*build(disk / "state", context, "FROM scratch\nCOPY large /\n"))
    assert list((disk / "state/ingest").iterdir()) == []
    assert_works_again(disk / "state", context)


def test_a_layer_that_does_not_fit(disk: Path, context: Path, tmp_path: Path) -> None:
    make_large(context, 14 << 20)  # one copy in the snapshot; one more, in a blob, is too much
    status, text = build(
        disk / "state",
        context,
        "FROM scratch\nCOPY large /\n",
        *("-o", f"type=oci,dest={tmp_path}/out.tar,compression=uncompressed"),
    )
    assert_disk_full(status, text)
    assert not (tmp_path / "out.tar").exists()
    assert list((disk / "state/ingest").iterdir()) == []
    assert_works_again(disk / "state", context)


def test_a_step_that_fills_the_disk(disk: Path, context: Path) -> None:
    status, text = build(
        disk / "state",
        context,
        BASE + "FROM base\nRUN dd if=/dev/zero of=/large bs=1048576 count=64\n",
    )
    # it was stopped before the disk was full, and ended when nothing more could be removed
    assert_disk_full(status, text)
    assert_works_again(disk / "state", context)


def test_an_output_that_does_not_fit(disk: Path, context: Path, tmp_path: Path) -> None:
    make_large(context, _SMALL + 1)
    for output in (f"type=oci,dest={disk}/out.tar", f"type=local,dest={disk}/out"):
        status, text = build(
            tmp_path / "state", context, "FROM scratch\nCOPY large /\n", "-o", output
        )
        assert status == EXIT_CODES[Code.DISK_FULL], text
        assert str(disk) in text
        assert "Traceback" not in text
    assert [path.name for path in disk.iterdir() if path.is_file()] == []
