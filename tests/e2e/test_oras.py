"""The oras program with our registry: artifacts, what refers to them, copies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import Cli, Context, find_peer, run
from test_registry_peers import our_registry

pytestmark = [pytest.mark.peer("oras")]
SBOM = "application/vnd.example.sbom"

Oras = Callable[..., str]


@pytest.fixture
def oras(tmp_path: Path) -> Oras:
    """Run oras, which must succeed; return what it prints."""
    home = tmp_path / "oras-home"
    home.mkdir()
    program = find_peer("oras")

    def call(*argv: object, status: int = 0) -> str:
        done = run([program, *map(str, argv)], env={"HOME": str(home)}, cwd=tmp_path)
        assert done.status == status, done.text
        return done.out

    return call


def test_an_artifact_and_what_refers_to_it(oras: Oras, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "b.bin").write_bytes(bytes(3_000_000))
    (tmp_path / "s.json").write_text("{}")
    with our_registry(tmp_path / "state") as host:
        name = f"{host}/team/artifact:v1"
        plain = "--plain-http"
        files = ("a.txt:text/plain", "b.bin:application/octet-stream")
        oras("push", plain, name, *files)
        for kind in (SBOM, f"{SBOM}.other"):
            oras("attach", plain, "--artifact-type", kind, name, "s.json:application/json")
        listed = json.loads(oras("discover", plain, "--format", "json", name))["referrers"]
        assert {item["artifactType"] for item in listed} == {SBOM, f"{SBOM}.other"}
        chosen = oras("discover", plain, "--format", "json", "--artifact-type", SBOM, name)
        assert [i["artifactType"] for i in json.loads(chosen)["referrers"]] == [SBOM]

        oras("tag", plain, name, "v2")
        assert oras("repo", "tags", plain, f"{host}/team/artifact").split() == ["v1", "v2"]
        assert "team/artifact" in oras("repo", "ls", plain, host)
        copied = f"{host}/other/artifact:v1"
        oras("cp", "--from-plain-http", "--to-plain-http", "--recursive", name, copied)
        found = json.loads(oras("discover", plain, "--format", "json", copied))["referrers"]
        assert {item["digest"] for item in found} == {item["digest"] for item in listed}
        oras("pull", plain, "-o", tmp_path / "out", copied)
        assert (tmp_path / "out/a.txt").read_text() == "one\n"
        assert (tmp_path / "out/b.bin").read_bytes() == bytes(3_000_000)

        oras("manifest", "delete", plain, "--force", f"{host}/other/artifact:v1")
        oras("manifest", "fetch", plain, copied, status=1)
        oras("manifest", "fetch", plain, name)


@pytest.mark.root
@pytest.mark.peer("crun")
def test_an_image_of_a_build(cli: Cli, context: Context, oras: Oras, tmp_path: Path) -> None:
    context.dockerfile("FROM scratch\nCOPY Dockerfile /\n", base=False)
    with our_registry(tmp_path / "registry") as host:
        name = f"{host}/app:v1"
        output = f"type=image,name={name},push=true,registry.insecure=true"
        cli.build("--output", output, "--attest", "type=provenance", context.path).ok()
        index = json.loads(oras("manifest", "fetch", "--plain-http", name))
        kinds = [entry.get("annotations", {}) for entry in index["manifests"]]
        assert [kind.get("vnd.docker.reference.type") for kind in kinds] == [
            None,
            "attestation-manifest",
        ]
        layout = tmp_path / "layout"
        oras("cp", "--from-plain-http", "--to-oci-layout", name, f"{layout}:v1")
        for path in layout.glob("blobs/sha256/*"):
            assert run(["sha256sum", path]).out.split()[0] == path.name
