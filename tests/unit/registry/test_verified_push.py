"""A push is a success only when pullers can have what was pushed: six faults, all red."""

from __future__ import annotations

import contextlib
import json

import pytest

from boxwright.core.clock import SystemClock
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.engine.push import Pusher
from boxwright.engine.verify import PushVerificationError
from boxwright.errors import Code, InvalidInputError
from boxwright.progress.events import StatusEvent
from boxwright.progress.step import step
from boxwright.progress.stream import ProgressStream
from boxwright.registry.auth import AnonymousAuth, Credentials, StaticAuth
from boxwright.registry.errors import RegistryError
from boxwright.registry.hosts import Hosts
from boxwright.store.store import Store
from boxwright.testing.registry import Auth, Failure, FakeRegistry, Faults

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYERS = [b"base layer" * 1000, b"top layer" * 5000]


class Image:
    """An index of two platforms in a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.blobs: list[Digest] = []
        self.manifests = [self._manifest("amd64"), self._manifest("arm64")]
        body = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [m.to_json() for m in self.manifests],
        }
        self.root = self._put(json.dumps(body).encode(), INDEX)

    def _put(self, data: bytes, media_type: str) -> Descriptor:
        return Descriptor(media_type, self.store.blobs.put(data), len(data))

    def _manifest(self, architecture: str) -> Descriptor:
        config = self._put(json.dumps({"architecture": architecture}).encode(), "config")
        layers = [self._put(data, "layer") for data in LAYERS]
        self.blobs += [config.digest, *(layer.digest for layer in layers)]
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": config.to_json(),
            "layers": [layer.to_json() for layer in layers],
        }
        return self._put(json.dumps(body).encode(), MANIFEST)


@pytest.fixture
def image(tmp_path):
    store = Store.open(tmp_path / "root")
    yield Image(store)
    store.close()


async def push(
    kit, image, name, *, hosts=None, auth=None, by_digest=False, retries=2, stream=None
):
    async with kit.client(hosts, auth, retries=retries) as client:

        @contextlib.asynccontextmanager
        async def clients(session_ids):
            yield client

        clock = SystemClock()
        with step(stream or ProgressStream(), clock, "exporting") as progress:
            pusher = Pusher(image.store, clients, (), clock)
            await pusher.push(name, image.root, insecure=False, by_digest=by_digest, step=progress)


def failure(kit, run, image, faults, path="team/app:1", **options):
    """Push to a registry with ``faults``; return the error."""

    async def work():
        async with FakeRegistry(faults=faults) as registry:
            with pytest.raises((RegistryError, PushVerificationError)) as caught:
                await push(kit, image, f"{registry.host}/{path}", **options)
            return caught.value, registry

    return run(work())


def test_everything_arrives_and_the_tag_comes_last(kit, run, image):
    async def work():
        async with FakeRegistry() as registry:
            await push(kit, image, f"{registry.host}/team/app:1")
            return registry

    registry = run(work())
    assert {digest for _, digest in registry.blobs} == set(image.blobs)
    assert registry.tags == {("team/app", "1"): image.root.digest}
    writes = [r.path for r in registry.requests if r.method == "PUT"]
    kinds = ["manifest" if "/manifests/" in path else "blob" for path in writes]
    assert kinds == sorted(kinds)
    assert writes[-1].endswith("/manifests/1")
    assert len(registry.peers) <= 8


def test_verification_asks_with_the_rights_of_a_puller(kit, run, image):
    users = {"ann": "secret"}

    async def work():
        async with FakeRegistry(auth=Auth("bearer", users)) as registry:
            login = StaticAuth({registry.host: Credentials("ann", "secret")})
            await push(kit, image, f"{registry.host}/team/app:1", auth=login)
            return [r.query for r in registry.requests if r.path == "/token"]

    scopes = run(work())
    assert any("pull,push" in query or "pull%2Cpush" in query for query in scopes)
    assert any(query.split("&")[0].endswith("pull") for query in scopes)


def test_a_second_push_sends_no_blob(kit, run, image):
    async def work():
        async with FakeRegistry() as registry:
            await push(kit, image, f"{registry.host}/team/app:1")
            registry.requests.clear()
            await push(kit, image, f"{registry.host}/team/app:2")
            return registry

    registry = run(work())
    assert registry.count("POST") == 0
    assert set(registry.tags) == {("team/app", "1"), ("team/app", "2")}


def test_a_second_repository_mounts_what_the_first_has(kit, run, image):
    async def work():
        async with FakeRegistry() as registry:
            await push(kit, image, f"{registry.host}/team/app:1")
            registry.requests.clear()
            await push(kit, image, f"{registry.host}/team/other:1")
            return registry

    registry = run(work())
    assert registry.count("PUT", "/blobs/") == 0
    assert ("team/other", image.blobs[0]) in registry.blobs


def test_by_digest_writes_no_tag(kit, run, image):
    async def work():
        async with FakeRegistry() as registry:
            await push(kit, image, f"{registry.host}/team/app", by_digest=True)
            return registry

    registry = run(work())
    assert registry.tags == {}
    assert ("team/app", image.root.digest) in registry.manifests


def test_a_tag_can_not_be_pushed_by_digest(kit, run, image):
    async def work():
        async with FakeRegistry() as registry:
            with pytest.raises(
                InvalidInputError, match=r"can't push tagged ref .*/team/app:v1 by"
            ):
                await push(kit, image, f"{registry.host}/team/app:v1", by_digest=True)
            return registry

    assert run(work()).requests == []


def test_what_is_shown_of_a_layer_ends_when_it_fails(kit, run, image):
    """Clients hold a step's error back while something of it is open."""
    stream = ProgressStream()
    failure(kit, run, image, Faults(break_uploads=999, break_after=1000), stream=stream)

    async def read():
        stream.close()
        return [event async for batch in stream.read() for event in batch]

    shown = [event for event in run(read()) if isinstance(event, StatusEvent)]
    assert any(event.id.startswith("pushing layer sha256:") for event in shown)
    assert all(event.completed_ns is not None for event in shown)


