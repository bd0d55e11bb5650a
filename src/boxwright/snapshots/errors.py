"""Failures of snapshots."""

from __future__ import annotations

from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code


class SnapshotNotFoundError(BoxwrightError):
    """A snapshot id that is not known, or no longer.

    Args:
        snapshot_id: The id asked for.
    """

    code = Code.NOT_FOUND

    def __init__(self, snapshot_id: str) -> None:
        super().__init__(f"snapshot {snapshot_id} does not exist")
        self.snapshot_id = snapshot_id


class SnapshotInUseError(BoxwrightError):
    """A snapshot that can't be deleted: a build, a lease or another snapshot needs it.

    Args:
        snapshot_id: The snapshot.
        reason: Who needs it.
    """

    code = Code.UNAVAILABLE

    def __init__(self, snapshot_id: str, reason: str) -> None:
        super().__init__(f"snapshot {snapshot_id} is in use", detail=reason)
        self.snapshot_id = snapshot_id


class LayerMissingError(BoxwrightError):
    """The blob of an image layer is not in the store and nobody here can fetch it.

    The caller treats it as a cache miss: resolve the image again.

    Args:
        digest: The compressed layer.
    """

    code = Code.NOT_FOUND

    def __init__(self, digest: Digest | None) -> None:
        super().__init__(f"layer {digest or 'without a blob'} is no longer in the store")
        self.digest = digest


class LayerMismatchError(BoxwrightError):
    """A layer whose uncompressed content is not what the image configuration says.

    Args:
        want: The diff id in the image configuration.
        got: The digest of the uncompressed layer.
    """

    code = Code.DIGEST_MISMATCH

    def __init__(self, want: Digest, got: Digest) -> None:
        super().__init__(
            "an image layer does not match the image's configuration",
            detail=f"wanted diff id {want}, got {got}",
            hint="the image is broken at its source; build or push it again",
        )
        self.want = want
        self.got = got


class MountError(BoxwrightError):
    """A file tree could not be mounted.

    Args:
        detail: What the kernel or the mount program said.
        hint: What may help.
    """

    code = Code.ENVIRONMENT

    def __init__(self, detail: str, hint: str = "") -> None:
        super().__init__("can't mount a snapshot", detail=detail, hint=hint)
