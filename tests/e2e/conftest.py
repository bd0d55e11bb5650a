"""Fixtures of the end-to-end tests; the types behind them are in programs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from programs import buildx, cli, context, daemon, registry, state

__all__ = ["buildx", "cli", "context", "daemon", "registry", "state"]
