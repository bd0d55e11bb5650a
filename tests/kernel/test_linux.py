"""System calls on the real kernel."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from boxwright.linux import files, mount, process


def folders(base: Path, *names: str) -> list[Path]:
    made = [base / name for name in names]
    for path in made:
        path.mkdir()
    return made


@pytest.mark.root
@pytest.mark.parametrize("way", ["context", "string"])
def test_overlay_of_127_layers_with_awkward_names(tmp_path, way):
    upper, work, target = folders(tmp_path, "u", "w", "t")
    layers = folders(tmp_path, *(f"layer:{n},with\\odd=name" for n in range(127)))
    for number, layer in enumerate(layers):
        (layer / f"f{number}").write_text("")
        (layer / "all").write_text(str(number))
    call = mount._overlay_by_context if way == "context" else mount._overlay_by_string
    call(target, layers, upper, work, [])
    try:
        assert len(os.listdir(target)) == 128
        assert (target / "all").read_text() == "0"
        (target / "new").write_text("x")
        assert (upper / "new").read_text() == "x"
        assert mount.is_mountpoint(target)
    finally:
        mount.umount(target)
    assert not mount.is_mountpoint(target)


@pytest.mark.root
def test_overlay_with_paths_longer_than_an_fsconfig_string(tmp_path):
    deep = tmp_path / ("d" * 200) / ("e" * 200)
    deep.mkdir(parents=True)
    lower, upper, work, target = folders(deep, "l", "u", "w", "t")
    (lower / "f").write_text("1")
    mount.overlay(target, lower=[lower], upper=upper, work=work)
    try:
        assert (target / "f").read_text() == "1"
        assert mount.unmount_below(tmp_path) == 1
    finally:
        assert mount.list_mounts(tmp_path) == []


@pytest.mark.root
def test_an_overlay_without_upper_is_read_only(tmp_path):
    first, second, target = folders(tmp_path, "a", "b", "t")
    (first / "f").write_text("")
    mount.overlay(target, lower=[first, second])
    try:
        with pytest.raises(OSError, match="Read-only"):
            (target / "g").write_text("")
    finally:
        mount.umount(target)


@pytest.mark.root
def test_a_read_only_bind_covers_the_mounts_below(tmp_path):
    source, target = folders(tmp_path, "s", "t")
    (source / "inner").mkdir()
    mount.mount("none", source / "inner", "tmpfs")
    try:
        mount.bind(source, target, read_only=True)
        for path in (target / "f", target / "inner" / "f"):
            with pytest.raises(OSError, match="Read-only"):
                path.write_text("")
        (source / "inner" / "f").write_text("the source stays writable")
    finally:
        mount.unmount_below(tmp_path)


@pytest.mark.root
def test_errors_carry_errno_and_path(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        mount.mount("none", tmp_path / "missing", "tmpfs")
    assert caught.value.filename == str(tmp_path / "missing")
    with pytest.raises(OSError, match="Invalid argument") as caught:
        mount.umount(tmp_path)
    assert caught.value.errno == errno.EINVAL


def run_python(program: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *args], capture_output=True, text=True, check=False
    )


@pytest.mark.root
def test_mounts_of_an_isolated_process_end_with_it(tmp_path):
    program = """
