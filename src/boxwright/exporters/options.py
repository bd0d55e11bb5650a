"""Attributes of image outputs, read once when a build begins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from boxwright.core.dataclass import dataclass, field
from boxwright.core.reference import Reference
from boxwright.errors import InvalidInputError, named
from boxwright.exporters.annotations import AnnotationSet
from boxwright.exporters.base import parse_bool, parse_epoch
from boxwright.fsutil.compress import Compression


@dataclass(slots=True)
class ImageOptions:
    """What ``image``, ``oci`` and ``docker`` outputs share.

    Attributes:
        name: names separated by commas; ``*`` takes the frontend's.
        compression: of layers.
        oci_types: OCI media types, not Docker's; None is the default (OCI).
        oci_artifact: attestation manifests as OCI artifacts; None is the default.
        epoch_set: ``source-date-epoch`` was given, even if empty (which switches it off).
        epoch_s: seconds since the epoch that no time may exceed.
        rewrite_timestamp: file times in layers, too.
        inline_attestations: attach attestations also where only inline ones would be.
        prefer_nondist: foreign layers keep their media type.
        annotations: for manifests and indexes.
    """

    name: str = ""
    compression: Compression = field(default_factory=Compression)
    oci_types: bool | None = None
    oci_artifact: bool | None = None
    epoch_set: bool = False
    epoch_s: int | None = None
    rewrite_timestamp: bool = False
    inline_attestations: bool = False
    prefer_nondist: bool = False
    annotations: AnnotationSet = field(default_factory=AnnotationSet)

    @property
    def uses_oci_types(self) -> bool:
        """Whether media types are OCI's."""
        return self.oci_types is not False

    @property
    def uses_oci_artifact(self) -> bool:
        """Whether attestation manifests are OCI artifacts."""
        return self.uses_oci_types and self.oci_artifact is not False

    @classmethod
    def take(cls, attributes: Mapping[str, str]) -> tuple[Self, dict[str, str]]:
        """Read the shared attributes and return what is left.

        Raises:
            InvalidInputError: a value is malformed, or two contradict each other.
        """
        annotations, rest = AnnotationSet.take(attributes)
        options = cls(annotations=annotations, compression=_compression(rest))
        if "source-date-epoch" in rest:
            options.epoch_set = True
            options.epoch_s = parse_epoch("source-date-epoch", rest.pop("source-date-epoch"))
        options.name = rest.pop("name", "")
        if "oci-mediatypes" in rest:
            options.oci_types = parse_bool("oci-mediatypes", rest.pop("oci-mediatypes"))
        if "oci-artifact" in rest:
            options.oci_artifact = parse_bool("oci-artifact", rest.pop("oci-artifact"))
        for key, attribute in (
            ("attestation-inline", "inline_attestations"),
            ("prefer-nondist-layers", "prefer_nondist"),
            ("rewrite-timestamp", "rewrite_timestamp"),
        ):
            if key in rest:
                setattr(options, attribute, parse_bool(key, rest.pop(key)))
        if options.compression.algorithm == "estargz" and not options.uses_oci_types:
            raise InvalidInputError(
                'exporter option "compression=estargz" conflicts with "oci-mediatypes=false"'
            )
        if options.oci_artifact and not options.uses_oci_types:
            raise InvalidInputError(
                'exporter option "oci-artifact=true" conflicts with "oci-mediatypes=false"'
            )
        return options, rest


def check_names(names: str, verb: str) -> None:
    """Refuse a malformed name now, not when the build has ended.

    Raises:
        InvalidInputError: saying what would fail: to ``verb`` it.
    """
    for name in names.split(","):
        if name and name != "*":
            with named(f"failed to {verb} {name}"):
                Reference.parse(name)


def _compression(rest: dict[str, str]) -> Compression:
    algorithm = rest.pop("compression", "gzip")
    force = "force-compression" in rest and parse_bool(
        "force-compression", rest.pop("force-compression"), empty=True
    )
    level: int | None = None
    if "compression-level" in rest:
        text = rest.pop("compression-level")
        try:
            level = int(text)
        except ValueError:
            raise InvalidInputError(
                f"non-integer value {text} specified for compression-level"
            ) from None
    return Compression(algorithm, level, force=force)
