"""Caches written by one daemon are read by the other: every step hits, and nothing runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from peers import HITS, Client, Daemons
from programs import Context, Registry, Run, registry

__all__ = ["registry"]

pytestmark = [pytest.mark.reference, pytest.mark.root, pytest.mark.peer("docker-registry")]

DOCKERFILE = """
FROM base AS tools
RUN dd if=/dev/urandom bs=32 count=1 | sha256sum > /tool
COPY data /data
FROM base
RUN dd if=/dev/urandom bs=32 count=1 | sha256sum > /first
COPY --from=tools /tool /copied
RUN cat /copied > /second && dd if=/dev/urandom bs=32 count=1 | sha256sum >> /second
WORKDIR /work
COPY data/one.txt .
"""
FINAL_STEPS = 6
"""Steps of the last stage with its base; those of the other stage may not even be asked for."""


def hits(run: Run) -> int:
    """Return how many steps came from a cache.

    A step whose imported layers are unpacked because somebody reads them is not shown as cached
    by BuildKit, but as pulled.
    """
    pulled = re.findall(r"^#(\d+) extracting sha256:", run.text, re.MULTILINE)
    return len({*re.findall(r"^#(\d+) CACHED$", run.text, re.MULTILINE), *pulled})


def check_hits(run: Run, record_property: Callable[[str, object], None]) -> None:
    """Every RUN, COPY and WORKDIR is a hit; how many is told at the end of the tests."""
    steps = set(re.findall(r"^#(\d+) \[.*\] (?:RUN|COPY|WORKDIR) ", run.text, re.MULTILINE))
    record_property(HITS, f"{hits(run)} of {len(steps)} steps")
    assert len(steps) >= FINAL_STEPS, run.text
    assert hits(run) == len(steps), run.text


@pytest.fixture
def stock() -> Client:
    """The stock client: the daemons are what is compared."""
    return Client("upstream", os.environ["BUILDCTL"])


@pytest.fixture(params=["ours-to-upstream", "upstream-to-ours", "ours-to-ours"])
def pair(request: pytest.FixtureRequest, daemons: Daemons, stock: Client) -> tuple[str, str]:
    """Who writes and who reads, both empty."""
    addresses = {"ours": daemons.ours, "upstream": daemons.upstream}
    writer, _, reader = request.param.partition("-to-")
    for address in addresses.values():
        stock(address, "prune", "--all").ok()
    return addresses[writer], addresses[reader]


def read_ids(folder: Path) -> dict[str, str]:
    """Return the files whose content no second run would repeat."""
    return {name: (folder / name).read_text() for name in ("first", "second", "copied")}


def build(client: Client, address: str, context: Context, *argv: str) -> Run:
    return client.build(address, context.path, *argv).ok()


@pytest.fixture
def project(context: Context) -> Context:
    """A context with two stages."""
    context.write("data/one.txt", "one")
    context.write("data/two.txt", "two")
    context.dockerfile(DOCKERFILE)
    return context


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("attrs", ["", ",image-manifest=false", ",compression=zstd"])
def test_registry_cache(
    pair: tuple[str, str],
    stock: Client,
    project: Context,
    registry: Registry,
    tmp_path: Path,
    mode: str,
    attrs: str,
    record_property: Callable[[str, object], None],
) -> None:
    writer, reader = pair
    ref = f"{registry.host}/cache:{mode}"
    out = f"type=local,dest={tmp_path}/first"
    export = f"type=registry,ref={ref},mode={mode}{attrs}"
    build(stock, writer, project, "--output", out, "--export-cache", export)
    made = read_ids(tmp_path / "first")
    stock(writer, "prune", "--all").ok()
    out = f"type=local,dest={tmp_path}/second"
    done = build(
        stock, reader, project, "--output", out, "--import-cache", f"type=registry,ref={ref}"
    )
    assert read_ids(tmp_path / "second") == made
    check_hits(done, record_property)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_local_cache(
    pair: tuple[str, str],
    stock: Client,
    project: Context,
    tmp_path: Path,
    mode: str,
    record_property: Callable[[str, object], None],
) -> None:
    writer, reader = pair
    out = f"type=local,dest={tmp_path}/first"
    export = f"type=local,dest={tmp_path}/cache,mode={mode}"
    build(stock, writer, project, "--output", out, "--export-cache", export)
    assert json.loads((tmp_path / "cache/index.json").read_text())["manifests"]
    made = read_ids(tmp_path / "first")
    stock(writer, "prune", "--all").ok()
    out = f"type=local,dest={tmp_path}/second"
    done = build(
        stock,
        reader,
        project,
        "--output",
        out,
        "--import-cache",
        f"type=local,src={tmp_path}/cache",
    )
    assert read_ids(tmp_path / "second") == made
    check_hits(done, record_property)


def test_inline_cache(
    pair: tuple[str, str],
    stock: Client,
    project: Context,
    registry: Registry,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    writer, reader = pair
    ref = f"{registry.host}/app:inline"
    out = f"type=image,name={ref},push=true"
    build(stock, writer, project, "--output", out, "--export-cache", "type=inline")
    stock(writer, "prune", "--all").ok()
    out = f"type=local,dest={tmp_path}/second"
    done = build(
        stock, reader, project, "--output", out, "--import-cache", f"type=registry,ref={ref}"
    )
    check_hits(done, record_property)
    assert (tmp_path / "second/second").read_text()


def test_second_export_sends_nothing(
    pair: tuple[str, str], stock: Client, project: Context, registry: Registry
) -> None:
    writer, _ = pair
    export = f"type=registry,ref={registry.host}/cache:twice,mode=max"
    build(stock, writer, project, "--export-cache", export)
    before = sorted(p.name for p in (registry.data / "docker/registry/v2/blobs").rglob("*"))
    build(stock, writer, project, "--export-cache", export)
    after = sorted(p.name for p in (registry.data / "docker/registry/v2/blobs").rglob("*"))
    assert after == before


@pytest.mark.parametrize("kind", ["registry", "inline"])
def test_an_image_made_of_the_other_ones_cache_is_the_same_image(
    daemons: Daemons, stock: Client, project: Context, registry: Registry, kind: str
) -> None:
    """Layers and times go across, so both daemons make the same image of them."""
    addresses = (daemons.ours, daemons.upstream)
    for address in addresses:
        stock(address, "prune", "--all").ok()
    ref = f"{registry.host}/app:same"
    cache = f"type=registry,ref={registry.host}/cache:same"
    export = "type=inline" if kind == "inline" else f"{cache},mode=max"
    source = f"type=registry,ref={ref}" if kind == "inline" else cache

    def push(name: str, address: str, *more: str) -> None:
        output = f"type=image,name={registry.host}/app:{name},push=true"
        build(stock, address, project, "--output", output, *more)

    push("same", daemons.ours, "--export-cache", export)
    made = layers_and_times(registry, "app", "same")
    for address in addresses[::-1]:
        stock(address, "prune", "--all").ok()
        push("again", address, "--import-cache", source)
        assert layers_and_times(registry, "app", "again") == made, address


def layers_and_times(registry: Registry, repository: str, tag: str) -> tuple[object, object]:
    """Return the layers of an image and its history."""
    base = registry.data / "docker/registry/v2"
    link = base / f"repositories/{repository}/_manifests/tags/{tag}/current/link"
    manifest = json.loads(_blob(base, link.read_text()))
    config = json.loads(_blob(base, manifest["config"]["digest"]))
    return manifest["layers"], config["history"]


def _blob(base: Path, digest: str) -> bytes:
    name = digest.removeprefix("sha256:")
    return (base / f"blobs/sha256/{name[:2]}/{name}/data").read_bytes()
