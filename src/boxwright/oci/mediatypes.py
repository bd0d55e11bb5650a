"""Media types of images, OCI's and Docker's, and what they say about a blob."""

from __future__ import annotations

from typing import Final

from boxwright.errors import InvalidInputError

OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY: Final = "application/vnd.oci.empty.v1+json"
OCI_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP: Final = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD: Final = OCI_LAYER + "+zstd"
OCI_NONDIST: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP: Final = DOCKER_LAYER + ".gzip"
DOCKER_LAYER_ZSTD: Final = DOCKER_LAYER + ".zstd"
DOCKER_FOREIGN: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
IN_TOTO: Final = "application/vnd.in-toto+json"

_TO_OCI: Final = {
    DOCKER_LAYER: OCI_LAYER,
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    DOCKER_LAYER_ZSTD: OCI_LAYER_ZSTD,
    DOCKER_FOREIGN: OCI_NONDIST,
    DOCKER_FOREIGN + ".gzip": OCI_NONDIST + "+gzip",
    DOCKER_FOREIGN + ".zstd": OCI_NONDIST + "+zstd",
}
_TO_DOCKER: Final = {oci: docker for docker, oci in _TO_OCI.items()}
_DISTRIBUTABLE: Final = {
    OCI_NONDIST: OCI_LAYER,
    OCI_NONDIST + "+gzip": OCI_LAYER_GZIP,
    OCI_NONDIST + "+zstd": OCI_LAYER_ZSTD,
    DOCKER_FOREIGN: DOCKER_LAYER,
    DOCKER_FOREIGN + ".gzip": DOCKER_LAYER_GZIP,
    DOCKER_FOREIGN + ".zstd": DOCKER_LAYER_ZSTD,
}


def is_index(media_type: str) -> bool:
    """Return whether the blob lists manifests."""
    return media_type in {OCI_INDEX, DOCKER_LIST}


def is_manifest(media_type: str) -> bool:
    """Return whether the blob is the manifest of one image."""
    return media_type in {OCI_MANIFEST, DOCKER_MANIFEST}


def is_config(media_type: str) -> bool:
    """Return whether the blob is an image config."""
    return media_type in {OCI_CONFIG, DOCKER_CONFIG}


def is_layer(media_type: str) -> bool:
    """Return whether the blob is a file system layer."""
    return media_type in _TO_OCI or media_type in _TO_DOCKER


def is_nondistributable(media_type: str) -> bool:
    """Return whether the blob may not be pushed to another registry."""
    return media_type in _DISTRIBUTABLE


def layer_compression(media_type: str) -> str:
    """Return ``uncompressed``, ``gzip`` or ``zstd`` as a layer's type says.

    Raises:
        InvalidInputError: not a layer's media type.
    """
    if not is_layer(media_type):
        raise InvalidInputError("not a layer media type", detail=repr(media_type[:200]))
    if media_type.endswith("gzip"):
        return "gzip"
    return "zstd" if media_type.endswith("zstd") else "uncompressed"


def layer_media_type(compression: str, *, oci: bool = True) -> str:
    """Return the media type of a layer that is ``uncompressed``, ``gzip``, ``estargz``, ``zstd``."""
    kind = "gzip" if compression == "estargz" else compression
    oci_type = {"gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}.get(kind, OCI_LAYER)
    return oci_type if oci else _TO_DOCKER[oci_type]


def convert_layer(media_type: str, *, oci: bool) -> str:
    """Return a layer's type in the other family; unknown types stay as they are."""
    return (_TO_OCI if oci else _TO_DOCKER).get(media_type, media_type)


def distributable(media_type: str) -> str:
    """Return the type that allows the layer to be pushed anywhere."""
    return _DISTRIBUTABLE.get(media_type, media_type)
