"""Time as a collaborator, so that tests can stand still."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the engine takes its time from."""

    def now_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""
        return time.time_ns()
