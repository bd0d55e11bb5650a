"""Annotations of descriptors; most are kept among builders, and images must not show them."""

from __future__ import annotations

from collections.abc import Mapping

UNCOMPRESSED = "containerd.io/uncompressed"
"""The diffID of a layer: the digest of its archive before compression."""

CREATED = "buildkit/createdat"
"""When the snapshot of a layer was made (RFC 3339)."""

COMPRESSOR = "boxwright/compressor"
"""Which compressor made a layer's blob."""

REFERENCE_TYPE = "vnd.docker.reference.type"
"""What an index's entry is about: set on manifests of attestations. Shown."""

_INTERNAL = (UNCOMPRESSED, CREATED, COMPRESSOR)
_SOURCE_PREFIX = "containerd.io/distribution.source."  # which repositories have the blob


def without_internal(annotations: Mapping[str, str]) -> dict[str, str]:
    """Return what may be shown in a manifest or a document."""
    return {
        key: value
        for key, value in annotations.items()
        if key not in _INTERNAL and not key.startswith(_SOURCE_PREFIX)
    }
