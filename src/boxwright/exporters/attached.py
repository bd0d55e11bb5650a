"""Attestation manifests: how an image's index carries what is said about its images.

Each image with attestations gets one more manifest in the index, of the platform
``unknown/unknown``, which names the image in an annotation (and, as an OCI artifact, as its
subject) and has one layer for each statement. Source: BuildKit
docs/attestations/attestation-storage.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from boxwright.core import gojson
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.exporters.attestation import Attestation, digest_map, statements, unbundle
from boxwright.exporters.layernotes import LayerNotes
from boxwright.oci import mediatypes
from boxwright.oci.annotations import REFERENCE_TYPE
from boxwright.oci.manifest import Manifest
from boxwright.oci.purl import image_url
from boxwright.progress.step import StepProgress

REFERENCE_DIGEST = "vnd.docker.reference.digest"
REFERENCE_MANIFEST = "attestation-manifest"
PREDICATE_TYPE = "in-toto.io/predicate-type"
ARTIFACT_TYPE = "application/vnd.docker.attestation.manifest.v1+json"
_PLATFORM = Platform("unknown", "unknown")
_EMPTY = b"{}"

Put = Callable[[bytes, Sequence[Digest]], Awaitable[None]]


async def attach(
    image: Descriptor,
    attestations: Sequence[Attestation],
    *,
    names: str,
    artifact: bool,
    put: Put,
    step: StepProgress,
    notes: LayerNotes | None,
) -> Descriptor:
    """Store the attestations of one image and return the entry for the index.

    Args:
        image: The image's manifest, with its platform.
        attestations: What is said about it, bundles included.
        names: The image's names, separated by commas; the subjects of the statements.
        artifact: Whether the manifest is an OCI artifact, or looks like an image.
        put: Stores a document with what it refers to.
        step: Progress of the export.
        notes: Tells layers; None for an image without any.

    Raises:
        InvalidInputError: an attestation is malformed.
    """
    single = await unbundle(attestations)
    if notes is not None:
        single = [await notes.add_to(item) for item in single]
    subjects = [
        (image_url(Reference.parse(name), image.platform), digest_map(image.digest))
        for name in names.split(",")
        if name and name != "*"
    ]
    layers = []
    for statement in await statements(single, subjects):
        data = statement.encode()
        await put(data, ())
        kind = {PREDICATE_TYPE: statement.predicate_type}
        layers.append(Descriptor(mediatypes.IN_TOTO, Digest.of(data), len(data), kind))
    config, config_data = _config(layers, artifact=artifact)
    manifest = Manifest(
        config=config,
        layers=tuple(layers),
        artifact_type=ARTIFACT_TYPE if artifact else "",
        subject=Descriptor(image.media_type, image.digest, image.size) if artifact else None,
    )
    data = manifest.encode()
    digest = Digest.of(data)
    with step.part(f"exporting attestation manifest {digest}"):
        await put(config_data, ())
        await put(data, [item.digest for item in manifest.children()])
    about = {REFERENCE_TYPE: REFERENCE_MANIFEST, REFERENCE_DIGEST: str(image.digest)}
    return Descriptor(manifest.media_type, digest, len(data), about, _PLATFORM)


def _config(layers: Sequence[Descriptor], *, artifact: bool) -> tuple[Descriptor, bytes]:
    if artifact:
        empty = Descriptor(mediatypes.OCI_EMPTY, Digest.of(_EMPTY), len(_EMPTY), data=_EMPTY)
        return empty, _EMPTY
    data = gojson.encode(
        {
            **_PLATFORM.to_json(),
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(item.digest) for item in layers]},
        }
    )
    return Descriptor(mediatypes.OCI_CONFIG, Digest.of(data), len(data)), data
