"""Steps that are shown besides the vertices of a graph."""

from __future__ import annotations

import asyncio

import pytest

from boxwright.core.clock import SystemClock
from boxwright.progress.events import StatusEvent
from boxwright.progress.step import step
from boxwright.progress.stream import ProgressStream


@pytest.mark.parametrize(
    ("failure", "shown"),
    [
        (asyncio.CancelledError(), "context canceled"),
        (ValueError("no such thing"), "no such thing"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_step_that_fails_says_why(failure: BaseException, shown: str) -> None:
    stream = ProgressStream()
    with pytest.raises(type(failure)), step(stream, SystemClock(), "export"):
        raise failure
    [vertex] = stream.vertices
    assert vertex.error == shown


class Clock(SystemClock):
    now = 0

    def now_ns(self) -> int:
        return self.now


def test_a_transfer_is_shown_now_and_then_and_at_its_end() -> None:
    async def main() -> list[tuple[int, bool]]:
        stream, clock = ProgressStream(), Clock()
        with step(stream, clock, "export") as shown, shown.transfer("copying files") as count:
            for clock.now in (0, 50_000_000, 100_000_000, 150_000_000):
                count(10)
        stream.close()
        events = [event async for batch in stream.read() for event in batch]
        found = [event for event in events if isinstance(event, StatusEvent)]
        assert {event.name for event in found} == {"transferring"}
        return [(event.current, event.completed_ns is not None) for event in found]

    assert asyncio.run(main())[-1] == (40, True)
