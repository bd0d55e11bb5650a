"""Whole outputs of real snapshots: upstream's bytes, and accepted by others."""

import asyncio
import base64
import gzip
import io
import json
import os
import subprocess
import tarfile
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from boxwright.core.clock import SystemClock
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError, UnimplementedError
from boxwright.exporters import ExportContext, ExportSource, resolve_exporter
from boxwright.fsutil.tar import Entry, TarWriter
from boxwright.oci import mediatypes
from boxwright.oci.manifest import Index, Manifest
from boxwright.progress.events import StatusEvent
from boxwright.progress.step import step
from boxwright.progress.stream import ProgressStream
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.node import LayerBlob
from boxwright.store import Store

pytestmark = [pytest.mark.root]

GOLDEN = Path(__file__).parents[1] / "golden" / "layers"
EPOCH = "1700000000"
CONFIG = b'{"architecture":"amd64","os":"linux","config":{"Cmd":["/bin/sh"]}}'


class Sink:
    def __init__(self):
        self.pieces, self.end = [], ""

    async def write(self, data):
        self.pieces.append(data)

    async def close(self):
        self.end = "closed"

    async def abort(self):
        self.end = "aborted"

    @property
    def data(self):
        return b"".join(self.pieces)


class BrokenSink(Sink):
    async def write(self, data):
        raise ConnectionError


def read_tree(root):
    paths = [Path(folder, name) for folder, _, names in os.walk(root) for name in names]
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


class Client:
    """A session that keeps what it is sent."""

    def __init__(self, sink=None):
        self.sink = sink or Sink()
        self.metadata = None
        self.files = {}

    async def get(self, session_id, *, timeout_s=5.0):
        assert session_id == "client"
        return self

    async def send_file(self, metadata, *, exporter_id=0):
        self.metadata = dict(metadata)
        return self.sink

    async def send_tree(self, root, *, on_sent, **_options):
        self.files.update(read_tree(root))
        on_sent(sum(map(len, self.files.values())))


class Registry:
    def __init__(self):
        self.pushed = []

    async def push(self, name, descriptor, *, insecure, by_digest, step, absent=None):
        assert absent is None  # its layers were made here
        self.pushed.append((name, descriptor.digest, insecure, by_digest))


class Bench:
    """An engine's parts around one exporter."""

    def __init__(self, store, manager):
        self.store, self.manager = store, manager
        self.client, self.registry = Client(), Registry()
        self.stream = ProgressStream()

    async def export(self, kind, source, **attributes):
        attributes = {key.replace("_", "-"): value for key, value in attributes.items()}
        with (
            self.store.leases.create() as lease,
            step(self.stream, SystemClock(), "export") as progress,
        ):
            context = ExportContext(
                self.store, self.client, "client", progress, lease, push=self.registry
            )
            exporter = resolve_exporter(kind, attributes)
            result = await exporter.export(source, context)
            if result.finalize is not None:
                await result.finalize()
            return result

    async def shown(self):
        """Return the parts of the steps since the last call, which all ended, and their bytes."""
        self.stream.close()
        events = [event async for batch in self.stream.read() for event in batch]
        self.stream = ProgressStream()
        found = {event.id: event for event in events if isinstance(event, StatusEvent)}
        assert all(event.completed_ns for event in found.values())
        return {name: event.current for name, event in found.items()}

    async def tree(self, files):
        async with self.manager.new(None, description="COPY") as mutable:
            async with mutable.mounted() as root:
                for name, content in files.items():
                    (root / name).parent.mkdir(parents=True, exist_ok=True)
                    (root / name).write_bytes(content)
            return await mutable.commit()


@asynccontextmanager
async def bench(tmp_path):
    store = Store.open(tmp_path / "state")
    manager = SnapshotManager.open(store)
    try:
        yield Bench(store, manager)
    finally:
        await manager.close()
        store.close()


def run(tmp_path, body):
    async def main():
        async with bench(tmp_path) as parts:
            await body(parts)

    asyncio.run(main())


