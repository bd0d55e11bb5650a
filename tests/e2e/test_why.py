"""What made a step run: one change at a time, then two, and none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gatewayfrontend import write_image_context
from programs import Buildx, Cli, Context, Daemon, Registry

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

DOCKERFILE = """
FROM base
ARG LEVEL=1
ENV COLOUR=red
COPY src /src
RUN cat /src/a > /a
RUN --mount=type=bind,source=bound,target=/bound cat /bound/x > /b
"""
COPY = "[stage-1 1/3] COPY src /src"
RUN = "[stage-1 2/3] RUN cat /src/a > /a"
MOUNT = "[stage-1 3/3] RUN --mount=type=bind,source=bound,target=/bound cat /bound/x > /b"
BASE = "[base 1/1] COPY .base/ /"

Causes = set[tuple[str, str]]


@pytest.fixture
def project(context: Context) -> Context:
    """Steps that depend on one thing each."""
    context.dockerfile(DOCKERFILE)
    context.write("src/a", "a")
    context.write("src/b", "b")
    context.write("bound/x", "x")
    return context


def ask(cli: Cli, *argv: str) -> dict[str, Any]:
    """Return what ``why`` says of the newest build."""
    answer: dict[str, Any] = json.loads(cli("why", "--json", *argv).ok().out)
    return answer


def causes(answer: dict[str, Any]) -> dict[str, Causes]:
    """Return kind and subject of every cause that lies in the step itself, by step."""
    return {
        step["name"]: {
            (cause["kind"], cause.get("subject", ""))
            for cause in step["causes"]
            if "step" not in cause
        }
        for step in answer["steps"]
    }


def inherited(answer: dict[str, Any], step: str) -> set[tuple[str, str]]:
    """Return kind and step of every cause that lies elsewhere."""
    (found,) = [each for each in answer["steps"] if each["name"] == step]
    return {(cause["kind"], cause["step"]) for cause in found["causes"] if "step" in cause}


def cause_of(answer: dict[str, Any], step: str, kind: str) -> dict[str, str]:
    """Return the one cause of a kind that lies in a step."""
    (found,) = [each for each in answer["steps"] if each["name"] == step]
    (cause,) = [c for c in found["causes"] if c["kind"] == kind and "step" not in c]
    return dict(cause)


def after(cli: Cli, project: Context, *flags: str) -> dict[str, Any]:
    """Build once more and return what ``why`` says of it."""
    cli.build(*flags, project.path).ok()
    return ask(cli)


def test_nothing_changed(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    first = ask(cli)
    assert {kind for found in causes(first).values() for kind, _ in found} == {"first"}
    answer = after(cli, project)
    assert answer["steps"] == []
    assert answer["counts"]["ran"] == 0
    assert answer["counts"]["total"] == 4
    assert "nothing changed" in cli("why").ok().out


def test_a_file_changed(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    project.write("src/a", "other")
    answer = after(cli, project)
    assert causes(answer)[COPY] == {("file", "src/a")}
    cause = cause_of(answer, COPY, "file")
    assert cause["detail"] == "content, 1 -> 5 bytes"
    assert cause["old"] != cause["new"]
    assert cause["old"].startswith("sha256:")
    assert inherited(answer, RUN) == {("file", COPY)}
    assert "file src/a: content, 1 -> 5 bytes" in cli("why").ok().out


def test_a_mode_changed(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    project.write("src/b", "b", 0o755)
    answer = after(cli, project)
    assert causes(answer)[COPY] == {("file", "src/b")}
    assert cause_of(answer, COPY, "file")["detail"] == "mode 0644 -> 0755"


def test_dockerignore_changed(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    project.write(".dockerignore", "src/b\n")
    answer = after(cli, project)
    assert causes(answer)[COPY] == {("file", "src/b"), ("dockerignore", "")}
    assert cause_of(answer, COPY, "file")["detail"] == "removed"
    assert cause_of(answer, COPY, "dockerignore")["new"] == "src/b"


def test_a_build_argument_changed(cli: Cli, project: Context) -> None:
    cli.build("--build-arg", "LEVEL=1", project.path).ok()
    answer = after(cli, project, "--build-arg", "LEVEL=2")
    assert causes(answer)[RUN] == {("build-arg", "LEVEL")}
    cause = cause_of(answer, RUN, "build-arg")
    assert (cause["old"], cause["new"]) == ("1", "2")


def test_a_variable_changed(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    text = (project.path / "Dockerfile").read_text()
    project.write("Dockerfile", text.replace("COLOUR=red", "COLOUR=blue"))
    answer = after(cli, project)
    assert causes(answer)[RUN] == {("env", "COLOUR")}
    cause = cause_of(answer, RUN, "env")
    assert (cause["old"], cause["new"]) == ("red", "blue")


def test_a_mounted_file_changed(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    project.write("bound/y", "new")
    answer = after(cli, project)
    assert causes(answer) == {MOUNT: {("file", "bound/y")}}
    assert cause_of(answer, MOUNT, "file")["detail"] == "added"


def test_an_instruction_changed(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    text = (project.path / "Dockerfile").read_text()
    project.write("Dockerfile", text.replace("RUN cat /src/a", "RUN cat /src/b"))
    answer = after(cli, project)
    changed = RUN.replace("/src/a", "/src/b")
    assert causes(answer)[changed] == {("command", "")}
    assert cause_of(answer, changed, "command")["old"] == "cat /src/a > /a"


def test_a_platform_changed(cli: Cli, project: Context) -> None:
    cli.build("--platform", "linux/amd64", project.path).ok()
    answer = after(cli, project, "--platform", "linux/386")
    assert causes(answer)[RUN] == {("platform", "")}
    cause = cause_of(answer, RUN, "platform")
    assert (cause["old"], cause["new"]) == ("linux/amd64", "linux/386")


def test_forced(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    answer = after(cli, project, "--no-cache")
    assert causes(answer) == {name: {("forced", "")} for name in (BASE, COPY, RUN, MOUNT)}


def test_forced_in_one_stage(cli: Cli, project: Context) -> None:
    project.dockerfile(DOCKERFILE.replace("FROM base", "FROM base AS app"))
    cli.build(project.path).ok()
    answer = after(cli, project, "--no-cache-filter", "app")
    assert causes(answer) == {
        name.replace("stage-1", "app"): {("forced", "")} for name in (COPY, RUN, MOUNT)
    }


def test_evicted(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    cli("prune", "--all").ok()
    answer = after(cli, project)
    assert causes(answer) == {name: {("evicted", "")} for name in (BASE, COPY, RUN, MOUNT)}


@pytest.mark.peer("docker-registry")
def test_an_import_is_gone(cli: Cli, project: Context, registry: Registry, tmp_path: Path) -> None:
    ref = f"{registry.host}/cache:x"
    cli.build("--cache-to", f"type=registry,ref={ref},mode=max", project.path).ok()
    other = Cli(tmp_path / "other", cli.env)
    other.build("--cache-from", ref, project.path).ok()
    imported = ask(other)
    assert imported["counts"]["ran"] == 0
    assert imported["counts"]["imported"] > 0
    other("prune", "--all").ok()
    shutil.rmtree(registry.data / "docker/registry/v2/repositories/cache")
    answer = after(other, project, "--cache-from", ref)
    assert causes(answer)[RUN] == {("import", ref), ("evicted", "")}
    assert cause_of(answer, RUN, "import")["detail"]


@pytest.mark.peer("docker-registry")
def test_a_base_image_changed(
    cli: Cli, project: Context, registry: Registry, tmp_path: Path
) -> None:
    base = f"{registry.host}/base:1"
    project.dockerfile("ENV N=1\n")
    cli.build("-t", base, "--push", project.path).ok()
    app = Context(tmp_path / "app")
    app.write("Dockerfile", f"FROM {base}\nRUN echo hello > /hello\n")
    cli.build(app.path).ok()
    project.dockerfile("ENV N=1\nCOPY src /src\n")
    cli.build("-t", base, "--push", project.path).ok()
    answer = after(cli, app)
    (step,) = [each for each in answer["steps"] if "RUN" in each["name"]]
    (cause,) = [each for each in step["causes"] if each["kind"] == "image"]
    assert cause["subject"] == base
    assert cause["old"].startswith("sha256:")
    assert cause["new"].startswith("sha256:")
    assert cause["old"] != cause["new"]


@pytest.mark.peer("docker-registry")
def test_the_frontend_changed(cli: Cli, registry: Registry, tmp_path: Path) -> None:
    image = Context(tmp_path / "image")
    image.path.mkdir()
    write_image_context(image.path)
    name = f"{registry.host}/frontend:v1"
    cli.build("-t", name, "--push", image.path).ok()
    app = Context(tmp_path / "app")
    app.write("Dockerfile", f"# syntax={name}\nthis is no Dockerfile\n")
    app.write("recipe", "flour")
    cli.build(app.path).ok()
    program = (image.path / "root/frontend.py").read_text()
    image.write("root/frontend.py", program.replace("told = {", 'told = {"second": True,'))
    cli.build("-t", name, "--push", image.path).ok()
    answer = after(cli, app)
    found = [
        each for each in answer["steps"] if any(c["kind"] == "frontend" for c in each["causes"])
    ]
    assert found, answer
    cause = next(c for c in found[0]["causes"] if c["kind"] == "frontend")
    assert cause["old"].startswith(f"{name}@sha256:")
    assert cause["new"].startswith(f"{name}@sha256:")
    assert cause["old"] != cause["new"]


def test_two_changes_are_both_named(cli: Cli, project: Context) -> None:
    cli.build("--build-arg", "LEVEL=1", project.path).ok()
    project.write("bound/x", "other")
    project.write("src/a", "other")
    answer = after(cli, project, "--build-arg", "LEVEL=2")
    assert causes(answer)[COPY] == {("file", "src/a")}
    assert causes(answer)[RUN] == {("build-arg", "LEVEL")}
    assert causes(answer)[MOUNT] == {("build-arg", "LEVEL"), ("file", "bound/x")}
    assert inherited(answer, MOUNT) == {("build-arg", RUN), ("file", COPY)}


def test_a_build_that_failed_is_no_measure(cli: Cli, project: Context) -> None:
    """A step is compared with the last build that finished it."""
    cli.build(project.path).ok()
    text = (project.path / "Dockerfile").read_text()
    project.write("src/a", "2")
    project.write("Dockerfile", text.replace("RUN cat /src/a > /a", "RUN false"))
    assert cli.build(project.path).status != 0
    project.write("Dockerfile", text)
    project.write("bound/x", "y")
    answer = after(cli, project)
    assert ("file", "bound/x") in causes(answer)[MOUNT]
    assert ("file", COPY) in inherited(answer, RUN)


def test_a_step_can_be_named(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    project.write("bound/x", "y")
    cli.build(project.path).ok()
    out = cli("why", "latest", "COPY src").ok().out
    assert COPY in out
    assert "did not run" in out
    missing = cli("why", "latest", "no such step")
    assert missing.status == 6
    assert cli("why", "nosuchbuild").status == 6


def test_builds_of_other_projects_are_no_measure(
    cli: Cli, project: Context, tmp_path: Path
) -> None:
    other = Context(tmp_path / "elsewhere")
    shutil.copytree(project.path, other.path, symlinks=True)
    cli.build(project.path).ok()
    other.write("src/a", "elsewhere")
    cli.build(other.path).ok()
    project.write("src/b", "2")
    answer = after(cli, project)
    assert causes(answer)[COPY] == {("file", "src/b")}


@pytest.mark.peer("docker-buildx")
def test_builds_of_stock_clients(buildx: Buildx, project: Context, daemon: Daemon) -> None:
    cli = Cli(daemon.root.parent / "unused", {"BUILDKIT_HOST": daemon.address})
    buildx.build(project.path).ok()
    project.write("src/a", "other")
    shown = buildx.build(project.path).ok()
    answer = ask(cli)
    assert causes(answer)[COPY] == {("file", "src/a")}
    assert "origin" not in shown.text
    buildx.build(project.path).ok()
    assert ask(cli)["counts"]["ran"] == 0


def test_forgotten_with_its_build(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    cli("history", "rm", "--all").ok()
    assert cli("why").status == 6
