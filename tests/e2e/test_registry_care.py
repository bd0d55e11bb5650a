"""``registry ls|verify|gc`` on our state folder, on our registry and on another's."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import socket
import subprocess
import tarfile
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path

import pytest
from programs import PROGRAM, Cli, Context, Registry, wait_until

from boxwright.testing.ports import kept_port

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]


@contextlib.contextmanager
def serving(cli: Cli) -> Iterator[str]:
    """Run ``boxwright registry serve`` on the state folder of ``cli``; yield its address."""
    with kept_port() as port:
        yield from _serving(cli, f"127.0.0.1:{port}")


def _serving(cli: Cli, address: str) -> Iterator[str]:
    argv = [PROGRAM, "--root", str(cli.root), "registry", "serve", "--listen", address]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def answers() -> bool:
        with socket.socket() as one:
            host, _, port = address.partition(":")
            return one.connect_ex((host, int(port))) == 0

    try:
        wait_until(answers, what="the registry listens")
        yield address
    finally:
        process.terminate()
        process.communicate(timeout=120)


def test_what_was_built_is_listed_checked_and_kept(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM base\nRUN echo 1 > /file\n")
    cli.build("-t", "team/app:v1", context.path).ok()
    (line,) = json.loads(cli("registry", "ls", "--json").ok().out)
    assert (line["repository"], line["tag"]) == ("team/app", "v1")
    assert "team/app" in cli("registry", "ls").ok().out
    assert "0 missing or damaged" in cli("registry", "verify").ok().out
    cli("registry", "gc", "--untagged", "--older-than", "0s").ok()
    assert json.loads(cli("registry", "ls", "--json").ok().out) == [line]
    layer = max((cli.root / "blobs/sha256").iterdir(), key=lambda p: p.stat().st_size)
    layer.write_bytes(bytes(layer.stat().st_size))
    done = cli("registry", "verify")
    assert done.status == 20
    assert f"sha256:{layer.name}: damaged" in done.out


def test_a_registry_that_runs_is_asked(cli: Cli, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM base\nRUN echo 1 > /file\n")
    with serving(cli) as address:
        cli.build("-t", f"{address}/team/app:v1", "--push", context.path).ok()
        locked = cli("registry", "ls")
        assert locked.status == 18
        assert "name the registry" in locked.err
        lines = json.loads(cli("registry", "ls", address, "--json").ok().out)
        assert ("team/app", "v1") in {(x["repository"], x["tag"]) for x in lines}
        assert "0 missing or damaged" in cli("registry", "verify", address).ok().out


@pytest.mark.peer("skopeo")
def test_nothing_that_is_pushed_is_collected(cli: Cli, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM scratch\nARG N\nCOPY Dockerfile /f$N\n", base=False)
    archives = []
    for number in range(6):
        archives.append(tmp_path / f"{number}.tar")
        arg = ("--build-arg", f"N={number}")
        cli.build(*arg, "-o", f"type=oci,dest={archives[-1]}", context.path).ok()
    cli("prune", "--all").ok()
    with serving(cli) as address:
        pushes = [
            subprocess.Popen(
                [
                    *("sh", "-ec"),
                    'for n in 1 2 3; do skopeo copy -q --dest-tls-verify=false "$1" "$2-$n:v1"; done',
                    *("sh", f"oci-archive:{archive}", f"docker://{address}/pushed/{archive.stem}"),
                ],
                stderr=subprocess.PIPE,
            )
            for archive in archives
        ]
        cared = 0
        while any(each.poll() is None for each in pushes) or not cared:
            cli("prune", "--all").ok()
            cli("registry", "ls", address).ok()
            assert "0 missing or damaged" in cli("registry", "verify", address).ok().out
            cared += 1
        for each in pushes:
            _, err = each.communicate()
            assert each.returncode == 0, err
        cli("prune", "--all").ok()
        assert "0 missing or damaged" in cli("registry", "verify", address).ok().out
        lines = json.loads(cli("registry", "ls", address, "--json").ok().out)
        assert len({line["repository"] for line in lines}) == 18
        refused = cli("registry", "gc")
        assert refused.status == 18
        assert "boxwright prune" in refused.err
    cli("registry", "gc", "--older-than", "0s").ok()
    assert "0 missing or damaged" in cli("registry", "verify").ok().out


@pytest.mark.peer("docker-registry")
def test_another_registry_that_lost_a_blob(cli: Cli, context: Context, registry: Registry) -> None:
    context.dockerfile("FROM base\nRUN echo 1 > /file\n")
    name = f"{registry.host}/team/app:v1"
    cli.build("-t", name, "-o", "type=image,push=true", context.path).ok()
    (line,) = json.loads(cli("registry", "ls", registry.host, "--json").ok().out)
    assert (line["repository"], line["tag"]) == ("team/app", "v1")
    assert "0 missing or damaged" in cli("registry", "verify", registry.host).ok().out
    largest = max(registry.data.rglob("data"), key=lambda path: path.stat().st_size)
    largest.unlink()
    done = cli("registry", "verify", registry.host)
    assert done.status == 20
    assert f"sha256:{largest.parent.name}: missing" in done.out


def _push_by_sha512(address: str, name: str) -> str:
    """Push an image with nothing but sha512 in it under ``name:1``; return its digest."""

    def call(method: str, path: str, data: bytes = b"", kind: str = "") -> Message:
        request = urllib.request.Request(f"http://{address}{path}", data, method=method)
        request.add_header("Content-Type", kind or "application/octet-stream")
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.headers

    def digest(data: bytes) -> str:
        return f"sha512:{hashlib.sha512(data).hexdigest()}"

    def blob(data: bytes, kind: str) -> dict[str, object]:
        where = call("POST", f"/v2/{name}/blobs/uploads/")["Location"]
        call("PUT", f"{where}?digest={digest(data)}", data)
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("hello")
        entry.size = 6
        archive.addfile(entry, io.BytesIO(b"hello\n"))
    rootfs = {"type": "layers", "diff_ids": [digest(tar.getvalue())]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": rootfs}).encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": blob(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [
            blob(gzip.compress(tar.getvalue()), "application/vnd.oci.image.layer.v1.tar+gzip")
        ],
    }
    body = json.dumps(manifest).encode()
    call("PUT", f"/v2/{name}/manifests/{digest(body)}?tag=1", body, MANIFEST)
    return digest(body)


def test_an_image_by_sha512_is_built_on_copied_and_checked(
    cli: Cli, context: Context, tmp_path: Path
) -> None:
    with serving(cli) as address:
        digest = _push_by_sha512(address, "app")
        builder = replace(cli, root=tmp_path / "builder")
        for reference in (f"app:1@{digest}", "app:1"):
            context.dockerfile(f"FROM {address}/{reference}\nCOPY Dockerfile /f\n", base=False)
            out = tmp_path / "out"
            builder.build("-o", f"type=local,dest={out}", context.path).ok()
            assert (out / "hello").read_text() == "hello\n"
        done = builder.build("-o", f"type=image,name={address}/built:1,push=true", context.path)
        done.ok()
        cli("image", "copy", f"{address}/app@{digest}", f"{address}/copy:2").ok()
        lines = json.loads(cli("registry", "ls", address, "--json").ok().out)
        assert {line["digest"] for line in lines if line["repository"] == "copy"} == {digest}
        assert "0 missing or damaged" in cli("registry", "verify", address).ok().out
    cli("store", "verify").ok()
    cli("registry", "gc", "--older-than", "0s").ok()
    assert "0 missing or damaged" in cli("registry", "verify").ok().out
