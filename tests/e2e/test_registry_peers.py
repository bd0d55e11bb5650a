"""Registries and clients that are not ours: skopeo and buildctl with our server, CNCF's with us."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from boxwright.core.clock import SystemClock
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.engine.push import Pusher
from boxwright.progress.step import step
from boxwright.progress.stream import ProgressStream
from boxwright.registry.auth import Credentials, StaticAuth
from boxwright.registry.client import RegistryClient
from boxwright.store.store import Store
from boxwright.testing.ports import kept_port

_SERVER = """
import asyncio, sys
from pathlib import Path
from boxwright.registryserver.app import ServerOptions
from boxwright.registryserver.serve import ListenOptions, serve
users = dict([sys.argv[2].split(":")]) if len(sys.argv) > 2 else {}
options = ListenOptions(server=ServerOptions(users=users))
asyncio.run(serve(Path(sys.argv[1]), options, on_ready=lambda a: print(a, flush=True)))
"""
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


@contextlib.contextmanager
def our_registry(root: Path, *arguments: str) -> Iterator[str]:
    """Run our registry in a process of its own; yield ``host:port``."""
    argv = [sys.executable, "-c", _SERVER, str(root), *arguments]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip().removeprefix("http://")
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()


@contextlib.contextmanager
def cncf_registry(folder: Path, mirrored: str = "") -> Iterator[str]:
    """Run Debian's docker-registry, maybe as a mirror of another one; yield ``host:port``."""
    with kept_port() as port:
        yield from _cncf_registry(folder, port, mirrored)


