"""Ops that only rearrange trees."""

from __future__ import annotations

import asyncio

from boxwright.core.digest import Digest
from boxwright.llb.graph import Vertex
from boxwright.ops.graphops import MergeOp
from boxwright.ops.result import RefResult
from boxwright.wire.pb import ops_pb2 as pb


def test_a_merge_of_empty_trees_has_no_result() -> None:
    op = pb.Op(merge=pb.MergeOp(inputs=[pb.MergeInput(input=0)]))
    merge = MergeOp(Vertex(Digest.of(op.SerializeToString()), op), None)  # type: ignore[arg-type]
    assert asyncio.run(merge.exec(None, [RefResult(None)])) == []  # type: ignore[arg-type]
    assert asyncio.run(merge.exec(None, [])) == []  # type: ignore[arg-type]
