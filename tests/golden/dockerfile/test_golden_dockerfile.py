"""Dockerfiles and what they become: ops with digests, metadata, configs, warnings, errors.

Each folder beside this file is a case: a ``Dockerfile``, perhaps a ``case.json`` with options
and other sources, and ``expected.json``. The expected files hold our own output, held
against upstream's, op by op, when they were written. ``update_dockerfile.py`` one folder up
writes them anew; a changed digest is a changed cache key of the vertex and wants a reason.
"""

from __future__ import annotations

import asyncio
import base64
import json
from itertools import chain
from pathlib import Path

import pytest
from google.protobuf import json_format

from boxwright.core.digest import Digest
from boxwright.dockerfile import frontend
from boxwright.errors import BoxwrightError
from boxwright.testing.frontend import MemoryBridge, MemoryRef
from boxwright.wire import errdetails
from boxwright.wire.pb import ops_pb2 as pb

HERE = Path(__file__).parent


def case_folders() -> list[Path]:
    return sorted(path.parent for path in HERE.glob("*/Dockerfile"))


def bridge_of(folder: Path) -> MemoryBridge:
    settings = folder / "case.json"
    case = json.loads(settings.read_text()) if settings.exists() else {}
    sources = {
        name: {path: data.encode() for path, data in files.items()}
        for name, files in case.get("sources", {}).items()
    }
    if not any("Dockerfile" in files for files in sources.values()):
        dockerfile = (folder / "Dockerfile").read_bytes()
        name = case.get("dockerfile_in", "local://dockerfile")
        path = case.get("dockerfile_as", "Dockerfile")
        if path:
            sources.setdefault(name, {})[path] = dockerfile
    images = json.loads((HERE / "images.json").read_text())
    return MemoryBridge(
        opts=case.get("opts", {}),
        sources=sources,
        images={name: json.dumps(config).encode() for name, config in images.items()},
        named_inputs={
            name: pb.Definition.FromString(base64.b64decode(data))
            for name, data in case.get("inputs", {}).items()
        },
    )


def describe(definition: pb.Definition) -> list[dict]:
    """One entry for each op, the terminal one included."""
    out = []
    for data in getattr(definition, "def"):
        digest = Digest.of(data)
        entry = {"digest": str(digest), "op": json_format.MessageToDict(pb.Op.FromString(data))}
        metadata = json_format.MessageToDict(definition.metadata[digest])
        metadata["caps"] = sorted(metadata.get("caps", {}))
        metadata.get("progressGroup", {}).pop("id", None)  # random
        entry |= metadata
        lines = [
            [item.start.line, item.end.line]
            for location in definition.Source.locations[digest].locations
            for item in location.ranges
        ]
        if lines:
            entry["lines"] = lines
        out.append(entry)
    return out


def run_case(folder: Path) -> dict:
    bridge = bridge_of(folder)
    out: dict = {}
    try:
        result = asyncio.run(frontend.build(bridge))
    except BoxwrightError as error:
        details = [errdetails.unpack(item) for item in error.__dict__.get("rpc_details", ())]
        lines = [
            [item.start.line, item.end.line]
            for detail in details
            for item in getattr(detail, "ranges", ())
        ]
        out["error"] = {"code": error.code, "text": str(error), "lines": lines}
    else:
        text = {key: value.decode() for key, value in result.metadata.items()}
        if "result.json" in text:
            out["answer"] = json.loads(text.pop("result.json"))
        out["metadata"] = text
        refs = result.refs or {"": result.ref}
        out["results"] = {
            key: describe(ref.definition) if isinstance(ref, MemoryRef) else []
            for key, ref in refs.items()
            if "answer" not in out
        }
    steps = [
        [
            name
            for data in getattr(definition, "def")
            if (name := definition.metadata[Digest.of(data)].description["llb.customname"])
        ]
        for definition in bridge.definitions
    ]
    # platforms are converted side by side, and arrive in any order
    out["steps"] = list(chain.from_iterable(sorted(steps, key=_place)))
    out["resolved"] = sorted(" | ".join(item) for item in bridge.resolved)
    out["warnings"] = [[item.message, *map(list, item.lines)] for item in bridge.warnings]
    return json.loads(json.dumps({key: value for key, value in out.items() if value}))


def _place(names: list[str]) -> list[str]:
    return [] if names and names[0].startswith("[internal]") else names


def update() -> None:
    for folder in case_folders():
        text = json.dumps(run_case(folder), indent=1, ensure_ascii=False, sort_keys=True)
        (folder / "expected.json").write_text(text + "\n")


@pytest.mark.parametrize("folder", case_folders(), ids=lambda folder: folder.name)
def test_conversion_is_as_recorded(folder: Path) -> None:
    assert run_case(folder) == json.loads((folder / "expected.json").read_text())


def test_there_are_cases_for_the_awkward_features() -> None:
    assert len(case_folders()) >= 30
