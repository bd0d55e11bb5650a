"""Fuzzing of build definitions: decoding, validation, cache keys, and the graph of a build op.

Run ``python tests/fuzz/fuzz_definition.py [corpus folder] [-runs=N]``.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import running


def seeds() -> list[bytes]:
    """Return definitions of every kind of op."""
    from boxwright import llb

    base = llb.image("base:1")
    ran = base.run(
        ["a", "b"],
        env={"A": "b"},
        mounts=[
            llb.bind("/x", llb.local("c", include=["d"]), readonly=False),
            llb.cache("/y", "id", sharing="locked"),
            llb.tmpfs("/t", 5),
            llb.secret("/s", id="s"),
            llb.ssh("h"),
        ],
    )
    states = [
        ran.root,
        ran.mount("/x"),
        llb.merge([ran.root, llb.git("https://example.com/a.git", "v1"), base]),
        llb.diff(base, ran.root),
        llb.passthrough("p", [base], [ran.root]),
        llb.build(llb.http("https://example.com/x"), "/y"),
        llb.scratch().copy(ran.root, "/a*", "/b", llb.CopyOptions(wildcard=True, mode="u+x")),
        base.mkfile("/a", b"data").mkdir("/d").symlink("a", "/l").rm("/d"),
        llb.oci_layout("a@sha256:" + "0" * 64),
    ]
    return [state.marshal().SerializeToString() for state in states]


def check(data: bytes) -> None:
    """Load ``data`` as a definition; only typed errors may come out."""
    from google.protobuf.message import DecodeError

    from boxwright.errors import BoxwrightError
    from boxwright.llb.definition import load, pruned_cache_ids
    from boxwright.ops.cachemap import cache_map
    from boxwright.wire.pb import ops_pb2

    try:
        definition = ops_pb2.Definition.FromString(data)
    except DecodeError:
        return
    try:
        edge = load(definition)
        pruned_cache_ids(edge)
        pending, seen = [edge.vertex], set()
        while pending:
            vertex = pending.pop()
            if vertex.digest in seen:
                continue
            seen.add(vertex.digest)
            pending.extend(each.vertex for each in vertex.inputs)
            if vertex.op.WhichOneof("op") != "source":
                cache_map(vertex.op, len(vertex.inputs), vertex.platform)
    except BoxwrightError:
        pass


def make(chooser: random.Random, _seeds: list[bytes] = []) -> bytes:  # noqa: B006 - kept
    """Return a definition that is wrong somewhere, its ops' digests made right again."""
    from google.protobuf.message import DecodeError

    from boxwright.wire.pb import ops_pb2

    if not _seeds:
        _seeds.extend(seeds())
    data = running.mutated(_seeds, chooser)
    try:
        definition = ops_pb2.Definition.FromString(data)
    except DecodeError:
        return data
    ops = getattr(definition, "def")
    if ops and chooser.random() < 0.7:  # one op changed, so that the others still hold together
        number = chooser.randrange(len(ops))
        ops[number] = running.mutated([ops[number]], chooser)
    return definition.SerializeToString()


if __name__ == "__main__":
    running.main(check, make)
