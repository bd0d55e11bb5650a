"""Folders that clients share with a build (``local://NAME``).

The cache key is the session's and the patterns', so it never outlives the session; what later
steps are cached by are the content digests of what they read. The digests are known when the
sync ends, since every file is hashed while it passes.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from boxwright.core.dataclass import dataclass, field
from boxwright.core.locks import KeyedLocks
from boxwright.core.platform import Platform
from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError
from boxwright.session.base import Session, SyncRequest, TreeReceiver
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.sources.base import SourceContext, SourceKey, SourceProgress
from boxwright.sources.localindex import STATES_PER_KEY, ContextIndex, IndexFiles
from boxwright.sources.localinplace import InPlaceSync
from boxwright.sources.locallisting import Listing
from boxwright.sources.localmetadata import MetadataReceiver
from boxwright.sources.localtree import LocalTree

SCHEME = "local"
_STATES_IN_MEMORY = 8
_PROGRESS_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class LocalAttributes:
    """The attributes of a local source op (solver/pb attr.go)."""

    name: str
    session_id: str = ""
    request: SyncRequest = field(default_factory=SyncRequest)
    shared_key_hint: str = ""
    trust_stats: bool = True
    metadata_only: bool = False
    metadata_exceptions: tuple[str, ...] = ()

    @classmethod
    def parse(cls, rest: str, attrs: Mapping[str, str]) -> LocalAttributes:
        """Read the identifier and its attributes.

        Raises:
            InvalidInputError: an attribute is malformed.
        """
        name, session_id = rest, attrs.get("local.session", "")
        prefix, colon, session_rest = session_id.partition(":")
        if colon:
            name, session_id = f"{prefix}-{name}", session_rest
        return cls(
            name,
            session_id,
            SyncRequest(
                _string_list(attrs, "local.includepattern"),
                _string_list(attrs, "local.excludepatterns"),
                _string_list(attrs, "local.followpaths"),
            ),
            attrs.get("local.sharedkeyhint", ""),
            attrs.get("local.differ", "metadata") != "none",
            _flag(attrs, "local.metadatatransfer"),
            _string_list(attrs, "local.metadatatransferexclude"),
        )


def _flag(attrs: Mapping[str, str], name: str) -> bool:
    text = attrs.get(name, "false")
    if text in {"1", "t", "T", "true", "True", "TRUE"}:
        return True
    if text in {"0", "f", "F", "false", "False", "FALSE"}:
        return False
    raise InvalidInputError(f'invalid value for {name} "{text[:200]}"')


def _string_list(attrs: Mapping[str, str], name: str) -> tuple[str, ...]:
    text = attrs.get(name)
    if not text:
        return ()
    try:
        values = json.loads(text)
    except ValueError:
        values = None
    if values is None and text.strip() == "null":
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise InvalidInputError(f"attribute {name} is no list of strings", detail=text[:200])
    return tuple(values)


class LocalSources:
    """Provider of ``local://`` sources over one state folder.

    Args:
        manager: Where snapshots are made.
        keep_owner: Whether owners other than root can be set (not in a user namespace).
    """

    def __init__(self, manager: SnapshotManager, *, keep_owner: bool = True) -> None:
        self._manager = manager
        self._keep_owner = keep_owner
        self._files = IndexFiles(manager.store.root / "contexts")
        self._files.prune(lambda snapshot_id: manager.table.get(snapshot_id) is not None)
        self._states: OrderedDict[str, list[ContextIndex]] = OrderedDict()
        self._locks = KeyedLocks()

    def resolve(
        self, rest: str, attrs: Mapping[str, str], platform: Platform | None
    ) -> LocalSource:
        """Return the source of ``local://<rest>``."""
        del platform
        return LocalSource(self, LocalAttributes.parse(rest, attrs))

    async def sync(
        self, session: Session, wanted: LocalAttributes, progress: SourceProgress | None
    ) -> ImmutableRef:
        """Return the snapshot of a client's folder as it is now."""
        folder = None if wanted.metadata_only else session.local_dir(wanted.name)
        if folder is not None:
            key = f"{wanted.name}:{wanted.shared_key_hint}:in-place:{folder}"
        else:
            suffix = ":metadata" if wanted.metadata_only else ""
            key = f"{wanted.name}:{wanted.shared_key_hint}:{session.shared_key}{suffix}"
        async with self._locks(key):
            return await self._sync_locked(session, wanted, key, folder, progress)

    async def _sync_locked(
        self,
        session: Session,
        wanted: LocalAttributes,
        key: str,
        folder: Path | None,
        progress: SourceProgress | None,
    ) -> ImmutableRef:
        states = await self._load(key)
        known = self._held(states)
        try:
            if len(known) < len(states):
                kept = {state.slot for state, _ in known}
                gone = {state.slot for state in states} - kept
                await to_worker(self._files.forget, key, gone)
            if folder is None and wanted.trust_stats and not wanted.metadata_only:
                await self._list([state for state, _ in known])
            return await self._sync_from(known, session, wanted, key, folder, progress)
        finally:
            for _, held in known:
                await held.release()

    async def _sync_from(
        self,
        known: Sequence[tuple[ContextIndex, ImmutableRef]],
        session: Session,
        wanted: LocalAttributes,
        key: str,
        folder: Path | None,
        progress: SourceProgress | None,
    ) -> ImmutableRef:
        tree = LocalTree(
            self._manager,
            known,
            description=f"local source for {wanted.name}",
            trust_stats=wanted.trust_stats,
            keep_owner=self._keep_owner,
        )
        report = _TransferReport(wanted.name, progress)
        try:
            refreshed = tree.changed
            if folder is not None:
                in_place = InPlaceSync(tree, tree.base, folder, wanted.request)
                await in_place.run(report.add)
                refreshed = in_place.refreshed
            else:
                receiver: TreeReceiver = tree
                if wanted.metadata_only:
                    now_ns = self._manager.clock.now_ns()
                    receiver = MetadataReceiver(tree, wanted.metadata_exceptions, now_ns)
                await session.sync_dir(
                    wanted.name, wanted.request, receiver, on_received=report.add
                )
            ref, index = await tree.commit()
        finally:
            await tree.discard()
        report.done()
        states = [state for state, _ in known]
        self._keep(key, states, tree.base, index, replace=folder is not None or tree.is_successor)
        if tree.changed or refreshed:
            await to_worker(self._files.save, key, index)
        return ref

    def index_of(self, snapshot_id: str) -> ContextIndex | None:
        """Return the index of a folder's state, if it is one of those that were used last."""
        kept = (each for states in self._states.values() for each in states)
        return next((each for each in kept if each.snapshot_id == snapshot_id), None)

    async def _load(self, key: str) -> list[ContextIndex]:
        states = self._states.get(key)
        if states is None:
            states = await to_worker(self._files.load, key)
        return states

    async def _list(self, states: Sequence[ContextIndex]) -> None:
        """See to it that the entries of states can be compared as they are named."""
        for state in states:
            if state.listing is None:
                state.listing = await to_worker(Listing, state.entries)

    def _held(self, states: Sequence[ContextIndex]) -> list[tuple[ContextIndex, ImmutableRef]]:
        """Return those states whose snapshots are still there, with a handle on each."""
        pairs = ((state, self._manager.get(state.snapshot_id)) for state in states)
        return [(state, held) for state, held in pairs if held is not None]

    def _keep(
        self,
        key: str,
        states: list[ContextIndex],
        base: ContextIndex,
        index: ContextIndex,
        *,
        replace: bool,
    ) -> None:
        """Remember a state: instead of its base, or beside it in place of the oldest."""
        others = [state for state in states if not (replace and state is base)]
        others = others[: STATES_PER_KEY - 1]
        used = {state.slot for state in others}
        slots = (base.slot, *range(STATES_PER_KEY))
        index.slot = next(slot for slot in slots if slot not in used)
        self._states[key] = [index, *others]
        self._states.move_to_end(key)
        while len(self._states) > 1 and sum(map(len, self._states.values())) > _STATES_IN_MEMORY:
            self._states.popitem(last=False)


