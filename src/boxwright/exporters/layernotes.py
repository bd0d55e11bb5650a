"""Which layer each file of a bill of materials is from, noted in the document.

As BuildKit does with the result's own SPDX document: files without a comment get
``layerID: <digest>``, and the tools that made the document are one more.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from boxwright._version import __version__
from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, replace
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.exporters.attestation import PREDICATE_SPDX, Attestation, read
from boxwright.snapshots.refs import ImmutableRef


@dataclass(frozen=True, slots=True)
class LayerNotes:
    """The layers of one image, base first: their trees and their blobs."""

    ref: ImmutableRef
    blobs: Sequence[Digest]

    async def add_to(self, item: Attestation) -> Attestation:
        """Return an attestation with notes if it is the result's own SPDX document."""
        if item.predicate_type != PREDICATE_SPDX or not item.is_core_sbom:
            return item
        data = await read(item)
        stack = await self.ref.stack()
        folders = [os.fsencode(layer) for layer in stack]
        if len(folders) != len(self.blobs):
            return item
        noted = await to_worker(_noted, data, folders, self.blobs)
        if noted is None:
            return item

        async def content() -> bytes:
            return noted

        return replace(item, ref=None, content=content)


def _noted(data: bytes, folders: Sequence[bytes], blobs: Sequence[Digest]) -> bytes | None:
    """Return the document with notes; None if it is none that can be read."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not str(document.get("spdxVersion")).startswith("SPDX-"):
        return None

    def layer_of(name: str) -> Digest | None:
        path = os.fsencode(os.path.normpath("/" + name).lstrip("/"))
        return next(
            (
                blob
                for folder, blob in zip(reversed(folders), reversed(blobs), strict=True)
                if _has_file(folder, path)
            ),
            None,
        )

    for file in _files(document):
        _note(file, layer_of)
    creation = document.setdefault("creationInfo", {})
    tool = f"Tool: boxwright-{__version__}"
    if isinstance(creation, dict):
        creators = creation.setdefault("creators", [])
        if isinstance(creators, list) and tool not in creators:
            creators.append(tool)
    return gojson.encode(document)


def _files(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    packages = document.get("packages")
    holders = [document, *(packages if isinstance(packages, list) else ())]
    for holder in holders:
        files = holder.get("files") if isinstance(holder, dict) else None
        yield from (item for item in files or () if isinstance(item, dict))


def _note(file: dict[str, Any], layer_of: Callable[[str], Digest | None]) -> None:
    name = file.get("fileName")
    if file.get("comment") or not isinstance(name, str) or "\0" in name:
        return
    layer = layer_of(name)
    if layer is not None:
        file["comment"] = f"layerID: {layer}"


def _has_file(folder: bytes, path: bytes) -> bool:
    """Return whether a layer's own folder has a file; links on the way lead nowhere."""
    current = folder
    parts = path.split(b"/")
    for part in parts[:-1]:
        current += b"/" + part
        if os.path.islink(current):
            return False
    try:
        info = os.lstat(current + b"/" + parts[-1])
    except OSError:
        return False
    return not (info.st_rdev == 0 and info.st_mode & 0o170000 == 0o020000)
