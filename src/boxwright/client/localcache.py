"""Build caches in folders of the client (``type=local``): offered, found by tag, published.

A folder is an OCI layout. The daemon reads and writes its blobs as a content store with the id
``local:FOLDER``; which manifest a tag means is the client's business, before and after a build.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from boxwright.core import gobool
from boxwright.core.dataclass import dataclass, field
from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.session.providers.contents import (
    OciLayouts,
    publish_tag,
    remove_unreferenced,
    resolve_tag,
)

_log = logging.getLogger(__name__)

_MANIFEST_KEY = "cache.manifest"


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """One cache import or export (``type=registry,ref=…``)."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=dict)


def resolve_imports(specs: Sequence[CacheSpec]) -> tuple[CacheSpec, ...]:
    """Return the imports with the digests that local ones need; blocks.

    A folder that has no cache yet is left out with a warning: the first build of all has none.

    Raises:
        InvalidInputError: a local import names no folder.
    """
    return tuple(found for spec in specs if (found := _resolve(spec)) is not None)


def _resolve(spec: CacheSpec) -> CacheSpec | None:
    if spec.type != "local":
        return spec
    folder = spec.attrs.get("src", "")
    if not folder:
        raise InvalidInputError(
            "a local cache import needs src", hint="write type=local,src=FOLDER"
        )
    if spec.attrs.get("digest"):
        return spec
    try:
        digest, _ = resolve_tag(Path(folder), ":" + spec.attrs.get("tag", "latest"))
    except BoxwrightError as error:
        _log.warning("cache import from %s is skipped: %s", folder, error)
        return None
    return CacheSpec(spec.type, {**spec.attrs, "digest": digest})


def offer(
    layouts: OciLayouts | None, imports: Sequence[CacheSpec], exports: Sequence[CacheSpec]
) -> OciLayouts | None:
    """Offer the folders of all local caches besides what is offered already; blocks.

    Raises:
        InvalidInputError: a local export names no folder, or has a wrong ``reset``.
        LayoutError: a folder can't be made.
    """
    for spec in imports:
        if spec.type == "local":
            layouts = layouts or OciLayouts()
            layouts.add_cache(spec.attrs["src"], writable=False)
    for spec in exports:
        if spec.type == "local":
            folder = spec.attrs.get("dest", "")
            if not folder:
                raise InvalidInputError(
                    "a local cache export needs dest", hint="write type=local,dest=FOLDER"
                )
            _is_reset(spec)  # said wrong, it is refused before anything runs
            layouts = layouts or OciLayouts()
            layouts.add_cache(folder, writable=True)
    return layouts


def publish(exports: Sequence[CacheSpec], response: Mapping[str, str]) -> None:
    """Let the tags of local caches point at what the build exported; blocks.

    Raises:
        LayoutError: an index can't be read or written.
    """
    text = response.get(_MANIFEST_KEY)
    if not text:
        return
    for spec in exports:
        if spec.type == "local":
            descriptor = json.loads(text)
            folder = Path(spec.attrs["dest"])
            publish_tag(folder, descriptor, spec.attrs.get("tag") or "latest")
            if _is_reset(spec):
                _reset(folder)


def _is_reset(spec: CacheSpec) -> bool:
    text = spec.attrs.get("reset", "false")
    value = gobool.parse(text)
    if value is None:
        raise InvalidInputError("failed to parse reset", detail=f"{text!r} is not a boolean")
    return value


def _reset(folder: Path) -> None:
    """Remove what earlier exports left and no tag needs; the build has succeeded without it."""
    try:
        count = remove_unreferenced(folder)
    except (BoxwrightError, OSError) as error:
        _log.warning("what is not needed in %s could not be removed: %s", folder, error)
    else:
        _log.info("removed %d blobs of earlier caches from %s", count, folder)
