"""Image layouts (image-spec, image-layout.md) as pure data: names, index, Docker's manifest.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from boxwright.core import gojson
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.errors import InvalidInputError, NotFoundError
from boxwright.oci.manifest import Index, Manifest

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
DOCKER_MANIFEST_FILE: Final = "manifest.json"
LAYOUT_BYTES: Final = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME: Final = "org.opencontainers.image.ref.name"
IMAGE_NAME: Final = "io.containerd.image.name"
CREATED: Final = "org.opencontainers.image.created"


def blob_path(digest: Digest) -> str:
    """Return a blob's path inside a layout."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def named_descriptors(descriptor: Descriptor, names: Sequence[str]) -> list[Descriptor]:
    """Return the entries of ``index.json`` for an image: one for each full name, or one."""
    if not names:
        return [descriptor]
    return [
        replace(
            descriptor,
            annotations={
                **descriptor.annotations,
                IMAGE_NAME: name,
                REF_NAME: _ref_name(name),
            },
        )
        for name in names
    ]


def _ref_name(name: str) -> str:
    reference = Reference.parse(name)
    if not reference.tag:
        return name
    return f"{reference.tag}@{reference.digest}" if reference.digest else reference.tag


def encode_index(descriptors: Sequence[Descriptor]) -> bytes:
    """Return the bytes of ``index.json``."""
    return Index(tuple(descriptors)).encode(indent=None)


def encode_docker_manifest(images: Sequence[tuple[Manifest, Sequence[str]]]) -> bytes:
    """Return the bytes of Docker's ``manifest.json`` for images and their full names."""
    entries: list[dict[str, Any]] = [
        {
            "Config": blob_path(manifest.config.digest),
            "RepoTags": [Reference.parse(name).familiar for name in names] or None,
            "Layers": [blob_path(layer.digest) for layer in manifest.layers] or None,
        }
        for manifest, names in images
    ]
    return gojson.encode(entries)


def check_layout_file(data: bytes) -> None:
    """Check the bytes of an ``oci-layout`` file.

    Raises:
        InvalidInputError: malformed, or a version that this program does not know.
    """
    try:
        value = json.loads(data)
    except ValueError as error:
        raise InvalidInputError("invalid oci-layout file", detail=str(error)) from None
    version = value.get("imageLayoutVersion") if isinstance(value, dict) else None
    if not isinstance(version, str) or version.split(".")[0] != "1":
        raise InvalidInputError("unsupported image layout", detail=f"version {version!r}")


def find(index: Index, *, tag: str = "", digest: Digest | None = None) -> Descriptor:
    """Return the image in a layout that a tag or digest names; with neither, the only one.

    Raises:
        NotFoundError: none, or (with neither) more than one that could be meant.
    """
    if digest is not None:
        for descriptor in index.manifests:
            if descriptor.digest == digest:
                return descriptor
        raise NotFoundError("image not found in the layout", detail=digest)
    if tag:
        for descriptor in index.manifests:
            if _names(descriptor.annotations, tag):
                return descriptor
        raise NotFoundError("image not found in the layout", detail=f"tag {tag!r}")
    distinct = {descriptor.digest: descriptor for descriptor in index.manifests}
    if len(distinct) != 1:
        raise NotFoundError(
            "the layout does not say which image is meant",
            detail=f"it holds {len(distinct)} images",
            hint="name one by its tag or digest",
        )
    return next(iter(distinct.values()))


def _names(annotations: Mapping[str, str], tag: str) -> bool:
    ref = annotations.get(REF_NAME, "")
    return ref == tag or ref.endswith(":" + tag)
