"""HTTP/2, gRPC and the messages of the BuildKit wire API.

Layers, each usable alone: :mod:`~boxwright.wire.http2` (frames and flow control, no I/O),
:mod:`~boxwright.wire.rpc` (gRPC streams over one connection of either role),
:mod:`~boxwright.wire.client`, :mod:`~boxwright.wire.server` and
:mod:`~boxwright.wire.tunnel` (a connection inside a stream, roles reversed).
"""
