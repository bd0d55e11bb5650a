"""OCI layouts that a client offers: base images to read, and folders to write images to.

The daemon reaches them as containerd content stores, chosen by an id: ``oci:NAME`` for a layout
to read from, ``export`` for the one that an output with ``tar=false`` fills, ``local:FOLDER`` for a
folder with a build cache.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxwright.core.digest import Digest, new_hash
from boxwright.errors import BoxwrightError, Code, InvalidInputError, NotFoundError
from boxwright.oci.mediatypes import is_index, is_manifest
from boxwright.session.providers.layoutindex import (
    LayoutError,
    entries_of,
    read_document,
    read_index,
)

READ_PREFIX = "oci:"
CACHE_PREFIX = "local:"
EXPORT_STORE = "export"
_TAG = "org.opencontainers.image.ref.name"
_CHUNK_BYTES = 1 << 20
_BLOB = re.compile(r"[0-9a-f]{64,128}\Z")


class ContentMismatchError(BoxwrightError):
    """Bytes that do not have the digest they were announced with."""

    code = Code.DIGEST_MISMATCH


class OciLayouts:
    """Layout folders by store id. Methods block."""

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}
        self._writable: set[str] = set()

    def add_source(self, name: str, folder: Path) -> None:
        """Offer a layout to read from.

        Raises:
            LayoutError: the folder holds no layout.
        """
        if not (folder / "oci-layout").is_file() and not (folder / "index.json").is_file():
            raise LayoutError(
                f"{folder} is not an OCI layout",
                hint="it needs the files oci-layout and index.json",
            )
        self._folders[READ_PREFIX + name] = folder

    def add_target(self, folder: Path) -> None:
        """Offer a folder that becomes a layout."""
        self._folders[EXPORT_STORE] = folder
        self._writable.add(EXPORT_STORE)
        (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)

    def add_cache(self, name: str, *, writable: bool) -> None:
        """Offer a folder with a build cache; its store id is made of the name as written.

        Raises:
            LayoutError: it can't be made.
        """
        folder = Path(name)
        self._folders[CACHE_PREFIX + name] = folder
        if not writable:
            return
        self._writable.add(CACHE_PREFIX + name)
        try:
            (folder / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise LayoutError(f"can't make {folder}", detail=str(exc)) from exc

    def _path(self, store_id: str, digest: Digest) -> Path:
        folder = self._folders.get(store_id)
        if folder is None:
            raise NotFoundError(f"no content store {store_id!r} is offered")
        return folder / "blobs" / digest.algorithm / digest.hex

    def size(self, store_id: str, digest: Digest) -> int:
        """Return a blob's size in bytes.

        Raises:
            NotFoundError: no such store or blob.
        """
        try:
            return self._path(store_id, digest).stat().st_size
        except OSError as exc:
            raise NotFoundError(f"content {digest}: not found") from exc

    def read(
        self, store_id: str, digest: Digest, *, offset: int = 0, size: int = 0
    ) -> Iterator[bytes]:
        """Yield a blob's bytes, or ``size`` of them from ``offset`` on.

        Raises:
            NotFoundError: no such store or blob.
        """
        left = size or self.size(store_id, digest) - offset
        with self._path(store_id, digest).open("rb") as file:
            file.seek(offset)
            while left > 0 and (data := file.read(min(left, _CHUNK_BYTES))):
                left -= len(data)
                yield data

    def write(self, store_id: str, digest: Digest, pieces: Iterator[bytes]) -> None:
        """Write a blob whole or not at all.

        Raises:
            NotFoundError: no such store, or it is only for reading.
            ContentMismatchError: the bytes have another digest.
        """
        if store_id not in self._writable:
            raise NotFoundError(f"no writable content store {store_id!r} is offered")
        target = self._path(store_id, digest)
        if target.exists():
            return
        staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        hasher = new_hash(digest.algorithm)
        try:
            target.parent.mkdir(exist_ok=True)
            with staged.open("xb") as file:
                for piece in pieces:
                    hasher.update(piece)
                    file.write(piece)
            if hasher.hexdigest() != digest.hex:
                raise ContentMismatchError(f"content {digest} arrived damaged")
            staged.replace(target)
        finally:
            staged.unlink(missing_ok=True)


def resolve_tag(folder: Path, reference: str) -> tuple[Digest, str]:
    """Return the digest that ``[:TAG][@DIGEST]`` means in a layout, and the tag.

    Raises:
        LayoutError: no such tag, or the index can't be read.
    """
    text, at, digest = reference.partition("@")
    tag = text.removeprefix(":") or "latest"
    if at:
        return Digest(digest), tag
    entries = read_index(folder).get("manifests") or []
    for entry in entries:
        names = entry.get("annotations") or {}
        if tag in (
            names.get("org.opencontainers.image.ref.name"),
            names.get("io.containerd.image.name", "").rpartition(":")[2] or None,
        ):
            return Digest(entry["digest"]), tag
    if len(entries) == 1 and not text:
        return Digest(entries[0]["digest"]), tag
    known = [
        (e.get("annotations") or {}).get("org.opencontainers.image.ref.name", "") for e in entries
    ]
    raise LayoutError(
        f"{folder} has no image with the tag {tag!r}",
        detail=f"it has {', '.join(filter(None, known)) or 'no tags'}",
        hint="name one as oci-layout://FOLDER:TAG or oci-layout://FOLDER@sha256:…",
    )


def publish(folder: Path, descriptor: dict[str, Any], names: list[str]) -> None:
    """Enter an image into a layout's index under its names.

    An entry of the same name, or without a name of the same digest, is replaced.

    Raises:
        LayoutError: the index that is there can't be read, or not be written.
    """
    fresh = []
    for name in names or [""]:
        noted = dict(descriptor.get("annotations") or {})
        if name:
            noted["io.containerd.image.name"] = name
            noted["org.opencontainers.image.ref.name"] = name.rpartition(":")[2]
        fresh.append({**descriptor, **({"annotations": noted} if noted else {})})
    taken = {_key(entry) for entry in fresh}
    with entries_of(folder) as entries:
        entries[:] = [entry for entry in entries if _key(entry) not in taken] + fresh


def publish_tag(folder: Path, descriptor: dict[str, Any], tag: str) -> None:
    """Let a tag of a layout's index point at a manifest, as build caches in folders have it.

    Raises:
        LayoutError: the index that is there can't be read, or not be written.
    """
    publish(folder, {**descriptor, "annotations": {_TAG: tag}}, [])


def remove_unreferenced(folder: Path) -> int:
    """Remove the blobs of a layout that no entry of its index leads to; return how many.

    Raises:
        LayoutError: the index, or a manifest that it leads to, can't be read; nothing is removed.
        OSError: a blob can't be removed.
    """
    blobs = folder / "blobs"
    pending: list[Any] = list(read_index(folder).get("manifests") or [])
    kept: set[str] = set()
    while pending:
        entry = pending.pop()
        name = str(entry.get("digest", "")).replace(":", "/", 1)
        media_type = str(entry.get("mediaType", ""))
        if name in kept:
            continue
        kept.add(name)
        if is_index(media_type) or is_manifest(media_type):
            document = read_document(blobs / name)
            pending += [*(document.get("manifests") or ()), *(document.get("layers") or ())]
            pending += [document["config"]] if document.get("config") else []
    found = [path for path in blobs.glob("*/*") if _BLOB.match(path.name)]
    unused = [path for path in found if str(path.relative_to(blobs)) not in kept]
    for path in unused:
        path.unlink()
    return len(unused)


def _key(entry: dict[str, Any]) -> Any:  # noqa: ANN401 - a name or a digest
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return entry.get("digest")
    name = annotations.get("io.containerd.image.name")
    return name or annotations.get(_TAG) or entry.get("digest")


def split_layout(text: str) -> tuple[Path, str]:
    """Split ``PATH[:TAG][@DIGEST]`` into the folder and the reference in it.

    Raises:
        InvalidInputError: there is no path.
    """
    text, at, digest = text.partition("@")
    path, colon, tag = text.rpartition(":")
    if not colon or "/" in tag:
        path, tag = text, ""
    if not path:
        raise InvalidInputError("an OCI layout needs a path", hint="write oci-layout://FOLDER:TAG")
    return Path(path), (f":{tag}" if tag else "") + (f"@{digest}" if at else "")