import os, signal, sys
from pathlib import Path
from boxwright.linux import mount, namespaces
namespaces.isolate_mounts()
mount.mount("none", sys.argv[1], "tmpfs")
assert mount.is_mountpoint(sys.argv[1])
print("mounted", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = run_python(program, str(tmp_path))
    assert done.stdout == "mounted\n"
    assert mount.list_mounts(tmp_path) == []


@pytest.mark.root
def test_isolating_a_threaded_process_is_refused():
    program = """
import threading
from boxwright.linux import namespaces
threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    namespaces.isolate_mounts()
except RuntimeError:
    print("refused", flush=True)
"""
    assert run_python(program).stdout == "refused\n"


ROOTLESS = """
import sys
from pathlib import Path
from boxwright.linux import mount, probe
root = Path(sys.argv[1])
assert probe.can_overlay(root, userxattr=True)
lower, upper, work, target = (root / name for name in "luwt")
for path in (lower, upper, work, target):
    path.mkdir()
(lower / "dir").mkdir()
(lower / "dir" / "f").write_text("1")
mount.overlay(target, lower=[lower], upper=upper, work=work, userxattr=True, volatile=True)
(target / "dir" / "f").unlink()
(target / "dir").rmdir()
(target / "dir").mkdir()
mount.umount(target)
from boxwright.snapshots.backend import is_opaque
print(is_opaque(upper / "dir"))
"""


@pytest.mark.userns
def test_overlay_in_a_user_namespace(tmp_path):
    base = Path("/tmp") / f"bw-userns-{os.getpid()}"
    base.mkdir(mode=0o777)
    base.chmod(0o777)
    argv = ["unshare", "--user", "--map-root-user", "--mount", sys.executable, "-c", ROOTLESS]
    try:
        done = subprocess.run([*argv, str(base)], capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("True\n", "")
    finally:
        subprocess.run(["rm", "-rf", str(base)], check=True)


def test_openat2_stays_inside(tmp_path):
    (tmp_path / "root" / "dir").mkdir(parents=True)
    (tmp_path / "secret").write_text("outside")
    (tmp_path / "root" / "secret").write_text("inside")
    os.symlink("/secret", tmp_path / "root" / "absolute")
    os.symlink("../../secret", tmp_path / "root" / "dir" / "relative")
    os.symlink("/proc/self/root", tmp_path / "root" / "magic")
    fd = os.open(tmp_path / "root", os.O_PATH | os.O_DIRECTORY)
    try:
        for path in ("absolute", "dir/relative", "../secret", "/secret", "dir/../../secret"):
            found = files.openat2_in_root(fd, path, os.O_RDONLY)
            assert os.read(found, 20) == b"inside"
            os.close(found)
        with pytest.raises(OSError, match="symbolic links"):
            files.openat2_beneath(fd, "absolute", os.O_RDONLY)
        with pytest.raises(OSError, match="cross-device"):
            files.openat2_beneath(fd, "../secret", os.O_RDONLY)
        with pytest.raises(FileNotFoundError):
            files.openat2_in_root(fd, "magic/etc/passwd", os.O_RDONLY)
    finally:
        os.close(fd)


def test_rename_flags(tmp_path):
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    with pytest.raises(FileExistsError):
        files.renameat2(-100, tmp_path / "a", -100, tmp_path / "b", files.RENAME_NOREPLACE)
    files.renameat2(-100, tmp_path / "a", -100, tmp_path / "b", files.RENAME_EXCHANGE)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("b", "a")


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_copy_content(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    with open(tmp_path / "a", "rb") as source, open(tmp_path / "b", "wb") as target:
        files.copy_content(source.fileno(), target.fileno(), size)
    assert (tmp_path / "b").read_bytes() == data


@pytest.mark.parametrize("parts", [[], [0], [5], [0, 9], [3, 4, 15], [15]])
def test_copy_content_keeps_holes(tmp_path, parts):
    size, part = 16 << 20, 1 << 20
    with open(tmp_path / "a", "wb") as source:
        source.truncate(size)
        for number in parts:
            source.seek(number * part + 100)
            source.write(os.urandom(10_000))
    with open(tmp_path / "a", "rb") as source, open(tmp_path / "b", "wb") as target:
        files.copy_content(source.fileno(), target.fileno(), size)
        assert os.fstat(target.fileno()).st_blocks * 512 < (len(parts) + 1) * part
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()


def test_space_and_sync(tmp_path):
    space = files.statfs(tmp_path)
    assert 0 < space.available_bytes <= space.total_bytes
    fd = os.open(tmp_path, os.O_RDONLY)
    files.syncfs(fd)
    os.close(fd)


def test_preallocate_reserves_without_growing(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        files.preallocate(file.fileno(), 1 << 20)
        file.write(b"x")
        file.flush()
        files.start_writeback(file.fileno(), 0, 1)
        info = os.fstat(file.fileno())
    assert info.st_size == 1
    assert info.st_blocks * 512 >= 1 << 20


def test_processes():
    assert process.is_alive(os.getpid())
    child = subprocess.Popen(["sleep", "60"])
    pidfd = process.pidfd_open(child.pid)
    process.pidfd_send_signal(pidfd, 9)
    assert child.wait() == -9
    os.close(pidfd)
    assert not process.is_alive(child.pid)
    assert len(process.boot_id()) == 36
    program = """
from boxwright.linux import process
process.set_pdeathsig(); process.set_subreaper(); process.set_no_new_privileges()
print(open("/proc/self/status").read().count("NoNewPrivs:\\t1"))
"""
    assert run_python(program).stdout == "1\n"
