"""On whose behalf the current task works: the sessions of the builds that want what it makes.

What is fetched late, when a step reads it, may have been offered by a build that has ended since.
Whoever fetches it asks here for the clients that are there now.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

SessionIds = Callable[[], tuple[str, ...]]

_current: ContextVar[SessionIds] = ContextVar("on_behalf_of", default=tuple)


def work_for(sessions: SessionIds) -> None:
    """Say for the rest of the current task, and the tasks that it starts, who wants its work.

    Args:
        sessions: Returns the ids of their sessions at any time, oldest first.
    """
    _current.set(sessions)


def session_ids() -> tuple[str, ...]:
    """Return the ids of the sessions that want the work of the current task now."""
    return _current.get()()
