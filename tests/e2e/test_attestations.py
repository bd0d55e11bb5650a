"""Attestations of real builds: where they are, what they say, and who can read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from programs import PROGRAM, Buildx, Cli, Context, Daemon, Layout, Registry, find_peer, run

from boxwright._version import DOCKERFILE_VERSION
from boxwright.sandbox import cgroups

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

DOCKERFILE = """
FROM base AS tools
ARG BUILDKIT_SBOM_SCAN_STAGE=true
RUN mkdir -p /lib/apk/db && printf 'P:tool\\nV:1\\n' > /lib/apk/db/installed
FROM base
ARG BUILDKIT_SBOM_SCAN_CONTEXT=true
ARG WORD
RUN --mount=type=secret,id=key,required=false mkdir -p /var/lib/dpkg /etc && \
    echo 'ID=debian' > /etc/os-release && \
    printf 'Package: thing\\nStatus: install ok installed\\nVersion: 2\\n' > /var/lib/dpkg/status
COPY --from=tools /bin/busybox /copy
"""
SPDX = "https://spdx.dev/Document"
SLSA = "https://slsa.dev/provenance/v1"


@pytest.fixture
def project(context: Context) -> Context:
    """A context with packages in several stages."""
    context.dockerfile(DOCKERFILE)
    return context


def attached(layout: Layout) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the attestation manifest of a layout with one image, and its statements."""
    index = layout.manifest
    image, entry = index["manifests"]
    assert entry["platform"] == {"architecture": "unknown", "os": "unknown"}
    assert entry["annotations"] == {
        "vnd.docker.reference.type": "attestation-manifest",
        "vnd.docker.reference.digest": image["digest"],
    }
    manifest = json.loads(layout.blob(entry["digest"]))
    statements = [json.loads(layout.blob(layer["digest"])) for layer in manifest["layers"]]
    for layer, statement in zip(manifest["layers"], statements, strict=True):
        assert layer["mediaType"] == "application/vnd.in-toto+json"
        kind = layer["annotations"]["in-toto.io/predicate-type"]
        assert kind == statement["predicateType"]
    return manifest, statements


def named(predicate: dict[str, Any]) -> set[str]:
    """Return the package URLs in an SPDX document."""
    return {
        item["referenceLocator"]
        for package in predicate["packages"]
        for item in package.get("externalRefs", ())
    }


def test_provenance_and_sbom_in_an_oci_archive(cli: Cli, project: Context, tmp_path: Path) -> None:
    archive = tmp_path / "out.tar"
    cli.build(
        *("--attest", "type=provenance,mode=max", "--sbom", "true"),
        *("--build-arg", "WORD=given"),
        *("-o", f"type=oci,dest={archive},name=app:v1"),
        project.path,
    ).ok()
    manifest, statements = attached(Layout.unpack(archive))
    assert manifest["artifactType"] == "application/vnd.docker.attestation.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    assert [item["predicateType"] for item in statements] == [SPDX, SPDX, SPDX, SLSA]
    core, *extras, provenance = statements
    assert [item["name"] for item in core["subject"]] == [
        "pkg:docker/app@v1?platform=linux%2Famd64"
    ]
    assert named(core["predicate"]) == {"pkg:deb/debian/thing@2?distro=debian"}
    found = {item["predicate"]["name"]: named(item["predicate"]) for item in extras}
    assert found == {"sbom-context": set(), "sbom-tools": {"pkg:apk/alpine/tool@1"}}
    definition = provenance["predicate"]["buildDefinition"]
    request = definition["externalParameters"]["request"]
    assert request["args"] == {"build-arg:WORD": "given"}
    assert request["secrets"] == [{"id": "key", "optional": True}]
    assert [item["name"] for item in request["locals"]] == ["context", "dockerfile"]
    steps = definition["internalParameters"]["buildConfig"]["llbDefinition"]
    layers = provenance["predicate"]["runDetails"]["metadata"]["buildkit_metadata"]["layers"]
    assert set(layers) <= {f"{step['id']}:0" for step in steps}


