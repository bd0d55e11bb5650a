"""Outputs of a build: images in the store or a registry, archives, and plain files."""

from __future__ import annotations

from collections.abc import Mapping

from boxwright.errors import InvalidInputError
from boxwright.exporters.base import (
    ExportContext,
    Exporter,
    ExportResult,
    ExportSource,
    PushTarget,
    SessionSource,
)

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
    # Imported when wanted: a build has one output, and a daemon answers before its first build.
    match kind:
        case "image":
            from boxwright.exporters.image import ImageExporter

            return ImageExporter.from_attributes(attributes)
        case "oci" | "docker":
            from boxwright.exporters.archive import ArchiveExporter

            return ArchiveExporter.from_attributes(kind, attributes)
        case "local":
            from boxwright.exporters.tree import LocalExporter, TreeOptions

            return LocalExporter(TreeOptions.from_attributes(attributes))
        case "tar":
            from boxwright.exporters.tree import TarExporter, TreeOptions

            return TarExporter(TreeOptions.from_attributes(attributes))
        case _:
            raise InvalidInputError(
                f'exporter "{kind}" could not be found',
                hint="use image, oci, docker, local or tar",
            )
