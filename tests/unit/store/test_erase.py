"""Removing a state folder: all of ours, nothing of others."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.store.erase import erase
from boxwright.store.errors import NotAStoreError, StoreLockedError
from boxwright.store.store import Store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A state folder with a blob."""
    path = tmp_path / "state"
    store = Store.open(path)
    store.blobs.put(b"content")
    store.close()
    return path


def test_everything_goes(root: Path) -> None:
    erase(root)
    assert not root.exists()


def test_a_corrupt_database_goes_too(root: Path) -> None:
    (root / "state.db").write_bytes(b"no database")
    erase(root)
    assert not root.exists()


def test_what_was_half_removed_is_recognised(root: Path) -> None:
    (root / "state.db").unlink()
    (root / "snapshots/x").mkdir(parents=True)
    erase(root)
    assert not root.exists()


def test_files_of_others_stay(root: Path) -> None:
    (root / "mine.txt").write_text("mine")
    erase(root)
    assert [path.name for path in root.iterdir()] == ["mine.txt"]


def test_links_are_removed_and_not_followed(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("kept")
    (root / "contexts").symlink_to(outside)
    erase(root)
    assert (outside / "file").read_text() == "kept"


def test_another_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotAStoreError):
        erase(tmp_path)
    with pytest.raises(NotAStoreError):
        erase(tmp_path / "absent")
    assert (tmp_path / "file").exists()


def test_a_folder_in_use_is_refused(root: Path) -> None:
    store = Store.open(root)
    try:
        with pytest.raises(StoreLockedError):
            erase(root)
    finally:
        store.close()
    assert (root / "state.db").exists()
