"""The ``boxwright.explain.v1.Explain`` service."""

from __future__ import annotations

from boxwright.daemon.control import unary
from boxwright.engine.engine import Engine
from boxwright.wire import methods
from boxwright.wire.server import Server


class ExplainService:
    """Translates Explain calls for one engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def register(self, server: Server) -> None:
        """Add all methods to ``server``."""
        server.add(methods.EXPLAIN_WHY, unary(self._engine.why))
        server.add(methods.EXPLAIN_SPACE, unary(self._engine.space))
