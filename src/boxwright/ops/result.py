"""Op results: a counted handle on a snapshot, or nothing at all (scratch)."""

from __future__ import annotations

from typing import Final

from boxwright.errors import BoxwrightError, Code
from boxwright.snapshots.refs import ImmutableRef

SCRATCH_ID: Final = "scratch"
"""The id of the empty result; no snapshot id looks like it."""


class WrongResultError(BoxwrightError):
    """An op was given something that is not a snapshot: a bug of the caller."""

    code = Code.INTERNAL


class RefResult:
    """One output of an op; owns one handle on its snapshot (:class:`solver.types.Result`)."""

    __slots__ = ("_ref",)

    def __init__(self, ref: ImmutableRef | None) -> None:
        self._ref = ref

    def __repr__(self) -> str:
        return f"<RefResult {self.id}>"

    @property
    def id(self) -> str:
        """The snapshot's id, or :data:`SCRATCH_ID`."""
        return self._ref.id if self._ref is not None else SCRATCH_ID

    @property
    def value(self) -> object:
        """The snapshot; ``None`` is the empty tree."""
        return self._ref

    @property
    def ref(self) -> ImmutableRef | None:
        """The snapshot, typed; borrowed from this result."""
        return self._ref

    def clone(self) -> RefResult:
        """Return another owner of the same snapshot."""
        return RefResult(self._ref.clone() if self._ref is not None else None)

    async def release(self) -> None:
        """Give this handle up."""
        if self._ref is not None:
            await self._ref.release()


def ref_of(result: object) -> ImmutableRef | None:
    """Return the snapshot of a solver result, borrowed; ``None`` is scratch.

    Raises:
        WrongResultError: the result is not one of ours.
    """
    value = getattr(result, "value", result)
    if value is None or isinstance(value, ImmutableRef):
        return value
    raise WrongResultError("an op got an unknown kind of result", detail=type(value).__name__)
