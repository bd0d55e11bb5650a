"""Build a graph with a RUN step, show its progress, and read a file out of the result.

Usage: graph.py [unix:///path/of/a/daemon.sock]
"""

from __future__ import annotations

import asyncio
import io
import tarfile
from pathlib import Path

from engines import engine

from boxwright import llb
from boxwright.client import BuildRequest, Export
from boxwright.progress.events import Event, LogEvent, VertexEvent


def graph() -> llb.State:
    """Return a root file system with one program, in which one command ran."""
    programs = llb.local("programs", include=["busybox"], name="programs")
    copied = llb.CopyOptions(create_parents=True)
    base = llb.scratch().copy(programs, "/busybox", "/bin/sh", copied, name="one program")
    command = 'echo "hello from $WHO" > /greeting; echo "wrote /greeting"'
    return base.run(command, env={"WHO": "a graph"}, name="greet").root


def show(events: list[Event]) -> None:
    """Print steps when they end and what they write."""
    for event in events:
        if isinstance(event, VertexEvent) and event.completed_ns and event.name:
            how = "failed" if event.error else "cached" if event.cached else "done"
            print(f"{how:>7}  {event.name}")
        elif isinstance(event, LogEvent):
            print(f"         | {event.data.decode().rstrip()}")


async def main() -> None:
    archive = io.BytesIO()
    request = BuildRequest(
        definition=graph().marshal(),
        locals={"programs": Path("/bin")},
        exports=(Export("tar", stream=archive),),
    )
    async with engine() as client:
        version = await client.info()
        print(f"engine: {version.package} {version.version}")
        await client.build(request, show)
    archive.seek(0)
    with tarfile.open(fileobj=archive) as tar:
        greeting = tar.extractfile("greeting")
        assert greeting is not None
        print("read out of the result:", greeting.read().decode().strip())


if __name__ == "__main__":
    asyncio.run(main())
