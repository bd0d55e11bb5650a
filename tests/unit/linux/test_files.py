"""Walking trees that others change."""

from __future__ import annotations

import os
import shutil

from boxwright.linux import files


def test_what_vanishes_hides_nothing_beside_it(tmp_path):
    for number in range(40):
        (tmp_path / f"f{number}").write_text("x")
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}" / "inner").write_text("x")
    walk = files.walk_status(tmp_path)
    first, _ = next(walk)
    # The listing was read in one piece: these are still in it.
    for name in ("f7", "f11", "d3"):
        path = tmp_path / name
        if str(path) != first:
            path.unlink() if path.is_file() else shutil.rmtree(path)
    found = {first, *(path for path, _ in walk)}
    left = {
        os.path.join(folder, name)
        for folder, dirs, names in os.walk(tmp_path)
        for name in (*dirs, *names)
    }
    assert left <= found
    assert len(left) >= 116


def test_disk_usage_counts_an_inode_once(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100_000))
    alone = files.disk_usage(tmp_path)
    os.link(tmp_path / "a", tmp_path / "b")
    assert files.disk_usage(tmp_path) == alone
    assert alone >= 100_000


def test_a_missing_folder_takes_nothing(tmp_path):
    assert files.disk_usage(tmp_path / "none") == 0
