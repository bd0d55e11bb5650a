"""Pushes of layers that nobody has read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import Cli, Context, Registry, running_registry

pytestmark = [pytest.mark.root, pytest.mark.peer("docker-registry")]

BOTH = ("--platform", "linux/amd64,linux/arm64")


def document(registry: Registry, repository: str, digest: str = "") -> dict[str, Any]:
    """Return a manifest of a registry, by default what its tag 1 leads to."""
    base = registry.data / "docker/registry/v2"
    link = base / f"repositories/{repository}/_manifests/tags/1/current/link"
    name = (digest or link.read_text()).removeprefix("sha256:")
    found: dict[str, Any] = json.loads(
        (base / f"blobs/sha256/{name[:2]}/{name}/data").read_bytes()
    )
    return found


def test_a_base_image_is_pulled_as_far_as_another_registry_needs_it(
    cli: Cli, context: Context, registry: Registry, tmp_path: Path
) -> None:
    """One platform's layers are made here, the other's are the base image's."""
    context.write("one.txt", "one")
    context.dockerfile("FROM scratch\nCOPY one.txt /x\nCOPY one.txt /y\n")
    base, other = f"{registry.host}/base:1", Cli(tmp_path / "other", cli.env)
    cli.build(*BOTH, "-o", f"type=image,name={base},push=true", context.path).ok()
    context.dockerfile(
        "FROM scratch AS of-amd64\nCOPY one.txt /z\n"
        f"FROM {base} AS of-arm64\nLABEL a=b\n"
        "ARG TARGETARCH\nFROM of-$TARGETARCH\n"
    )
    (tmp_path / "b").mkdir()
    with running_registry(tmp_path / "b") as second:
        for hosts in ((registry,), (registry, second, registry)):
            names = [f"{each.host}/app{number}:1" for number, each in enumerate(hosts)]
            output = f'type=image,"name={",".join(names)}",push=true'
            other.build(*BOTH, "--provenance=mode=max", "-o", output, context.path).ok()
            index = document(registry, "app0")
            assert len(index["manifests"]) == 4  # two of them attest
            layers = document(registry, "app0", index["manifests"][1]["digest"])["layers"]
            here = {f"sha256:{path.name}" for path in (other.root / "blobs/sha256").iterdir()}
            fetched = here & {layer["digest"] for layer in layers}
            assert len(fetched) == (len(layers) if second in hosts else 0)
        for number, name in enumerate(names):
            third, tree = Cli(tmp_path / f"third{number}", cli.env), tmp_path / f"tree{number}"
            context.dockerfile(f"FROM {name}\n")
            third.build(*BOTH, "-o", tree, context.path).ok()
            assert (tree / "linux_arm64/y").read_text() == "one"
            assert (tree / "linux_amd64/z").read_text() == "one"
