"""The engine's side of the sandbox's protocol, with a socket in place of the sandbox."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from boxwright.executor.link import RunRequest, SupervisorLink

EXITED = {"ev": "exited", "code": 0, "signal": 0, "asked": False, "log": "", "usage": {}}
Scenario = Callable[[SupervisorLink, socket.socket], Awaitable[None]]


def nobody() -> subprocess.Popen[bytes]:
    """Return a process to wait for, which the sandbox would be."""
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)


async def with_link(base: Path, scenario: Scenario) -> None:
    """Run ``scenario`` with a link that has one run, named ``r``, and the other end of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(0)
    theirs.settimeout(60)
    child = nobody()
    null = os.open(os.devnull, os.O_RDWR)
    link = SupervisorLink(ours, child, base)
    request = RunRequest("r", ["true"], [], null, null, null)
    running = asyncio.ensure_future(link.run(request))
    try:
        assert (await received(theirs))["op"] == "run"
        await scenario(link, theirs)
        answer(theirs, **EXITED)
        assert (await running).code == 0
    finally:
        running.cancel()
        os.close(null)
        child.communicate(b"\n")
        await link.close()
        theirs.close()


async def received(theirs: socket.socket) -> dict[str, object]:
    found: dict[str, object] = json.loads(await asyncio.to_thread(theirs.recv, 1 << 20))
    return found


def answer(theirs: socket.socket, **message: object) -> None:
    theirs.send(json.dumps({"id": "r", **message}).encode())


async def turns() -> None:
    """Let everything go on that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_resize_is_done_when_it_returns(tmp_path: Path) -> None:
    """What is typed next is read by a program that knows the size."""

    async def scenario(link: SupervisorLink, theirs: socket.socket) -> None:
        first = asyncio.ensure_future(link.resize("r", 33, 99))
        second = asyncio.ensure_future(link.resize("r", 50, 80))
        sent = [await received(theirs), await received(theirs)]
        assert [(each["op"], each["rows"]) for each in sent] == [("resize", 33), ("resize", 50)]
        await turns()
        assert not first.done()
        answer(theirs, ev="sized")
        await first
        await turns()
        assert not second.done()
        answer(theirs, ev="sized")
        await second

    asyncio.run(with_link(tmp_path, scenario))


@pytest.mark.parametrize("run_id", ["r", "unknown"])
def test_a_resize_does_not_wait_for_what_is_gone(tmp_path: Path, run_id: str) -> None:
    async def scenario(link: SupervisorLink, theirs: socket.socket) -> None:
        sizing = asyncio.ensure_future(link.resize(run_id, 33, 99))
        await turns()
        assert sizing.done() is (run_id == "unknown")
        answer(theirs, **EXITED)
        await sizing

    asyncio.run(with_link(tmp_path, scenario))
