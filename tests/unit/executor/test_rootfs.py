"""Mount points in a root file system: made, and gone without a trace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from boxwright.executor import rootfs, rootpath
from boxwright.executor.errors import RuntimeFailedError
from boxwright.executor.process import DataMount, ProcessSpec, TmpfsMount


def tree(root: Path) -> dict[str, int]:
    return {
        str(path.relative_to(root)): path.lstat().st_mtime_ns for path in (root, *root.rglob("*"))
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "etc").mkdir()
    (tmp_path / "srv").mkdir()
    for name in ("proc", "dev", "sys"):
        (tmp_path / name).mkdir()
    for path in (tmp_path / "etc", tmp_path / "srv", tmp_path):
        os.utime(path, ns=(10**18, 10**18))
    return tmp_path


@pytest.mark.parametrize("recursive", [True, False])
def test_nothing_stays(root: Path, recursive: bool) -> None:
    before = tree(root)
    mounts = (DataMount("/srv/secret", b""), TmpfsMount("/srv/tmp"), TmpfsMount("/srv/tmp/inner"))
    process = ProcessSpec(("x",), mounts=mounts, remove_mount_stubs_recursive=recursive)
    prepared = rootfs.prepare(str(root), process)
    assert (root / "srv/secret").is_file()
    assert (root / "srv/tmp").is_dir()
    assert not (root / "srv/tmp/inner").exists()
    assert (root / "etc/hosts").is_file()
    made = (root / "etc").stat().st_mtime_ns
    rootfs.clean_stubs(str(root), prepared.stubs)
    assert (root / "etc").stat().st_mtime_ns == made  # cleaning does not count
    for path in (root / "etc", root / "srv", root):
        os.utime(path, ns=(10**18, 10**18))
    assert tree(root) == before


def test_only_recursive_cleaning_takes_made_parents(root: Path) -> None:
    mounts = (DataMount("/a/b/secret", b""),)
    prepared = rootfs.prepare(str(root), ProcessSpec(("x",), mounts=mounts))
    rootfs.clean_stubs(str(root), prepared.stubs)
    assert (root / "a/b").is_dir()
    process = ProcessSpec(
        ("x",), mounts=(DataMount("/c/d/s", b""),), remove_mount_stubs_recursive=True
    )
    prepared = rootfs.prepare(str(root), process)
    rootfs.clean_stubs(str(root), prepared.stubs)
    assert not (root / "c").exists()


def test_what_exists_or_was_filled_stays(root: Path) -> None:
    (root / "srv/have").write_text("")
    mounts = (DataMount("/srv/have", b""), DataMount("/srv/filled", b""), TmpfsMount("/srv/dir"))
    prepared = rootfs.prepare(str(root), ProcessSpec(("x",), mounts=mounts))
    (root / "srv/filled").write_text("x")
    (root / "srv/dir/x").write_text("x")
    rootfs.clean_stubs(str(root), prepared.stubs)
    assert sorted(path.name for path in (root / "srv").iterdir()) == ["dir", "filled", "have"]


def test_links_out_of_the_root_are_links_into_it(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (root / "etc/hosts").symlink_to(outside / "hosts")
    (root / "work").symlink_to(outside)
    process = ProcessSpec(("x",), cwd="/work/new")
    prepared = rootfs.prepare(str(root), process)
    assert list(outside.iterdir()) == []
    assert (root / str(outside).lstrip("/") / "new").is_dir()
    rootfs.clean_stubs(str(root), prepared.stubs)
    assert list(outside.iterdir()) == []


def test_working_folder_below_a_file(root: Path) -> None:
    (root / "file").write_text("")
    with pytest.raises(RuntimeFailedError) as caught:
        rootfs.prepare(str(root), ProcessSpec(("x",), cwd="/file/sub"))
    assert "/file/sub" in str(caught.value)


@pytest.mark.parametrize(
    ("cwd", "said"), [("", "must not be empty"), ("work", "must be an absolute path")]
)
def test_working_folders_are_absolute(root: Path, cwd: str, said: str) -> None:
    with pytest.raises(RuntimeFailedError, match=said):
        rootfs.prepare(str(root), ProcessSpec(("x",), cwd=cwd))
    assert not (root / "work").exists()


def test_open_directory_refuses_links(root: Path) -> None:
    (root / "link").symlink_to("etc")
    fd = rootpath.open_root(root)
    try:
        with pytest.raises(OSError, match="link"):
            os.close(rootpath.open_directory(fd, b"link"))
    finally:
        os.close(fd)


def test_folders_for_the_kernel_are_the_same_under_every_runtime(tmp_path: Path) -> None:
    rootfs.prepare(str(tmp_path), ProcessSpec(("x",)), has_sys=False)
    assert not (tmp_path / "sys").exists()
    for name in ("proc", "dev"):
        assert (tmp_path / name).stat().st_mode & 0o7777 == 0o755
