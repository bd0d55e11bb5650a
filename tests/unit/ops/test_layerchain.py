"""Which steps of a graph become layers of its result."""

from __future__ import annotations

from boxwright import llb
from boxwright.core.platform import Platform
from boxwright.llb.definition import load
from boxwright.ops.layerchain import layer_edges

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


def test_the_output_of_a_mount_stands_on_the_mount() -> None:
    run = llb.image("base").run("/bin/make", mounts=[llb.Mount("/out", llb.image("seed"))])
    assert names(run.mount("/out")) == {"docker.io/library/seed:latest", "/bin/make"}