def _cncf_registry(folder: Path, port: int, mirrored: str) -> Iterator[str]:
    config = folder / "registry.yml"
    text = (
        f"version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {folder}/data\n"
        f"http:\n  addr: 127.0.0.1:{port}\n"
    )
    config.write_text(text + (f"proxy:\n  remoteurl: http://{mirrored}\n" if mirrored else ""))
    with open(folder / "registry.log", "wb") as log:
        program = shutil.which("docker-registry") or "docker-registry"
        process = subprocess.Popen([program, "serve", str(config)], stdout=log, stderr=log)
    try:
        _wait_until(lambda: _answers(f"http://127.0.0.1:{port}/v2/"), process)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(120)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=60):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _wait_until(is_ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not is_ready():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
            pytest.fail(f"the registry ended with status {process.returncode}")


def _skopeo(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    argv = ["skopeo", "--insecure-policy", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=check, timeout=120)


def _layout(folder: Path, layers: int = 3) -> Path:
    """Write an OCI layout with one small image, tagged ``1``."""
    import gzip
    import io
    import tarfile

    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    described, diff_ids = [], []
    for number in range(layers):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo(f"file-{number}")
            info.size = 100_000
            archive.addfile(info, io.BytesIO(bytes([number]) * info.size))
        tar = buffer.getvalue()
        diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
        packed = gzip.compress(tar, mtime=0)
        described.append(put(packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": described,
    }
    entry = put(json.dumps(manifest).encode(), MANIFEST)
    entry["annotations"] = {"org.opencontainers.image.ref.name": "1"}
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


@pytest.mark.peer("skopeo")
def test_skopeo_copies_inspects_lists_and_deletes(tmp_path):
    layout = _layout(tmp_path / "layout")
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    with our_registry(tmp_path / "root") as host:
        name = f"docker://{host}/team/app"
        plain = ("--dest-tls-verify=false",)
        _skopeo("copy", *plain, f"oci:{layout}:1", f"{name}:1")
        _skopeo("copy", "--src-tls-verify=false", *plain, f"{name}:1", f"{name}-copy:2")
        found = json.loads(_skopeo("inspect", "--tls-verify=false", f"{name}:1").stdout)
        assert found["Digest"] == digest
        assert found["RepoTags"] == ["1"]
        assert len(found["Layers"]) == 3
        back = tmp_path / "back"
        _skopeo("copy", "--src-tls-verify=false", f"{name}@{digest}", f"oci:{back}:1")
        names = {path.name for path in (back / "blobs/sha256").iterdir()}
        assert names == {path.name for path in (layout / "blobs/sha256").iterdir()}
        schema2 = ("--format", "v2s2")
        _skopeo("copy", *plain, *schema2, f"oci:{layout}:1", f"{name}:docker")
        listed = json.loads(_skopeo("list-tags", "--tls-verify=false", name).stdout)
        assert listed["Tags"] == ["1", "docker"]
        _skopeo("delete", "--tls-verify=false", f"{name}:1")
        gone = _skopeo("inspect", "--tls-verify=false", f"{name}:1", check=False)
        assert "manifest unknown" in gone.stderr


@pytest.mark.peer("skopeo")
def test_skopeo_logs_in(tmp_path):
    layout = _layout(tmp_path / "layout")
    with our_registry(tmp_path / "root", "ann:secret") as host:
        name = f"docker://{host}/app:1"
        copy = ("copy", "--dest-tls-verify=false", f"oci:{layout}:1", name)
        assert "authentication required" in _skopeo(*copy, check=False).stderr
        _skopeo(*copy, "--dest-creds", "ann:secret")


@pytest.mark.peer("skopeo")
@pytest.mark.peer("docker-registry")
def test_registry_to_registry(tmp_path):
    layout = _layout(tmp_path / "layout")
    with our_registry(tmp_path / "root") as ours, cncf_registry(tmp_path) as theirs:
        _skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:1", f"docker://{theirs}/app:1")
        both = ("--src-tls-verify=false", "--dest-tls-verify=false")
        _skopeo("copy", *both, f"docker://{theirs}/app:1", f"docker://{ours}/app:1")
        _skopeo("copy", *both, f"docker://{ours}/app:1", f"docker://{theirs}/back:1")


@pytest.mark.peer("skopeo")
@pytest.mark.peer("docker-registry")
def test_a_mirror_of_ours_serves_what_ours_has(tmp_path):
    layout = _layout(tmp_path / "layout")
    digest = json.loads((layout / "index.json").read_text())["manifests"][0]["digest"]
    with (
        our_registry(tmp_path / "root") as ours,
        cncf_registry(tmp_path, mirrored=ours) as mirror,
    ):
        target = f"docker://{ours}/team/app:1"
        _skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:1", target)
        source = f"docker://{mirror}/team/app"
        for number in range(2):  # from ours, and from what the mirror has kept
            back = tmp_path / f"back-{number}"
            _skopeo("copy", "--src-tls-verify=false", f"{source}:1", f"oci:{back}:1")
            names = {path.name for path in (back / "blobs/sha256").iterdir()}
            assert names == {path.name for path in (layout / "blobs/sha256").iterdir()}
        raw = _skopeo("inspect", "--tls-verify=false", "--raw", f"{source}@{digest}").stdout
        assert f"sha256:{hashlib.sha256(raw.encode()).hexdigest()}" == digest
        gone = _skopeo("inspect", "--tls-verify=false", f"{source}:none", check=False)
        assert "manifest unknown" in gone.stderr


@pytest.mark.peer("skopeo")
def test_skopeo_keeps_repositories_in_step(tmp_path):
    layout = _layout(tmp_path / "layout")
    with our_registry(tmp_path / "root") as host:
        plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
        for tag in ("1", "2"):
            target = f"docker://{host}/team/app:{tag}"
            _skopeo("copy", "--dest-tls-verify=false", f"oci:{layout}:1", target)
        folder = tmp_path / "folder"
        folder.mkdir()
        name = f"{host}/team/app"
        _skopeo("sync", "--src", "docker", "--dest", "dir", plain[0], name, str(folder))
        _skopeo("sync", "--src", "dir", "--dest", "docker", plain[1], str(folder), f"{host}/a")
        _skopeo("sync", "--src", "docker", "--dest", "docker", *plain, name, f"{host}/b")
        for copied in ("a", "b"):
            where = f"docker://{host}/{copied}/app"
            listed = json.loads(_skopeo("list-tags", "--tls-verify=false", where).stdout)
            assert listed["Tags"] == ["1", "2"]


def _push(host: str, root: Path, auth: StaticAuth | None = None) -> tuple[Descriptor, list[bytes]]:
    """Push an image with our client, twice; the second time into another repository."""

    async def work() -> tuple[Descriptor, list[bytes]]:
        store = Store.open(root)
        client = RegistryClient(auth=auth)
        try:
            blobs = [b"{}", b"small", b"large" * 2_000_000]
            described = [Descriptor("x", store.blobs.put(data), len(data)) for data in blobs]
            body = json.dumps(
                {
                    "schemaVersion": 2,
                    "mediaType": MANIFEST,
                    "config": described[0].to_json(),
                    "layers": [d.to_json() for d in described[1:]],
                }
            ).encode()
            manifest = Descriptor(MANIFEST, store.blobs.put(body), len(body))
            index = json.dumps(
                {"schemaVersion": 2, "mediaType": INDEX, "manifests": [manifest.to_json()]}
            ).encode()
            target = Descriptor(INDEX, store.blobs.put(index), len(index))

            @contextlib.asynccontextmanager
            async def clients(_session_ids):
                yield client

            clock = SystemClock()
            for name in (f"{host}/team/app:1", f"{host}/team/other:1"):
                with step(ProgressStream(), clock, "push") as progress:
                    await Pusher(store, clients, (), clock).push(
                        name, target, insecure=False, by_digest=False, step=progress
                    )
            for descriptor, data in zip(described, blobs, strict=True):
                got = bytearray()

                class Memory:
                    def __init__(self, target: bytearray) -> None:
                        self._target = target

                    async def write(self, piece: bytes) -> None:
                        self._target.extend(piece)

                ref = Reference(host, "team/other", "1")
                await client.fetch_blob(ref, descriptor, Memory(got))
                assert bytes(got) == data
            assert (await client.resolve(Reference(host, "team/other", "1"))) == target
            return target, blobs
        finally:
            await client.close()
            store.close()

    return asyncio.run(work())


@pytest.mark.peer("docker-registry")
def test_our_client_pushes_to_and_pulls_from_the_cncf_registry(tmp_path):
    with cncf_registry(tmp_path) as host:
        target, blobs = _push(host, tmp_path / "root")
    links = tmp_path / "data/docker/registry/v2/repositories/team/other/_layers/sha256"
    assert {path.name for path in links.iterdir()} == {Digest.of(data).hex for data in blobs}
    assert target.media_type == INDEX


def test_our_client_and_our_registry(tmp_path):
    with our_registry(tmp_path / "served", "ann:secret") as host:
        _push(host, tmp_path / "root", StaticAuth({host: Credentials("ann", "secret")}))
