"""The blobs of layers that need not be in the store: brought there when somebody reads them."""

from __future__ import annotations

from collections.abc import Mapping

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.snapshots.manager import SnapshotManager


class SnapshotBlobs:
    """Delivers layers of snapshots, also those that were never fetched.

    Args:
        snapshots: whose layers they are.
        owners: ids of snapshots by the digest of their layer's blob.
    """

    def __init__(self, snapshots: SnapshotManager, owners: Mapping[Digest, str]) -> None:
        self._snapshots = snapshots
        self._owners = owners

    async def ensure(self, descriptor: Descriptor) -> None:
        """Have a blob in the store.

        Raises:
            BoxwrightError: it can't be fetched any more.
        """
        owner = self._owners.get(descriptor.digest)
        if owner is not None and self._snapshots.store.blobs.stat(descriptor.digest) is None:
            await self._snapshots.fetch_layer(owner)

    def origin(self, descriptor: Descriptor) -> Mapping[str, str]:
        """Return the labels that a blob gets when it is fetched: which repositories have it."""
        owner = self._owners.get(descriptor.digest)
        return self._snapshots.layer_origin(owner) if owner is not None else {}
