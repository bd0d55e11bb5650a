"""Matching steps of two builds, and telling their differences, without any engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from boxwright.cli.why import describe, describe_cause, to_json
from boxwright.engine.contenttables import FileChange, FileState
from boxwright.engine.explain import Explainer
from boxwright.engine.keyfacts import FrontendRuns, project_of
from boxwright.engine.keyparts import op_of, parts_of
from boxwright.engine.keyrecords import KeyRecord, KeyRecords, StoredKeys
from boxwright.engine.stepmatch import match_steps, overlap
from boxwright.engine.why import Cause, Comparison
from boxwright.errors import NotFoundError
from boxwright.store.database import Database
from boxwright.wire.pb import explain_pb2 as pb
from boxwright.wire.pb import ops_pb2


def command(name: str, args: str = "make", *, env: Sequence[str] = (), **rest) -> pb.StepKeys:
    op = ops_pb2.Op()
    op.exec.meta.args.extend(["/bin/sh", "-c", args])
    op.exec.meta.env.extend(env)
    rest.setdefault("cache_maps", [f"sha256:{args}{env}"])
    return pb.StepKeys(
        name=name, digest=f"sha256:{name}", op=op.SerializeToString(), outcome=pb.RAN, **rest
    )


def image(ref: str, **rest) -> pb.StepKeys:
    op = ops_pb2.Op()
    op.source.identifier = f"docker-image://{ref}"
    return pb.StepKeys(
        name=f"[base 1/2] FROM {ref}",
        op=op.SerializeToString(),
        cache_maps=[f"sha256:{ref}"],
        outcome=pb.RAN,
        **rest,
    )


def folder(exclude: str = "") -> pb.StepKeys:
    op = ops_pb2.Op()
    op.source.identifier = "local://context"
    op.source.attrs["local.session"] = "changes"
    if exclude:
        op.source.attrs["local.excludepatterns"] = exclude
    return pb.StepKeys(
        name="[internal] load build context",
        op=op.SerializeToString(),
        cache_maps=["random:1"],
        outcome=pb.RAN,
    )


def build(*steps: pb.StepKeys, ref: str = "b", project: bytes = b"p", **keys) -> StoredKeys:
    return StoredKeys(ref, project, pb.BuildKeys(steps=steps, **keys))


def compared(old: StoredKeys, new: StoredKeys, changes: Sequence[FileChange] = ()) -> Comparison:
    return Comparison(old, new, lambda _old, _new: list(changes))


def kinds(causes: Sequence[Cause]) -> list[tuple[str, str]]:
    return [(cause.kind, cause.subject) for cause in causes]


def test_steps_are_found_again() -> None:
    old = [
        image("alpine:1@sha256:aa"),
        command("[base 2/2] RUN a", "a"),
        command("[build 1/3] RUN x", "x"),
        command("[build 2/3] RUN y", "y"),
        command("[build 3/3] RUN z", "z"),
    ]
    new = [
        image("alpine:1@sha256:bb"),
        command("[base 2/2] RUN b", "b"),
        command("[build 1/4] RUN new", "new"),
        command("[build 2/4] RUN x", "x"),
        command("[build 3/4] RUN y", "y"),
        command("[build 4/4] RUN z", "z"),
    ]
    assert match_steps(old, new) == [0, 1, None, 2, 3, 4]
    assert overlap(old, old) == 1
    assert overlap(old, [command("[other 1/1] RUN q")]) == 0


def test_the_platform_is_no_part_of_a_place() -> None:
    old = [command("[stage-0 2/2] RUN a", "a")]
    assert match_steps(old, [command("[linux/arm64 stage-0 2/2] RUN a", "a")]) == [0]


def test_steps_without_stages_are_matched_in_order() -> None:
    old = [command("one", "1"), command("two", "2")]
    assert match_steps(old, [command("eins", "1"), command("zwei", "2")]) == [0, 1]
    assert match_steps(old, [command("eins", "1")]) == [None]


def test_parts_of_a_command() -> None:
    op = op_of(command("x", "make", env=["A=1", "B=x=y"]).op)
    assert op is not None
    op.exec.meta.cwd = "/src"
    op.exec.mounts.add(dest="/m", input=1, readonly=True)
    op.exec.secretenv.add(ID="id", name="TOKEN")
    op.exec.meta.proxy_env.http_proxy = "not in the key"
    parts = parts_of(op)
    assert parts["command", ""] == "make"
    assert parts["env", "A"] == "1"
    assert parts["env", "B"] == "x=y"
    assert parts["workdir", ""] == "/src"
    assert '"readonly":true' in parts["mount", "/m"]
    assert ("secret-env", "TOKEN") in parts
    assert "not in the key" not in str(parts)


def test_parts_of_files_and_others() -> None:
    op = ops_pb2.Op()
    op.file.actions.add(input=0, secondaryInput=1).copy.src = "/deep/a"
    op.file.actions[0].copy.mode = 0o644
    parts = parts_of(op)
    assert parts["option", "copy src"] == "a"
    assert parts["option", "copy mode"] == "420"
    merge = ops_pb2.Op()
    merge.merge.inputs.add(input=0)
    assert parts_of(merge)
    assert parts_of(ops_pb2.Op()) == {}
    assert op_of(b"\xff\xff") is None


def test_a_changed_part_is_named_with_its_argument() -> None:
    old = build(command("r", "make", env=["A=1"]), options={"build-arg:A": "1"})
    new = build(command("r", "make", env=["A=2"]), options={"build-arg:A": "2"})
    (cause,) = compared(old, new).causes(0)
    assert (cause.kind, cause.subject, cause.old, cause.new) == ("build-arg", "A", "1", "2")
    old = build(command("r", "fetch v1.0"), options={"build-arg:VERSION": "v1.0"})
    new = build(command("r", "fetch v1.1"), options={"build-arg:VERSION": "v1.1"})
    (cause,) = compared(old, new).causes(0)
    assert cause.kind == "command"
    assert cause.detail == "of build argument VERSION"


def test_a_base_image_is_the_cause_of_all_above_it() -> None:
    def above(ref: str) -> StoredKeys:
        run = command("[base 2/2] RUN a", inputs=[pb.InputKeys(step=0)])
        return build(image(ref), run)

    comparison = compared(above("alpine:1@sha256:aa"), above("alpine:1@sha256:bb"))
    (cause,) = comparison.causes(1)
    assert (cause.kind, cause.subject) == ("image", "alpine:1")
    assert (cause.old, cause.new) == ("sha256:aa", "sha256:bb")
    assert cause.step == "[base 1/2] FROM alpine:1@sha256:bb"


def reading(content: str, exclude: str = "") -> StoredKeys:
    keys = pb.InputKeys(step=0, content=content, table=content.encode())
    return build(folder(exclude), command("COPY", inputs=[keys]))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        pytest.param(None, (0o100644, 0, 0, 1), "added", id="added"),
        pytest.param((0o100644, 0, 0, 1), None, "removed", id="removed"),
        pytest.param((0o100644, 0, 0, 1), (0o100755, 0, 0, 1), "mode 0644 -> 0755", id="mode"),
        pytest.param((0o100644, 0, 0, 1), (0o100644, 5, 6, 1), "owner 0:0 -> 5:6", id="owner"),
        pytest.param((0o100644, 0, 0, 1), (0o100644, 0, 0, 1), "content", id="content"),
        pytest.param(
            (0o100644, 0, 0, 1),
            (0o100600, 0, 0, 9),
            "mode 0644 -> 0600, content, 1 -> 9 bytes",
            id="both",
        ),
        pytest.param((0o100644, 0, 0, 1), (0o120777, 0, 0, 1), "another kind of file", id="kind"),
    ],
)
def test_what_changed_of_a_file(
    old: tuple[int, int, int, int] | None, new: tuple[int, int, int, int] | None, said: str
) -> None:
    change = FileChange(b"/a", old and FileState(0, "aa", old), new and FileState(0, "bb", new))
    (cause,) = compared(reading("1"), reading("2"), [change]).causes(1)
    assert (cause.kind, cause.subject) == ("file", "a")
    assert cause.detail.startswith(said)


def test_folders_that_came_with_their_files_are_left_out() -> None:
    state = FileState(0, "aa")
    changes = [FileChange(b"/new", None, state), FileChange(b"/new/a", None, state)]
    found = compared(reading("1"), reading("2"), changes).causes(1)
    assert kinds(found) == [("file", "new/a")]


def test_many_files_are_counted() -> None:
    changes = [FileChange(b"/%03d" % n, None, FileState(0, "aa")) for n in range(60)]
    found = compared(reading("1"), reading("2"), changes).causes(1)
    assert len(found) == 51
    assert found[-1].detail == "and 10 more files"


def test_dockerignore_is_named_if_files_came_or_went() -> None:
    state, other = FileState(0, "aa"), FileState(0, "bb")
    gone = [FileChange(b"/a", state, None)]
    old, new = reading("1", '["x","b"]'), reading("2", '["x","a"]')
    assert kinds(compared(old, new, gone).causes(1)) == [("file", "a"), ("dockerignore", "")]
    edited = [FileChange(b"/a", state, other)]
    assert kinds(compared(old, new, edited).causes(1)) == [("file", "a")]


def test_unchanged_keys() -> None:
    step = command("r")
    assert kinds(compared(build(step), build(step)).causes(0)) == [("evicted", "")]
    failed = pb.ImportState(name="host/cache", error="not found")
    found = compared(build(step), build(step, imports=[failed])).causes(0)
    assert kinds(found) == [("import", "host/cache"), ("evicted", "")]
    damaged = command("r", load_failures=["layer is gone"])
    assert kinds(compared(build(step), build(damaged)).causes(0)) == [("damaged", "")]
    forced = command("r", ignore_cache=True)
    assert kinds(compared(build(step), build(forced)).causes(0)) == [("forced", "")]


def test_an_import_that_was_not_asked_for_again() -> None:
    before = command("r", origin="import:host/cache")
    before.outcome = pb.IMPORTED
    found = compared(build(before), build(command("r"))).causes(0)
    assert kinds(found) == [("import", "host/cache"), ("evicted", "")]


def test_a_forced_step_forces_what_stands_on_it() -> None:
    def chain(*, forced: bool) -> StoredKeys:
        first = command("a", "a", ignore_cache=forced)
        second = command("b", "b", inputs=[pb.InputKeys(step=0)])
        third = command("c", "c", inputs=[pb.InputKeys(step=1)])
        return build(first, second, third)

    comparison = compared(chain(forced=False), chain(forced=True))
    for number in (1, 2):
        assert [cause.kind for cause in comparison.causes(number)] == ["forced"]


def test_the_frontend_is_named_if_it_made_another_graph() -> None:
    old, new = build(command("r", "a"), frontend="f@1"), build(command("r", "b"), frontend="f@2")
    assert kinds(compared(old, new).causes(0)) == [("frontend", ""), ("command", "")]
    same = build(command("r", "a"), frontend="f@2")
    assert kinds(compared(old, same).causes(0)) == [("evicted", "")]


def test_projects() -> None:
    options = {"filename": "Dockerfile", "target": "app", "platform": "linux/amd64"}
    assert project_of(options, "k") == project_of({**options, "platform": "x"}, "k")
    assert project_of(options, "k") == project_of({**options, "build-arg:A": "x"}, "k")
    assert project_of(options, "k") != project_of(options, "other")
    assert project_of(options, "k") != project_of({**options, "target": "test"}, "k")
    runs = FrontendRuns()
    runs.add("built in", {"a": "1"})
    runs.add("image", {"b": "2"})
    assert (runs.names[-1], dict(runs.options)) == ("image", {"a": "1"})


@pytest.fixture
def records(tmp_path: Path):
    database = Database(tmp_path / "state.db")
    yield KeyRecords(database)
    database.close()


def remember(records: KeyRecords, ref: str, at: int, made: StoredKeys) -> None:
    with records._db.transaction() as cursor:
        records.save(cursor, ref, at, KeyRecord(made.project, made.keys))


def test_a_step_is_held_against_the_last_build_that_finished_it(records: KeyRecords) -> None:
    failed = command("r", "b")
    failed.outcome = pb.FAILED
    remember(records, "1", 1, build(command("r", "a")))
    remember(records, "2", 2, build(failed))
    remember(records, "other", 3, build(command("q", "q"), project=b"q"))
    remember(records, "3", 4, build(command("r", "c")))
    answer = Explainer(records).why(pb.WhyRequest())
    assert (answer.ref, answer.against, answer.ran) == ("3", "2", 1)
    assert answer.steps[0].against == "1"
    assert answer.steps[0].causes[0].old == "a"
    pinned = Explainer(records).why(pb.WhyRequest(ref="3", against="other"))
    assert kinds(pinned.steps[0].causes) == [("command", "")]


def test_similar_builds_serve_if_the_project_is_new(records: KeyRecords) -> None:
    remember(records, "1", 1, build(command("r", "a"), project=b"x"))
    remember(records, "2", 2, build(command("r", "b"), project=b"y"))
    assert Explainer(records).why(pb.WhyRequest()).steps[0].against == "1"


def test_no_more_builds_are_read_than_are_looked_at(records: KeyRecords) -> None:
    for number in range(5):
        remember(records, str(number), number, build(command("r", str(number))))
    assert [each.ref for each in records.before("4", 3)] == ["3", "2", "1"]


def test_nothing_to_explain(records: KeyRecords) -> None:
    with pytest.raises(NotFoundError, match="no build is remembered"):
        Explainer(records).why(pb.WhyRequest())
    remember(records, "1", 1, build(command("r", "a")))
    with pytest.raises(NotFoundError, match="nosuch"):
        Explainer(records).why(pb.WhyRequest(ref="nosuch"))
    with pytest.raises(NotFoundError, match="no step"):
        Explainer(records).why(pb.WhyRequest(step="zzz"))
    answer = Explainer(records).why(pb.WhyRequest())
    assert [cause.kind for cause in answer.steps[0].causes] == ["first"]


def test_words_for_causes() -> None:
    file = Cause(kind="file", subject="a", old="sha256:" + "1" * 64, new="sha256:" + "2" * 64)
    file.detail, file.step = "content", "[1/2] COPY"
    assert (
        describe_cause(file)
        == "file a: content (sha256:111111111111 -> sha256:222222222222), in [1/2] COPY"
    )
    assert describe_cause(Cause(kind="env", subject="A", old="1")) == (
        "environment variable A: 1 -> nothing"
    )
    ignored = Cause(kind="dockerignore", old="a", new="b c")
    assert describe_cause(ignored) == ".dockerignore: -a +b +c"
    answer = pb.WhyResponse(ref="r", total=2, skipped=1, local=1)
    assert "nothing changed: 0 of 2 steps ran, 1 cached, 1 not needed" in describe(answer)
    assert to_json(answer)["counts"]["local"] == 1
