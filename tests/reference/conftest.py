"""Fixtures of the reference lane; the types behind them are in peers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "e2e")]

from peers import client, daemon_address, daemons
from programs import context

__all__ = ["client", "context", "daemon_address", "daemons"]
