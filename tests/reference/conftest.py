"""Fixtures of the reference lane; the types behind them are in peers."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "e2e")]

import pytest
from peers import HITS, client, daemon_address, daemons
from programs import context

__all__ = ["client", "context", "daemon_address", "daemons"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how many steps each cache has saved that crossed between the daemons."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    lines = [
        f"{value}: {report.nodeid.rpartition('::')[2]}"
        for report in reports
        for name, value in report.user_properties
        if name == HITS and report.when == "call"
    ]
    if lines:
        terminalreporter.section(HITS)
        for line in sorted(lines, key=lambda text: text.partition(":")[2]):
            terminalreporter.write_line(line)
