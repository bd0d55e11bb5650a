"""Records that are written after their builds have answered."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from boxwright.core.clock import SystemClock
from boxwright.engine import history as history_module
from boxwright.engine.contenttables import ContentTables
from boxwright.engine.engine import Engine
from boxwright.engine.errors import EngineClosingError, UnknownBuildError
from boxwright.engine.history import History, Record
from boxwright.engine.historyfilter import RecordMatcher
from boxwright.engine.keyrecords import KeyRecord, KeyRecords
from boxwright.errors import InvalidInputError
from boxwright.snapshots.content_tree import FILE, TreeNode
from boxwright.store.database import Database
from boxwright.store.store import Store
from boxwright.wire.pb import control_pb2, explain_pb2

Event = control_pb2.BuildHistoryEvent


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    store = Store.open(tmp_path / "s")
    yield History(store, SystemClock(), max_age_ns=10**18, max_entries=10)
    store.close()


class Ending:
    """A build that has answered, and whose record is stored when :attr:`goes_on` is set."""

    def __init__(self, history: History, ref: str, failure: Exception | None = None) -> None:
        self.goes_on = asyncio.Event()
        self._history, self._failure = history, failure
        self._record = Record(Ref=ref)
        history.started(self._record)
        history.write_later(ref, self._write())

    async def _write(self) -> None:
        await self.goes_on.wait()
        if self._failure is not None:
            raise self._failure
        self._record.CompletedAt.GetCurrentTime()
        await self._history.completed(self._record)


async def listed(history: History) -> list[tuple[int, str]]:
    request = control_pb2.BuildHistoryRequest(EarlyExit=True)
    return [(event.type, event.record.Ref) async for event in history.listen(request)]


def test_whoever_asks_for_records_waits_for_those_that_are_written(history: History) -> None:
    async def main() -> None:
        ending = Ending(history, "a")
        assert history.is_writing
        asking = [
            asyncio.ensure_future(listed(history)),
            asyncio.ensure_future(history.get("a")),
            asyncio.ensure_future(history.written()),
            asyncio.ensure_future(history.written("a")),
            asyncio.ensure_future(
                history.update(control_pb2.UpdateBuildHistoryRequest(Ref="a", Pinned=True))
            ),
        ]
        await history.written("b")  # no business of this one
        assert await history.get("b") is None
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in asking)
        ending.goes_on.set()
        found, record, *_ = await asyncio.gather(*asking)
        assert found == [(control_pb2.COMPLETE, "a")]
        assert record.HasField("CompletedAt")
        assert not history.is_writing
        assert (await history.get("a")).pinned

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_build_that_ends_while_others_are_waited_for_is_listed(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving, goes_on, save = threading.Event(), threading.Event(), history._save

    def slowly(record: Record, *also: Any) -> None:
        if record.Ref == "late":
            saving.set()
            assert goes_on.wait(60)
        save(record, *also)

    async def main() -> None:
        first = Ending(history, "first")
        listing = asyncio.ensure_future(listed(history))
        await asyncio.sleep(0)
        Ending(history, "late").goes_on.set()
        await asyncio.to_thread(saving.wait, 60)
        first.goes_on.set()
        assert set(await listing) == {
            (control_pb2.STARTED, "late"),
            (control_pb2.COMPLETE, "first"),
        }
        goes_on.set()
        assert {ref for _, ref in await listed(history)} == {"late", "first"}

    monkeypatch.setattr(history, "_save", slowly)
    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_build_that_is_saved_and_not_announced_yet_is_listed_once(history: History) -> None:
    async def main() -> None:
        record = Record(Ref="a")
        history.started(record)
        record.CompletedAt.GetCurrentTime()
        history._save(record)
        assert await listed(history) == [(control_pb2.COMPLETE, "a")]

    asyncio.run(main())


def test_no_build_begins_on_an_engine_that_closes_while_a_record_is_waited_for(
    history: History,
) -> None:
    async def main() -> None:
        engine = Engine.__new__(Engine)
        engine.history, engine._closing, engine._builds = history, False, {}
        ending = Ending(history, "a")
        again = asyncio.ensure_future(engine.solve(control_pb2.SolveRequest(Ref="a")))
        await asyncio.sleep(0)
        engine._closing = True
        ending.goes_on.set()
        with pytest.raises(EngineClosingError):
            await again

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_listener_that_stays_sees_each_build_once(history: History) -> None:
    async def main() -> None:
        first = Ending(history, "a")
        events = history.listen(control_pb2.BuildHistoryRequest())
        coming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0.05)
        first.goes_on.set()
        assert (await coming).type == control_pb2.COMPLETE
        Ending(history, "b").goes_on.set()
        seen = [await anext(events), await anext(events)]
        await events.aclose()
        assert [(each.type, each.record.Ref) for each in seen] == [
            (control_pb2.STARTED, "b"),
            (control_pb2.COMPLETE, "b"),
        ]

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_record_that_fails_is_logged_and_nobody_waits_for_ever(
    history: History, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        Ending(history, "a", ValueError("no record today")).goes_on.set()
        assert await listed(history) == []
        with pytest.raises(UnknownBuildError):
            await history.update(control_pb2.UpdateBuildHistoryRequest(Ref="a", Pinned=True))

    with caplog.at_level(logging.ERROR):
        asyncio.run(asyncio.wait_for(main(), 60))
    assert "the record of build a is lost" in caplog.text
    assert "no record today" in caplog.text


def test_filters_and_limits_choose_among_builds_that_have_ended(history: History) -> None:
    async def main() -> None:
        for number, ref in enumerate(("a", "b", "c")):
            record = Record(Ref=ref)
            record.CreatedAt.FromSeconds(number)
            record.CompletedAt.FromSeconds(number + 1)
            history._save(record)
        history.started(Record(Ref="now"))

        async def found(**fields: Any) -> list[str]:
            request = control_pb2.BuildHistoryRequest(EarlyExit=True, **fields)
            return [event.record.Ref async for event in history.listen(request)]

        assert await found(Filter=["ref==b"]) == ["now", "b"]
        assert await found(Filter=["status==running"]) == ["now"]
        assert await found(Limit=2) == ["now", "c", "b"]
        assert await found(Limit=1, Filter=["status==completed"]) == ["now", "c"]
        assert await found(Ref="a") == ["a"]
        assert await found(ActiveOnly=True, Filter=["duration>x"], Limit=-1) == ["now"]
        for wrong in ({"Filter": ["duration>x"]}, {"Limit": -1}):
            with pytest.raises(InvalidInputError):
                await found(**wrong)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_listener_to_one_build_hears_of_no_other(history: History) -> None:
    async def main() -> None:
        events = history.listen(control_pb2.BuildHistoryRequest(Ref="b", Filter=["ref==x"]))
        coming = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        for ref in ("a", "b"):
            history._publish(Event(type=control_pb2.DELETED, record=Record(Ref=ref)))
        assert (await coming).record.Ref == "b"
        await events.aclose()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_records_are_listed_in_pages_the_newest_first(
    history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "_PAGE", 3)
    pages: list[tuple[int, str]] = []
    page = history._page

    def counted(after: tuple[int, str], matches: RecordMatcher) -> Any:
        pages.append(after)
        return page(after, matches)

    monkeypatch.setattr(history, "_page", counted)
    for number in range(9):  # three of each moment
        record = Record(Ref=f"r{number}", Frontend="odd" if number % 2 else "even")
        record.CreatedAt.FromSeconds(number // 3)
        history._save(record)
    newest = [f"r{number}" for number in reversed(range(9))]

    async def refs(**wanted: Any) -> tuple[list[str], int]:
        pages.clear()
        request = control_pb2.BuildHistoryRequest(EarlyExit=True, **wanted)
        found = [event.record.Ref async for event in history.listen(request)]
        return found, len(pages)

    async def main() -> None:
        assert await refs() == (newest, 4)
        assert await refs(Limit=3) == (newest[:3], 1)
        assert await refs(Limit=4) == (newest[:4], 2)
        assert await refs(Ref="r5", Limit=1) == (["r5"], 0)
        assert await refs(Ref="unknown") == ([], 0)
        assert (await refs(Filter=["ref==r2"]))[0] == ["r2"]
        assert await refs(Filter=["ref~=r[78]"], Limit=1) == (["r8"], 1)
        record = Record(Ref="r8")  # it runs anew
        history.started(record)
        assert (await refs(Limit=1))[0] == ["r8", "r8"]

    asyncio.run(main())


def test_a_page_and_what_a_record_leaves_are_found_by_index(
    tmp_path: Path, looking_at_all: Callable[[Database], AbstractContextManager[list[str]]]
) -> None:
    store = Store.open(tmp_path / "s")
    try:
        history = History(store, SystemClock(), max_age_ns=0, max_entries=0)
        tables = ContentTables(store.db)
        keys = explain_pb2.BuildKeys(steps=[explain_pb2.StepKeys(inputs=[{"table": b"table"}])])
        record = KeyRecord(
            b"",
            keys,
            tuple(tables.make(b"table", [(b"", TreeNode(FILE, 0), b"")], lambda _path: b"")),
        )
        history._save(Record(Ref="a"), lambda cursor: KeyRecords.save(cursor, "a", 1, record))
        assert not tables.missing([b"table"])
        with looking_at_all(store.db) as whole:
            history._page((1, ""), lambda _record: True)
            history._remove("a")
        assert whole == []
        assert tables.missing([b"table"])
        assert store.db.execute("SELECT * FROM build_history") == []
    finally:
        store.close()
