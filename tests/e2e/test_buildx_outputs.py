"""Stock docker-buildx pushes through our daemon, with every attribute of an image output."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from programs import Buildx, Context, Registry, run

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("crun"),
    pytest.mark.peer("docker-buildx"),
    pytest.mark.peer("docker-registry"),
    pytest.mark.peer("skopeo"),
]

OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"
EPOCH = 1_700_000_000
DOCKERFILE = "FROM scratch\nARG TARGETARCH\nCOPY f /f-$TARGETARCH\nLABEL l=m\n"
Look = Callable[["Pushed"], object]


class Pushed:
    """An image in the registry, read by skopeo."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._skopeo = ("skopeo", "inspect", "--tls-verify=false")

    def raw(self, reference: str = "") -> dict[str, Any]:
        """The root, or another manifest of the repository by digest."""
        repository = re.sub(r":[^:/]+$|@.*$", "", self.name)
        name = f"{repository}@{reference}" if reference else self.name
        return json.loads(run([*self._skopeo, "--raw", f"docker://{name}"]).ok().out)

    @property
    def images(self) -> list[dict[str, Any]]:
        """The manifests of an index that are images."""
        found = [
            each
            for each in self.raw()["manifests"]
            if each.get("annotations", {}).get("vnd.docker.reference.type") is None
        ]
        return [self.raw(each["digest"]) for each in found]

    @property
    def config(self) -> dict[str, Any]:
        """The config of the machine's own platform."""
        argv = [*self._skopeo, "--config", f"docker://{self.name}"]
        return json.loads(run(argv).ok().out)

    def layer_types(self) -> set[str]:
        """The media types of its layers."""
        return {each["mediaType"].rpartition(".")[2] for each in self.raw()["layers"]}


CASES: dict[str, tuple[str, tuple[str, ...], Look, object]] = {
    "plain": ("", (), lambda p: p.raw()["mediaType"], f"{OCI}.manifest.v1+json"),
    "zstd": ("compression=zstd", (), lambda p: p.layer_types(), {"tar+zstd"}),
    "zstd-level": (
        "compression=zstd,compression-level=9,force-compression=true",
        (),
        lambda p: p.layer_types(),
        {"tar+zstd"},
    ),
    "uncompressed": ("compression=uncompressed", (), lambda p: p.layer_types(), {"tar"}),
    "estargz": (
        "compression=estargz,oci-mediatypes=true",
        (),
        lambda p: {
            key for key in p.raw()["layers"][0]["annotations"] if key.startswith("containerd.io")
        },
        {"containerd.io/snapshot/stargz/toc.digest"},
    ),
    "docker-types": (
        "oci-mediatypes=false",
        (),
        lambda p: p.raw()["mediaType"],
        f"{DOCKER}.distribution.manifest.v2+json",
    ),
    "two-platforms": (
        "",
        ("--platform", "linux/amd64,linux/arm64"),
        lambda p: (p.raw()["mediaType"], len(p.images)),
        (f"{OCI}.index.v1+json", 2),
    ),
    "annotations": (
        "annotation.a=1,annotation-index.b=2,annotation-manifest[linux/arm64].c=3",
        ("--platform", "linux/amd64,linux/arm64"),
        lambda p: (p.raw().get("annotations"), [each.get("annotations") for each in p.images]),
        ({"b": "2"}, [{"a": "1"}, {"a": "1", "c": "3"}]),
    ),
    "descriptor-annotations": (
        "annotation-manifest-descriptor.d=4",
        ("--platform", "linux/amd64,linux/arm64"),
        lambda p: {each["annotations"]["d"] for each in p.raw()["manifests"]},
        {"4"},
    ),
    "annotation-flag": (
        "",
        ("--annotation", "manifest:a=1"),
        lambda p: p.raw()["annotations"],
        {"a": "1"},
    ),
    "epoch": (
        f"source-date-epoch={EPOCH},rewrite-timestamp=true",
        (),
        lambda p: p.config["created"],
        "2023-11-14T22:13:20Z",
    ),
    "attested": (
        "",
        ("--provenance", "mode=max", "--sbom", "false"),
        lambda p: len(p.raw()["manifests"]),
        2,
    ),
    "attested-as-image": (
        "oci-artifact=false",
        ("--provenance", "mode=min"),
        lambda p: p.raw(p.raw()["manifests"][1]["digest"])["config"]["mediaType"],
        f"{OCI}.config.v1+json",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_an_attribute_arrives(
    buildx: Buildx, context: Context, registry: Registry, tmp_path: Path, name: str
) -> None:
    attributes, flags, look, expected = CASES[name]
    context.write("f", "text " * 1000)
    context.dockerfile(DOCKERFILE, base=False)
    image = f"{registry.host}/team/{name}:v1"
    output = f"type=registry,name={image}" + (f",{attributes}" if attributes else "")
    if "--provenance" not in flags:
        flags = (*flags, "--provenance", "false")
    meta = tmp_path / "meta.json"
    buildx.build("--output", output, "--metadata-file", meta, *flags, context.path).ok()
    found = Pushed(image)
    assert look(found) == expected
    shown = run(["skopeo", "inspect", "--tls-verify=false", f"docker://{image}"]).ok().out
    assert json.loads(shown)["Digest"] == json.loads(meta.read_text())["containerimage.digest"]


def test_by_digest_and_put_together(
    buildx: Buildx, context: Context, registry: Registry, tmp_path: Path
) -> None:
    context.write("f", "text")
    context.dockerfile(DOCKERFILE, base=False)
    repository = f"{registry.host}/team/by-digest"
    digests = []
    for platform in ("linux/amd64", "linux/arm64"):
        meta = tmp_path / "meta.json"
        output = f"type=image,name={repository},push=true,push-by-digest=true,name-canonical=true"
        argv = ("--platform", platform, "--provenance", "false", "--output", output)
        buildx.build(*argv, "--metadata-file", meta, context.path).ok()
        digests.append(json.loads(meta.read_text())["containerimage.digest"])
    listed = run(["skopeo", "list-tags", "--tls-verify=false", f"docker://{repository}"])
    assert listed.status != 0 or json.loads(listed.out)["Tags"] == []
    parts = [f"{repository}@{digest}" for digest in digests]
    buildx("imagetools", "create", "-t", f"{repository}:v1", *parts).ok()
    found = Pushed(f"{repository}:v1").raw()["manifests"]
    assert [each["digest"] for each in found] == digests


def test_several_names_and_outputs_at_once(
    buildx: Buildx, context: Context, registry: Registry, tmp_path: Path
) -> None:
    context.write("f", "text")
    context.dockerfile(DOCKERFILE, base=False)
    names = [f"{registry.host}/team/one:v1", f"{registry.host}/two:v2"]
    tags = [item for name in names for item in ("-t", name)]
    buildx.build(
        *(*tags, "--push", "--provenance", "false"),
        *("-o", f"type=local,dest={tmp_path}/tree", "-o", f"type=tar,dest={tmp_path}/out.tar"),
        context.path,
    ).ok()
    assert Pushed(names[0]).raw() == Pushed(names[1]).raw()
    assert list((tmp_path / "tree").glob("f-*"))
    assert "f-" in run(["tar", "-tf", str(tmp_path / "out.tar")]).ok().out
