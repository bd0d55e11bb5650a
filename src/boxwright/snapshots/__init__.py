"""File trees in layers: snapshots, mounts, differences, content digests, cache mounts."""

from boxwright.snapshots.diff import Change, changes, tree_changes
from boxwright.snapshots.errors import (
    LayerMismatchError,
    LayerMissingError,
    MountError,
    SnapshotInUseError,
    SnapshotNotFoundError,
)
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.node import LayerBlob
from boxwright.snapshots.refs import ImmutableRef, Layer, LayerTree, MutableRef
from boxwright.snapshots.usage import SnapshotRecord

__all__ = [
    "Change",
    "ImmutableRef",
    "Layer",
    "LayerBlob",
    "LayerMismatchError",
    "LayerMissingError",
    "LayerTree",
    "MountError",
    "MutableRef",
    "SnapshotInUseError",
    "SnapshotManager",
    "SnapshotNotFoundError",
    "SnapshotRecord",
    "changes",
    "tree_changes",
]
