"""What is known of a vertex that failed, beside its error: for clients that look into it."""

from __future__ import annotations

from typing import Final

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError
from boxwright.llb.graph import Vertex
from boxwright.solver.types import Result

_ATTRIBUTE: Final = "vertex_failure"


@dataclass(slots=True)
class Failure:
    """The facts that travel with an error (BuildKit: ``errdefs.Solve``).

    Results are borrowed: they are kept as long as a build wants the vertex.

    Attributes:
        vertex: Which one failed; None if no vertex did.
        action: The file action that failed, by its number in the op.
        slow_input: The input whose content could not be hashed.
        inputs: For a command: of each of its mounts the tree that it got, None for an empty one.
            For file actions: the op's inputs. For content that could not be hashed: that content.
        mounts: For a command: the same trees as it left them. For file actions: of each the tree
            that it made, up to the one that failed, by its number.
    """

    vertex: Vertex | None = None
    action: int | None = None
    slow_input: int | None = None
    inputs: tuple[Result | None, ...] = ()
    mounts: tuple[Result | None, ...] = ()


def failure_of(error: BoxwrightError) -> Failure:
    """Return what is known, to read it or to add to it."""
    found = error.__dict__.setdefault(_ATTRIBUTE, Failure())
    assert isinstance(found, Failure)
    return found
