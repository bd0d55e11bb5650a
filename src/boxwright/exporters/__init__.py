"""Outputs of a build: images in the store or a registry, archives, and plain files."""

from __future__ import annotations

from collections.abc import Mapping

from boxwright.errors import InvalidInputError
from boxwright.exporters.archive import ArchiveExporter
from boxwright.exporters.base import (
    ExportContext,
    Exporter,
    ExportResult,
    ExportSource,
    PushTarget,
    SessionSource,
)
from boxwright.exporters.image import ImageExporter
from boxwright.exporters.tree import LocalExporter, TarExporter, TreeOptions

__all__ = [
    "ExportContext",
    "ExportResult",
    "ExportSource",
    "Exporter",
    "PushTarget",
    "SessionSource",
    "resolve_exporter",
]


def resolve_exporter(kind: str, attributes: Mapping[str, str]) -> Exporter:
    """Return the output that a solve request asks for.

    Args:
        kind: ``image``, ``oci``, ``docker``, ``local`` or ``tar``.
        attributes: the request's ``ExporterAttrs``.

    Raises:
        InvalidInputError: an unknown kind, or a malformed value.
    """
    match kind:
        case "image":
            return ImageExporter.from_attributes(attributes)
        case "oci" | "docker":
            return ArchiveExporter.from_attributes(kind, attributes)
        case "local":
            return LocalExporter(TreeOptions.from_attributes(attributes))
        case "tar":
            return TarExporter(TreeOptions.from_attributes(attributes))
        case _:
            raise InvalidInputError(
                f"exporter {kind!r} could not be found",
                hint="use image, oci, docker, local or tar",
            )
