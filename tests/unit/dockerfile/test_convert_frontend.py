"""The frontend as a whole: contexts, images, epochs, warnings, errors, other frontends."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile

import pytest

from boxwright import llb
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.dockerfile import frontend
from boxwright.dockerfile.bridge import FrontendResult, GitMetadata, SourceMetadata
from boxwright.dockerfile.contexts import archive_newest_mtime, is_archive
from boxwright.dockerfile.convert import UnknownStageError
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.lint import LintError
from boxwright.errors import (
    BoxwrightError,
    Code,
    InvalidInputError,
    NotFoundError,
    UnimplementedError,
)
from boxwright.testing.frontend import MemoryBridge, MemoryRef
from boxwright.wire import errdetails
from boxwright.wire.pb import errdefs_pb2
from boxwright.wire.pb import ops_pb2 as pb

BASE = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Env": ["PATH=/bin"]},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
}


def bridge(dockerfile: str, **opts: str) -> MemoryBridge:
    return MemoryBridge(
        opts={key.replace("__", ":"): value for key, value in opts.items()},
        sources={"local://dockerfile": {"Dockerfile": dockerfile.encode()}},
        images={"docker.io/library/alpine:latest": json.dumps(BASE).encode()},
    )


def build(made: MemoryBridge) -> FrontendResult:
    return asyncio.run(frontend.build(made))


def ops(definition: pb.Definition) -> list[pb.Op]:
    return [pb.Op.FromString(data) for data in getattr(definition, "def")]


def sources(definition: pb.Definition) -> dict[str, dict[str, str]]:
    return {
        op.source.identifier: dict(op.source.attrs)
        for op in ops(definition)
        if op.HasField("source")
    }


def names(definition: pb.Definition) -> list[str]:
    found = [definition.metadata[Digest.of(data)] for data in getattr(definition, "def")]
    return [item.description["llb.customname"] for item in found[:-1]]


def source_detail(error: BoxwrightError) -> errdefs_pb2.Source:
    (detail,) = error.__dict__["rpc_details"]
    message = errdetails.unpack(detail)
    assert isinstance(message, errdefs_pb2.Source)
    return message


def test_an_ordinary_build() -> None:
    made = bridge("FROM alpine AS base\nRUN make\n\nFROM scratch\nCOPY --from=base /a /b\n")
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    assert names(result.ref.definition) == [
        f"[base 1/2] FROM docker.io/library/alpine:latest@{digest_of('alpine')}",
        "[base 2/2] RUN make",
        "[stage-1 1/1] COPY --from=base /a /b",
    ]
    config = json.loads(result.metadata["containerimage.config"])
    assert config["history"] == [
        {"created_by": "COPY /a /b # buildkit", "comment": "buildkit.dockerfile.v0"}
    ]
    assert json.loads(result.metadata["refs.platforms"]) == {
        "Platforms": [
            {"ID": str(Platform.host()), "Platform": Platform.host().normalized().to_json()}
        ]
    }


def digest_of(name: str) -> str:
    return str(Digest.of(f"docker.io/library/{name}:latest".encode()))


def test_only_the_needed_paths_of_the_context_are_sent() -> None:
    made = bridge("FROM alpine\nCOPY a b/\nRUN --mount=type=bind,source=c,target=/c x\n")
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    attrs = sources(result.ref.definition)["local://context"]
    assert json.loads(attrs["local.followpaths"]) == ["a", "c"]


def test_stages_that_the_target_does_not_need_are_not_looked_up() -> None:
    made = bridge("FROM nowhere AS a\nRUN x\nFROM alpine\n")
    build(made)
    assert [item[0] for item in made.resolved] == ["docker.io/library/alpine:latest"]


def test_each_image_is_looked_up_once_however_many_platforms_and_stages_use_it() -> None:
    made = bridge(
        "FROM --platform=$BUILDPLATFORM alpine AS a\nFROM alpine\nCOPY --from=a x y\n"
        "COPY --from=alpine x y\n",
        platform="linux/amd64,linux/arm64",
    )
    result = build(made)
    assert sorted(result.refs) == ["linux/amd64", "linux/arm64"]
    assert sorted(item[1] for item in made.resolved) == ["linux/amd64", "linux/arm64"]
    assert {key for key in result.metadata if key.startswith("containerimage.config")} == {
        "containerimage.config/linux/amd64",
        "containerimage.config/linux/arm64",
    }


def test_a_lookup_that_fails_is_not_tried_again() -> None:
    made = bridge("FROM missing AS a\nFROM missing\nCOPY --from=a x y\n")
    with pytest.raises(NotFoundError):
        build(made)
    assert len(made.resolved) == 1


def test_an_unknown_image_is_located_and_near_names_are_offered() -> None:
    with pytest.raises(NotFoundError, match=r"alpnie: .*not found \(did you mean alpine\?\)") as e:
        build(bridge("FROM scratch\n\nFROM alpnie\n"))
    detail = source_detail(e.value)
    assert [item.start.line for item in detail.ranges] == [3]
    assert detail.info.filename == "Dockerfile"
    assert detail.info.data == b"FROM scratch\n\nFROM alpnie\n"
    assert detail.info.HasField("definition")


def test_an_unknown_target_has_its_own_code_and_lists_the_stages() -> None:
    with pytest.raises(UnknownStageError, match="did you mean build") as e:
        build(bridge("FROM scratch AS build\nFROM scratch AS test\n", target="biuld"))
    assert e.value.code is Code.UNKNOWN_STAGE
    assert "build, test" in e.value.hint


def test_errors_carry_their_lines_for_stock_clients_and_for_our_excerpt() -> None:
    with pytest.raises(DockerfileError) as e:
        build(bridge("FROM scratch\nCOPY --chmod=99 a \\\n  b\n"))
    assert [item.start.line for item in source_detail(e.value).ranges] == [2, 3]
    assert ">>> COPY --chmod=99" in e.value.render_excerpt()


def test_a_missing_dockerfile_is_named() -> None:
    made = MemoryBridge(opts={"filename": "sub/Other"})
    with pytest.raises(NotFoundError, match="open sub/Other: no such file"):
        build(made)


def test_a_lower_case_dockerfile_is_found() -> None:
    made = MemoryBridge(sources={"local://dockerfile": {"d/dockerfile": b"FROM scratch\n"}})
    made.opts["filename"] = "d/Dockerfile"
    build(made)


def test_dockerignore_excludes_and_the_one_named_after_the_file_wins() -> None:
    made = bridge("FROM scratch\nCOPY . /\n")
    made.sources["local://context"] = {".dockerignore": b"a\n!b\n"}
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    attrs = sources(result.ref.definition)["local://context"]
    assert json.loads(attrs["local.excludepatterns"]) == ["a", "!b"]
    made.sources["local://dockerfile"]["Dockerfile.dockerignore"] = b"c\n"
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    attrs = sources(result.ref.definition)["local://context"]
    assert json.loads(attrs["local.excludepatterns"]) == ["c"]


def test_warnings_are_shown_once_beside_the_dockerfile() -> None:
    made = bridge("FROM alpine\nWORKDIR rel\n", platform="linux/amd64,linux/arm64")
    build(made)
    relative = [item for item in made.warnings if item.message.startswith("WorkdirRelativePath")]
    (warning,) = relative
    assert warning.message.endswith("(line 2)")
    assert warning.lines == ((2, 2),)
    assert warning.url.endswith("/workdir-relative-path/")
    assert warning.vertex == str(Digest.of(getattr(made.definitions[0], "def")[0]))


def test_warnings_are_shown_even_when_they_end_the_build() -> None:
    made = bridge("# check=error=true\nFROM scratch\nWORKDIR rel\n")
    with pytest.raises(LintError, match="WorkdirRelativePath"):
        build(made)
    assert len(made.warnings) == 1


def test_a_variable_that_must_be_set_is_reported_before_it_ends_the_build() -> None:
    made = bridge("FROM scratch\nENV A=$FIRST B=${SECOND?} C=$THIRD\n")
    with pytest.raises(DockerfileError, match="SECOND: is not allowed to be unset"):
        build(made)
    assert [item.message for item in made.warnings] == [
        f"UndefinedVar: Usage of undefined variable '${name}' (line 2)"
        for name in ("FIRST", "SECOND")
    ]


@pytest.mark.parametrize(
    ("checksum", "said"),
    [
        ("sha256:abc", "invalid checksum digest length"),
        ("sha256:" + "x" * 64, "invalid checksum digest format"),
        ("sha256", "invalid checksum digest format"),
        ("md5:" + "0" * 32, "unsupported digest algorithm"),
    ],
)
def test_a_checksum_that_is_no_digest(checksum: str, said: str) -> None:
    with pytest.raises(DockerfileError, match=f"^{said}$"):
        build(bridge(f"FROM scratch\nADD --checksum={checksum} http://h/a /\n"))


def test_the_build_option_replaces_the_check_directive() -> None:
    made = bridge(
        "# check=error=true\nFROM scratch\nWORKDIR rel\n",
        **{"build-arg__BUILDKIT_DOCKERFILE_CHECK": "skip=WorkdirRelativePath"},
    )
    build(made)
    assert made.warnings == []


@pytest.mark.parametrize(
    "syntax",
    [
        "docker/dockerfile:1",
        "docker.io/docker/dockerfile:1.7-labs",
        f"docker/dockerfile@{digest_of('x')}",
    ],
)
def test_the_official_syntax_is_built_in_and_says_so(syntax: str) -> None:
    made = bridge(f"# syntax={syntax}\nFROM scratch\n")
    build(made)
    (said,) = made.announced
    assert syntax in said
    assert made.forwarded == []


def test_another_syntax_is_handed_on_and_its_refusal_located() -> None:
    made = bridge("\n# syntax=example.com/my/frontend:2 arg\nFROM scratch\n".lstrip())
    with pytest.raises(UnimplementedError) as e:
        build(made)
    assert made.forwarded == ["example.com/my/frontend:2"]
    assert [item.start.line for item in source_detail(e.value).ranges] == [1]


def test_a_frontend_that_was_handed_the_build_does_not_hand_it_on_again() -> None:
    made = bridge("# syntax=example.com/my/frontend:2\nFROM scratch\n", cmdline="x")
    build(made)
    assert made.forwarded == []


def test_the_syntax_argument_wins() -> None:
    made = bridge("FROM scratch\n", **{"build-arg__BUILDKIT_SYNTAX": " other/it --flag"})
    with pytest.raises(UnimplementedError):
        build(made)
    assert made.forwarded == ["other/it"]


def test_an_unknown_frontend_capability_is_refused_in_the_way_clients_expect() -> None:
    with pytest.raises(UnimplementedError) as e:
        build(bridge("FROM scratch\n", **{"frontend.caps": "moby.buildkit.frontend.new"}))
    (detail,) = e.value.__dict__["rpc_details"]
    assert errdetails.unpack(detail) == errdefs_pb2.FrontendCap(name="moby.buildkit.frontend.new")


def test_a_git_context_is_dockerfile_and_context() -> None:
    made = MemoryBridge(opts={"context": "https://h/r.git#v1:sub"})
    made.sources["git://h/r.git#v1:sub"] = {"Dockerfile": b"FROM scratch\nCOPY . /\n"}
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    assert set(sources(result.ref.definition)) == {"git://h/r.git#v1:sub"}
    assert "local://context" not in str(made.definitions)


def tar_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number, (name, data) in enumerate(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1700000000 + number
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_an_archive_from_the_web_is_unpacked_as_context() -> None:
    made = MemoryBridge(opts={"context": "https://h/c.tar", "dockerfilekey": "dockerfile"})
    made.sources["https://h/c.tar"] = {"c": tar_of(a=b"x")}
    made.sources["local://dockerfile"] = {"Dockerfile": b"FROM scratch\nCOPY a /\n"}
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    (unpack, copy) = [op.file.actions[0].copy for op in ops(result.ref.definition)[1:3]]
    assert unpack.attemptUnpackDockerCompatibility
    assert (unpack.src, copy.src) == ("/context", "/a")


def test_a_plain_file_from_the_web_is_the_dockerfile() -> None:
    made = MemoryBridge(opts={"context": "http://h/Dockerfile"})
    made.sources["http://h/Dockerfile"] = {"f": b"FROM scratch\nLABEL a=b\n"}
    result = build(made)
    assert json.loads(result.metadata["containerimage.config"])["config"]["Labels"] == {"a": "b"}


def test_a_sub_directory_of_a_context() -> None:
    made = bridge("FROM scratch\nCOPY a /\n", contextsubdir="d/e")
    made.named_inputs["context"] = llb.git("https://h/r.git").marshal()
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    copies = [op.file.actions[0].copy for op in ops(result.ref.definition) if op.HasField("file")]
    assert [(item.src, item.dirCopyContents) for item in copies] == [("/d/e", True), ("/a", True)]


def test_what_is_an_archive() -> None:
    assert is_archive(b"\x1f\x8b\x08rest")
    assert is_archive(b"BZh9")
    assert is_archive(tar_of(a=b"x")[:1024])
    assert not is_archive(b"FROM scratch\n" * 100)
    assert not is_archive(b"\0" * 1024)
    assert not is_archive(b"")


def test_dates_of_archives() -> None:
    assert archive_newest_mtime(tar_of(a=b"x", b=b"y")) == 1700000001
    assert archive_newest_mtime(b"no archive") is None


@pytest.mark.parametrize(
    ("value", "files", "names_shown"),
    [
        ("docker-image://alpine", None, "[context x] alpine"),
        ("local:dir", None, "[context x] load from client"),
        ("https://h/f", None, "[context x] https://h/f"),
        ("https://h/r.git#v", None, "[internal] load git source https://h/r.git#v"),
        ("git@h:r.git", None, "[internal] load git source git@h:r.git"),
    ],
)
def test_named_contexts(value: str, files: None, names_shown: str) -> None:
    made = bridge("FROM scratch\nCOPY --from=x a b\n", context__x=value)
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    assert names_shown in names(result.ref.definition)


@pytest.mark.parametrize(
    ("identifier", "shown"),
    [
        ("local://dir", "[context x] load from client"),
        ("https://h/f", "[context x] https://h/f"),
        ("git://h/r.git#v", "[internal] load git source git://h/r.git#v"),
    ],
)
def test_a_policy_may_put_any_source_in_place_of_a_context(identifier: str, shown: str) -> None:
    made = bridge("FROM scratch\nCOPY --from=x a b\n", context__x="docker-image://alpine")
    made.replaced["docker.io/library/alpine:latest"] = identifier
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    assert shown in names(result.ref.definition)
    sources = [op.source for op in ops(result.ref.definition) if op.HasField("source")]
    assert [source.identifier.partition("#")[0] for source in sources] == [
        identifier.partition("#")[0]
    ]


def test_only_an_image_may_be_in_place_of_a_base_image() -> None:
    made = bridge("FROM alpine\nCOPY a b\n")
    made.replaced["docker.io/library/alpine:latest"] = "local://dir"
    with pytest.raises(DockerfileError, match="by a source that is none"):
        build(made)


def test_a_named_local_context_sends_what_is_used_of_it() -> None:
    made = bridge(
        "FROM scratch\nCOPY --from=x a b\nCOPY --from=x c/d e/f g/\n", context__x="local:dir"
    )
    made.sources["local://dir"] = {".dockerignore": b"tmp\n"}
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    contexts = [op.source.attrs for op in ops(result.ref.definition) if op.HasField("source")]
    assert sorted(json.loads(attrs["local.followpaths"]) for attrs in contexts) == [
        ["a"],
        ["c/d", "e/f"],
    ]
    assert all(json.loads(attrs["local.excludepatterns"]) == ["tmp"] for attrs in contexts)


def test_a_context_for_one_platform() -> None:
    made = bridge(
        "FROM base\nRUN x\n",
        platform="linux/amd64,linux/arm64",
        **{"context__base::linux/arm64": "docker-image://alpine"},
    )
    made.images["docker.io/library/base:latest"] = json.dumps(BASE).encode()
    build(made)
    assert sorted(item[:2] for item in made.resolved) == [
        ("docker.io/library/alpine:latest", "linux/arm64"),
        ("docker.io/library/base:latest", "linux/amd64"),
    ]


@pytest.mark.parametrize("value", ["nothing", "ftp:x", "input:none", "oci-layout://x:1"])
def test_wrong_named_contexts_are_refused(value: str) -> None:
    with pytest.raises((InvalidInputError, DockerfileError)):
        build(bridge("FROM x\n", context__x=value))


EPOCH = "build-arg__SOURCE_DATE_EPOCH"


@pytest.mark.parametrize("value", ["1700000000", "0"])
def test_an_epoch_dates_history_and_directories(value: str) -> None:
    made = bridge("FROM scratch\nWORKDIR /w\n", **{EPOCH: value})
    result = build(made)
    assert result.metadata["source.date.epoch"].decode() == value
    assert isinstance(result.ref, MemoryRef)
    assert ops(result.ref.definition)[0].file.actions[0].mkdir.timestamp == int(value) * 10**9
    (entry,) = json.loads(result.metadata["containerimage.config"])["history"]
    assert (
        entry["created"]
        == {"1700000000": "2023-11-14T22:13:20Z", "0": "1970-01-01T00:00:00Z"}[value]
    )


def test_an_empty_epoch_is_none() -> None:
    result = build(bridge("FROM scratch\nWORKDIR /w\n", **{EPOCH: ""}))
    assert "source.date.epoch" not in result.metadata


@pytest.mark.parametrize("value", ["tomorrow", "99999999999999"])
def test_wrong_epochs_are_refused(value: str) -> None:
    with pytest.raises(InvalidInputError, match="SOURCE_DATE_EPOCH"):
        build(bridge("FROM scratch\n", **{EPOCH: value}))


COMMIT = b"tree x\nauthor A <a> 5 +0000\ncommitter C <c@d> 1234 +0200\n\ncommitter X <> 9 +0000\n"


def test_the_epoch_of_a_git_context_is_its_commit() -> None:
    made = MemoryBridge(
        opts={"context": "https://h/r.git", "build-arg:SOURCE_DATE_EPOCH": "context"}
    )
    made.sources["git://h/r.git"] = {"Dockerfile": b"FROM scratch\nARG SOURCE_DATE_EPOCH\n"}
    made.metadata["git://h/r.git"] = SourceMetadata(git=GitMetadata(COMMIT))
    result = build(made)
    assert result.metadata["source.date.epoch"] == b"1234"
    history = json.loads(result.metadata["containerimage.config"])["history"]
    assert history[0]["created_by"] == "ARG SOURCE_DATE_EPOCH=1234"


def test_the_epoch_of_a_stage_is_its_download() -> None:
    made = bridge(
        "FROM scratch AS src\nARG V=1\nADD https://h/$V.tar /\nFROM scratch\nWORKDIR /x\n",
        **{EPOCH: "SRC"},
    )
    made.metadata["https://h/1.tar"] = SourceMetadata(http_last_modified_ns=77_900_000_000)
    assert build(made).metadata["source.date.epoch"] == b"77"
    made.metadata.clear()
    made.sources["https://h/1.tar"] = {"f": tar_of(a=b"x")}
    assert build(made).metadata["source.date.epoch"] == b"1700000000"
    made.sources["https://h/1.tar"] = {"f": b"not an archive"}
    assert "source.date.epoch" not in build(made).metadata


@pytest.mark.parametrize(
    "stage",
    [
        "FROM alpine AS src\nADD https://h/x /\n",
        "FROM scratch AS src\n",
        "FROM scratch AS src\nRUN x\n",
        "FROM scratch AS src\nADD https://h/x /\nADD https://h/y /\n",
        "FROM scratch AS src\nADD local /\n",
        "FROM scratch AS src\nADD https://h/x https://h/y /\n",
    ],
)
def test_a_stage_that_is_more_than_one_download_has_no_epoch(stage: str) -> None:
    with pytest.raises(DockerfileError, match="SOURCE_DATE_EPOCH") as e:
        build(bridge(stage + "FROM scratch\n", **{EPOCH: "src"}))
    assert [item.start.line for item in source_detail(e.value).ranges] == [1]


def test_without_merge_a_linked_copy_is_an_ordinary_one() -> None:
    made = bridge("FROM alpine\nCOPY --link a b\n")
    made.llb_caps = frozenset(made.llb_caps - {"mergeop"})
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    assert not any(op.HasField("merge") for op in ops(result.ref.definition))


def test_secrets_shown_in_names_are_masked() -> None:
    made = bridge("FROM alpine\nENV TOK=x\nRUN --mount=type=secret,id=s,env=TOK echo $TOK\n")
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    assert names(result.ref.definition)[-1].endswith("echo ****")


def test_cache_imports_reach_the_solve() -> None:
    made = bridge("FROM scratch\nCOPY a b\n", **{"cache-from": "r/c"})
    build(made)
    assert [item.attrs for item in made.cache_imports] == [{"ref": "r/c"}]


@pytest.mark.parametrize("request_id", ["outline", "targets", "lint", "convertllb"])
def test_subrequests_answer_without_a_build(request_id: str) -> None:
    made = bridge("ARG A=1\nFROM alpine AS t\nARG A\n", requestid=f"frontend.{request_id}")
    result = build(made)
    assert result.ref is None
    assert json.loads(result.metadata["result.json"])
    assert result.metadata["version"]
    assert all("load build" in "".join(names(item)) for item in made.definitions[:1])


def test_lint_reports_an_error_as_part_of_its_answer() -> None:
    result = build(bridge("FROM alpine\nWORKDIR x\nBAD\n", requestid="frontend.lint"))
    answer = json.loads(result.metadata["result.json"])
    assert "unknown instruction: BAD" in answer["buildError"]["message"]
    assert answer["buildError"]["location"]["ranges"][0]["start"] == {"line": 3}
    assert result.metadata["result.statuscode"] == b"1"


def test_an_unknown_subrequest_is_refused_in_the_way_clients_expect() -> None:
    with pytest.raises(UnimplementedError) as e:
        build(bridge("FROM scratch\n", requestid="frontend.new"))
    (detail,) = e.value.__dict__["rpc_details"]
    assert errdetails.unpack(detail) == errdefs_pb2.Subrequest(name="frontend.new")


def test_a_cycle_of_stages_is_refused() -> None:
    with pytest.raises(DockerfileError, match="circular dependency") as e:
        build(
            bridge("FROM scratch AS a\nCOPY --from=b x y\nFROM scratch AS b\nCOPY --from=a x y\n")
        )
    assert [item.start.line for item in e.value.ranges] == [2, 4]


def test_a_very_long_chain_of_stages_needs_no_recursion() -> None:
    lines = ["FROM scratch AS s0"]
    lines += [f"FROM s{number} AS s{number + 1}\nLABEL n={number}" for number in range(1500)]
    result = build(bridge("\n".join(lines)))
    config = json.loads(result.metadata["containerimage.config"])["config"]
    assert config["Labels"] == {"n": "1499"}


def test_triggers_of_an_image_that_is_only_read_from_are_ignored() -> None:
    made = bridge("FROM scratch\nCOPY --from=loop a b\n")
    config = BASE | {"config": {"OnBuild": ["COPY --from=loop a b", "RUN x"]}}
    made.images["docker.io/library/loop:latest"] = json.dumps(config).encode()
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    assert len(made.resolved) == 1
    assert not any(op.HasField("exec") for op in ops(result.ref.definition))


def test_triggers_of_a_base_run_once_and_may_read_other_images() -> None:
    made = bridge("FROM trigger AS a\nRUN own\nFROM a\nRUN last\n")
    config = BASE | {"config": {"OnBuild": ["COPY --from=alpine x y", "RUN trigger"]}}
    made.images["docker.io/library/trigger:latest"] = json.dumps(config).encode()
    result = build(made)
    assert isinstance(result.ref, MemoryRef)
    shown = [name.partition("] ")[2] for name in names(result.ref.definition)]
    assert shown[2:] == [
        "ONBUILD COPY --from=alpine x y",
        "ONBUILD RUN trigger",
        "RUN own",
        "RUN last",
    ]
    assert "OnBuild" not in result.metadata["containerimage.config"].decode()