class LocalSource:
    """One ``local://`` op."""

    def __init__(self, provider: LocalSources, wanted: LocalAttributes) -> None:
        self._provider = provider
        self._wanted = wanted

    async def cache_key(self, context: SourceContext, index: int) -> SourceKey:
        """Return the key, which holds for one session and one set of patterns only."""
        del index
        wanted = self._wanted
        session_id = wanted.session_id or next(iter(context.sessions.ids), "")
        if not session_id:
            raise InvalidInputError("could not access local files without session")
        request = wanted.request
        fields: dict[str, object] = {
            "SessionID": session_id,
            "IncludePatterns": list(request.include) or None,
            "ExcludePatterns": list(request.exclude) or None,
            "FollowPaths": list(request.follow) or None,
        }
        if wanted.metadata_only:
            fields["MetadataTransfer"] = True
        if wanted.metadata_exceptions:
            fields["MetadataExceptions"] = list(wanted.metadata_exceptions)
        encoded = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        digest = "sha256:" + hashlib.sha256(encoded.encode("utf-8", "surrogateescape")).hexdigest()
        return SourceKey(f"session:{wanted.name}:{digest}", digest)

    async def snapshot(self, context: SourceContext) -> ImmutableRef:
        """Transfer what has changed and return the folder's snapshot."""

        async def sync(session: Session) -> ImmutableRef:
            return await self._provider.sync(session, self._wanted, context.progress)

        return await context.sessions.any(sync, first=self._wanted.session_id)


class _TransferReport:
    """Shows how many bytes have come, at most every tenth of a second."""

    def __init__(self, name: str, progress: SourceProgress | None) -> None:
        self._id = f"transferring {name}:"
        self._progress = progress
        self._bytes = 0
        self._started_ns = time.time_ns()
        self._shown_s = 0.0

    def add(self, count: int) -> None:
        self._bytes += count
        now_s = time.monotonic()
        if self._progress is not None and now_s - self._shown_s >= _PROGRESS_INTERVAL_S:
            self._shown_s = now_s
            self._progress.status(
                self._id,
                name="transferring",
                current=self._bytes,
                started_ns=self._started_ns,
            )

    def done(self) -> None:
        if self._progress is not None:
            self._progress.status(
                self._id,
                name="transferring",
                current=self._bytes,
                started_ns=self._started_ns,
                completed_ns=time.time_ns(),
            )
