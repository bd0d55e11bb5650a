"""Finished and running builds, remembered: ``ListenBuildHistory`` and ``UpdateBuildHistory``.

A record is one row of ``build_history`` (a serialised ``BuildHistoryRecord``), the blob of its
log, which the row keeps alive, and the provenance of its results (``build_documents``), which
clients read like blobs. Rows are written durably: a record that a client was told
of survives a crash. Old ones are removed by age and count; pinned ones stay.

A build's client does not wait for its record (:meth:`History.write_later`): whoever asks for records,
or removes what they tell of, waits for those that are being written. A daemon that is killed in
these milliseconds loses the record, and nothing of the build's results.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from sqlite3 import Cursor

from boxwright.core.clock import Clock
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.engine import buildspans
from boxwright.engine.errors import UnknownBuildError
from boxwright.engine.historyfilter import RecordMatcher, compile_history_filters
from boxwright.engine.keyrecords import KeyRecords
from boxwright.engine.recorder import read_record
from boxwright.errors import InvalidInputError
from boxwright.store import trace
from boxwright.store.store import Store
from boxwright.wire.pb import control_pb2

_log = logging.getLogger(__name__)

Record = control_pb2.BuildHistoryRecord
Event = control_pb2.BuildHistoryEvent

_PAGE = 100
_NEWEST = (2**63 - 1, "")


class History:
    """The build records of one engine. Used from the event loop."""

    def __init__(self, store: Store, clock: Clock, *, max_age_ns: int, max_entries: int) -> None:
        self._store = store
        self._clock = clock
        self._max_age_ns = max_age_ns
        self._max_entries = max_entries
        self._active: dict[str, Record] = {}
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._listeners: set[asyncio.Queue[Event]] = set()

    def started(self, record: Record) -> None:
        """Announce a build that has begun."""
        self._active[record.Ref] = record
        self._publish(Event(type=control_pb2.STARTED, record=record))

    def write_later(self, ref: str, write: Coroutine[None, None, None]) -> None:
        """Let ``write`` store the record of a build that has ended, and :meth:`written` wait for it."""
        task = self._writing[ref] = asyncio.ensure_future(write)

        def ended(_task: asyncio.Task[None]) -> None:
            del self._writing[ref]
            self.ended(ref)
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("the record of build %s is lost", ref, exc_info=error)

        task.add_done_callback(ended)

    @property
    def is_writing(self) -> bool:
        """Whether there are builds that have ended without having their record yet."""
        return bool(self._writing)

    async def written(self, ref: str = "") -> None:
        """Wait until the build of this ref, or all that have ended by now, have their records."""
        writing = [task for name, task in self._writing.items() if ref in {"", name}]
        if writing:
            await asyncio.wait(writing)

    async def completed(
        self, record: Record, also: Callable[[Cursor], None] = lambda _cursor: None
    ) -> None:
        """Store a build that has ended, announce it, and drop what is too old.

        Args:
            record: of the build.
            also: what else is to be stored with it, in the same transaction.
        """
        await to_worker(self._save, record, also)
        # Not before: whoever lists builds would find it nowhere.
        self._active.pop(record.Ref, None)
        self._publish(Event(type=control_pb2.COMPLETE, record=record))
        for ref in await to_worker(self._expire):
            self._publish(Event(type=control_pb2.DELETED, record=Record(Ref=ref)))

    def ended(self, ref: str) -> None:
        """Take back :meth:`started` for a build that has ended, unless its record is being written."""
        if ref not in self._writing:
            self._active.pop(ref, None)

    def blobs(self) -> frozenset[str]:
        """Return the digests of the blobs that records refer to (blocking)."""
        rows = self._store.db.execute(
            "SELECT log_digest FROM build_history WHERE log_digest IS NOT NULL"
        )
        return frozenset(digest for (digest,) in rows)

    async def get(self, ref: str) -> Record | None:
        """Return the record of a finished build."""
        # Of no other build: this one may run, end and be gone from the running ones meanwhile.
        await self.written(ref)
        rows = self._store.db.execute("SELECT record FROM build_history WHERE ref = ?", (ref,))
        return Record.FromString(rows[0][0]) if rows else None

    @staticmethod
    def save_documents(cursor: Cursor, ref: str, documents: Mapping[Digest, bytes]) -> None:
        """Keep what a record names by digest; for :meth:`completed`."""
        cursor.executemany(
            "INSERT OR REPLACE INTO build_documents (ref, digest, data) VALUES (?, ?, ?)",
            [(ref, digest, zlib.compress(data)) for digest, data in documents.items()],
        )

    def document(self, digest: Digest) -> bytes | None:
        """Return a document that a record names."""
        rows = self._store.db.execute(
            "SELECT data FROM build_documents WHERE digest = ? LIMIT 1", (digest,)
        )
        return zlib.decompress(rows[0][0]) if rows else None

    def _save(self, record: Record, also: Callable[[Cursor], None] = lambda _cursor: None) -> None:
        row = (
            record.Ref,
            record.CreatedAt.ToNanoseconds(),
            record.CompletedAt.ToNanoseconds(),
            int(record.pinned),
            record.logs.digest or None,
            record.SerializeToString(),
        )
        trace.point("history-logged")
        with self._store.db.transaction(durable=True) as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO build_history"
                " (ref, created_ns, completed_ns, pinned, log_digest, record)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            also(cursor)
        trace.point("history-recorded")

    def _expire(self) -> list[str]:
        oldest = self._clock.now_ns() - self._max_age_ns
        with self._store.db.transaction(durable=True) as cursor:
            cursor.execute(
                "SELECT ref FROM build_history WHERE pinned = 0 AND completed_ns < ?"
                " AND ref NOT IN (SELECT ref FROM build_history WHERE pinned = 0"
                " ORDER BY completed_ns DESC LIMIT ?)",
                (oldest, self._max_entries),
            )
            gone = [str(row[0]) for row in cursor.fetchall()]
            if gone:
                self._drop(cursor, gone)
        return gone

    def _remove(self, ref: str) -> None:
        with self._store.db.transaction(durable=True) as cursor:
            self._drop(cursor, [ref])

    @staticmethod
    def _drop(cursor: Cursor, refs: list[str]) -> None:
        cursor.executemany("DELETE FROM build_history WHERE ref = ?", [(r,) for r in refs])
        cursor.executemany("DELETE FROM build_documents WHERE ref = ?", [(r,) for r in refs])
        KeyRecords.drop(cursor, refs)

    async def update(self, request: control_pb2.UpdateBuildHistoryRequest) -> None:
        """Pin, unpin, delete or finalize a record.

        Raises:
            UnknownBuildError: there is no finished build of this ref to pin or finalize.
        """
        record = await self.get(request.Ref)
        if record is None:
            if request.Delete:
                return  # gone is what was asked for, as upstream has it
            raise UnknownBuildError(request.Ref)
        if request.Delete:
            await to_worker(self._remove, request.Ref)
            self._publish(Event(type=control_pb2.DELETED, record=Record(Ref=request.Ref)))
            return
        if request.Finalize:
            await self._finalize(record)
            return
        record.pinned = request.Pinned
        record.Generation += 1
        await to_worker(self._save, record)
        self._publish(Event(type=control_pb2.COMPLETE, record=record))

    async def _finalize(self, record: Record) -> None:
        """Add what is made only for those who ask: the build's spans."""
        if record.trace.digest:
            return
        data = await to_worker(self._spans, record)
        digest = Digest.of(data)
        record.trace.CopyFrom(
            control_pb2.Descriptor(digest=digest, size=len(data), media_type=buildspans.MEDIA_TYPE)
        )
        record.Generation += 1
        save = partial(self.save_documents, ref=record.Ref, documents={digest: data})
        await to_worker(self._save, record, save)
        self._publish(Event(type=control_pb2.COMPLETE, record=record))

    def _spans(self, record: Record) -> bytes:
        messages: Iterator[control_pb2.StatusResponse] = iter(())
        if record.logs.digest:
            messages = read_record(self._store.blobs.path(Digest(record.logs.digest)))
        return buildspans.build_spans(record, messages)

    async def listen(self, request: control_pb2.BuildHistoryRequest) -> AsyncIterator[Event]:
        """Yield running and finished builds, then (unless ``EarlyExit``) what happens next.

        As upstream has it, filters and the limit choose among the builds that have ended alone.

        Raises:
            InvalidInputError: a filter is malformed, or the limit negative.
        """
        await self.written()
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._listeners.add(queue)
        try:
            async for event in self._snapshot(request):
                yield event
            if request.EarlyExit:
                return
            while True:
                event = await queue.get()
                if request.Ref in {"", event.record.Ref}:
                    yield event
        finally:
            self._listeners.discard(queue)

    async def _snapshot(self, request: control_pb2.BuildHistoryRequest) -> AsyncIterator[Event]:
        # Looked at before the rows: a build that ends meanwhile is among those that run.
        running = [each for each in self._active.values() if request.Ref in {"", each.Ref}]
        known: frozenset[str] = frozenset()
        if running and not request.ActiveOnly:
            known = await to_worker(self._stored, [record.Ref for record in running])
        for record in running:
            if record.Ref not in known or not record.HasField("CompletedAt"):  # being announced
                yield Event(type=control_pb2.STARTED, record=record)
        if request.ActiveOnly:
            return
        matches = compile_history_filters(request.Filter, self._clock.now_ns())
        if request.Limit < 0:
            raise InvalidInputError(f"invalid limit {request.Limit}")
        count = 0
        async for saved in self._saved(request.Ref, matches):
            yield Event(type=control_pb2.COMPLETE, record=saved)
            count += 1
            if count == request.Limit:
                return

    def _stored(self, refs: Sequence[str]) -> frozenset[str]:
        query = "SELECT ref FROM build_history WHERE ref = ?"
        return frozenset(name for ref in refs for (name,) in self._store.db.execute(query, (ref,)))

    async def _saved(self, ref: str, matches: RecordMatcher) -> AsyncIterator[Record]:
        """Yield the records that match, the newest first; read in pages: there may be very many."""
        if ref:
            record = await self.get(ref)
            if record is not None and matches(record):
                yield record
            return
        after: tuple[int, str] | None = _NEWEST
        while after is not None:
            found, after = await to_worker(self._page, after, matches)
            for record in found:
                yield record

    def _page(
        self, after: tuple[int, str], matches: RecordMatcher
    ) -> tuple[list[Record], tuple[int, str] | None]:
        """Return what matches of one page, and where the next one begins."""
        rows = self._store.db.execute(
            "SELECT created_ns, ref, record FROM build_history WHERE (created_ns, ref) < (?, ?)"
            " ORDER BY created_ns DESC, ref DESC LIMIT ?",
            (*after, _PAGE),
        )
        records = (Record.FromString(row[2]) for row in rows)
        found = [record for record in records if matches(record)]
        return found, rows[-1][:2] if len(rows) == _PAGE else None

    def _publish(self, event: Event) -> None:
        for queue in self._listeners:
            queue.put_nowait(event)
