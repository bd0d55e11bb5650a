"""From an image to what is said about it and who signed that, as ``ResolveSourceMeta`` tells it.

The chain (moby/policy-helpers, ``image``): the index, in it the image for a platform and the
attestation manifest that names it, and the signature that refers to the attestation manifest.
Clients verify it: they get the bytes, checked against their digests, and nothing is judged here.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection

from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import LimitExceededError
from boxwright.exporters.attached import (
    PREDICATE_TYPE,
    REFERENCE_DIGEST,
    REFERENCE_MANIFEST,
)
from boxwright.oci.annotations import REFERENCE_TYPE
from boxwright.oci.manifest import Index, Manifest
from boxwright.oci.mediatypes import IN_TOTO, is_index
from boxwright.sources.fetch import ImageRemote
from boxwright.sources.image import choose_manifest, small_blob
from boxwright.wire.pb import gateway_pb2

Referrers = Callable[[Digest], Awaitable[list[Descriptor]]]

_SIGSTORE_BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_COSIGN_SIGNATURE = "application/vnd.dev.cosign.artifact.sig.v1+json"
_SIGNATURES = (_SIGSTORE_BUNDLE, _COSIGN_SIGNATURE)  # the first is preferred
_PROVENANCE = "https://slsa.dev/provenance/"
_HARDENED_TITLE, _HARDENED_BUILD = "org.opencontainers.image.title", "com.docker.dhi.build.id"
_MAX_CHAIN_BYTES = 12 << 20  # of the 16 MiB that a message may have


@dataclass(slots=True)
class AttestationChain:
    """What leads from an index to the statements about one of its images.

    Attributes:
        root: Digest of the index.
        image: Of the image's manifest.
        attestation: Of the manifest of its attestations, if there is one.
        signatures: Of manifests that sign the latter.
        blobs: What is needed to verify it, the image itself left out.
    """

    root: Digest
    image: Digest
    attestation: Digest | None = None
    signatures: list[Digest] = field(default_factory=list)
    blobs: dict[Digest, tuple[Descriptor, bytes]] = field(default_factory=dict)

    def add(self, descriptor: Descriptor, data: bytes) -> None:
        """Add a verified blob.

        Raises:
            LimitExceededError: all together are more than a message holds.
        """
        total = len(data) + sum(len(known) for _, known in self.blobs.values())
        if total > _MAX_CHAIN_BYTES:
            raise LimitExceededError(
                "the attestations of the image are too large to be resolved",
                detail=f"{total} bytes with {descriptor.digest}; at most {_MAX_CHAIN_BYTES}",
                hint="ask for fewer predicate types",
            )
        self.blobs[descriptor.digest] = (descriptor, data)

    def to_pb(self) -> gateway_pb2.AttestationChain:
        """Return the gateway's message."""
        return gateway_pb2.AttestationChain(
            Root=self.root,
            ImageManifest=self.image,
            AttestationManifest=self.attestation or "",
            SignatureManifests=self.signatures,
            Blobs={
                digest: gateway_pb2.Blob(
                    descriptor=gateway_pb2.Descriptor(
                        media_type=descriptor.media_type,
                        digest=descriptor.digest,
                        size=descriptor.size,
                        annotations=descriptor.annotations,
                    ),
                    data=data,
                )
                for digest, (descriptor, data) in self.blobs.items()
            },
        )


@dataclass(frozen=True, slots=True)
class ChainQuestion:
    """Which chain is wanted.

    Attributes:
        name: Of the image, as messages have it.
        platform: Of the image in the index.
        predicate_types: Statements of these types come with their contents.
    """

    name: str
    platform: Platform
    predicate_types: Collection[str] = ()


async def resolve_chain(
    question: ChainQuestion,
    remote: ImageRemote,
    root: tuple[Descriptor, bytes],
    referrers: Referrers,
) -> AttestationChain:
    """Return the chain of an image; it ends at the image where nothing is said of it.

    An image without an index has nothing beside it. Its chain is told all the same: policies
    would go on asking for it.

    Args:
        question: What is wanted.
        remote: Has the image.
        root: Its index, or the manifest if there is none.
        referrers: Tells what refers to a manifest in the image's repository.

    Raises:
        PlatformNotFoundError: the index has nothing for the platform.
        BoxwrightError: something can't be fetched, is malformed or too large.
    """
    descriptor, body = root
    if not is_index(descriptor.media_type):
        return AttestationChain(descriptor.digest, descriptor.digest)
    index = Index.decode(body)
    image = choose_manifest(json.loads(body), question.platform, question.name)
    chain = AttestationChain(descriptor.digest, image.digest)
    chain.add(descriptor, body)
    attestation = await _attestation_of(index, image.digest, referrers)
    if attestation is None:
        return chain
    chain.attestation = attestation.digest
    _, manifest = await remote.manifest(attestation.digest)
    chain.add(attestation, manifest)
    for layer in Manifest.decode(manifest).layers:
        kind = layer.annotations.get(PREDICATE_TYPE, "")
        if kind and kind in question.predicate_types:
            chain.add(layer, await small_blob(remote, layer, question.name))
    await _add_signature(chain, remote, await referrers(attestation.digest), question.name)
    return chain


async def _attestation_of(index: Index, image: Digest, referrers: Referrers) -> Descriptor | None:
    if _is_hardened(index):  # these refer to the image instead of lying beside it
        found = await referrers(image)
        return next((item for item in found if _is_provenance(item)), None)
    for entry in index.manifests:
        notes = entry.annotations
        is_about = notes.get(REFERENCE_DIGEST) == image
        if is_about and notes.get(REFERENCE_TYPE) == REFERENCE_MANIFEST:
            return entry
    return None


def _is_hardened(index: Index) -> bool:
    """Return whether it is one of Docker's Hardened Images."""
    if not index.annotations.get(_HARDENED_TITLE, "").startswith("dhi/"):
        return False
    return all(entry.annotations.get(_HARDENED_BUILD) for entry in index.manifests)


def _is_provenance(entry: Descriptor) -> bool:
    kind = entry.annotations.get(PREDICATE_TYPE, "")
    return entry.artifact_type == IN_TOTO and kind.startswith(_PROVENANCE)


async def _add_signature(
    chain: AttestationChain, remote: ImageRemote, found: list[Descriptor], name: str
) -> None:
    """Add the one signature that counts; a bundle has all that its verification needs."""
    signed = [item for item in found if item.artifact_type in _SIGNATURES]
    if not signed:
        return
    signature = min(signed, key=lambda item: _SIGNATURES.index(item.artifact_type))
    chain.signatures.append(signature.digest)
    _, manifest = await remote.manifest(signature.digest)
    chain.add(signature, manifest)
    for layer in Manifest.decode(manifest).layers:
        chain.add(layer, await small_blob(remote, layer, name))
