"""What snapshots take on the disk, and the record that listings and pruning see."""

from __future__ import annotations

from typing import TYPE_CHECKING

from boxwright.core.dataclass import dataclass

if TYPE_CHECKING:
    from boxwright.snapshots.refs import MutableRef

CACHE_MOUNT_TYPE = "exec.cachemount"


@dataclass(frozen=True, slots=True)
class SnapshotRecord:
    """One line of ``du`` (the wire's UsageRecord); times in nanoseconds since the epoch.

    Attributes:
        in_use: A build holds it now.
        leased: A lease holds it.
        shared: Another snapshot is built on it.
        mutable: It is being made.
        size_bytes: ``None`` until it was counted.
    """

    id: str
    parents: tuple[str, ...]
    description: str
    record_type: str
    created_ns: int
    last_used_ns: int
    usage_count: int
    size_bytes: int | None
    in_use: bool
    leased: bool = False
    shared: bool = False
    mutable: bool = False

    @classmethod
    def of_mutable(cls, ref: MutableRef) -> SnapshotRecord:
        """Build it from an unfinished tree."""
        return cls(
            id=ref.id,
            parents=(ref.parent.id,) if ref.parent is not None else (),
            description=ref.description,
            record_type=ref.record_type,
            created_ns=ref.created_ns,
            last_used_ns=ref.created_ns,
            usage_count=1,
            size_bytes=None,
            in_use=True,
            mutable=True,
        )
