"""Both sides of the transfer against each other, over real folders."""

import asyncio
import os
import stat

import pytest

from boxwright.errors import Code
from boxwright.session import packets
from boxwright.session.base import ContextReadError, HostileTreeError, SyncRequest, TransferError
from boxwright.session.memorypipe import memory_pipe
from boxwright.session.packets import Stat
from boxwright.session.tasks import run_together
from boxwright.session.treeoutput import receive_output
from boxwright.session.treesend import send_tree
from boxwright.session.treewalk import TreeWalk
from boxwright.session.treewrite import remove


def describe(root):
    """Everything about a tree that a transfer keeps, by path."""
    out = {}
    for walked in TreeWalk(os.fsencode(root), reset_owner=False):
        entry = walked.stat
        full = os.path.join(os.fsencode(root), entry.path)
        content = None
        if entry.is_file:
            with open(full, "rb") as file:
                content = file.read()
        out[entry.path] = (
            entry.mode,
            entry.size,
            entry.mtime_ns,
            entry.linkname,
            entry.devminor,
            dict(entry.xattrs),
            content,
        )
    return out


def transfer(source, target, *, request=None, mirror=False):
    async def run():
        left, right = memory_pipe()

        async def sending():
            await send_tree(left, TreeWalk(os.fsencode(source), request or SyncRequest()))

        await run_together(sending(), receive_output(right, os.fsencode(target), mirror=mirror))

    asyncio.run(run())


def test_all_that_is_received_is_counted(tmp_path):
    async def run():
        left, right = memory_pipe()
        received = []
        (tmp_path / "from").mkdir()
        walk = TreeWalk(os.fsencode(tmp_path / "from"))
        target = os.fsencode(tmp_path / "to")
        await run_together(
            send_tree(left, walk),
            receive_output(right, target, mirror=False, on_received=received.append),
        )
        return sum(received)

    assert asyncio.run(run()) == 2


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "source"
    (root / "d/empty").mkdir(parents=True)
    (root / "d/file").write_bytes(b"hello")
    os.chmod(root / "d/file", 0o4755)
    (root / "d/link").symlink_to("../../outside")
    (root / "a.txt").write_bytes(b"x" * 700_000)
    (root / "zero").write_bytes(b"")
    os.link(root / "d/file", root / "second-name")
    os.mkfifo(root / "fifo")
    with open(root / "sparse", "wb") as file:
        file.truncate(8 << 20)
        file.seek(3 << 20)
        file.write(b"middle")
    with open(os.fsencode(root) + b"/caf\xe9", "wb") as file:
        file.write(b"latin")
    (root / ("n" * 255)).write_bytes(b"long name")
    os.utime(root / "d", ns=(10**9, 10**9 + 5))
    os.chmod(root / "d/empty", 0o1777)
    return root


def test_a_tree_arrives_whole(tree, tmp_path):
    transfer(tree, tmp_path / "target")
    assert describe(tmp_path / "target") == describe(tree)
    links = os.stat(tmp_path / "target/d/file").st_nlink
    assert links == 2
    assert os.stat(tmp_path / "target/sparse").st_blocks * 512 < 1 << 20


def test_many_small_files(tmp_path):
    source = tmp_path / "source"
    for folder in range(20):
        (source / f"d{folder}").mkdir(parents=True)
        for number in range(120):
            (source / f"d{folder}/{number}").write_bytes(b"%d" % number * number)
    transfer(source, tmp_path / "target")
    assert describe(tmp_path / "target") == describe(source)


def test_existing_entries_are_replaced_and_others_stay(tree, tmp_path):
    target = tmp_path / "target"
    (target / "a.txt").mkdir(parents=True)
    (target / "a.txt/old").write_bytes(b"")
    (target / "other").write_bytes(b"kept")
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    (target / "d").symlink_to(outside)
    transfer(tree, target)
    assert (target / "other").read_bytes() == b"kept"
    (target / "other").unlink()
    assert describe(target) == describe(tree)
    assert list(outside.iterdir()) == []


def test_mirror_removes_what_was_not_named(tree, tmp_path):
    target = tmp_path / "target"
    (target / "d/old").mkdir(parents=True)
    (target / "other").write_bytes(b"")
    transfer(tree, target, mirror=True)
    assert describe(target) == describe(tree)


