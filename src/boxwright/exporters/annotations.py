"""Annotations for manifests and indexes, from output attributes and frontend metadata.

Keys are ``annotation``, ``-TYPE``, ``[PLATFORM]``, ``.NAME`` (the middle two optional) with TYPE one of ``manifest`` (default),
``manifest-descriptor``, ``index`` and ``index-descriptor``, as upstream reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from boxwright.core.dataclass import dataclass, field
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError

_KEY = re.compile(r"annotation(?:-([a-z-]+))?(?:\[([A-Za-z0-9_/-]+)\])?\.(\S+)\Z")
_TYPES = ("manifest", "manifest-descriptor", "index", "index-descriptor")


@dataclass(slots=True)
class Annotations:
    """The annotations of one image."""

    manifest: dict[str, str] = field(default_factory=dict)
    manifest_descriptor: dict[str, str] = field(default_factory=dict)
    index: dict[str, str] = field(default_factory=dict)
    index_descriptor: dict[str, str] = field(default_factory=dict)

    def of(self, kind: str) -> dict[str, str]:
        """Return the mapping for one TYPE of the key."""
        mapping: dict[str, str] = getattr(self, kind.replace("-", "_"))
        return mapping


@dataclass(slots=True)
class AnnotationSet:
    """All annotations of an export, by platform; the empty platform means every one."""

    by_platform: dict[str, Annotations] = field(default_factory=dict)

    @classmethod
    def take(cls, attributes: Mapping[str, str]) -> tuple[AnnotationSet, dict[str, str]]:
        """Split attributes into annotations and the rest.

        Raises:
            InvalidInputError: an unknown TYPE or platform.
        """
        found, rest = cls(), {}
        for key, value in attributes.items():
            match = _KEY.match(key)
            if match is None:
                rest[key] = value
                continue
            kind, platform, name = match.groups()
            kind = kind or "manifest"
            if kind not in _TYPES:
                raise InvalidInputError(
                    f"unrecognized annotation type {kind}", hint=f"use {', '.join(_TYPES)}"
                )
            place = str(Platform.parse(platform)) if platform else ""
            found.by_platform.setdefault(place, Annotations()).of(kind)[name] = value
        return found, rest

    def merged(self, other: AnnotationSet) -> AnnotationSet:
        """Return both sets together; ``other`` wins."""
        result = AnnotationSet()
        for group in (self, other):
            for place, item in group.by_platform.items():
                target = result.by_platform.setdefault(place, Annotations())
                for kind in _TYPES:
                    target.of(kind).update(item.of(kind))
        return result

    def for_platform(self, platform: Platform | None) -> Annotations:
        """Return what applies to one platform (None: to an image without one)."""
        result = Annotations()
        for item in self.by_platform.values():
            result.index.update(item.index)
            result.index_descriptor.update(item.index_descriptor)
        for place in ("",) if platform is None else ("", str(platform)):
            if place in self.by_platform:
                result.manifest.update(self.by_platform[place].manifest)
                result.manifest_descriptor.update(self.by_platform[place].manifest_descriptor)
        return result

    def check(self, platform_ids: Iterable[str] | None, *, oci_types: bool) -> None:
        """Check that the annotations can be stored.

        Args:
            platform_ids: those of the index; None for an image without one.
            oci_types: whether the media types are OCI's.

        Raises:
            InvalidInputError: for an unknown platform, or Docker types have no place for it.
        """
        known = None if platform_ids is None else set(platform_ids)
        for place, item in self.by_platform.items():
            if known is not None and place and place not in known:
                raise InvalidInputError(f"invalid annotation: no platform {place} found in source")
            beyond = item.index or item.index_descriptor
            if not oci_types and (beyond or item.manifest_descriptor):
                raise InvalidInputError('cannot export annotations with "oci-mediatypes=false"')