def test_what_steps_have_used(cli: Cli, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM base\nRUN dd if=/dev/zero of=/dev/null bs=1M count=200\n")
    documents = []
    for flags in ("mode=max,capture-usage=true", "mode=max"):
        archive = tmp_path / f"{len(documents)}.tar"
        attest = ("--attest", f"type=provenance,{flags}", "--no-cache")
        cli.build(*attest, "-o", f"type=oci,dest={archive}", context.path).ok()
        (statement,) = attached(Layout.unpack(archive))[1]
        documents.append(statement["predicate"])
    with_usage, without = documents
    steps = with_usage["buildDefinition"]["internalParameters"]["buildConfig"]["llbDefinition"]
    (used,) = [step["resourceUsage"] for step in steps if "resourceUsage" in step]
    (sample,) = used["samples"]
    if cgroups.mode() != "none":
        assert sample["cpuStat"]["usageNanos"] > 1_000_000
        assert sample["memoryStat"]["peak"] > 1 << 20
    first, last = with_usage["runDetails"]["metadata"]["buildkit_metadata"]["sysUsage"]
    assert first["timestamp"] < last["timestamp"]
    assert first["cpuStat"]["user"] <= last["cpuStat"]["user"]
    assert first["memoryStat"]["total"] == last["memoryStat"]["total"] > 0
    text = json.dumps(without)
    assert "resourceUsage" not in text
    assert "sysUsage" not in text


def test_plain_manifests_version_02_and_inline_only(
    cli: Cli, project: Context, tmp_path: Path
) -> None:
    archive = tmp_path / "out.tar"
    cli.build(
        *("--attest", "type=provenance,mode=min,version=v0.2,builder-id=here"),
        *("-o", f"type=oci,dest={archive},oci-artifact=false"),
        project.path,
    ).ok()
    manifest, (statement,) = attached(Layout.unpack(archive))
    assert "artifactType" not in manifest
    assert manifest["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json"
    assert statement["predicate"]["builder"] == {"id": "here"}
    assert "buildConfig" not in statement["predicate"]
    again = tmp_path / "again.tar"
    cli.build(
        *("--attest", "type=provenance,mode=min,inline-only=true"),
        *("-o", f"type=oci,dest={again}"),
        project.path,
    ).ok()
    assert "layers" in Layout.unpack(again).manifest


def test_attestations_beside_files(cli: Cli, project: Context, tmp_path: Path) -> None:
    flags = ("--provenance", "true", "--sbom", "true")
    out, archive = tmp_path / "out", tmp_path / "out.tar"
    cli.build(*flags, "-o", f"type=local,dest={out},attestation-prefix=about-", project.path).ok()
    statement = json.loads((out / "about-provenance.json").read_text())
    names = {item["name"] for item in statement["subject"]}
    assert {"copy", "bin/busybox", "var/lib/dpkg/status"} <= names
    assert json.loads((out / "about-sbom.spdx.json").read_text())["predicateType"] == SPDX
    cli.build(*flags, "-o", f"type=tar,dest={archive}", project.path).ok()
    listed = run(["tar", "-tf", str(archive)]).ok().out.splitlines()
    assert {"provenance.json", "sbom.spdx.json", "sbom-context.spdx.json", "copy"} <= set(listed)


def test_nothing_is_attached_unless_asked_for(cli: Cli, project: Context, tmp_path: Path) -> None:
    digests = set()
    for number in range(2):
        archive = tmp_path / f"{number}.tar"
        cli.build(
            *("--build-arg", "SOURCE_DATE_EPOCH=1"),
            *("-o", f"type=oci,dest={archive}"),
            project.path,
        ).ok()
        digests.add(Layout.unpack(archive).descriptor["digest"])
    assert len(digests) == 1
    wanted = cli.build("--attest", "type=vex", project.path)
    assert 'unknown attestation type "vex"' in wanted.err


SCANNER = """#!/bin/sh
set -e
for folder in "$BUILDKIT_SCAN_SOURCE" "$BUILDKIT_SCAN_SOURCE_EXTRAS"/*; do
  name=${folder##*/}
  test -e "$folder/bin/busybox" -o "$name" = sbom-context
  echo '{"predicateType": "https://spdx.dev/Document", "subject": [], "predicate": {
    "spdxVersion": "SPDX-2.3", "name": "'$name-$BUILDKIT_SCAN_level'",
    "files": [{"fileName": "/copy"}]}}' > "$BUILDKIT_SCAN_DESTINATION/$name.spdx.json"
done
"""


def scanner_image(cli: Cli, registry: Registry, folder: Path) -> str:
    """Push an image that speaks the protocol of scanners; return its name."""
    scanner = Context(folder)
    scanner.path.mkdir()
    scanner.write("scan", SCANNER, 0o755)
    scanner.dockerfile('FROM base\nCOPY scan /scan\nENTRYPOINT ["/bin/sh", "/scan"]\n')
    name = f"{registry.host}/scanner:v1"
    cli.build("-t", name, "--push", scanner.path).ok()
    return name


@pytest.mark.peer("docker-registry")
def test_a_scanner_image(cli: Cli, project: Context, registry: Registry, tmp_path: Path) -> None:
    name = scanner_image(cli, registry, tmp_path / "scanner")
    archive = tmp_path / "out.tar"
    done = cli.build(
        *("--attest", f"type=sbom,generator={name},level=high"),
        *("-o", f"type=oci,dest={archive}"),
        project.path,
    ).ok()
    assert "generating sbom using" in done.err
    layout = Layout.unpack(archive)
    _, (core, *extras) = attached(layout)
    assert core["predicate"]["name"] == "sbom-high"
    last = json.loads(layout.blob(layout.manifest["manifests"][0]["digest"]))["layers"][-1]
    (file,) = core["predicate"]["files"]
    assert file == {"fileName": "/copy", "comment": f"layerID: {last['digest']}"}
    assert [item["predicate"]["name"] for item in extras] == [
        "sbom-context-high",
        "sbom-tools-high",
    ]


@pytest.mark.parametrize("scanner", ["built-in", "image"])
@pytest.mark.peer("docker-buildx")
@pytest.mark.peer("docker-registry")
def test_both_inspectors_show_what_any_scanner_found(
    cli: Cli, project: Context, registry: Registry, tmp_path: Path, scanner: str
) -> None:
    wanted = "type=sbom"
    if scanner == "image":
        wanted += f",generator={scanner_image(cli, registry, tmp_path / 'scanner')}"
    name = f"{registry.host}/app:v1"
    attest = ("--attest", wanted, "--provenance", "mode=max")
    cli.build(*attest, "-t", name, "--push", project.path).ok()
    env = {"BUILDX_CONFIG": str(tmp_path), "HOME": str(tmp_path)}
    stock = [find_peer("docker-buildx"), "imagetools", "inspect", name, "--format"]
    for field in (".SBOM", ".Provenance"):
        shown = json.loads(
            cli("image", "inspect", "--format", f"{{{{json {field}}}}}", name).ok().out
        )
        assert shown == json.loads(run([*stock, f"{{{{json {field}}}}}"], env=env).ok().out)
        text = json.dumps(shown)
        if field == ".Provenance":
            assert "slsa-definitions" in text
        else:
            assert ("sbom-" if scanner == "image" else "pkg:deb/debian/thing@2") in text


def test_an_administrator_has_documents_say_more(
    cli: Cli, context: Context, tmp_path: Path
) -> None:
    folder, config = tmp_path / "facts", tmp_path / "buildkitd.toml"
    folder.mkdir()
    (folder / "site.json").write_text('{"zone": "north", "numbers": [1, 2]}')
    config.write_text(f'provenanceEnvDir = "{folder}"\n')
    address = f"unix://{tmp_path}/d.sock"
    argv = [PROGRAM, "daemon", "--root", str(cli.root), "--addr", address, "--config", str(config)]
    context.dockerfile("FROM base\n")
    daemon = Daemon(cli.root, address, argv, tmp_path / "log").start()
    try:
        for version in ("v1", "v0.2"):
            archive = tmp_path / f"{version}.tar"
            attest = ("--attest", f"type=provenance,mode=min,version={version}")
            output = ("-o", f"type=oci,dest={archive}")
            built = ("build", "--progress", "plain", *attest, *output, context.path)
            cli("--addr", address, *built).ok()
            (statement,) = attached(Layout.unpack(archive))[1]
            predicate = statement["predicate"]
            if version == "v1":
                said = predicate["buildDefinition"]["internalParameters"]
            else:
                said = predicate["invocation"]["environment"]
            assert (said["zone"], said["numbers"]) == ("north", [1, 2])
            assert said["dockerfileVersion"] == DOCKERFILE_VERSION
    finally:
        daemon.stop()
    (folder / "bad.json").write_text("[]")
    refused = run(argv)
    assert refused.status == 25
    assert f"{folder}/bad.json is not a JSON object" in refused.err


@pytest.mark.peer("docker-buildx")
@pytest.mark.peer("docker-registry")
def test_stock_buildx_attaches_by_default_and_reads_it_back(
    buildx: Buildx, project: Context, registry: Registry, tmp_path: Path
) -> None:
    name = f"{registry.host}/app:v1"
    buildx.build("--sbom", "true", "-t", name, "--push", project.path).ok()

    def shown(field: str) -> str:
        return buildx("imagetools", "inspect", name, "--format", f"{{{{json {field}}}}}").ok().out

    assert "slsa-definitions" in shown(".Provenance")
    assert "pkg:deb/debian/thing@2" in shown(".SBOM")
    folder = tmp_path / "copy"
    source = ["--src-tls-verify=false", f"docker://{name}", f"oci:{folder}"]
    run(["skopeo", "copy", "--all", *source]).ok()
    entries = json.loads((folder / "index.json").read_text())["manifests"]
    index = json.loads(Layout(folder).blob(entries[0]["digest"]))
    assert len(index["manifests"]) == 2


@pytest.mark.peer("docker-buildx")
def test_the_record_of_a_build_has_its_provenance(
    buildx: Buildx, context: Context, tmp_path: Path
) -> None:
    context.dockerfile("FROM base\nARG WORD\nRUN echo $WORD > /file\n")
    metadata = tmp_path / "metadata.json"
    buildx.build(
        *("--build-arg", "WORD=given", "--provenance", "false"),
        *("--metadata-file", metadata, "-o", f"type=local,dest={tmp_path}/out"),
        context.path,
        env={"BUILDX_METADATA_PROVENANCE": "max"},
    ).ok()
    found = json.loads(metadata.read_text())["buildx.build.provenance"]
    assert found["invocation"]["parameters"]["args"] == {"build-arg:WORD": "given"}
    assert len(found["buildConfig"]["llbDefinition"]) == 4
    shown = buildx("history", "inspect", "attachment", "--type", "provenance").ok()
    assert "slsa-definitions" in shown.out
