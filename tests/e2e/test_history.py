"""Builds that are over: as our commands and stock programs show them."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from programs import (
    PROGRAM,
    Buildx,
    Cli,
    Context,
    Daemon,
    Run,
    buildx,
    cli,
    context,
    daemon,
    run,
    state,
)

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
__all__ = ["buildx", "cli", "context", "daemon", "state"]


class Buildctl:
    """Our program under the name buildctl, with one daemon."""

    def __init__(self, folder: Path, address: str) -> None:
        self._program = folder / "buildctl"
        self._program.symlink_to(PROGRAM)
        self._address = address

    def __call__(self, *argv: str) -> Run:
        return run([str(self._program), "--addr", self._address, *argv])


@pytest.fixture
def buildctl(daemon: Daemon, tmp_path: Path) -> Buildctl:
    return Buildctl(tmp_path, daemon.address)


def built(buildctl: Buildctl, context: Context, word: str, tmp_path: Path) -> str:
    """Build something that says ``word``; return the build's ref."""
    context.dockerfile(f"FROM base\nRUN echo {word}\n")
    where = ("--local", f"context={context.path}", "--local", f"dockerfile={context.path}")
    ref, trace = tmp_path / f"{word}.ref", tmp_path / f"{word}.trace"
    flags = ("--ref-file", str(ref), "--trace", str(trace), "--progress", "plain")
    buildctl("build", "--frontend", "dockerfile.v0", *where, *flags).ok()
    vertexes = [
        vertex["name"]
        for line in trace.read_text().splitlines()
        for vertex in json.loads(line).get("vertexes", ())
    ]
    assert f"[stage-1 1/1] RUN echo {word}" in vertexes
    return ref.read_text()


def rows(text: str) -> list[list[str]]:
    return [re.split(r"\t+", line) for line in text.splitlines()]


def test_records_are_listed_shown_pinned_and_removed(
    buildctl: Buildctl, context: Context, tmp_path: Path
) -> None:
    first = built(buildctl, context, "one", tmp_path)
    second = built(buildctl, context, "two", tmp_path)
    head, *listed = rows(buildctl("debug", "histories").ok().out)
    assert head == ["TYPE", "REF", "CREATED", "COMPLETED", "GENERATION", "PINNED"]
    assert {row[1] for row in listed} == {first, second}
    assert {row[0] for row in listed} == {"COMPLETE"}

    replayed = buildctl("debug", "logs", "--progress", "plain", first).ok().out
    assert re.search(r"^#\d+ [\d.]+ one$", replayed, re.MULTILINE)
    assert "two" not in replayed

    lines = buildctl("debug", "histories", "--format", "{{json .}}").ok().out.splitlines()
    records = {event["record"]["Ref"]: event["record"] for event in map(json.loads, lines)}
    stored = buildctl("debug", "get", records[first]["logs"]["digest"]).ok()
    assert "[stage-1 1/1] RUN echo one" in stored.out

    buildctl("debug", "ctl", "--pin", first).ok()
    pinned = {row[1]: row[5:] for row in rows(buildctl("debug", "histories").ok().out)[1:]}
    assert pinned[first] == ["*"]
    removed = rows(buildctl("prune-histories").ok().out)
    assert [row[1] for row in removed[1:]] == [second]
    buildctl("debug", "ctl", "--unpin", first).ok()
    buildctl("debug", "ctl", "--delete", first).ok()
    assert rows(buildctl("debug", "histories").ok().out)[1:] == []


def test_a_daemon_that_stops_right_after_builds_keeps_their_records(
    buildctl: Buildctl, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    refs = set()
    for word in ("one", "two", "three"):
        refs.add(built(buildctl, context, word, tmp_path))
        assert daemon.stop() == 0  # the client has its answer, the record may still be written
        daemon.start()
    lines = buildctl("debug", "histories", "--format", "{{json .}}").ok().out.splitlines()
    records = [event["record"] for event in map(json.loads, lines)]
    assert {record["Ref"] for record in records} == refs
    for record in records:
        (document,) = record["Result"]["Attestations"]
        told = buildctl("debug", "get", document["digest"]).ok().out
        assert "llbDefinition" in told
        assert "sysUsage" in told


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("debug", "logs"), "build ref must be specified"),
        (("debug", "get"), "blob digest must be specified"),
        (("debug", "ctl", "x"), "must specify one of --pin, --unpin, --delete"),
        (("debug", "ctl", "--pin", "--unpin", "x"), "cannot specify both --pin and --unpin"),
        (("debug", "ctl", "--pin", "--delete", "x"), "cannot specify --delete"),
        (("debug", "logs", "nothing"), "nothing"),
        (("debug", "logs", "--trace", "nothing"), "ref nothing not found"),
        (("debug", "get", "sha256:" + "0" * 64), "0" * 64),
        (("debug", "get", "sha1"), "sha1"),
    ],
)
def test_what_is_not_there_is_said(buildctl: Buildctl, argv: tuple[str, ...], said: str) -> None:
    done = buildctl(*argv)
    assert done.status != 0
    assert said in done.err
    assert "Traceback" not in done.err