def test_patterns_choose_and_name_parents(tree, tmp_path):
    transfer(tree, tmp_path / "target", request=SyncRequest(include=("d/f*",), exclude=("d/x",)))
    assert sorted(describe(tmp_path / "target")) == [b"d", b"d/file"]


def test_missing_source_is_a_typed_error(tmp_path):
    with pytest.raises(ContextReadError) as caught:
        transfer(tmp_path / "absent", tmp_path / "target")
    assert caught.value.code is Code.SOURCE_NOT_FOUND


def test_a_sender_failure_reaches_the_receiver(tmp_path):
    async def run():
        left, right = memory_pipe()
        walk = TreeWalk(os.fsencode(tmp_path / "absent"))
        with pytest.raises(ContextReadError):
            await send_tree(left, walk)
        with pytest.raises(TransferError) as caught:
            await receive_output(right, os.fsencode(tmp_path / "target"))
        assert "absent" in caught.value.detail

    asyncio.run(run())


FILE = 0o644
DIR = packets.MODE_DIR | 0o755
LINK = packets.MODE_SYMLINK | 0o777


@pytest.mark.parametrize(
    "stats",
    [
        [Stat(b"/etc/passwd", FILE)],
        [Stat(b"../up", FILE)],
        [Stat(b"..", DIR)],
        [Stat(b"", FILE, 1)],
        [Stat(b"a", DIR), Stat(b"a/../../up", FILE)],
        [Stat(b"a", DIR), Stat(b"a//b", FILE)],
        [Stat(b"a/./b", FILE)],
        [Stat(b"a", LINK, linkname=b"/etc"), Stat(b"a/passwd", FILE)],
        [Stat(b"a", FILE), Stat(b"a", FILE)],
        [Stat(b"a", FILE, linkname=b"/etc/passwd")],
        [Stat(b"a", FILE, linkname=b"../up")],
        [Stat(b"s", LINK, linkname=b"/etc/passwd"), Stat(b"a", FILE, linkname=b"s")],
        [Stat(b"n" * 256, FILE)],
        [Stat(b"a\0b", FILE)],
        [Stat(b"missing/child", FILE)],
    ],
)
def test_hostile_names_are_refused_and_nothing_is_written_outside(stats, tmp_path):
    target = tmp_path / "inner" / "target"

    async def run():
        left, right = memory_pipe()
        for entry in stats:
            await left.send_bytes(packets.stat_packet(packets.encode_stat(entry)))
        await left.send_bytes(packets.LAST_STAT_PACKET)
        with pytest.raises(HostileTreeError):
            await receive_output(right, os.fsencode(target))
        answers = await left.recv_batch()
        assert packets.parse_packet(answers[-1]).type == packets.ERROR

    asyncio.run(run())
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["target"]


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [b"\xff"],
        [packets.data_packet(3, b"x")],
        [packets.request_packet(0)],
        [packets.LAST_STAT_PACKET, packets.stat_packet(packets.encode_stat(Stat(b"a", FILE)))],
    ],
)
def test_a_broken_protocol_ends_the_transfer(messages, tmp_path):
    async def run():
        left, right = memory_pipe()
        for raw in messages:
            await left.send_bytes(raw)
        await left.close_send()
        with pytest.raises((TransferError, packets.MalformedPacketError)):
            await receive_output(right, os.fsencode(tmp_path / "target"))

    asyncio.run(run())


@pytest.mark.parametrize("raw", [packets.request_packet(9), packets.error_packet("disk full")])
def test_a_broken_receiver_ends_the_sender(raw, tree):
    async def run():
        left, right = memory_pipe()
        await right.send_bytes(raw)
        with pytest.raises(TransferError):
            await send_tree(left, TreeWalk(os.fsencode(tree)))

    asyncio.run(run())


def test_a_socket_travels_as_an_empty_file(tmp_path):
    import socket

    source = tmp_path / "source"
    source.mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "s"))
        transfer(source, tmp_path / "target")
    assert stat.S_ISREG((tmp_path / "target/s").lstat().st_mode)


def test_very_deep_folders(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    descriptor = os.open(source, os.O_DIRECTORY)
    for _ in range(1050):
        os.mkdir("d", dir_fd=descriptor)
        below = os.open("d", os.O_DIRECTORY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = below
    os.close(descriptor)
    try:
        transfer(source, tmp_path / "target")
        assert len(describe(tmp_path / "target")) == 1050
    finally:
        remove(os.fsencode(source))
        remove(os.fsencode(tmp_path / "target"))
    assert not source.exists()
