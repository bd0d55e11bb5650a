"""The linter, subrequests and errors, as our client and a stock client print them."""

from __future__ import annotations

import json

import pytest
from dockerfile_builds import Builder, build, stock_build
from programs import Cli, Context, Registry, buildx, cli, context, daemon, registry, state

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
__all__ = ["build", "buildx", "cli", "context", "daemon", "registry", "state", "stock_build"]

KINDS = ["build", pytest.param("stock_build", marks=pytest.mark.peer("docker-buildx"))]


@pytest.fixture(params=KINDS)
def any_build(request: pytest.FixtureRequest) -> Builder:
    """Our client with the embedded engine, then a stock client with our daemon."""
    return request.getfixturevalue(request.param)


RULES_OF_STAGES = """\
# check=experimental=InvalidDefinitionDescription
ARG V
# InvalidDefinitionDescription: a stage of another name
FROM scratch AS described
copy Dockerfile /
FROM scratch AS twice
MAINTAINER me
FROM scratch as twice
COPY Dockerfile \\

 /
FROM --platform=linux/amd64 scratch AS constant
FROM busybox:${V} AS invalid-default
FROM --platform=$TARGETPLATFORM scratch AS scratch
FROM ${UNDEFINED:-constant} AS Upper
"""
RULES_OF_STEPS = """\
FROM scratch
COPY ignored /
EXPOSE 127.0.0.1:80:80
EXPOSE 80/TcP
CMD run this
CMD ["a"]
ENV old form
ENV API_TOKEN=x
COPY Dockerfile $DIR/
WORKDIR rel
"""
LINES = {
    RULES_OF_STAGES: {
        "InvalidDefinitionDescription": 4,
        "ConsistentInstructionCasing": 5,
        "MaintainerDeprecated": 7,
        "FromAsCasing": 8,
        "DuplicateStageName": 8,
        "NoEmptyContinuation": 11,
        "FromPlatformFlagConstDisallowed": 12,
        "InvalidDefaultArgInFrom": 13,
        "ReservedStageName": 14,
        "RedundantTargetPlatform": 14,
        "StageNameCasing": 15,
        "UndefinedArgInFrom": 15,
    },
    RULES_OF_STEPS: {
        "CopyIgnoredFile": 2,
        "ExposeInvalidFormat": 3,
        "ExposeProtoCasing": 4,
        "JSONArgsRecommended": 5,
        "MultipleInstructionsDisallowed": 5,
        "LegacyKeyValueFormat": 7,
        "SecretsUsedInArgOrEnv": 8,
        "UndefinedVar": 9,
        "WorkdirRelativePath": 10,
    },
}


@pytest.mark.parametrize("text", LINES, ids=["stages", "steps"])
def test_every_rule(any_build: Builder, context: Context, text: str) -> None:
    """Each rule warns with its name, its line and its page."""
    context.write("Dockerfile", text)
    context.write(".dockerignore", "ignored\n")
    context.write("ignored", "")
    found = any_build.client("build", "--call", "check,format=json", context.path)
    warnings = json.loads(found.out)["warnings"]
    lines = {w["ruleName"]: w["location"]["ranges"][0]["start"]["line"] for w in warnings}
    assert lines == LINES[text]
    for warning in warnings:
        page = warning["url"].rstrip("/").rpartition("/")[2]
        assert page.replace("-", "") == warning["ruleName"].lower()
    shown = any_build.client("build", "--check", context.path)
    assert shown.status != 0
    for rule, line in LINES[text].items():
        assert f"WARNING: {rule} - https://docs.docker.com/go/dockerfile/rule/" in shown.out
        assert text.splitlines()[line - 1] in shown.out


def test_every_rule_is_listed() -> None:
    """The rules tried above are all that there are."""
    from boxwright.dockerfile import lint_rules

    known = {r.name for r in vars(lint_rules).values() if isinstance(r, lint_rules.Rule)}
    tried = {name for rules in LINES.values() for name in rules}
    assert known == tried | {"InvalidBaseImagePlatform"}


@pytest.mark.peer("docker-registry")
def test_base_image_of_another_platform(
    any_build: Builder, context: Context, registry: Registry
) -> None:
    """A named context of another platform is meant; a FROM that names an image may not be."""
    name = f"{registry.host}/alien:1"
    context.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")
    output = f"type=image,name={name},push=true"
    # an index, as attestations make one, would have nothing for this platform
    flags = ("--platform", "linux/s390x", "--provenance", "false")
    any_build.client.build(*flags, "--output", output, context.path).ok()
    context.write("Dockerfile", f"FROM {name}\nCOPY Dockerfile /x\n")
    warned = f"InvalidBaseImagePlatform: Base image {name} was pulled with platform"
    assert warned in any_build().run.err
    context.write("Dockerfile", "FROM alien\nCOPY Dockerfile /x\n")
    named = any_build("--build-context", f"alien=docker-image://{name}")
    assert "InvalidBaseImagePlatform" not in named.run.err


