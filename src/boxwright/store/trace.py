"""Named points between the steps of a commit or a collection.

In production a point is a dictionary look-up that finds nothing. A test fills it with a
callback to force an interleaving, or has the process killed there: with
``BOXWRIGHT_TEST_CRASH=1`` set, ``BOXWRIGHT_CRASH_POINT=name[:n]`` sends SIGKILL to the process
itself when the point is passed for the n-th time (the first by default).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

POINTS = (
    "blob-staged",
    "blob-synced",
    "blob-linked",
    "blob-recorded",
    "gc-marked",
    "gc-row-deleted",
    "gc-unlinked",
    "snapshot-unmounted",
    "snapshot-recorded",
    "snapshot-unpacked",
    "snapshot-renamed",
    "snapshot-row-deleted",
    "snapshot-trashed",
    "cachemount-made",
    "image-committed",
    "image-named",
    "history-logged",
    "history-recorded",
    "cache-layers-written",
    "cache-config-written",
    "cache-exported",
    "cache-import-read",
    "upload-received",
    "upload-published",
    "manifest-stored",
    "manifest-recorded",
)

callbacks: dict[str, Callable[[], None]] = {}


def point(name: str) -> None:
    """Run what a test has put at ``name``; nothing in production."""
    callback = callbacks.get(name)
    if callback is not None:
        callback()


def _install_crash_point() -> None:
    if os.environ.get("BOXWRIGHT_TEST_CRASH") != "1":
        return
    name, _, count = os.environ.get("BOXWRIGHT_CRASH_POINT", "").partition(":")
    if name not in POINTS:
        return
    left = int(count or "1")

    def crash() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    callbacks[name] = crash


_install_crash_point()
