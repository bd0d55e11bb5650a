"""diff(a, b) applied to a gives b, for any two trees."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from boxwright.snapshots.diff import tree_changes

NAMES = st.sampled_from(["a", "b", "a.b", "ü"])
Tree = dict[str, "str | bytes | Tree"]
trees = st.recursive(
    st.dictionaries(NAMES, st.one_of(st.binary(max_size=2), st.just("target")), max_size=3),
    lambda inner: st.dictionaries(
        NAMES, st.one_of(st.binary(max_size=2), st.just("target"), inner), max_size=3
    ),
    max_leaves=8,
)


def make(root: Path, tree: Tree) -> None:
    root.mkdir()
    for name, value in tree.items():
        path = root / name
        if isinstance(value, bytes):
            path.write_bytes(value)
            os.utime(path, (1, 1))
        elif isinstance(value, str):
            os.symlink(value, path)
            os.utime(path, (1, 1), follow_symlinks=False)
        else:
            make(path, value)


def read(root: Path) -> Tree:
    found: Tree = {}
    for path in root.iterdir():
        if path.is_symlink():
            found[path.name] = os.readlink(path)
        else:
            found[path.name] = read(path) if path.is_dir() else path.read_bytes()
    return found


def apply(lower: Path, upper: Path) -> list[bytes]:
    """Perform the changes from ``lower`` to ``upper`` in their order; return the paths."""
    listed = list(tree_changes(lower, upper))
    for change in listed:
        target = lower / os.fsdecode(change.path)
        source = upper / os.fsdecode(change.path)
        is_folder = change.info is not None and stat.S_ISDIR(change.info.st_mode)
        keeps = is_folder and target.is_dir() and not target.is_symlink()
        if os.path.lexists(target) and not keeps:
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            else:
                target.unlink()
        if change.info is None:
            continue
        if is_folder:
            target.mkdir(exist_ok=True)
        else:
            shutil.copy2(source, target, follow_symlinks=False)
    return [change.path for change in listed]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees, trees)
def test_changes_applied_to_the_lower_tree_give_the_upper_one(old, new):
    base = Path(tempfile.mkdtemp(prefix="bw-diff-"))
    try:
        make(base / "old", old)
        make(base / "new", new)
        paths = apply(base / "old", base / "new")
        assert read(base / "old") == read(base / "new") == new
        keys = [path.split(b"/") for path in paths]
        assert keys == sorted(keys), "folders come before what is in them, names in order"
        if old == new:
            assert paths == []
    finally:
        shutil.rmtree(base)
