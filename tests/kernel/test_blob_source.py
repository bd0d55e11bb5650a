"""Single blobs of registries and of clients' layouts, into real snapshots."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code
from boxwright.registry.hosts import Hosts
from boxwright.session.inprocess import InProcessSession
from boxwright.session.manager import SessionManager
from boxwright.session.providers.contents import OciLayouts
from boxwright.session.services import SessionServices
from boxwright.snapshots.manager import SnapshotManager
from boxwright.sources.base import SourceContext
from boxwright.sources.blob import BlobFiles, BlobSource, BlobSources
from boxwright.sources.bloblocator import LAYOUT_SCHEME, REGISTRY_SCHEME
from boxwright.sources.registry import RegistryClients
from boxwright.store import Store
from boxwright.testing.registry import FakeRegistry

pytestmark = pytest.mark.root

DATA = b"layer" * 400_000
DIGEST = Digest.of(DATA)


class Bench:
    """A store with blob sources, a registry, and a client with a layout."""

    def __init__(self, root: Path, registry: FakeRegistry) -> None:
        self.registry = registry
        self.store = Store.open(root / "state")
        self.snapshots = SnapshotManager.open(self.store)
        self.layout = root / "layout"
        (self.layout / "blobs/sha256").mkdir(parents=True)
        (self.layout / "oci-layout").write_text("{}")
        layouts = OciLayouts()
        layouts.add_source("mine", self.layout)
        sessions = SessionManager()
        session = InProcessSession(SessionServices(layouts=layouts))
        sessions.attach(session)
        self.clients = RegistryClients(Hosts(), sessions)
        self.files = BlobFiles(self.snapshots, self.clients, sessions)
        self.context = SourceContext(sessions.group([session.id]))

    def remote(self, digest: Digest = DIGEST, path: str = "team/app", **attrs: str) -> BlobSource:
        named = {f"http.{name}": value for name, value in attrs.items()}
        rest = f"{self.registry.host}/{path}@{digest}"
        return BlobSources(REGISTRY_SCHEME, self.files).resolve(rest, named, None)

    def local(self, digest: Digest = DIGEST, **attrs: str) -> BlobSource:
        named = {"oci.store": "mine", **attrs}
        return BlobSources(LAYOUT_SCHEME, self.files).resolve(f"not/real@{digest}", named, None)

    def put(self, data: bytes, name: str = "") -> None:
        (self.layout / "blobs/sha256" / (name or Digest.of(data).hex)).write_bytes(data)

    async def failure(self, source: BlobSource) -> BoxwrightError:
        with pytest.raises(BoxwrightError) as caught:
            await source.snapshot(self.context)
        return caught.value


def run(tmp_path: Path, use: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with AsyncExitStack() as stack:
            bench = Bench(tmp_path, await stack.enter_async_context(FakeRegistry()))
            stack.callback(bench.store.close)
            stack.push_async_callback(bench.snapshots.close)
            stack.push_async_callback(bench.clients.close)
            await use(bench)

    asyncio.run(main())


def test_a_blob_of_a_registry(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.registry.put_blob("team/app", DATA)
        source = bench.remote()
        assert (await source.cache_key(bench.context, 0)).pin == DIGEST
        async with await source.snapshot(bench.context) as ref, ref.mounted() as root:
            path = root / DIGEST.hex
            assert path.read_bytes() == DATA
            found = path.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_mtime) == (0o600, 0)
        wanted = {"filename": "../up/layer.tgz", "perm": "0640", "uid": "12", "gid": "34"}
        async with (
            await bench.remote(**wanted).snapshot(bench.context) as ref,
            ref.mounted() as root,
        ):
            found = (root / "layer.tgz").stat()
            assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (12, 34, 0o640)

    run(tmp_path, use)


def test_a_blob_is_fetched_once_for_each_name(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.registry.put_blob("team/app", DATA)
        refs = await asyncio.gather(*(bench.remote().snapshot(bench.context) for _ in range(5)))
        assert len({ref.id for ref in refs}) == 1
        assert bench.registry.count("GET", "/blobs/") == 1
        for ref in refs:
            await ref.release()
        # Whoever names another repository must find it there.
        error = await bench.failure(bench.remote(path="team/other"))
        assert error.code is Code.NOT_FOUND

    run(tmp_path, use)


def test_a_blob_of_a_clients_layout(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.put(DATA)
        async with await bench.local().snapshot(bench.context) as ref, ref.mounted() as root:
            assert (root / DIGEST.hex).read_bytes() == DATA

    run(tmp_path, use)


def test_what_does_not_have_its_digest_is_refused(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.put(b"something else", DIGEST.hex)
        error = await bench.failure(bench.local())
        assert error.code is Code.DIGEST_MISMATCH
        missing = await bench.failure(bench.local(Digest.of(b"missing")))
        assert missing.code in {Code.NOT_FOUND, Code.SOURCE_NOT_FOUND}
        bench.put(DATA)  # nothing of the first attempt is taken for it
        async with await bench.local().snapshot(bench.context) as ref, ref.mounted() as root:
            assert (root / DIGEST.hex).read_bytes() == DATA

    run(tmp_path, use)


def test_blobs_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("boxwright.sources.blob._LIMIT_BYTES", len(DATA) - 1)

    async def use(bench: Bench) -> None:
        bench.put(DATA)
        bench.registry.put_blob("team/app", DATA)
        for source in (bench.local(), bench.remote()):
            assert (await bench.failure(source)).code is Code.LIMIT

    run(tmp_path, use)


def test_keys_are_buildkits(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        plain = await bench.remote().cache_key(bench.context, 0)
        assert plain == await bench.local().cache_key(bench.context, 0)
        text = f'{{"Digest":"{DIGEST}","Filename":"a","Perm":384,"UID":1,"GID":2}}'
        named = bench.remote(filename="x/a", perm="0600", uid="1", gid="2")
        assert (await named.cache_key(bench.context, 0)).key == Digest.of(text.encode())

    run(tmp_path, use)


@pytest.mark.parametrize(
    ("scheme", "rest", "attrs", "why"),
    [
        (REGISTRY_SCHEME, "example.com/a:1", {}, "named by its SHA-256 digest"),
        (REGISTRY_SCHEME, f"example.com/a@sha512:{'0' * 128}", {}, "named by its SHA-256"),
        (LAYOUT_SCHEME, f"a@{DIGEST}", {}, "requires store id"),
        (REGISTRY_SCHEME, f"a@{DIGEST}", {"http.uid": "me"}, "http.uid is no number"),
    ],
    ids="tag sha512 store uid".split(),
)
def test_malformed(
    tmp_path: Path, scheme: str, rest: str, attrs: dict[str, str], why: str
) -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(BoxwrightError, match=why):
            BlobSources(scheme, bench.files).resolve(rest, attrs, None)

    run(tmp_path, use)
