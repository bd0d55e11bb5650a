"""A snapshot record in memory: its row, who holds it, and its shared mount."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.snapshots.records import Row

Fetch = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class LayerBlob:
    """One layer of an image.

    Attributes:
        descriptor: The compressed blob.
        diff_id: The digest of its uncompressed form.
        fetch: Brings the blob into the store; ``None`` if it is there already.
        origin: The labels that it will have there: which repositories have it.
        description: What made it, for listings.
        created_ns: From the image's history, 0 if unknown.
    """

    descriptor: Descriptor
    diff_id: Digest
    fetch: Fetch | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    created_ns: int = 0


@dataclass(slots=True)
class Node:
    """Runtime state of one record; belongs to the event loop.

    Attributes:
        fs: The folder of its own layer, whether made already or not.
        refs: Handles out there; the record can't be deleted while there are any.
        fetches: Ways to fetch the layer's blob, the latest last.
        origin: Labels of the blob as long as it is not here.
        pure: The folder of the layer's changes and nothing else, once it was asked for.
        prepared: Everything that a mount needs is on the disk.
        readers: Users of the shared view.
        lock: Guards making and dropping the view and the record's own folder.
    """

    row: Row
    fs: Path
    refs: int = 0
    fetches: list[Fetch] = field(default_factory=list)
    origin: dict[str, str] = field(default_factory=dict)
    pure: Path | None = None
    prepared: bool = False
    readers: int = 0
    view: Path | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    mount_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
