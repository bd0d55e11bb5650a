"""The state folder: content-addressed blobs, metadata, leases, image names, collection."""

from boxwright.store.blobs import BlobInfo, BlobStore, BlobWriter
from boxwright.store.database import Database
from boxwright.store.errors import (
    BlobNotFoundError,
    DigestMismatchError,
    DiskFullError,
    StoreAccessError,
    StoreCorruptError,
    StoreLockedError,
    StoreVersionError,
    disk_errors,
)
from boxwright.store.images import ImageRecord, ImageStore
from boxwright.store.leases import Lease, LeaseInfo, Leases
from boxwright.store.store import Collected, Store, Usage, VerifyReport

__all__ = [
    "BlobInfo",
    "BlobNotFoundError",
    "BlobStore",
    "BlobWriter",
    "Collected",
    "Database",
    "DigestMismatchError",
    "DiskFullError",
    "ImageRecord",
    "ImageStore",
    "Lease",
    "LeaseInfo",
    "Leases",
    "Store",
    "StoreAccessError",
    "StoreCorruptError",
    "StoreLockedError",
    "StoreVersionError",
    "Usage",
    "VerifyReport",
    "disk_errors",
]
