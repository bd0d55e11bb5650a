"""``boxwright image inspect|copy|create|verify`` with foreign registries and foreign programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import Cli, Context, Registry, find_peer, run

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("crun"),
    pytest.mark.peer("docker-registry"),
]
ATTESTED = ("--provenance", "mode=min", "--sbom", "true")


@pytest.fixture
def pushed(cli: Cli, context: Context, registry: Registry) -> str:
    """The name of an image with two platforms and attestations."""
    context.dockerfile("FROM scratch\nCOPY .base/ /\nLABEL shape=round\n")
    name = f"{registry.host}/team/app:v1"
    cli.build(
        *ATTESTED, "--platform", "linux/amd64,linux/arm64", "-t", name, "--push", context.path
    ).ok()
    return name


def test_what_is_shown_is_what_stock_tools_see(cli: Cli, pushed: str, tmp_path: Path) -> None:
    shown = cli("image", "inspect", pushed).ok().out
    assert shown.count("provenance, sbom") == 2
    value = json.loads(cli("image", "inspect", "--json", pushed).ok().out)
    assert [item["platform"] for item in value["images"]] == ["linux/amd64", "linux/arm64"]
    raw = cli("image", "inspect", "--raw", pushed).ok().out
    skopeo = [find_peer("skopeo"), "inspect", "--tls-verify=false", "--raw", f"docker://{pushed}"]
    assert raw == run(skopeo).ok().out
    image = json.loads(cli("image", "inspect", "--format", "{{json .Image}}", pushed).ok().out)
    assert image["linux/arm64"]["config"]["Labels"] == {"shape": "round"}


def test_copies_are_equal_everywhere(
    cli: Cli, pushed: str, registry: Registry, tmp_path: Path
) -> None:
    layout, other = f"oci:{tmp_path}/layout:v1", f"{registry.host}/other:v2"
    cli("image", "copy", pushed, layout).ok()
    cli("image", "copy", layout, "store:kept:v1").ok()
    cli("image", "copy", "store:kept:v1", other).ok()
    near = f"{registry.host}/near:v1"
    assert cli("image", "copy", pushed, near).ok().out.startswith("copied")
    raws = {
        cli("image", "inspect", "--raw", name).ok().out
        for name in (pushed, layout, "store:kept:v1", other, near)
    }
    assert len(raws) == 1
    for name in (layout, other, near):
        cli("image", "verify", "--require", "provenance", "--require", "sbom", name).ok()
    copied = f"dir:{tmp_path}/dir"
    skopeo = ["skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{other}", copied]
    run(skopeo).ok()


def test_one_platform_and_one_index_again(cli: Cli, pushed: str, registry: Registry) -> None:
    parts = []
    for name in ("amd64", "arm64"):
        parts.append(f"{registry.host}/team/app:{name}")
        cli("image", "copy", "--platform", f"linux/{name}", pushed, parts[-1]).ok()
    made = f"{registry.host}/team/app:all"
    cli("image", "create", "-t", made, "--annotation", "a=b", *parts).ok()
    one, two = (json.loads(cli("image", "inspect", "--raw", n).ok().out) for n in (pushed, made))
    assert one["manifests"] == two["manifests"]
    assert two["annotations"] == {"a": "b"}
    dry = cli("image", "create", "--dry-run", "--annotation", "a=b", *parts).ok().out
    assert json.loads(dry) == two


@pytest.mark.peer("docker-buildx")
def test_stock_buildx_reads_what_was_put_together(
    cli: Cli, pushed: str, registry: Registry, tmp_path: Path
) -> None:
    made = f"{registry.host}/team/app:again"
    cli("image", "create", "-t", made, pushed).ok()
    env = {"BUILDX_CONFIG": str(tmp_path), "HOME": str(tmp_path)}
    argv = [find_peer("docker-buildx"), "imagetools", "inspect", made, "--format"]
    shown = run([*argv, "{{json .Provenance}}"], env=env).ok()
    assert json.loads(shown.out).keys() == {"linux/amd64", "linux/arm64"}


def test_verify_says_what_is_missing(cli: Cli, pushed: str, registry: Registry) -> None:
    raw = cli("image", "inspect", "--raw", pushed).ok().out
    digest = json.loads(raw)["manifests"][1]["digest"]
    named = pushed.removesuffix(":v1") + f"@{digest}"
    manifest = json.loads(cli("image", "inspect", "--raw", named).ok().out)
    lost = manifest["layers"][0]["digest"]
    for blob in registry.data.rglob(f"*/{lost.removeprefix('sha256:')}/*"):
        blob.unlink()
    done = cli("image", "verify", pushed)
    assert done.status != 0
    assert lost in done.err
    missing = cli("image", "verify", f"{registry.host}/nothing:v1")
    assert missing.status == 6
    assert "not found" in missing.err
