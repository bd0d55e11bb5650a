"""Build a Dockerfile into an OCI archive, and say how long its steps took.

Usage: dockerfile.py CONTEXT [unix:///path/of/a/daemon.sock]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from engines import engine

from boxwright.client import BuildRequest, Export
from boxwright.progress.events import Event, VertexEvent

steps: dict[str, VertexEvent] = {}


def collect(events: list[Event]) -> None:
    """Remember the steps that have ended."""
    for event in events:
        if isinstance(event, VertexEvent) and event.completed_ns and event.started_ns:
            # A step may be asked for several times, by its key and by its result.
            steps[event.digest] = event


def summary(event: VertexEvent) -> str:
    """Return one line for a step that has ended."""
    assert event.completed_ns is not None
    assert event.started_ns is not None
    seconds = (event.completed_ns - event.started_ns) / 1e9
    return f"{seconds:6.2f} s  {event.name}{' (cached)' if event.cached else ''}"


async def main(context: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "image.tar"
        request = BuildRequest(
            frontend="dockerfile.v0",
            opts={"filename": "Dockerfile", "label:built.by": "an example"},
            locals={"context": context, "dockerfile": context},
            exports=(Export("oci", {"name": "example"}, path=target),),
        )
        async with engine() as client:
            result = await client.build(request, collect)
        print(*map(summary, steps.values()), sep="\n")
        digest = result.exporter_response["containerimage.digest"]
        print(f"{digest}, {target.stat().st_size} bytes as an archive")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
