"""Fuzzing of the file transfer protocol: what a sender of a folder may say.

Run ``python tests/fuzz/fuzz_tree_stream.py [corpus folder] [-runs=N]``. The input is a sequence
of messages, each behind its length (16 bits).
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running


class Sender:
    """A pipe from which the messages come; what is sent to it is lost."""

    def __init__(self, messages: list[bytes]) -> None:
        self._messages = messages

    async def send_bytes(self, payload: bytes) -> None:
        """Take a request."""

    async def send_batch(self, payloads: list[bytes]) -> None:
        """Take requests."""

    async def recv_bytes(self) -> bytes | None:
        """Return the next message."""
        return self._messages.pop(0) if self._messages else None

    async def recv_batch(self) -> list[bytes]:
        """Return all of them."""
        batch, self._messages = self._messages, []
        return batch


def split(data: bytes) -> list[bytes]:
    """Return the messages of an input."""
    found = []
    at = 0
    while at + 2 <= len(data):
        size = int.from_bytes(data[at : at + 2], "big")
        found.append(data[at + 2 : at + 2 + size])
        at += 2 + size
    return found


def pack(messages: list[bytes]) -> bytes:
    """Return the input of some messages."""
    return b"".join(len(each).to_bytes(2, "big") + each for each in messages)


def seeds() -> list[bytes]:
    """Return whole transfers."""
    from boxwright.session import packets
    from boxwright.session.packets import Stat

    stats = [
        Stat(b"a", 0o644, size=3, mtime_ns=5),
        Stat(b"d", packets.MODE_DIR | 0o755),
        Stat(b"d/f", 0o4755, size=70_000, uid=3, gid=4, xattrs={b"user.x": b"y"}),
        Stat(b"d/l", packets.MODE_SYMLINK | 0o777, linkname=b"../a"),
        Stat(b"h", 0o644, size=3, linkname=b"a"),
        Stat(b"p", packets.MODE_FIFO | 0o600),
    ]
    messages = [packets.stat_packet(packets.encode_stat(stat)) for stat in stats]
    messages.append(packets.LAST_STAT_PACKET)
    messages += [packets.data_packet(0, b"abc"), packets.data_packet(0, b"")]
    messages += [packets.data_packet(2, b"x" * 50_000), packets.data_packet(2, b"")]
    messages.append(packets.FIN_PACKET)
    return [pack(messages), pack([packets.LAST_STAT_PACKET, packets.FIN_PACKET])]


def check(data: bytes) -> None:
    """Receive a transfer; only typed errors may come out, and nothing lies outside."""
    from boxwright.errors import BoxwrightError
    from boxwright.session.treeoutput import FolderReceiver
    from boxwright.session.treereceive import receive_tree

    place = Path(tempfile.mkdtemp(prefix="fuzz-tree-"))
    root = place / "root"
    root.mkdir()
    (place / "outside").write_bytes(b"outside")

    async def receive() -> None:
        receiver = FolderReceiver(os.fsencode(root), mirror=True)
        try:
            async with asyncio.timeout(20):
                await receive_tree(Sender(split(data)), receiver)
        except BoxwrightError:
            pass
        finally:
            receiver.abort()

    try:
        asyncio.run(receive())
        if sorted(os.listdir(place)) != ["outside", "root"]:
            raise AssertionError(f"something lies outside: {os.listdir(place)}")
        if (place / "outside").read_bytes() != b"outside":
            raise AssertionError("something outside was written to")
    finally:
        shutil.rmtree(place)


def make(chooser: random.Random, _seeds: list[bytes] = []) -> bytes:  # noqa: B006 - kept
    """Return a transfer that is wrong somewhere: messages, or their order."""
    if not _seeds:
        _seeds.extend(seeds())
    messages = split(chooser.choice(_seeds))
    for _ in range(chooser.randrange(4)):
        at = chooser.randrange(len(messages))
        match chooser.randrange(4):
            case 0:
                messages[at] = running.mutated(messages, chooser)
            case 1:
                messages.insert(at, chooser.choice(messages))
            case 2:
                messages.append(messages.pop(at))
            case _:
                names = (b"..", b"/etc", b"d/..", b"d/l/x", b"", b".", b"a/b", b"x" * 300)
                messages[at] = messages[at].replace(b"d/f", chooser.choice(names))
    return pack(messages)


if __name__ == "__main__":
    running.main(check, make)
