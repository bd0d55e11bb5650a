"""Build caches in folders of the client (``type=local``): offered, found by tag, published.

A folder is an OCI layout. The daemon reads and writes its blobs as a content store with the id
``local:FOLDER``; which manifest a tag means is the client's business, before and after a build.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

from boxwright.core import gobool
from boxwright.core.dataclass import dataclass, field
from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.session.providers.contents import (
    OciLayouts,
    publish_tag,
    remove_unreferenced,
    resolve_tag,
)

_log = logging.getLogger(__name__)

_MANIFEST_KEY = "cache.manifest"
_INTERVAL_S = 0.05


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """One cache import or export (``type=registry,ref=…``)."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=dict)


def resolve_imports(specs: Sequence[CacheSpec]) -> tuple[CacheSpec, ...]:
    """Return the imports with the digests that local ones need; blocks.

    A folder that has no cache yet is left out with a warning: the first build of all has none.

    Raises:
        InvalidInputError: a local import names no folder.
    """
    return tuple(found for spec in specs if (found := _resolve(spec)) is not None)


def _resolve(spec: CacheSpec) -> CacheSpec | None:
    if not _is_local(spec):
        return spec
    folder = spec.attrs.get("src", "")
    if not folder:
        raise InvalidInputError(
            "a local cache import needs src", hint="write type=local,src=FOLDER"
        )
    if spec.attrs.get("digest"):
        return spec
    try:
        digest, _ = resolve_tag(Path(folder), ":" + spec.attrs.get("tag", "latest"))
    except BoxwrightError as error:
        _log.warning("cache import from %s is skipped: %s", folder, error)
        return None
    return CacheSpec(spec.type, {**spec.attrs, "digest": digest})


def offer(
    layouts: OciLayouts | None, imports: Sequence[CacheSpec], exports: Sequence[CacheSpec]
) -> OciLayouts | None:
    """Offer the folders of all local caches besides what is offered already; blocks.

    Raises:
        InvalidInputError: a local export names no folder, or has a wrong ``reset``.
        LayoutError: a folder can't be made.
    """
    for spec in imports:
        if _is_local(spec):
            layouts = layouts or OciLayouts()
            layouts.add_cache(spec.attrs["src"], writable=False)
    for spec in exports:
        if _is_local(spec):
            folder = spec.attrs.get("dest", "")
            if not folder:
                raise InvalidInputError(
                    "a local cache export needs dest", hint="write type=local,dest=FOLDER"
                )
            _is_reset(spec)  # said wrong, it is refused before anything runs
            layouts = layouts or OciLayouts()
            layouts.add_cache(folder, writable=True)
    return layouts


class CacheWriters:
    """Marks a build as one that writes to the folders of its local exports, until it has ended.

    What it has written there, or found there, is under no tag before it publishes. Nobody who
    resets a folder may remove that: each writer has a shared lock on the folder (flock(2) on the
    folder itself, so that no file of ours is in the layout), and a reset needs it alone. Other
    programs take no such lock.
    """

    def __init__(self, exports: Sequence[CacheSpec]) -> None:
        self._locks: dict[str, int] = {}
        self._waiting: list[int] = []
        for folder in dict.fromkeys(spec.attrs["dest"] for spec in exports if _is_local(spec)):
            self._lock(os.path.realpath(folder))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for lock in self._locks.values():
            os.close(lock)
        self._locks.clear()

    def _lock(self, folder: str) -> None:
        if folder in self._locks:
            return
        with contextlib.suppress(OSError):  # not every file system has locks
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            self._locks[folder] = lock
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                self._waiting.append(lock)

    async def wait(self) -> None:
        """Wait until no other build removes what is not needed; can be cancelled."""
        while self._waiting:
            try:
                fcntl.flock(self._waiting[-1], fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(_INTERVAL_S)
            else:
                self._waiting.pop()

    @contextlib.contextmanager
    def alone(self, folder: Path) -> Iterator[bool]:
        """Keep others out of a folder while the block runs; yield False if they are in it."""
        lock = self._locks.get(os.path.realpath(folder))
        try:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError:
            lock = None
        try:
            yield True
        finally:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_SH)


def publish(
    exports: Sequence[CacheSpec], response: Mapping[str, str], writers: CacheWriters
) -> None:
    """Let the tags of local caches point at what the build exported; blocks.

    Raises:
        LayoutError: an index can't be read or written.
    """
    text = response.get(_MANIFEST_KEY)
    if not text:
        return
    local = [spec for spec in exports if _is_local(spec)]
    for spec in local:
        descriptor = json.loads(text)
        publish_tag(Path(spec.attrs["dest"]), descriptor, spec.attrs.get("tag") or "latest")
    for folder in dict.fromkeys(Path(spec.attrs["dest"]) for spec in local if _is_reset(spec)):
        _reset(folder, writers)


def _is_local(spec: CacheSpec) -> bool:
    return spec.type == "local"


def _is_reset(spec: CacheSpec) -> bool:
    text = spec.attrs.get("reset", "false")
    value = gobool.parse(text)
    if value is None:
        raise InvalidInputError("failed to parse reset", detail=f"{text!r} is not a boolean")
    return value


def _reset(folder: Path, writers: CacheWriters) -> None:
    """Remove what earlier exports left and no tag needs; the build has succeeded without it."""
    with writers.alone(folder) as is_alone:
        if not is_alone:
            _log.warning("another build writes to %s: what is not needed stays there", folder)
            return
        try:
            count = remove_unreferenced(folder)
        except (BoxwrightError, OSError) as error:
            _log.warning("what is not needed in %s could not be removed: %s", folder, error)
        else:
            _log.info("removed %d blobs of earlier caches from %s", count, folder)