def blobs_of(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {
            info.name: tar.extractfile(info).read() for info in tar.getmembers() if info.isfile()
        }


def busybox_layer():
    """Stand-in for the first layer of the golden image, which is too large to keep."""
    pieces = []
    tar = TarWriter(pieces.append)
    tar.add(Entry(b"bin/", b"5", 0o755))
    tar.close()
    return b"".join(pieces)


def golden_source(parts):
    layers = []
    datas = [busybox_layer()]
    datas += [
        gzip.decompress((GOLDEN / f"layer{number}.tar.gz").read_bytes()) for number in range(1, 5)
    ]
    for data in datas:
        digest = parts.store.blobs.put(data)
        layers.append(LayerBlob(Descriptor(mediatypes.OCI_LAYER, digest, len(data)), digest))
    config = json.loads((GOLDEN / "config.json").read_bytes())
    del config["rootfs"]
    metadata = {"containerimage.config": json.dumps(config).encode()}
    return ExportSource(parts.manager.from_blobs(layers), metadata=metadata)


def test_manifest_and_config_are_buildkits(tmp_path):
    """All but the first layer equals, so both documents equal once its digest is put in."""

    async def body(parts):
        source = golden_source(parts)
        result = await parts.export("oci", source, source_date_epoch=EPOCH, name="foo:v1")
        files = blobs_of(parts.client.sink.data)
        manifest = Manifest.decode(files[f"blobs/sha256/{result.descriptor.digest.hex}"])
        config = files[f"blobs/sha256/{manifest.config.digest.hex}"]
        golden = Manifest.decode((GOLDEN / "manifest.json").read_bytes())
        assert manifest.layers[1:] == golden.layers[1:]
        first = manifest.layers[0].digest.encode()
        assert config.replace(first, golden.layers[0].digest.encode()) == (
            (GOLDEN / "config.json").read_bytes()
        )
        index = Index.decode(files["index.json"])
        assert index.manifests[0].annotations == {
            "io.containerd.image.name": "docker.io/library/foo:v1",
            "org.opencontainers.image.created": "2023-11-14T22:13:20Z",
            "org.opencontainers.image.ref.name": "v1",
        }
        await source.ref.release()

    run(tmp_path, body)


def test_the_same_result_is_the_same_archive(tmp_path):
    async def body(parts):
        ref = await parts.tree({"a": b"1", "d/b": os.urandom(3_000_000)})
        source = ExportSource(ref, metadata={"containerimage.config": CONFIG})
        archives = set()
        for _ in range(3):
            parts.client.sink = Sink()
            await parts.export("oci", source, source_date_epoch=EPOCH, rewrite_timestamp="true")
            archives.add(Digest.of(parts.client.sink.data))
            for info in list(parts.store.blobs.walk()):
                parts.store.blobs.delete(info.digest)
        assert len(archives) == 1
        await ref.release()

    run(tmp_path, body)


def test_response_names_the_image(tmp_path):
    async def body(parts):
        ref = await parts.tree({"a": b"1"})
        result = await parts.export("docker", ExportSource(ref), name="app,reg.example/x:v1")
        files = blobs_of(parts.client.sink.data)
        assert parts.client.metadata == result.response
        assert result.response["image.name"] == ("docker.io/library/app:latest,reg.example/x:v1")
        digest = Digest(result.response["containerimage.digest"])
        manifest = Manifest.decode(files[f"blobs/sha256/{digest.hex}"])
        assert result.response["containerimage.config.digest"] == manifest.config.digest
        descriptor = json.loads(base64.b64decode(result.response["containerimage.descriptor"]))
        assert descriptor["digest"] == digest
        (entry,) = json.loads(files["manifest.json"])
        assert entry["RepoTags"] == ["app:latest", "reg.example/x:v1"]
        assert entry["Layers"] == [f"blobs/sha256/{manifest.layers[0].digest.hex}"]
        await ref.release()

    run(tmp_path, body)


def test_an_empty_result_is_an_image_without_layers(tmp_path):
    async def body(parts):
        await parts.export("oci", ExportSource(metadata={"containerimage.config": CONFIG}))
        files = blobs_of(parts.client.sink.data)
        index = Index.decode(files["index.json"])
        manifest = Manifest.decode(files[f"blobs/sha256/{index.manifests[0].digest.hex}"])
        assert manifest.layers == ()
        config = json.loads(files[f"blobs/sha256/{manifest.config.digest.hex}"])
        assert config["rootfs"] == {"type": "layers", "diff_ids": None}

    run(tmp_path, body)


def platforms(*names):
    entries = [
        {"ID": name, "Platform": dict(zip(("os", "architecture"), name.split("/"), strict=True))}
        for name in names
    ]
    metadata = {"refs.platforms": json.dumps({"Platforms": entries}).encode()}
    for name in names:
        os_name, architecture = name.split("/")
        config = {"os": os_name, "architecture": architecture}
        metadata[f"containerimage.config/{name}"] = json.dumps(config).encode()
    return metadata


def test_several_platforms_make_an_index(tmp_path):
    async def body(parts):
        amd, arm = await parts.tree({"a": b"amd"}), await parts.tree({"a": b"arm"})
        source = ExportSource(
            refs={"linux/amd64": amd, "linux/arm64": arm},
            metadata=platforms("linux/amd64", "linux/arm64"),
        )
        result = await parts.export(
            "oci",
            source,
            **{
                "annotation-index.i": "1",
                "annotation[linux/arm64].m": "2",
                "annotation-index-descriptor.d": "3",
            },
        )
        files = blobs_of(parts.client.sink.data)
        assert "containerimage.config.digest" not in result.response
        index = Index.decode(files[f"blobs/sha256/{result.descriptor.digest.hex}"])
        assert [str(entry.platform) for entry in index.manifests] == ["linux/amd64", "linux/arm64"]
        assert index.annotations == {"i": "1"}
        assert result.descriptor.annotations["d"] == "3"
        first, second = (
            Manifest.decode(files[f"blobs/sha256/{entry.digest.hex}"]) for entry in index.manifests
        )
        assert (first.annotations, second.annotations) == ({}, {"m": "2"})
        with pytest.raises(InvalidInputError):
            await parts.export("docker", source)
        for ref in (amd, arm):
            await ref.release()

    run(tmp_path, body)


def test_docker_media_types(tmp_path):
    async def body(parts):
        ref = await parts.tree({"a": b"1"})
        result = await parts.export("image", ExportSource(ref), oci_mediatypes="false")
        manifest = Manifest.decode(parts.store.blobs.read(result.descriptor.digest))
        assert manifest.media_type == mediatypes.DOCKER_MANIFEST
        assert manifest.config.media_type == mediatypes.DOCKER_CONFIG
        assert [layer.media_type for layer in manifest.layers] == [mediatypes.DOCKER_LAYER_GZIP]
        await ref.release()

    run(tmp_path, body)


def test_image_is_named_pinned_and_pushed(tmp_path):
    async def body(parts):
        ref = await parts.tree({"a": b"1"})
        source = ExportSource(ref, metadata={"image.name": b"from-frontend"})
        result = await parts.export(
            "image",
            source,
            name="app:v1",
            push="true",
            name_canonical="true",
            **{"registry.insecure": "true", "dangling-name-prefix": "none"},
        )
        digest = result.descriptor.digest
        names = [record.name for record in parts.store.images.list()]
        assert names == sorted(
            [
                "docker.io/library/app:v1",
                f"docker.io/library/app:v1@{digest}",
                f"docker.io/library/none@{digest}",
            ]
        )
        assert [entry[0] for entry in parts.registry.pushed] == ["app:v1", f"none@{digest}"]
        assert parts.registry.pushed[0] == ("app:v1", digest, True, False)
        await asyncio.to_thread(parts.store.gc)
        manifest = Manifest.decode(parts.store.blobs.read(digest))
        for child in manifest.children():
            assert parts.store.blobs.stat(child.digest) == child.size
        wild = await parts.export("image", source, name="*", store="false")
        assert wild.response["image.name"] == "from-frontend"
        assert len(parts.store.images.list()) == 3
        odd = await parts.export("image", source, name="Upper,two words", name_canonical="true")
        assert odd.response["image.name"] == "Upper,two words"
        assert len(parts.store.images.list()) == 3
        await ref.release()

    run(tmp_path, body)


def test_a_push_without_a_registry_is_refused_before_any_work(tmp_path):
    async def body(parts):
        parts.registry = None
        with pytest.raises(UnimplementedError):
            await parts.export("image", ExportSource(), push="true", name="x")
        assert list(parts.store.blobs.walk()) == []

    run(tmp_path, body)


def test_a_lost_client_ends_the_transfer(tmp_path):
    async def body(parts):
        parts.client.sink = BrokenSink()
        with pytest.raises(ConnectionError):
            await parts.export("oci", ExportSource())
        assert parts.client.sink.end == "aborted"

    run(tmp_path, body)


def test_files_of_a_result(tmp_path):
    async def body(parts):
        ref = await parts.tree({"bin/app": b"app", "etc/conf": b"conf"})
        await parts.export("local", ExportSource(ref))
        assert parts.client.files == {"bin/app": b"app", "etc/conf": b"conf"}
        parts.client.files.clear()
        await parts.export("local", ExportSource())
        assert parts.client.files == {}
        await parts.export("tar", ExportSource(ref), source_date_epoch=EPOCH)
        with tarfile.open(fileobj=io.BytesIO(parts.client.sink.data)) as tar:
            assert tar.getnames() == ["bin", "bin/app", "etc", "etc/conf"]
            assert {info.mtime for info in tar} == {int(EPOCH)}
        await ref.release()

    run(tmp_path, body)


def test_files_of_several_platforms(tmp_path):
    async def body(parts):
        amd, arm = await parts.tree({"amd": b"1"}), await parts.tree({"arm": b"2"})
        source = ExportSource(
            refs={"linux/amd64": amd, "linux/arm64": arm},
            metadata=platforms("linux/amd64", "linux/arm64"),
        )
        await parts.export("local", source)
        assert parts.client.files == {"linux_amd64/amd": b"1", "linux_arm64/arm": b"2"}
        assert await parts.shown() == {
            "copying files linux/amd64": 0,
            "copying files linux/arm64": 0,
        }
        parts.client.files.clear()
        await parts.export("local", source, platform_split="false")
        assert parts.client.files == {"amd": b"1", "arm": b"2"}
        assert await parts.shown() == {"copying files": 2}
        await parts.export("tar", source)
        with tarfile.open(fileobj=io.BytesIO(parts.client.sink.data)) as tar:
            assert tar.getnames() == [
                "linux_amd64",
                "linux_amd64/amd",
                "linux_arm64",
                "linux_arm64/arm",
            ]
        same = ExportSource(
            refs={"linux/amd64": amd, "linux/arm64": amd}, metadata=source.metadata
        )
        with pytest.raises(InvalidInputError) as caught:
            await parts.export("local", same, platform_split="false")
        assert "cannot overwrite amd" in str(caught.value)
        assert list(parts.store.mounts.iterdir()) == []
        for ref in (amd, arm):
            await ref.release()

    run(tmp_path, body)


def test_hard_links_in_a_tar_output(tmp_path):
    async def body(parts):
        async with parts.manager.new(None, description="RUN ln") as mutable:
            async with mutable.mounted() as root:
                (root / "a").write_text("x")
                os.link(root / "a", root / "b")
                (root / "c").symlink_to("a")
                os.link(root / "c", root / "d", follow_symlinks=False)
            ref = await mutable.commit()
        await parts.export("tar", ExportSource(ref))
        with tarfile.open(fileobj=io.BytesIO(parts.client.sink.data)) as tar:
            first, second, *others = tar.getmembers()
            assert first.isreg()
            assert (second.islnk(), second.linkname) == (True, "a")
            assert [(each.issym(), each.linkname) for each in others] == [(True, "a")] * 2
        await ref.release()

    run(tmp_path, body)


# -- others --------------------------------------------------------------------------------


@pytest.mark.peer("skopeo")
@pytest.mark.parametrize("compression", ["gzip", "zstd", "uncompressed", "estargz"])
@pytest.mark.parametrize("kind", ["oci", "docker"])
def test_skopeo_accepts_archives(tmp_path, kind, compression):
    async def body(parts):
        ref = await parts.tree({"bin/app": b"app" * 1000})
        await parts.export(kind, ExportSource(ref), name="app:v1", compression=compression)
        await ref.release()
        (tmp_path / "image.tar").write_bytes(parts.client.sink.data)

    run(tmp_path, body)
    source = f"{kind}-archive:{tmp_path / 'image.tar'}"
    shown = subprocess.run(["skopeo", "inspect", source], check=True, capture_output=True)
    assert json.loads(shown.stdout)["Os"] == "linux"
    target = f"dir:{tmp_path / 'copy'}"
    subprocess.run(["skopeo", "copy", source, target], check=True, capture_output=True)


@pytest.mark.peer("umoci")
def test_umoci_unpacks_layers(tmp_path):
    async def body(parts):
        base = await parts.tree({"keep": b"1", "gone/x": b"2"})
        async with parts.manager.new(base, description="RUN rm") as mutable:
            async with mutable.mounted() as root:
                (root / "gone/x").unlink()
                (root / "gone").rmdir()
                (root / "new").write_bytes(b"3")
            top = await mutable.commit()
        await parts.export("oci", ExportSource(top), name="app:v1")
        for ref in (base, top):
            await ref.release()
        with tarfile.open(fileobj=io.BytesIO(parts.client.sink.data)) as tar:
            tar.extractall(tmp_path / "layout", filter="data")

    run(tmp_path, body)
    subprocess.run(
        ["umoci", "unpack", "--image", f"{tmp_path / 'layout'}:v1", tmp_path / "bundle"],
        check=True,
        capture_output=True,
    )
    assert sorted(os.listdir(tmp_path / "bundle/rootfs")) == ["keep", "new"]


class ContentClient(Client):
    def __init__(self):
        super().__init__()
        self.blobs = {}

    async def write_content(self, store_id, digest, size, pieces):
        assert store_id == "export"
        data = b"".join(pieces)
        assert (Digest.of(data), len(data)) == (digest, size)
        self.blobs[digest] = data


def test_single_blobs_arrive_children_first(tmp_path):
    async def body(parts):
        ref = await parts.tree({"a": b"1"})
        with pytest.raises(UnimplementedError):
            await parts.export("oci", ExportSource(ref), tar="false")
        parts.client = ContentClient()
        result = await parts.export("oci", ExportSource(ref), tar="false")
        order = list(parts.client.blobs)
        assert order[-1] == result.descriptor.digest
        manifest = Manifest.decode(parts.client.blobs[order[-1]])
        assert set(order[:-1]) == {item.digest for item in manifest.children()}
        await ref.release()

    run(tmp_path, body)
