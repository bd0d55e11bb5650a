"""The index of an OCI layout, which several programs rewrite at once."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from boxwright.session.providers import layoutindex
from boxwright.session.providers.contents import publish_tag
from boxwright.session.providers.layoutindex import LayoutError, entries_of, read_index

WRITER = """
import sys
from pathlib import Path
from boxwright.session.providers.contents import publish_tag
folder, name = Path(sys.argv[1]), sys.argv[2]
sys.stdin.readline()
for number in range(25):
    digest = f"sha256:{name}{number:063d}"
    publish_tag(folder, {"digest": digest, "size": number}, f"{name}{number}")
"""


def tags(folder: Path) -> list[str]:
    return [
        entry["annotations"]["org.opencontainers.image.ref.name"]
        for entry in read_index(folder)["manifests"]
    ]


def test_writers_lose_nothing_of_each_other(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, name], stdin=subprocess.PIPE)
        for name in names
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"\n")
        writer.stdin.close()
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    assert sorted(tags(tmp_path)) == sorted(f"{name}{n}" for name in names for n in range(25))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.json", "oci-layout"]


def test_a_writer_waits_for_one_that_has_the_lock_of_stock_clients(tmp_path: Path) -> None:
    lock = tmp_path / "index.json.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        waiting = threading.Thread(target=publish_tag, args=(tmp_path, {"digest": "d"}, "mine"))
        waiting.start()
        waiting.join(0.2)
        assert waiting.is_alive()
        (tmp_path / "index.json").write_text('{"manifests": [{"digest": "e"}]}')
        lock.unlink()  # as those do when they are done
    waiting.join(60)
    assert [entry["digest"] for entry in read_index(tmp_path)["manifests"]] == ["e", "d"]
    assert not lock.exists()


def test_what_else_the_index_says_stays(tmp_path: Path) -> None:
    said = {
        "schemaVersion": 2,
        "annotations": {"who": "me"},
        "manifests": [{"digest": "a", "platform": {"os": "linux"}, "artifactType": "x/y"}],
    }
    (tmp_path / "index.json").write_text(json.dumps(said))
    publish_tag(tmp_path, {"digest": "b"}, "new")
    now = read_index(tmp_path)
    assert now["manifests"][0] == said["manifests"][0]
    assert {**now, "manifests": said["manifests"]} == said


def test_a_change_that_fails_leaves_the_index_and_no_lock(tmp_path: Path) -> None:
    publish_tag(tmp_path, {"digest": "a"}, "one")
    before = (tmp_path / "index.json").read_bytes()
    with pytest.raises(ZeroDivisionError), entries_of(tmp_path) as entries:
        entries[:] = [{"size": 1 // (len(entries) - 1)}]
    assert (tmp_path / "index.json").read_bytes() == before
    (tmp_path / "index.json").write_text("[]")
    with pytest.raises(LayoutError, match=r"index\.json is no index"):
        publish_tag(tmp_path, {"digest": "b"}, "two")
    assert not (tmp_path / "index.json.lock").exists()
    assert (tmp_path / "index.json").read_text() == "[]"


def test_what_can_not_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "index.json").mkdir()
    (tmp_path / "oci-layout").mkdir()
    with pytest.raises(LayoutError, match=r"can't read .*/index\.json"):
        publish_tag(tmp_path, {"digest": "b"}, "two")
    (tmp_path / "index.json").rmdir()
    with pytest.raises(LayoutError, match=r"can't write .*/index\.json"), entries_of(tmp_path):
        (tmp_path / "index.json").mkdir()
    (tmp_path / "index.json.lock").mkdir()
    with pytest.raises(LayoutError, match=r"can't lock .*/index\.json:") as caught:
        publish_tag(tmp_path, {"digest": "b"}, "two")
    assert "index.json.lock" in caught.value.hint
    with pytest.raises(LayoutError, match="can't lock"):
        publish_tag(tmp_path / "nothing", {"digest": "b"}, "two")


def test_a_writer_that_stands_still_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layoutindex, "_PATIENCE_S", 0.05)
    lock = tmp_path / "index.json.lock"
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(LayoutError, match="another program has locked it"):
            publish_tag(tmp_path, {"digest": "d"}, "mine")
    assert lock.exists()
    publish_tag(tmp_path, {"digest": "d"}, "mine")  # the lock of one that was killed is no lock
    assert tags(tmp_path) == ["mine"]


def test_another_users_lock_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, opening = [], os.open

    def deny_writing(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append(flags)
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied", str(path))
        return opening(path, flags, mode)

    (tmp_path / "index.json.lock").touch(0o644)
    with monkeypatch.context() as patch:
        patch.setattr(layoutindex.os, "open", deny_writing)
        with layoutindex._alone(tmp_path):
            pass
    assert len(opened) == 2
    with layoutindex._alone(tmp_path):
        mask = os.umask(0)
        os.umask(mask)
        mode = (tmp_path / "index.json.lock").stat().st_mode & 0o777
        assert mode == 0o666 & ~mask  # readable: others can wait for it


def test_an_index_that_is_empty_has_no_entries(tmp_path: Path) -> None:
    (tmp_path / "index.json").touch()
    publish_tag(tmp_path, {"digest": "d"}, "mine")
    assert tags(tmp_path) == ["mine"]


@pytest.mark.parametrize("entries", ['{"a": 1}', '["x"]', "7"])
def test_entries_that_are_none_are_refused(tmp_path: Path, entries: str) -> None:
    text = f'{{"manifests": {entries}}}'
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(LayoutError, match="is no index"), entries_of(tmp_path):
        pass
    assert (tmp_path / "index.json").read_text() == text
