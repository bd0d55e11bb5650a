"""Attestations of both daemons say the same, field by field."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from peers import Client, Daemons
from programs import Context, Layout, run

pytestmark = [pytest.mark.reference, pytest.mark.root]

DOCKERFILE = """
FROM base AS one
ARG WORD=default
RUN --mount=type=secret,id=key,required=false --mount=type=ssh,required=false \\
    echo "$WORD" > /word
FROM base
COPY --from=one /word /word
COPY context-file /file
RUN --network=none cat /word
"""
FORMS = {
    "max": "mode=max",
    "min": "mode=min,builder-id=here",
    "max-v02": "mode=max,version=v0.2,reproducible=true",
    "min-v02": "mode=min,version=v0.2",
}
# gzip's bytes, and what follows from the sizes of reads, are each program's own
_VOLATILE = re.compile(
    r"(sha256:)?[0-9a-f]{64}|20\d\d-\d\d-\d\dT[0-9:.]+Z"
    r'|(?<="invocationId": )"\w+"|(?<="buildInvocationID": )"\w+"|(?<="size": )\d+'
)


def statements(archive: Path) -> list[dict[str, Any]]:
    layout = Layout.unpack(archive)
    found = []
    for entry in layout.manifest["manifests"]:
        if entry["platform"]["os"] == "unknown":
            manifest = json.loads(layout.blob(entry["digest"]))
            found += [json.loads(layout.blob(item["digest"])) for item in manifest["layers"]]
    return found


def comparable(statement: dict[str, Any]) -> dict[str, Any]:
    """Return a statement without times, ids, sizes and the version of the Dockerfile language."""
    value = json.loads(json.dumps(statement))
    _sort_mapping(value)
    text = _VOLATILE.sub('"?"', json.dumps(value, sort_keys=True)).replace('""?""', '"?"')
    version = r'"dockerfileVersion": "[^"]*", |, "dockerfileVersion": "[^"]*"'
    found: dict[str, Any] = json.loads(re.sub(version, "", text))
    return found


def _sort_mapping(value: Any) -> None:
    """Digests of vertices name a session: only the steps that they stand for can be compared."""
    if isinstance(value, dict):
        if "digestMapping" in value:
            value["digestMapping"] = sorted(value["digestMapping"].values())
        for item in value.values():
            _sort_mapping(item)
    elif isinstance(value, list):
        for item in value:
            _sort_mapping(item)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_provenance(daemons: Daemons, context: Context, tmp_path: Path, form: str) -> None:
    context.write("context-file", "content")
    context.dockerfile(DOCKERFILE)
    client = Client("upstream", os.environ["BUILDCTL"])
    made = []
    for name, address in (("ours", daemons.ours), ("upstream", daemons.upstream)):
        archive = tmp_path / f"{name}.tar"
        options = [
            *("--opt", "build-arg:WORD=given"),
            *("--opt", "label:shape=round"),
            *("--opt", "filename=Dockerfile"),
            *("--opt", "vcs:source=https://example.org/x.git"),
            *("--opt", f"attest:provenance={FORMS[form]}"),
        ]
        output = f"type=oci,dest={archive},name=app:v1"
        client.build(address, context.path, *options, "--output", output).ok()
        made.append([comparable(item) for item in statements(archive)])
    ours, upstream = (json.dumps(item, indent=1).splitlines() for item in made)
    assert ours == upstream
    assert len(made[0]) == 1


def test_files_beside_a_tree(daemons: Daemons, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM base\nRUN echo 1 > /file\n")
    client = Client("upstream", os.environ["BUILDCTL"])
    made = []
    for name, address in (("ours", daemons.ours), ("upstream", daemons.upstream)):
        folder = tmp_path / name
        options = ["--opt", "attest:provenance=mode=min"]
        output = f"type=local,dest={folder},attestation-prefix=about."
        client.build(address, context.path, *options, "--output", output).ok()
        run(["test", "-s", str(folder / "about.provenance.json")]).ok()
        value = json.loads((folder / "about.provenance.json").read_text())
        made.append((value["subject"], comparable(value)))
    assert made[0] == made[1]
