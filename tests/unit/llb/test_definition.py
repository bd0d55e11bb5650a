"""Definitions from outside: what is taken, and what is refused with which words."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import BoxwrightError, LimitExceededError
from boxwright.llb import definition
from boxwright.llb.canonical import marshal_op
from boxwright.llb.definition import (
    InvalidDefinitionError,
    UnsupportedCapabilityError,
    assemble,
    decode,
    load,
    output_mounts,
    pruned_cache_ids,
    recompute,
)
from boxwright.wire.pb import ops_pb2 as pb

AMD64 = Platform("linux", "amd64")
GOLDEN = Path(__file__).parents[2] / "golden/cachekeys/ops.json"


def source(identifier="docker-image://docker.io/library/busybox:latest"):
    return pb.Op(source=pb.SourceOp(identifier=identifier))


def digest_of(op):
    return Digest.of(marshal_op(op))


def edge_to(op, index=0):
    return pb.Input(digest=digest_of(op), index=index)


def run(*args, inputs=(), mounts=None, **fields):
    mounts = mounts or [pb.Mount(input=0, dest="/", output=0)]
    return pb.Op(inputs=inputs, exec=pb.ExecOp(meta=pb.Meta(args=args), mounts=mounts), **fields)


def define(*ops, metadata=None, index=0):
    terminal = pb.Op(inputs=[edge_to(ops[-1], index)])
    built = pb.Definition(metadata=metadata or {})
    getattr(built, "def").extend(marshal_op(op) for op in (*ops, terminal))
    return built


def simple(**metadata):
    base = source()
    step = run("make", "all", inputs=[edge_to(base)])
    return define(base, step, metadata={digest_of(step): pb.OpMetadata(**metadata)})


def test_a_graph_is_loaded():
    edge = load(simple(), default_platform=AMD64)
    step = edge.vertex
    assert edge.index == 0
    assert step.name == "make all"
    assert step.platform == AMD64
    (base,) = step.inputs
    assert base.vertex.name == "docker-image://docker.io/library/busybox:latest"
    assert base.vertex.digest == digest_of(source())


def test_shared_inputs_are_one_vertex():
    base = source()
    left, right = run("a", inputs=[edge_to(base)]), run("b", inputs=[edge_to(base)])
    merged = pb.Op(
        inputs=[edge_to(left), edge_to(right)],
        merge=pb.MergeOp(inputs=[pb.MergeInput(input=n) for n in (0, -1, 1)]),
    )
    vertex = load(define(base, left, right, merged)).vertex
    assert vertex.name == "merge (a, b)"
    assert vertex.inputs[0].vertex.inputs[0].vertex is vertex.inputs[1].vertex.inputs[0].vertex


def test_options_come_from_the_metadata():
    vertex = load(
        simple(
            ignore_cache=True,
            description={"llb.customname": "[2/3] RUN make"},
            export_cache=pb.ExportCache(Value=False),
            progress_group=pb.ProgressGroup(id="g", name="group", weak=True),
            caps={"exec.meta.base": True, "unused": False},
            linux_resources=pb.LinuxResources(memory=5),
        )
    ).vertex
    assert vertex.name == "[2/3] RUN make"
    assert vertex.options.ignore_cache
    assert vertex.options.export_cache is False
    assert vertex.options.progress_group.weak
    assert vertex.options.caps == {"exec.meta.base"}
    assert vertex.options.linux_resources.memory == 5


def test_export_cache_is_undecided_unless_said():
    assert load(simple()).vertex.options.export_cache is None


def test_the_platform_is_normalised():
    base = source()
    platform = pb.Platform(OS="Linux", Architecture="x86_64", Variant="v1")
    step = run("x", inputs=[edge_to(base)], platform=platform)
    assert load(define(base, step)).vertex.platform == AMD64


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (pb.Op(file=pb.FileOp(actions=[pb.FileAction(
            input=-1, secondaryInput=-1, output=0, mkdir=pb.FileActionMkDir(path="/a"))])), "mkdir /a"),
        (pb.Op(diff=pb.DiffOp(lower=pb.LowerDiffInput(input=-1), upper=pb.UpperDiffInput(input=-1))),
         "diff scratch -> scratch"),
        (pb.Op(build=pb.BuildOp(builder=-1)), "build"),
    ],
)  # fmt: skip
def test_default_names(op, name):
    assert load(define(op)).vertex.name == name


def test_capabilities_are_checked_when_given():
    wanting = simple(caps={"exec.fancy": True})
    assert load(wanting)
    with pytest.raises(UnsupportedCapabilityError, match=r"exec\.fancy"):
        load(wanting, capabilities={"exec.meta.base"})


def broken(op, *, index=0, extra=()):
    return define(*extra, op, index=index)


BASE = source()
BAD = {
    "no ops": pb.Definition(),
    "besides the terminal": pb.Definition(**{"def": [b""]}),
    "points at nothing": pb.Definition(**{"def": [marshal_op(BASE), b""]}),
    "can't be parsed": pb.Definition(**{"def": [b"\xff\xff", b""]}),
    "lacks the op": broken(run("x", inputs=[pb.Input(digest="sha256:nope")])),
    "output 7": broken(BASE, index=7),
    "output -1": broken(BASE, index=-1),
    "no known operation": broken(pb.Op(platform=pb.Platform(OS="linux"))),
    "source has no identifier": broken(source("")),
    "source has inputs": broken(
        pb.Op(inputs=[edge_to(BASE)], source=pb.SourceOp(identifier="x")), extra=[BASE]
    ),
    "no metadata": broken(pb.Op(exec=pb.ExecOp())),
    "no arguments": broken(pb.Op(exec=pb.ExecOp(meta=pb.Meta()))),
    "no mounts": broken(pb.Op(exec=pb.ExecOp(meta=pb.Meta(args=["x"])))),
    "no root file system": broken(run("x", mounts=[pb.Mount(input=-1, dest="/mnt")])),
    "refers to input 3": broken(run("x", mounts=[pb.Mount(input=3, dest="/")])),
    "output 1": broken(run("x", mounts=[pb.Mount(input=-1, dest="/", output=1)]), index=1),
    "has no actions": broken(pb.Op(file=pb.FileOp())),
    "of no known kind": broken(pb.Op(file=pb.FileOp(actions=[pb.FileAction()]))),
    "has no outputs": broken(
        pb.Op(file=pb.FileOp(actions=[pb.FileAction(
            input=-1, secondaryInput=-1, output=-1, rm=pb.FileActionRm(path="/x"))]))
    ),
    "depends on itself": broken(
        pb.Op(file=pb.FileOp(actions=[pb.FileAction(
            input=0, secondaryInput=-1, output=0, rm=pb.FileActionRm(path="/x"))]))
    ),
    "merge refers": broken(
        pb.Op(inputs=[edge_to(BASE)], merge=pb.MergeOp(inputs=[pb.MergeInput(input=5)])),
        extra=[BASE],
    ),
    "another number of inputs": broken(
        pb.Op(inputs=[edge_to(BASE)], merge=pb.MergeOp()), extra=[BASE]
    ),
    "lacks a side": broken(pb.Op(diff=pb.DiffOp(lower=pb.LowerDiffInput(input=-1)))),
    "diff refers": broken(
        pb.Op(diff=pb.DiffOp(lower=pb.LowerDiffInput(), upper=pb.UpperDiffInput(input=-1)))
    ),
    "passthrough has no id": broken(pb.Op(passthrough=pb.PassthroughOp(outputs=[0]))),
    "passthrough refers": broken(pb.Op(passthrough=pb.PassthroughOp(id="p", outputs=[0]))),
    "build input": broken(
        pb.Op(build=pb.BuildOp(inputs={"d": pb.BuildInput(input=1)}))
    ),
}  # fmt: skip


def test_the_outputs_of_a_command_are_counted_whatever_their_numbers():
    mounts = [
        pb.Mount(input=-1, dest="/", output=4),
        pb.Mount(input=-1, dest="/tmp", mountType=pb.MountType.TMPFS),
        pb.Mount(input=-1, dest="/cache", mountType=pb.MountType.CACHE),
        pb.Mount(input=-1, dest="/lost", output=-1),
        pb.Mount(input=-1, dest="/a", output=4),
    ]
    assert output_mounts(run("x", mounts=mounts).exec) == [0, 4]
    assert load(define(run("x", mounts=mounts), index=1)).index == 1
    with pytest.raises(InvalidDefinitionError, match="output 2"):
        load(define(run("x", mounts=mounts), index=2))


@pytest.mark.parametrize("words", BAD)
def test_what_is_refused(words):
    with pytest.raises(InvalidDefinitionError, match=words):
        load(BAD[words])


def test_limits(monkeypatch):
    monkeypatch.setattr(definition, "MAX_OPS", 2)
    with pytest.raises(LimitExceededError):
        load(simple())
    monkeypatch.undo()
    monkeypatch.setattr(definition, "MAX_BYTES", 10)
    with pytest.raises(LimitExceededError):
        load(simple())
    monkeypatch.undo()
    monkeypatch.setattr(definition, "MAX_INPUTS", 0)
    with pytest.raises(LimitExceededError):
        load(simple())


def test_digests_follow_a_changed_source():
    ops = decode(simple())
    for decoded in ops:
        if decoded.op.WhichOneof("op") == "source":
            decoded.op.source.identifier = "docker-image://docker.io/library/busybox:1.36"
    recompute(ops)
    vertex = assemble(ops).vertex
    pinned = source("docker-image://docker.io/library/busybox:1.36")
    assert vertex.inputs[0].vertex.digest == digest_of(pinned)
    assert vertex.digest == digest_of(run("make", "all", inputs=[edge_to(pinned)]))


def test_recomputing_an_unchanged_definition_changes_nothing():
    ops = decode(simple())
    before = [decoded.digest for decoded in ops]
    recompute(ops)
    assert [decoded.digest for decoded in ops] == before


def test_a_long_chain_does_not_recurse():
    ops = [source()]
    for i in range(5000):
        ops.append(run(str(i), inputs=[edge_to(ops[-1])]))
    assert load(define(*ops)).vertex.name == "4999"


def test_cache_mounts_to_empty_are_those_of_steps_without_cache():
    base = source()
    mounts = [
        pb.Mount(input=0, dest="/", output=0),
        pb.Mount(input=-1, dest="/c", output=-1, mountType=pb.MountType.CACHE,
                 cacheOpt=pb.CacheOpt(ID="id")),
        pb.Mount(input=0, dest="/d", output=-1, mountType=pb.MountType.CACHE,
                 cacheOpt=pb.CacheOpt()),
    ]  # fmt: skip
    step = run("x", inputs=[edge_to(base)], mounts=mounts)
    meta = {digest_of(step): pb.OpMetadata(ignore_cache=True)}
    assert pruned_cache_ids(load(define(base, step, metadata=meta))) == {"id": False, "/d": True}
    assert pruned_cache_ids(load(define(base, step))) == {}


def test_every_definition_that_buildkit_made_is_valid():
    made_by_hand = "exec-root-tmpfs exec-empty-opts exec-overwrite-content build-def".split()
    for case in json.loads(GOLDEN.read_text()):
        if case["name"] not in made_by_hand:
            definition.validate(pb.Op.FromString(base64.b64decode(case["marshaled"])))


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_garbage_is_refused_with_an_error_of_ours(chunks):
    with pytest.raises(BoxwrightError):
        load(pb.Definition(**{"def": [*chunks, b""]}))
