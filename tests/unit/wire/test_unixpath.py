"""Unix sockets under paths longer than an address holds."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from boxwright.linux import unixpath
from boxwright.wire.listen import bind_unix


def test_a_short_path_is_itself(tmp_path: Path) -> None:
    with unixpath.usable("/run/s.sock") as name:
        assert name == "/run/s.sock"
    with unixpath.usable("\0" + "a" * 120) as name:
        assert name == "\0" + "a" * 120


@pytest.mark.parametrize("length", [107, 108, 300])
def test_binding_and_connecting(tmp_path: Path, length: int) -> None:
    folder = tmp_path / "f"
    while len(os.fsencode(folder)) < length - 60:
        folder /= "deep" * 10
    folder.mkdir(parents=True)
    path = str(folder / ("s" * max(1, length - len(os.fsencode(folder)) - 1)))

    async def scenario() -> bytes:
        with bind_unix(path, 0o640, os.getuid(), os.getgid()) as sock:
            server = await asyncio.start_unix_server(_greet, sock=sock)
            async with server:
                with unixpath.usable(path) as name:
                    reader, writer = await asyncio.open_unix_connection(name)
                answer = await reader.read()
                writer.close()
                # asyncio removes the file with the server since Python 3.13
                assert stat.S_IMODE(os.lstat(path).st_mode) == 0o640
                return answer

    assert len(os.fsencode(path)) == length
    assert asyncio.run(scenario()) == b"hello"
    # A stale file gives way to the next server.
    bind_unix(path, 0o640, -1, -1).close()
    bind_unix(path, 0o600, -1, -1).close()
    assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"hello")
    writer.close()
    await writer.wait_closed()


def test_a_name_for_other_processes(tmp_path: Path) -> None:
    folder = tmp_path.joinpath(*["deep" * 10] * 3)
    folder.mkdir(parents=True)
    program = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "sys.stdout.buffer.write(s.recv(5))"
    )
    path = str(folder / "agent")
    with bind_unix(path, 0o600, os.getuid(), os.getgid()) as sock:
        sock.setblocking(True)
        sock.listen()
        with unixpath.usable(path, by_others=True) as name:
            argv = [sys.executable, "-c", program, name]
            with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
                peer, _ = sock.accept()
                with peer:
                    peer.sendall(b"hello")
                assert process.communicate(timeout=30)[0] == b"hello"