# --- the six faults ------------------------------------------------------------------------------


def test_fault_1_killed_at_half(kit, run, image):
    faults = Faults(break_uploads=999, break_after=1000)
    error, registry = failure(kit, run, image, faults)
    assert error.code is Code.REGISTRY_UNREACHABLE
    assert registry.host in error.brief
    assert registry.tags == {}


def test_fault_2_the_registry_loses_a_blob(kit, run, image):
    lost = Digest.of(LAYERS[1])
    error, _ = failure(kit, run, image, Faults(lose_blobs={lost}))
    assert isinstance(error, PushVerificationError)
    assert lost in error.detail
    assert "lost a blob" in error.brief


def test_fault_2_the_registry_loses_a_platform(kit, run, image):
    lost = image.manifests[1].digest
    error, _ = failure(kit, run, image, Faults(lose_manifests={lost}))
    assert isinstance(error, PushVerificationError)
    assert lost in error.detail


def test_fault_3_the_tag_was_moved(kit, run, image):
    moved = Faults(move_tags={"1": image.manifests[0].digest})
    error, _ = failure(kit, run, image, moved)
    assert isinstance(error, PushVerificationError)
    assert "no longer points at" in error.brief
    assert image.root.digest in error.detail


def test_fault_4_pullers_ask_another_host(kit, run, image):
    async def work():
        async with FakeRegistry() as registry, FakeRegistry() as other:
            hosts = Hosts(pull_hosts={registry.host: other.host})
            with pytest.raises(PushVerificationError) as caught:
                await push(kit, image, f"{registry.host}/team/app:1", hosts=hosts)
            return caught.value, registry.host, other.host

    error, pushed, pulled = run(work())
    assert f"{pulled} does not have a" in error.brief
    assert f"pushed to {pushed}" in error.brief


def test_fault_5_only_the_digest_is_there(kit, run, image):
    error, _ = failure(kit, run, image, Faults(ignore_tags=True))
    assert isinstance(error, PushVerificationError)
    assert "does not exist after its push" in error.brief
    assert f"@{image.root.digest}" in error.hint


def test_fault_6_a_name_with_an_underscore(kit, run, image):
    body = b'{"errors":[{"code":"NAME_INVALID","message":"invalid repository name"}]}'
    faults = Faults(failures=[Failure("POST", "/uploads/", 400, 99, body=body)])
    error, _ = failure(kit, run, image, faults, path="team/my_app:1")
    assert "NAME_INVALID" in error.detail
    assert "use '-'" in error.hint


def test_a_registry_that_pullers_may_not_read_is_red(kit, run, image):
    faults = Faults(failures=[Failure("GET", "/manifests/", 403, 99)])
    error, _ = failure(kit, run, image, faults)
    assert error.code is Code.REGISTRY_AUTH


def test_anonymous_push_to_a_closed_registry(kit, run, image):
    async def work():
        async with FakeRegistry(auth=Auth("basic", {"a": "b"})) as registry:
            with pytest.raises(RegistryError) as caught:
                await push(kit, image, f"{registry.host}/app:1", auth=AnonymousAuth())
            return caught.value

    assert run(work()).code is Code.REGISTRY_AUTH