def test_rules_are_configured(any_build: Builder, context: Context) -> None:
    text = "FROM scratch as a\nCOPY Dockerfile /\nENV API_TOKEN=x\nWORKDIR rel\n"
    check = any_build.client
    context.write("Dockerfile", text)
    image = any_build()
    for rule in ("FromAsCasing", "SecretsUsedInArgOrEnv", "WorkdirRelativePath"):
        assert rule in image.run.err
    context.write("Dockerfile", f"# check=skip=FromAsCasing,WorkdirRelativePath\n{text}")
    done = check("build", "--check", context.path)
    assert "SecretsUsedInArgOrEnv" in done.out
    assert "FromAsCasing" not in done.out
    context.write("Dockerfile", f"# check=skip=all\n{text}")
    done = check("build", "--check", context.path).ok()
    assert "no warnings found" in done.text
    context.write("Dockerfile", f"# check=skip=FromAsCasing;error=true\n{text}")
    done = any_build.fails()
    assert "lint violation found for rules: SecretsUsedInArgOrEnv" in done.err
    context.write("Dockerfile", text)
    done = any_build.fails("--build-arg", "BUILDKIT_DOCKERFILE_CHECK=error=true")
    assert "lint violation found" in done.err
    any_build("--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all;error=true")


CALLED = """\
# VERSION is where to begin
ARG VERSION=base
# base the first stage
FROM scratch AS base
COPY Dockerfile /
# ship what is shipped
FROM $VERSION AS ship
# WORD is wanted
ARG WORD
RUN --mount=type=secret,id=key,required=true --mount=type=ssh true
"""


def test_subrequests(any_build: Builder, context: Context) -> None:
    context.write("Dockerfile", CALLED)
    call = any_build.client
    outline = call("build", "--call", "outline", context.path).ok().out
    for word in ("TARGET", "ship", "VERSION", "WORD", "SECRET", "key", "SSH", "default"):
        assert word in outline, word
    targets = call("build", "--call", "targets", context.path).ok().out
    assert "ship (default)" in targets
    assert "the first stage" in targets
    described = call("build", "--call", "subrequests.describe", context.path).ok().out
    for name in ("outline", "targets", "subrequests.describe"):
        assert name in described
    outline = call("build", "--call", "outline", "--target", "base", context.path).ok().out
    assert "key" not in outline


def test_subrequests_as_json(any_build: Builder, context: Context) -> None:
    context.write("Dockerfile", CALLED)
    call = any_build.client
    outline = json.loads(call("build", "--call", "outline,format=json", context.path).ok().out)
    assert outline["name"] == "ship"
    assert [arg["name"] for arg in outline["args"]] == ["VERSION", "WORD"]
    targets = json.loads(call("build", "--call", "targets,format=json", context.path).ok().out)
    assert [target["name"] for target in targets["targets"]] == ["base", "ship"]
    assert targets["targets"][1]["default"] is True
    done = call("build", "--call", "check,format=json", context.path)
    assert not json.loads(done.out)["warnings"]


def test_convertllb(cli: Cli, context: Context) -> None:
    context.write("Dockerfile", "FROM scratch\nCOPY Dockerfile /x\n")
    done = cli("build", "--call", "frontend.convertllb", context.path).ok()
    text = done.out[done.out.index("{") :]
    answer = json.JSONDecoder().raw_decode(text)[0]
    assert "def" in answer
    assert "COPY Dockerfile /x" in text


ERRORS = {
    "unknown instruction": (
        "FROM scratch\nCPOY a b\n",
        "unknown instruction: CPOY (did you mean COPY?)",
        2,
    ),
    "unknown stage": (
        "FROM scratch AS build\nFROM scratch\nCOPY --from=biuld /a /b\n",
        "biuld",
        3,
    ),
    "empty": ("", "the Dockerfile cannot be empty", 0),
    "only comments": ("# nothing\n", "file with no instructions", 0),
    "no stage": ("RUN true\n", "no build stage in current context", 1),
    "heredoc": ("FROM scratch\nCOPY <<EOF /x\nnever ends\n", "unterminated heredoc", 2),
    "expansion": ("FROM scratch\nENV A=${B?is needed}\n", "is needed", 2),
    "quotes": ("FROM scratch\nENV A='x\n", "unexpected end of statement", 2),
    "cycle": (
        "FROM scratch AS a\nCOPY --from=b /x /x\nFROM scratch AS b\nCOPY --from=a /x /x\n",
        "circular dependency",
        2,
    ),
    "platform": ("FROM --platform=nosuch/os/x/y/z scratch\nCOPY Dockerfile /\n", "nosuch", 1),
    "arguments": ("FROM scratch\nWORKDIR\n", "WORKDIR requires exactly one argument", 2),
    "health": ("FROM scratch\nHEALTHCHECK --interval=soon CMD x\n", "soon", 2),
    "signal": ("FROM scratch\nSTOPSIGNAL LOUD\n", "LOUD", 2),
    "label": ("FROM scratch\nLABEL x\n", "LABEL", 2),
}


def test_errors_name_the_place(any_build: Builder, context: Context) -> None:
    for name, (text, said, line) in ERRORS.items():
        context.write("Dockerfile", text)
        done = any_build.fails()
        assert said in done.err, name
        if line:
            assert f"Dockerfile:{line}" in done.err, (name, done.err)
            shown = next(row for row in done.err.splitlines() if ">>>" in row)
            assert text.splitlines()[line - 1] in shown, name


def test_columns_of_errors(build: Builder, context: Context) -> None:
    context.write("Dockerfile", "FROM scratch\nCOPY --form=x a b\n")
    done = build.fails()
    assert "Dockerfile:2:6" in done.err
    assert "^^^" in done.err
    assert "did you mean from?" in done.err


def test_errors_of_steps_show_the_dockerfile(any_build: Builder, context: Context) -> None:
    context.dockerfile("FROM base\nRUN echo said && \\\n  exit 3\nRUN true\n")
    done = any_build.fails()
    assert "exit code: 3" in done.err
    assert "said" in done.err
    assert ">>> RUN echo said && \\" in done.err
    assert ">>>   exit 3" in done.err
