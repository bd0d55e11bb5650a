"""The bytes of an op as BuildKit's own tools write them: what vertex digests are made of.

Go's deterministic encoder writes a message's oneof fields after all others, Python's and C++'s
write strictly by field number. Of LLB's messages only ``pb.Op`` shows the difference. BuildKit
marshals ops anew when it loads them, so other bytes mean other digests in its progress.
"""

from __future__ import annotations

from boxwright.wire.pb import ops_pb2 as pb


def marshal_op(op: pb.Op) -> bytes:
    """Return the bytes that BuildKit's Go code writes for ``op``."""
    kind = op.WhichOneof("op")
    if kind is None:
        return op.SerializeToString(deterministic=True)
    head, tail = pb.Op(), pb.Op()
    head.CopyFrom(op)
    head.ClearField(kind)
    getattr(tail, kind).CopyFrom(getattr(op, kind))
    getattr(tail, kind).SetInParent()
    return head.SerializeToString(deterministic=True) + tail.SerializeToString(deterministic=True)
