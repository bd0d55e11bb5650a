"""Provenance documents: what goes in, and what stays out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from boxwright._version import DOCKERFILE_VERSION
from boxwright.core import gojson
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.engine.llbjson import build_steps, to_json
from boxwright.engine.predicate import (
    IncompleteMaterialsError,
    Invocation,
    Predicate,
    ProvenanceOptions,
)
from boxwright.engine.provenance import (
    Capture,
    ImageMaterial,
    RequestRecords,
    filter_options,
    redact,
    request_record,
)
from boxwright.errors import InvalidInputError
from boxwright.llb.source_op import image, local
from boxwright.ops.execop import StepUsage
from boxwright.wire.pb import ops_pb2 as pb

DIGEST = "sha256:" + "a" * 64
COMMIT = "b" * 40
RUN = Invocation("some-id", 1_600_000_000_500_000_000, 1_600_000_001_000_000_000)
AMD64 = Platform("linux", "amd64")


def captured(**options: str) -> Capture:
    found = Capture(request={"frontend": "dockerfile.v0", "args": filter_options(options)})
    found.add_image(ImageMaterial("docker.io/library/alpine:3", AMD64, DIGEST))
    found.add_image(ImageMaterial(f"docker.io/library/alpine:3@{DIGEST}", AMD64, DIGEST))
    found.git["https://example.org/a.git#main"] = COMMIT
    found.http["https://example.org/x"] = DIGEST
    found.add_secret("key", optional=True)
    found.add_secret("key", optional=False)
    found.add_ssh("", optional=True)
    found.finish()
    return found


def document(found: Capture, version: str = "v1", **attributes: str) -> dict[str, Any]:
    options = ProvenanceOptions.parse({"version": version, **attributes})
    made = Predicate.make(found, options, pb.Definition()).to_json(version, RUN)
    return json.loads(gojson.encode(made))


def test_both_versions_say_the_same() -> None:
    found = captured(
        **{"build-arg:A": "1", "filename": "D", "vcs:source": "u", "vcs:revision": ""}
    )
    one = document(found, mode="min", **{"builder-id": "me"})
    two = document(captured(filename="D"), "v0.2", mode="min")
    definition, details = one["buildDefinition"], one["runDetails"]
    assert (
        definition["resolvedDependencies"]
        == two["materials"]
        == [
            {"uri": "pkg:docker/alpine@3?platform=linux%2Famd64", "digest": {"sha256": "a" * 64}},
            {"uri": "https://example.org/a.git#main", "digest": {"sha1": COMMIT}},
            {"uri": "https://example.org/x", "digest": {"sha256": "a" * 64}},
        ]
    )
    assert definition["externalParameters"]["configSource"] == {"path": "D"}
    assert two["invocation"]["configSource"] == {"entryPoint": "D"}
    assert details["builder"] == {"id": "me"}
    metadata = details["metadata"]
    assert metadata["startedOn"] == "2020-09-13T12:26:40.5Z"
    assert two["metadata"]["buildFinishedOn"] == "2020-09-13T12:26:41Z"
    assert metadata["buildkit_metadata"] == {"vcs": {"source": "u"}}
    assert metadata["buildkit_completeness"] == {"request": False, "resolvedDependencies": True}
    assert two["metadata"]["completeness"]["parameters"] is True
    assert metadata["buildkit_hermetic"] is True


def test_blobs_and_bundles_are_named_by_what_they_are() -> None:
    digest, repository = f"sha256:{'1' * 64}", "https://example.com/app.git"
    escaped = "https:%2F%2Fexample.com%2Fapp.git%23main"
    found = Capture(
        blobs={(f"example.com/team/app@{digest}", False): digest, (f"a/b@{digest}", True): digest},
        git={f"{repository}#main": "2" * 40},
        bundles={(f"{repository}#main", f"docker-image+blob://example.com/b@{digest}"): None},
    )
    made = Predicate.make(found, ProvenanceOptions(), pb.Definition())
    materials = made.to_json("v1", RUN)["buildDefinition"]["resolvedDependencies"]
    assert [item["uri"] for item in materials] == [
        f"pkg:docker/example.com/team/app?digest={digest}&ref_type=blob",
        f"pkg:oci/a/b?digest={digest}&ref_type=blob",
        f"{repository}#main",
        f"pkg:docker/example.com/b?digest={digest}&ref_type=bundle&vcs_url={escaped}",
    ]
    assert [item["digest"] for item in materials] == [
        {"sha256": "1" * 64},
        {"sha256": "1" * 64},
        {"sha1": "2" * 40},
        {"sha256": "1" * 64},
    ]


def test_min_leaves_out_what_may_be_private() -> None:
    options = {"build-arg:TOKEN": "hunter2", "label:x": "y", "target": "t"}
    found = captured(**options, **{"input-metadata:base": "hunter2"})
    found.request["root"] = request_record("", {"build-arg:TOKEN": "hunter2"}, found)
    made = document(found, mode="min")
    text = json.dumps(made)
    assert "hunter2" not in text
    request = made["buildDefinition"]["externalParameters"]["request"]
    assert request["args"] == {"target": "t", "input-metadata:base": ""}
    completeness = made["runDetails"]["metadata"]["buildkit_completeness"]
    assert completeness["request"] is False
    assert "key" not in text
    full = document(found)["buildDefinition"]["externalParameters"]["request"]
    assert full["args"] == {**options, "input-metadata:base": "hunter2"}
    assert full["secrets"] == [{"id": "key"}]
    assert full["ssh"] == [{"id": "default", "optional": True}]
    assert full["root"]["request"]["args"] == {"build-arg:TOKEN": "hunter2"}


def test_logins_in_urls_are_masked_in_every_request() -> None:
    url = "https://user:hunter2@example.org/a.git"
    options = {"context": url, "context:base": url, "vcs:source": url, "target": "t"}
    assert "hunter2" not in json.dumps(filter_options(options))
    assert filter_options(options)["target"] == "t"


def test_a_context_in_git_is_the_config_source() -> None:
    options = {"context": "https://u:p@example.org/a.git#main:sub", "attest:sbom": ""}
    found = captured(**options)
    source = document(found, mode="min")["buildDefinition"]["externalParameters"]["configSource"]
    assert source == {"uri": "https://xxxxx:xxxxx@example.org/a.git#main:sub"}
    found = captured(context="https://example.org/a.git#main:sub")
    source = document(found, mode="min")["buildDefinition"]["externalParameters"]["configSource"]
    assert source == {
        "uri": "https://example.org/a.git#main:sub",
        "digest": {"sha1": COMMIT},
    }


def test_folders_and_nested_builds_make_materials_incomplete() -> None:
    for change in ("local", "incomplete"):
        found = captured()
        if change == "local":
            found.local["context"] = None
        else:
            found.incomplete = True
        made = document(found)["runDetails"]["metadata"]["buildkit_completeness"]
        assert made["resolvedDependencies"] is False
        with pytest.raises(IncompleteMaterialsError):
            document(found, **{"complete-materials": "true"})


@pytest.mark.parametrize(
    "attributes",
    [{"version": "v2"}, {"mode": "some"}, {"reproducible": "maybe"}],
    ids=lambda item: next(iter(item)),
)
def test_malformed_attributes(attributes: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError):
        ProvenanceOptions.parse(attributes)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("https://user:password@host.tld/this:that", "https://xxxxx:xxxxx@host.tld/this:that"),
        ("https://user@host.tld/this:that", "https://xxxxx@host.tld/this:that"),
        ("https://:password@host.tld/this:that", "https://:xxxxx@host.tld/this:that"),
        ("https://host.tld/this:that", "https://host.tld/this:that"),
        ("git@github.com:a/b.git", "git@github.com:a/b.git"),
        ("http://[::1", "http://[::1"),
    ],
)
def test_redact(url: str, masked: str) -> None:
    assert redact(url) == masked


def test_steps_come_inputs_first_and_name_no_session() -> None:
    base = image("alpine", platform=AMD64)
    state = base.copy(local("ctx", session_id="secret", platform=AMD64), "/a", "/b")
    definition = state.marshal(AMD64)
    made = build_steps(definition)
    assert [step["id"] for step in made.steps] == ["step0", "step1", "step2", "step3"]
    assert made.steps[2]["inputs"] == ["step0:0", "step1:0"]
    assert "secret" not in json.dumps(made.steps)
    assert made.steps[3]["op"] == {"Op": {}}
    assert set(made.mapping().values()) == {"step0", "step1", "step2", "step3"}
    assert build_steps(None).steps == []


def test_ops_as_json() -> None:
    op = pb.Op()
    op.file.actions.add(input=0, secondaryInput=1, output=-1).copy.src = "/x"
    op.file.actions[0].copy.owner.user.byID = 7
    op.platform.OS = "linux"
    assert to_json(op) == {
        "Op": {
            "file": {
                "actions": [
                    {
                        "input": 0,
                        "secondaryInput": 1,
                        "output": -1,
                        "Action": {
                            "copy": {"src": "/x", "owner": {"user": {"User": {"byId": 7}}}}
                        },
                    }
                ]
            }
        },
        "platform": {"OS": "linux"},
    }


def test_requests_of_inputs_are_found_while_their_build_lasts() -> None:
    records = RequestRecords()
    definition = image("alpine").marshal(AMD64)
    record = {"configSource": {}, "request": {"frontend": "f", "root": {"x": 1}}}
    records.add("one", definition, record)
    assert records.find(definition) == {"configSource": {}, "request": {"frontend": "f"}}
    records.add("two", definition, {"configSource": {}, "request": {"frontend": "other"}})
    assert records.find(definition) is None
    records.forget("two")
    records.forget("one")
    assert records.find(definition) is None
    assert records.find(pb.Definition()) is None


@pytest.mark.parametrize("version", ["v1", "v0.2"])
def test_the_builder_says_what_it_is(version: str) -> None:
    options = ProvenanceOptions.parse({"version": version})

    def told(found: Capture, **facts: Any) -> dict[str, Any]:
        predicate = Predicate.make(found, options, pb.Definition())
        predicate.builder_facts = facts
        made = predicate.to_json(version, RUN)
        if version == "v1":
            return made["buildDefinition"]["internalParameters"]
        return made["invocation"]["environment"]

    known = told(captured(), zone="a", numbers=[1])
    known.pop("buildConfig", None)
    names = {"v1": "builderPlatform", "v0.2": "platform"}
    assert list(known) == sorted([names[version], "dockerfileVersion", "numbers", "zone"])
    assert known["dockerfileVersion"] == DOCKERFILE_VERSION
    assert (known["zone"], known["numbers"]) == ("a", [1])
    assert "dockerfileVersion" not in told(Capture(request={"frontend": "gateway.v0"}))
    assert "dockerfileVersion" not in told(Capture())


def test_what_steps_have_used_is_told_if_asked_for() -> None:
    definition = image("docker.io/library/alpine:3").run(["true"]).root.marshal()
    digest = str(Digest.of(getattr(definition, "def")[1]))
    found = captured()
    found.usage[digest] = StepUsage(1_600_000_000_000_000_000, 250, 4096)
    found.usage["sha256:other"] = StepUsage(1, 1, 1)

    def steps(**attributes: str) -> list[dict[str, Any]]:
        options = ProvenanceOptions.parse(attributes)
        made = Predicate.make(found, options, definition).to_json("v1", RUN)
        config = made["buildDefinition"]["internalParameters"].get("buildConfig") or {}
        return [each for each in config.get("llbDefinition", ()) if "resourceUsage" in each]

    (told,) = steps(**{"capture-usage": "true"})
    assert "exec" in json.dumps(told["op"])
    assert told["resourceUsage"] == {
        "samples": [
            {
                "timestamp": "2020-09-13T12:26:40Z",
                "cpuStat": {"usageNanos": 250_000},
                "memoryStat": {"peak": 4096},
            }
        ]
    }
    assert steps() == []
    assert steps(mode="min", **{"capture-usage": "true"}) == []
