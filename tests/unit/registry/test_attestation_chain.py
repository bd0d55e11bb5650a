"""From an image to its attestations and their signature, out of a registry."""

from __future__ import annotations

import contextlib
import json

import pytest

from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.engine.attestationchain import ChainQuestion
from boxwright.engine.images import Images
from boxwright.errors import BoxwrightError, Code
from boxwright.registry.hosts import Hosts
from boxwright.session.manager import SessionManager
from boxwright.sources.registry import RegistryClients
from boxwright.store.store import Store
from boxwright.testing.registry import FakeRegistry, Faults

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
IN_TOTO = "application/vnd.in-toto+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
COSIGN = "application/vnd.dev.cosign.artifact.sig.v1+json"
SLSA = "https://slsa.dev/provenance/v1"
SPDX = "https://spdx.dev/Document"
PATH = "team/app"
AMD64 = Platform("linux", "amd64")


def _put(registry, layers, **more):
    """Store a manifest over blobs; return its descriptor."""
    entries = [
        {"mediaType": kind, "digest": registry.put_blob(PATH, data), "size": len(data), **notes}
        for kind, data, notes in layers
    ]
    config = {"mediaType": "application/vnd.oci.empty.v1+json", "size": 2}
    config["digest"] = registry.put_blob(PATH, b"{}")
    body = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": entries, **more}
    digest, data = registry.put_manifest(PATH, "", body)
    return {"mediaType": MANIFEST, "digest": digest, "size": len(data)}


def _statement(kind, data):
    return (IN_TOTO, data, {"annotations": {"in-toto.io/predicate-type": kind}})


class Image:
    """An index in the fake, with one image and what is said about it."""

    def __init__(self, registry, *, media_type=INDEX, statements=None, annotations=None):
        self.registry = registry
        self.image = _put(registry, [("layer", b"layer", {})])
        platform = {"os": "linux", "architecture": "amd64"}
        entries = [{**self.image, "platform": platform}]
        self.attestation = None
        if statements is None:
            statements = [_statement(SLSA, b"provenance"), _statement(SPDX, b"packages")]
        if statements:
            self.attestation = _put(registry, statements)
            notes = {
                "vnd.docker.reference.type": "attestation-manifest",
                "vnd.docker.reference.digest": self.image["digest"],
            }
            unknown = {"os": "unknown", "architecture": "unknown"}
            entries.append({**self.attestation, "annotations": notes, "platform": unknown})
        body = {"schemaVersion": 2, "mediaType": media_type, "manifests": entries}
        self.root, _ = registry.put_manifest(PATH, "1", body)

    def sign(self, kind, data=b"signature"):
        """Let something refer to the attestation; return its digest and its blob's."""
        subject = {"subject": self.attestation}
        made = _put(self.registry, [(kind, data, {})], artifactType=kind, **subject)
        return made["digest"], Digest.of(data)


@pytest.fixture
def resolve(run, tmp_path):
    @contextlib.asynccontextmanager
    async def images():
        store = Store.open(tmp_path / "root")
        sessions = SessionManager()
        clients = RegistryClients(Hosts(), sessions)
        try:
            yield Images(store, clients, sessions)
        finally:
            await clients.close()
            store.close()

    def resolved(prepare, *, faults=None, wanted=(), platform=AMD64):
        async def work():
            async with FakeRegistry(faults=faults) as registry, images() as made:
                facts = prepare(registry)
                question = ChainQuestion(f"{registry.host}/{PATH}:1", platform, wanted)
                found = await made.attestation_chain(question, resolve_mode="", sessions=())
                return facts, *found

        return run(work())

    return resolved


def test_statements_come_if_asked_for(resolve):
    image, root, chain = resolve(Image, wanted={SLSA})
    assert root == chain.root == image.root
    assert (chain.image, chain.attestation) == (image.image["digest"], image.attestation["digest"])
    assert chain.signatures == []
    assert set(chain.blobs) == {image.root, chain.attestation, Digest.of(b"provenance")}
    message = chain.to_pb()
    blob = message.Blobs[Digest.of(b"provenance")]
    assert (blob.data, blob.descriptor.media_type) == (b"provenance", IN_TOTO)
    assert blob.descriptor.annotations == {"in-toto.io/predicate-type": SLSA}
    assert Digest.of(message.Blobs[chain.attestation].data) == chain.attestation
    assert message.ImageManifest not in message.Blobs


