"""A progress stream: replay for late readers, bounded memory for slow ones."""

from __future__ import annotations

import asyncio
import contextlib

from boxwright.core.digest import Digest
from boxwright.progress import stream as stream_module
from boxwright.progress.events import Event, LogEvent, StatusEvent, VertexEvent
from boxwright.progress.step import step
from boxwright.progress.stream import ProgressStream

A, B = Digest.of(b"a"), Digest.of(b"b")


async def read_all(stream: ProgressStream) -> list[Event]:
    return [event async for batch in stream.read() for event in batch]


def test_a_late_reader_sees_the_newest_states_and_the_log() -> None:
    async def scenario() -> list[Event]:
        stream = ProgressStream()
        started = VertexEvent(A, "a", started_ns=1)
        stream.write(started)
        stream.write(LogEvent(A, 1, b"one"))
        stream.write(started.ended(2))
        stream.write(StatusEvent("s", A, current=1))
        stream.write(StatusEvent("s", A, current=2))
        stream.close()
        return await read_all(stream)

    events = asyncio.run(scenario())
    assert [e.completed_ns for e in events if isinstance(e, VertexEvent)] == [2]
    assert [e.current for e in events if isinstance(e, StatusEvent)] == [2]
    assert [e.data for e in events if isinstance(e, LogEvent)] == [b"one"]


def test_a_live_reader_gets_everything_in_order() -> None:
    async def scenario() -> list[Event]:
        stream = ProgressStream()
        reading = asyncio.ensure_future(read_all(stream))
        for number in range(100):
            stream.write(LogEvent(A, 1, b"%d" % number))
            if number % 7 == 0:
                await asyncio.sleep(0)
        stream.close()
        return await reading

    events = asyncio.run(scenario())
    assert [e.data for e in events if isinstance(e, LogEvent)] == [b"%d" % n for n in range(100)]


def test_a_slow_reader_loses_log_and_is_told_how_much() -> None:
    async def scenario() -> list[Event]:
        stream = ProgressStream()
        iterator = stream.read()
        stream.write(VertexEvent(A, "a", started_ns=1))
        first = await anext(iterator)
        for _ in range(20):
            stream.write(LogEvent(A, 1, b"x" * (1 << 20)))
        stream.write(VertexEvent(A, "a", started_ns=1, completed_ns=2))
        stream.close()
        return first + [event async for batch in iterator for event in batch]

    events = asyncio.run(scenario())
    logs = [e for e in events if isinstance(e, LogEvent)]
    kept = sum(len(e.data) for e in logs if e.stream == 1)
    assert kept <= stream_module._READER_LOG_BYTES
    assert any(b"bytes of log not shown" in e.data for e in logs)
    assert any(isinstance(e, VertexEvent) and e.completed_ns == 2 for e in events)


def test_writes_after_close_are_ignored_and_waiting_ends() -> None:
    async def scenario() -> list[Event]:
        stream = ProgressStream()
        waiting = asyncio.ensure_future(stream.wait_closed(30))
        await asyncio.sleep(0)
        stream.close()
        await waiting
        stream.write(VertexEvent(B, "b"))
        return await read_all(stream)

    assert asyncio.run(scenario()) == []


class StillClock:
    def now_ns(self) -> int:
        return 5


def test_step_reports_start_end_and_error() -> None:
    stream = ProgressStream()
    with step(stream, StillClock(), "good") as progress:
        progress.status("part", current=1)
    try:
        with step(stream, StillClock(), "bad", identity="other"):
            raise ValueError("reason")
    except ValueError:
        pass
    good, bad = stream.vertices
    assert (good.name, good.completed_ns, good.error) == ("good", 5, "")
    assert (bad.digest, bad.error) == (Digest.of(b"other"), "reason")


def test_a_part_that_fails_ends_before_its_step() -> None:
    async def scenario() -> list[Event]:
        stream = ProgressStream()
        with contextlib.suppress(ValueError), step(stream, StillClock(), "push") as progress:  # noqa: SIM117
            with progress.part("layers"):
                raise ValueError("reason")
        stream.close()
        return await read_all(stream)

    events = asyncio.run(scenario())
    (part,) = (event for event in events if isinstance(event, StatusEvent))
    assert part.completed_ns == 5
