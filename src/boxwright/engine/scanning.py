"""Bills of materials: of scanner images, and of the scanner that is built in.

What the built-in scanner is to look at travels as an attestation whose content is a tree and
whose metadata says so, also through clients that run the frontend; it is scanned when an output
wants it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from boxwright.core.workers import to_worker
from boxwright.dockerfile import bridge as frontend_api
from boxwright.dockerfile.sbom import CORE_NAME
from boxwright.engine.results import LazyRef, ResultAttestation
from boxwright.exporters.attestation import (
    PREDICATE_SPDX,
    REASON_KEY,
    SBOM_CORE_KEY,
    Attestation,
)
from boxwright.snapshots.refs import ImmutableRef

_SCAN_KEY = "scan"
_BUILT_IN = b"built-in"

Unwrap = Callable[[frontend_api.FrontendRef | None], LazyRef | None]


def from_frontend(
    scans: Mapping[str, Sequence[frontend_api.ScanResult | frontend_api.ScanTarget]],
    unwrap: Unwrap,
) -> dict[str, list[ResultAttestation]]:
    """Return what the built-in frontend wants to have scanned, or has had scanned.

    Args:
        scans: By platform id.
        unwrap: Returns the engine's ref. One that is the result's own gets one more owner.
    """
    found: dict[str, list[ResultAttestation]] = {}
    for key, items in scans.items():
        for item in items:
            lazy = unwrap(item.ref)
            if lazy is None:
                continue  # nothing to scan, or nothing written
            if isinstance(item, frontend_api.ScanResult):
                made = ResultAttestation(scanned(), lazy)
            else:
                lazy = lazy.retain() if item.is_core else lazy
                made = ResultAttestation(to_scan(item.name), lazy)
            found.setdefault(key, []).append(made)
    return found


def scanned() -> Attestation:
    """Return the attestations that a scanner image has left in a folder."""
    metadata = {REASON_KEY: b"sbom", SBOM_CORE_KEY: CORE_NAME.encode()}
    return Attestation("bundle", predicate_type=PREDICATE_SPDX, metadata=metadata)


def to_scan(name: str) -> Attestation:
    """Return an attestation whose tree the built-in scanner is to look at."""
    metadata = {REASON_KEY: b"sbom", SBOM_CORE_KEY: CORE_NAME.encode(), _SCAN_KEY: _BUILT_IN}
    return Attestation(
        path=f"{name.replace('/', '_')}.spdx.json",
        predicate_type=PREDICATE_SPDX,
        metadata=metadata,
    )


def with_content(form: Attestation, created_s: int) -> Attestation:
    """Return an attestation for exporters: its content made by the scanner if it is to be.

    Args:
        form: With its tree.
        created_s: Date of documents, seconds since the epoch.
    """
    if form.metadata.get(_SCAN_KEY) != _BUILT_IN or form.ref is None:
        return form
    name = form.path.removesuffix(".spdx.json")
    content = _Once(partial(_scan, form.ref, name, created_s))
    return Attestation(
        path=form.path,
        predicate_type=form.predicate_type,
        metadata=form.metadata,
        content=content,
    )


class _Once:
    """Makes a document for the first output that wants it; all others get the same."""

    def __init__(self, make: Callable[[], Awaitable[bytes]]) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._made: bytes | None = None

    async def __call__(self) -> bytes:
        async with self._lock:
            if self._made is None:
                self._made = await self._make()
            return self._made


async def _scan(ref: ImmutableRef, name: str, created_s: int) -> bytes:
    stop = threading.Event()
    async with ref.mounted() as root:
        try:
            return await to_worker(_document, root, name, created_s, stop.is_set)
        finally:
            stop.set()


def _document(root: Path, name: str, created_s: int, stopped: Callable[[], bool]) -> bytes:
    # Not at start: few builds want one.
    from boxwright.sbom import spdx
    from boxwright.sbom.scan import scan

    return spdx.document(scan(root, stopped=stopped), name, created_s)