def test_events_are_shown_as_they_come(
    buildctl: Buildctl, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    before = built(buildctl, context, "before", tmp_path)
    argv = [str(tmp_path / "buildctl"), "--addr", daemon.address, "debug", "monitor"]
    process = subprocess.Popen([*argv, "--completed"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        # It watches as soon as it shows what there was; a whole build may be faster than its start.
        assert process.stdout.readline() == f"event: COMPLETE ref:{before}\n"
        ref = built(buildctl, context, "watched", tmp_path)
        seen = [process.stdout.readline()]
        while seen[-1] != f"event: COMPLETE ref:{ref}\n":
            assert seen[-1], seen
            seen.append(process.stdout.readline())
        assert f"event: STARTED ref:{ref}\n" in seen
    finally:
        process.terminate()
        process.wait(120)
        process.stdout.close()


def test_a_daemon_that_comes_later_is_waited_for(
    daemon: Daemon, buildctl: Buildctl, tmp_path: Path
) -> None:
    daemon.stop()
    alone = buildctl("debug", "info")
    assert alone.status != 0
    assert "can't connect" in alone.err
    argv = [str(tmp_path / "buildctl"), "--addr", daemon.address, "--wait", "--timeout", "120"]
    process = subprocess.Popen([*argv, "debug", "info"], stdout=subprocess.PIPE, text=True)
    daemon.start()
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.startswith("BuildKit:")


def test_the_embedded_engine_remembers_too(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM base\nRUN echo embedded\n")
    cli.build("-o", "type=cacheonly", context.path).ok()
    head, row = rows(cli("history", "ls").ok().out)
    ref = row[head.index("REF")]
    assert re.search(r" embedded$", cli("history", "logs", ref).ok().out, re.MULTILINE)
    cli("history", "pin", ref).ok()
    cli("history", "rm", "--all").ok()
    assert len(rows(cli("history", "ls").ok().out)) == 2
    cli("history", "pin", "--off", ref).ok()
    cli("history", "rm", ref).ok()
    assert len(rows(cli("history", "ls").ok().out)) == 1
    nothing = cli("history", "rm")
    assert "name builds, or write --all" in nothing.err


@pytest.mark.peer("docker-buildx")
def test_a_stock_client_sees_the_same(
    buildx: Buildx, buildctl: Buildctl, context: Context, tmp_path: Path
) -> None:
    ref = built(buildctl, context, "stock", tmp_path)
    assert ref in buildx("history", "ls", "--format", "{{.Ref}}").ok().out
    assert " stock\n" in buildx("history", "logs", "--progress", "plain", ref).ok().text
    buildx("history", "rm", ref).ok()
    buildx("history", "rm", ref).ok()  # gone is what was asked for
    assert ref not in buildctl("debug", "histories").ok().out
    assert os.path.basename(ref) == ref


def test_the_trace_of_a_build_is_made_when_it_is_asked_for(
    buildctl: Buildctl, context: Context, tmp_path: Path
) -> None:
    ref = built(buildctl, context, "traced", tmp_path)
    lines = buildctl("debug", "logs", "--trace", ref).ok().out
    spans = {each["SpanContext"]["SpanID"]: each for each in map(json.loads, lines.splitlines())}
    (step,) = [each for each in spans.values() if each["Name"] == "[stage-1 1/1] RUN echo traced"]
    root = spans[step["Parent"]["SpanID"]]
    assert root["Name"] == "moby.buildkit.v1.Control/Solve"
    assert root["StartTime"] < step["StartTime"] < step["EndTime"] < root["EndTime"]
    assert buildctl("debug", "logs", "--trace", ref).ok().out == lines
    listed = buildctl("debug", "histories", "--format", "{{json .}}").ok().out
    assert json.loads(listed)["record"]["trace"]["media_type"] == (
        "application/vnd.buildkit.otlp.json.v0"
    )


@pytest.mark.peer("docker-buildx")
def test_a_stock_client_shows_why_a_build_failed(
    buildx: Buildx, buildctl: Buildctl, context: Context
) -> None:
    context.dockerfile("FROM base\nRUN echo whatever && false\n")
    assert buildx.build(context.path).status != 0
    shown = buildx("history", "inspect").ok().out
    assert "RUN echo whatever && false" in shown
    assert "did not complete successfully: exit code: 1" in shown
    debugging = buildx("--debug", "history", "inspect").ok().out
    assert "boxwright.engine.solve.SolveRun" in debugging
    lines = buildctl("debug", "histories", "--format", "{{json .}}").ok().out.splitlines()
    (record,) = [json.loads(line)["record"] for line in lines]
    assert "details" not in record["error"]
    assert record["externalError"]["media_type"].endswith("google.rpc.status+proto")
