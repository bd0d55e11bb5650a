"""The engine behind gRPC: servicers, listeners and life cycle.

Servicers only translate: they take messages from :mod:`boxwright.wire.server`, call
:class:`boxwright.engine.engine.Engine` and send what it answers. What is not served here
answers Unimplemented, and nothing is advertised that is not there.
"""
