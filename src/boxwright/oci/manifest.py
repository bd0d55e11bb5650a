"""Image manifests and indexes, byte for byte as Go's encoder writes them.

A manifest's digest is an image's name, so ``encode`` is canonical: field order of the
image-spec's Go types, two blanks of indentation, ``null`` for an absent layer list.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Self

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.errors import InvalidInputError
from boxwright.oci import mediatypes

MAX_MANIFEST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """The manifest of one image (image-spec, manifest.md) or of an artifact."""

    config: Descriptor
    layers: tuple[Descriptor, ...] = ()
    media_type: str = mediatypes.OCI_MANIFEST
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""
    subject: Descriptor | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the object in the order of Go's fields."""
        out: dict[str, Any] = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        out["config"] = self.config.to_json()
        out["layers"] = [layer.to_json() for layer in self.layers] or None
        if self.subject is not None:
            out["subject"] = self.subject.to_json()
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        return out

    def encode(self) -> bytes:
        """Return the JSON bytes."""
        return gojson.encode(self.to_json(), indent=2)

    def children(self) -> list[Descriptor]:
        """Return the blobs that the image consists of: config, then layers."""
        return [self.config, *self.layers]

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a manifest.

        Raises:
            InvalidInputError: not JSON, not a manifest, or over 8 MiB.
        """
        value = _object(data, "image manifest")
        if not isinstance(value.get("config"), dict) or "manifests" in value:
            raise InvalidInputError("invalid image manifest", detail="it has no config")
        subject = value.get("subject")
        return cls(
            config=Descriptor.from_json(value["config"]),
            layers=tuple(Descriptor.from_json(item) for item in _list(value, "layers")),
            media_type=str(value.get("mediaType") or ""),
            annotations=_annotations(value),
            artifact_type=str(value.get("artifactType") or ""),
            subject=Descriptor.from_json(subject) if subject is not None else None,
        )


@dataclass(frozen=True, slots=True)
class Index:
    """A list of manifests, one for each platform (image-spec, image-index.md)."""

    manifests: tuple[Descriptor, ...] = ()
    media_type: str = mediatypes.OCI_INDEX
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the object in the order of Go's fields."""
        out: dict[str, Any] = {"schemaVersion": 2, "mediaType": self.media_type}
        if self.artifact_type:
            out["artifactType"] = self.artifact_type
        out["manifests"] = [item.to_json() for item in self.manifests] or None
        if self.annotations:
            out["annotations"] = dict(sorted(self.annotations.items()))
        return out

    def encode(self, *, indent: int | None = 2) -> bytes:
        """Return the JSON bytes; ``indent=None`` as in an image layout's ``index.json``."""
        return gojson.encode(self.to_json(), indent=indent)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read an index.

        Raises:
            InvalidInputError: not JSON, not an index, or over 8 MiB.
        """
        value = _object(data, "image index")
        if "manifests" not in value or "layers" in value or "config" in value:
            raise InvalidInputError("invalid image index", detail="it has no list of manifests")
        return cls(
            manifests=tuple(Descriptor.from_json(item) for item in _list(value, "manifests")),
            media_type=str(value.get("mediaType") or ""),
            annotations=_annotations(value),
            artifact_type=str(value.get("artifactType") or ""),
        )


def detect_media_type(data: bytes) -> str:
    """Return the media type of manifest bytes that come without one.

    Raises:
        InvalidInputError: neither a manifest nor an index.
    """
    value = _object(data, "image manifest")
    declared = value.get("mediaType")
    if isinstance(declared, str) and declared:
        return declared
    if isinstance(value.get("manifests"), list):
        return mediatypes.OCI_INDEX
    if isinstance(value.get("config"), dict):
        return mediatypes.OCI_MANIFEST
    raise InvalidInputError("invalid image manifest", detail="neither manifest nor index")


def _object(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > MAX_MANIFEST_BYTES:
        raise InvalidInputError(f"{what} is too large", detail=f"{len(data)} bytes")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"invalid {what}", detail=str(error)) from None
    if not isinstance(value, dict):
        raise InvalidInputError(f"invalid {what}", detail="not a JSON object")
    return value


def _list(value: dict[str, Any], key: str) -> list[Any]:
    items = value.get(key)
    if items is None:
        return []
    if not isinstance(items, list):
        raise InvalidInputError("invalid image manifest", detail=f"{key} is not a list")
    return items


def _annotations(value: dict[str, Any]) -> dict[str, str]:
    found = value.get("annotations")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidInputError("invalid image manifest", detail="annotations is not an object")
    return {str(key): str(item) for key, item in found.items()}
