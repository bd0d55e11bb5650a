"""The index of an OCI layout, which several programs rewrite at once."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

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