@pytest.mark.parametrize("no_referrers", [False, True], ids=["api", "tag"])
def test_the_signature_that_counts_is_a_bundle(resolve, no_referrers):
    def prepare(registry):
        image = Image(registry)
        image.sign("text/plain", b"something else")
        image.sign(COSIGN, b"old")
        bundle = image.sign(BUNDLE)
        if no_referrers:
            entries = [
                {"mediaType": MANIFEST, "digest": d, "size": len(body), "artifactType": kind}
                for (_, d), (_, body) in registry.manifests.items()
                if (kind := json.loads(body).get("artifactType"))
            ]
            tag = image.attestation["digest"].replace(":", "-")
            body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
            registry.put_manifest(PATH, tag, body)
        return bundle

    faults = Faults(no_referrers=no_referrers)
    (bundle, blob), root, chain = resolve(prepare, faults=faults)
    assert chain.signatures == [bundle]
    assert set(chain.blobs) == {root, chain.attestation, bundle, blob}


def test_hardened_images_are_referred_to(resolve):
    def prepare(registry):
        image = _put(registry, [("layer", b"layer", {})])
        notes = {"in-toto.io/predicate-type": SLSA}
        more = {"artifactType": IN_TOTO, "annotations": notes, "subject": image}
        attestation = _put(registry, [_statement(SLSA, b"p")], **more)
        entry = {
            **image,
            "platform": {"os": "linux", "architecture": "amd64"},
            "annotations": {"com.docker.dhi.build.id": "1"},
        }
        title = {"org.opencontainers.image.title": "dhi/thing"}
        body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
        registry.put_manifest(PATH, "1", {**body, "annotations": title})
        return attestation["digest"]

    attestation, _, chain = resolve(prepare)
    assert chain.attestation == attestation


def test_nothing_is_said(resolve):
    image, root, chain = resolve(lambda r: Image(r, statements=[]))
    assert (chain.image, chain.attestation, chain.signatures) == (image.image["digest"], None, [])
    assert set(chain.blobs) == {root}
    image, root, chain = resolve(lambda r: Image(r, media_type=LIST, statements=[]))
    assert (root, chain.image) == (image.root, image.image["digest"])


def test_an_image_without_an_index_has_nothing_beside_it(resolve):
    def prepare(registry):
        image = _put(registry, [("layer", b"layer", {})])
        registry.tags[PATH, "1"] = image["digest"]
        return image["digest"]

    digest, root, chain = resolve(prepare)
    assert (root, chain.root, chain.image) == (digest, digest, digest)
    assert (chain.attestation, chain.blobs) == (None, {})


def test_no_image_for_the_platform(resolve):
    with pytest.raises(BoxwrightError) as caught:
        resolve(Image, platform=Platform("linux", "s390x"))
    assert caught.value.code is Code.NOT_FOUND


def test_what_is_too_large_for_a_message_is_refused(resolve):
    big = [_statement(SLSA, bytes(7 << 20)), _statement(SLSA, b"1" * (7 << 20))]
    with pytest.raises(BoxwrightError) as caught:
        resolve(lambda r: Image(r, statements=big), wanted={SLSA})
    assert caught.value.code is Code.LIMIT
    assert "predicate types" in caught.value.hint


def test_another_blob_than_the_digest_says(resolve):
    faults = Faults(replace_blobs={Digest.of(b"provenance"): b"provenancE"})
    with pytest.raises(BoxwrightError) as caught:
        resolve(Image, faults=faults, wanted={SLSA})
    assert "does not have its digest" in caught.value.brief


@pytest.mark.parametrize("body", [b"", b"[]", b'{"manifests": 7}', b'{"manifests": [{}]}'])
def test_a_list_that_cannot_be_read(resolve, body):
    def prepare(registry):
        image = Image(registry)
        tag = image.attestation["digest"].replace(":", "-")
        registry.put_manifest(PATH, tag, body, INDEX)

    with pytest.raises(BoxwrightError) as caught:
        resolve(prepare, faults=Faults(no_referrers=True))
    assert "list that can't be read" in caught.value.brief
