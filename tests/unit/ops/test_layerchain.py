"""Which steps of a graph become layers of its result."""

from __future__ import annotations

from boxwright import llb
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.llb.definition import load
from boxwright.llb.graph import Edge, Vertex
from boxwright.ops.layerchain import layer_edges
from boxwright.wire.pb import ops_pb2 as pb

AMD64 = Platform("linux", "amd64")


def names(state: llb.State) -> set[str]:
    root = load(state.marshal(AMD64, local_unique_id="uid"))
    found = set()
    for edge in layer_edges(root):
        op = edge.vertex.op
        match op.WhichOneof("op"):
            case "exec":
                found.add(list(op.exec.meta.args)[-1])
            case "source":
                found.add(op.source.identifier.partition("://")[2])
            case other:
                found.add(str(other))
    return found


def test_what_a_step_only_reads_is_no_layer() -> None:
    tool = llb.image("tool").run("/bin/make").root
    app = (
        llb.image("base")
        .run("/bin/one", mounts=[llb.bind("/tool", tool)])
        .root.run("/bin/two")
        .root
    )
    assert names(app) == {"docker.io/library/base:latest", "/bin/one", "/bin/two"}


def test_a_copy_stands_on_its_target() -> None:
    built = llb.image("tool").run("/bin/make").root
    app = llb.image("base").file(llb.mkdir("/d").then(llb.copy(built, "/a", "/d/")))
    assert names(app) == {"docker.io/library/base:latest", "file"}


def test_all_inputs_of_a_merge_count_and_the_upper_one_of_a_diff() -> None:
    base = llb.image("base")
    one, two = base.run("/bin/one").root, llb.image("other").run("/bin/two").root
    assert names(llb.merge([one, llb.diff(llb.image("other"), two)])) == {
        "merge",
        "diff",
        "docker.io/library/base:latest",
        "docker.io/library/other:latest",
        "/bin/one",
        "/bin/two",
    }


def test_outputs_are_counted_whatever_their_numbers() -> None:
    base, seed = (Vertex(Digest.of(name), pb.Op()) for name in (b"base", b"seed"))
    op = pb.Op()
    op.exec.mounts.add(input=0, dest="/", output=5)
    op.exec.mounts.add(input=-1, dest="/tmp", mountType=pb.MountType.TMPFS)
    op.exec.mounts.add(input=1, dest="/out", output=5)
    step = Vertex(Digest.of(b"step"), op, (Edge(base, 0), Edge(seed, 0)))
    assert layer_edges(Edge(step, 0)) == {Edge(step, 0), Edge(base, 0)}
    assert layer_edges(Edge(step, 1)) == {Edge(step, 1), Edge(seed, 0)}


def test_the_output_of_a_mount_stands_on_the_mount() -> None:
    run = llb.image("base").run("/bin/make", mounts=[llb.Mount("/out", llb.image("seed"))])
    assert names(run.mount("/out")) == {"docker.io/library/seed:latest", "/bin/make"}
