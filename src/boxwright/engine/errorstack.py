"""Where in this program an error came from, as the fact that BuildKit's clients show to debuggers.

``buildx history inspect`` prints it with ``--debug``. Functions and lines only: no values, and no
paths of the machine.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from types import FrameType

from boxwright._version import __version__
from boxwright.wire.pb import stack_pb2

_MAX_ERRORS = 8
_MAX_FRAMES = 100


def stacks_of(error: BaseException) -> list[stack_pb2.Stack]:
    """Return the stack of an error and of what caused it, the innermost call first."""
    found = []
    for each in _chain(error):
        frames = [
            stack_pb2.Frame(Name=_name(frame), File=_file(frame), Line=line)
            for frame, line in traceback.walk_tb(each.__traceback__)
        ]
        if frames:
            found.append(
                stack_pb2.Stack(
                    frames=frames[: -_MAX_FRAMES - 1 : -1],
                    cmdline=["boxwright"],
                    pid=os.getpid(),
                    version=__version__,
                )
            )
    return found


def _chain(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(_MAX_ERRORS):
        if current is None:
            return
        yield current
        hidden = current.__suppress_context__
        current = current.__cause__ or (None if hidden else current.__context__)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__") or "")


def _name(frame: FrameType) -> str:
    return f"{_module(frame)}.{frame.f_code.co_qualname}"


def _file(frame: FrameType) -> str:
    return _module(frame).replace(".", "/") + ".py"
