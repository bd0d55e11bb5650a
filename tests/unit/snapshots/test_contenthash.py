"""Content digests against golden ones, from a tree in memory."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from boxwright.errors import InvalidInputError
from boxwright.snapshots.content_tree import FILE, FOLDER, SYMLINK, ContentTree, walk
from boxwright.snapshots.hasher import ChecksumError, Hasher, UnreadError
from boxwright.snapshots.selection import Selection, selection_digest
from boxwright.snapshots.tarsum import header, is_hashed_xattr, unix_mode

GOLDEN = json.loads(
    (Path(__file__).parents[2] / "golden" / "contenthash" / "trees.json").read_text()
)
KINDS = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
}


def golden_tree() -> ContentTree:
    tree = ContentTree.of_synced()
    tree.root.digest = hashlib.sha256(header(stat.S_IFDIR | 0o755, 0, 0, 0)).digest()
    for entry in GOLDEN["tree"]:
        path = b"/" + os.fsencode(entry["path"])
        if entry["type"] == "hardlink":
            source = tree.get(b"/" + os.fsencode(entry["link"]))
            tree.set(path, FILE, source.digest)
            continue
        content = entry.get("content", "").encode() * entry.get("repeat", 1)
        link = os.fsencode(entry.get("link", ""))
        head = header(
            KINDS[entry["type"]] | entry["mode"],
            entry["uid"],
            entry["gid"],
            len(content),
            linkname=link,
            xattrs={k: bytes.fromhex(v) for k, v in entry.get("xattrs", {}).items()},
        )
        kind = {"dir": FOLDER, "symlink": SYMLINK}.get(entry["type"], FILE)
        tree.set(path, kind, hashlib.sha256(head + content).digest(), link)
    return tree


def ask(tree: ContentTree, case: dict) -> str | None:
    selection = Selection(
        case.get("follow", False),
        case.get("wildcard", False),
        tuple(case.get("include", ())),
        tuple(case.get("exclude", ())),
        tuple(case.get("required", ())),
    )
    try:
        hasher = Hasher("ref", tree, None)
        return selection_digest(hasher, os.fsencode(case["path"]), selection).hex()
    except (ChecksumError, InvalidInputError):
        return None


def test_every_golden_digest_from_fresh_trees():
    wrong = [case for case in GOLDEN["cases"] if ask(golden_tree(), case) != case["digest"]]
    assert wrong == []


def test_what_was_asked_before_changes_no_answer():
    tree = golden_tree()
    wrong = [case for case in GOLDEN["cases"] if ask(tree, case) != case["digest"]]
    assert wrong == []


def test_a_stored_tree_answers_the_same():
    tree = golden_tree()
    ask(tree, {"path": "/"})
    again = ContentTree.decode(tree.encode())
    wrong = [case for case in GOLDEN["cases"] if ask(again, case) != case["digest"]]
    assert wrong == []


@pytest.mark.parametrize("damage", [b"", b"\x00", b"x" * 40])
def test_a_damaged_stored_tree_is_refused(damage):
    with pytest.raises(ValueError, match="damaged"):
        ContentTree.decode(damage)


def test_a_cut_stored_tree_is_refused():
    import zlib

    raw = zlib.decompress(golden_tree().encode())
    for length in (1, len(raw) // 2, len(raw) - 1):
        with pytest.raises(ValueError, match="damaged"):
            ContentTree.decode(zlib.compress(raw[:length]))


def test_a_fork_and_its_source_do_not_see_each_others_changes():
    tree = golden_tree()
    before = ask(tree, {"path": "/"})
    fork = tree.fork()
    fork.set(b"/dir/sub/new", FILE, b"\1" * 32)
    fork.delete(b"/a")
    changed = ask(fork, {"path": "/"})
    tree.set(b"/dir/other", FILE, b"\2" * 32)
    assert changed != before
    assert ask(fork, {"path": "/"}) == changed
    assert fork.get(b"/dir/other") is None
    assert tree.get(b"/dir/sub/new") is None
    tree.delete(b"/dir/other")
    assert ask(tree, {"path": "/"}) == before


def test_replacing_a_folder_by_a_file_drops_what_was_in_it():
    tree = golden_tree()
    tree.set(b"/dir", FILE, b"\1" * 32)
    assert tree.get(b"/dir/b") is None
    assert ask(tree, {"path": "/ldir/b"}) is None


def test_a_folder_set_again_keeps_its_entries():
    tree = golden_tree()
    tree.set(b"/dir", FOLDER, b"\1" * 32)
    assert tree.get(b"/dir/b") is not None


def test_walk_lists_folders_before_entries_and_names_in_order():
    tree = ContentTree.of_synced()
    for path in (b"/b/x", b"/b/a", b"/a", b"/b.c"):
        tree.set(path, FILE, b"\0" * 32)
    assert [path for path, _ in walk(b"", tree.root)] == [
        b"",
        b"/a",
        b"/b",
        b"/b/a",
        b"/b/x",
        b"/b.c",
    ]


def test_unknown_content_is_asked_for_not_guessed():
    tree = ContentTree.of_synced()
    tree.set(b"/a", FILE, None)
    with pytest.raises(UnreadError):
        ask(tree, {"path": "/a"})


def test_a_missing_path_is_named_as_upstream_names_it():
    with pytest.raises(ChecksumError) as caught:
        selection_digest(Hasher("abc", golden_tree(), None), b"nope", Selection())
    assert str(caught.value) == 'failed to calculate checksum of ref abc: "/nope": not found'
    assert caught.value.path == "/nope"


def test_deep_trees_do_not_exhaust_the_stack():
    tree = ContentTree.of_synced()
    tree.set(b"/d" * 3000 + b"/f", FILE, b"\0" * 32)
    node = tree.root
    while node.children:
        node = next(iter(node.children.values()))
        node.digest = node.digest or b"\1" * 32
    assert ask(ContentTree.decode(tree.encode()), {"path": "/"}) == ask(tree, {"path": "/"})


@pytest.mark.parametrize(
    ("go_mode", "unix"),
    [
        (0o644, stat.S_IFREG | 0o644),
        (1 << 31 | 0o755, stat.S_IFDIR | 0o755),
        (1 << 27 | 0o777, stat.S_IFLNK | 0o777),
        (1 << 26 | 0o600, stat.S_IFBLK | 0o600),
        (1 << 26 | 1 << 21 | 0o600, stat.S_IFCHR | 0o600),
        (1 << 25 | 0o600, stat.S_IFIFO | 0o600),
        (1 << 23 | 1 << 22 | 1 << 20 | 0o755, stat.S_IFREG | 0o7755),
    ],
)
def test_go_modes_become_unix_modes(go_mode, unix):
    assert unix_mode(go_mode) == unix


def test_the_machines_own_attributes_do_not_count():
    counted = ["user.x", "trusted.x", "security.capability"]
    left_out = ["security.selinux", "system.posix_acl_access", "trusted.overlay.opaque"]
    assert [name for name in counted + left_out if is_hashed_xattr(name)] == counted
