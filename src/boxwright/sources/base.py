"""What a build source is: something outside the graph that becomes a snapshot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from boxwright.core.dataclass import dataclass
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.session.manager import SessionGroup
from boxwright.snapshots.refs import ImmutableRef
from boxwright.sources.resolutions import Resolutions


class UnknownSchemeError(InvalidInputError):
    """A source identifier of a kind that is not served."""

    def __init__(self, identifier: str) -> None:
        super().__init__("unknown source", detail=f"identifier {identifier[:200]!r}")
        self.identifier = identifier


class SourceProgress(Protocol):
    """Shows parts of a source's work; :class:`boxwright.progress.step.StepProgress` is one."""

    def status(
        self,
        status_id: str,
        *,
        name: str = "",
        current: int = 0,
        total: int = 0,
        started_ns: int | None = None,
        completed_ns: int | None = None,
    ) -> None:
        """Report on one part, in bytes."""


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What a source may use while it works: the sessions of all builds that want it.

    Attributes:
        sessions: The clients to ask.
        progress: Where parts of the work are shown.
        on_cleanup: Has something done when no build wants the source any more.
        resolutions: What sources resolved to in each of the builds.
    """

    sessions: SessionGroup
    progress: SourceProgress | None = None
    on_cleanup: Callable[[Callable[[], Awaitable[None]]], None] | None = None
    resolutions: tuple[Resolutions, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceKey:
    """One cache key of a source.

    Attributes:
        key: What goes into the op's cache-map digest.
        pin: The digest that the source resolved to, for provenance; empty if none.
        done: Whether there is no further key (index + 1) to ask for.
    """

    key: str
    pin: str = ""
    done: bool = True


class Source(Protocol):
    """One source op, resolved."""

    async def cache_key(self, context: SourceContext, index: int) -> SourceKey:
        """Return the key number ``index``."""

    async def snapshot(self, context: SourceContext) -> ImmutableRef | None:
        """Return a handle on the source's tree; None is the empty tree."""


class SourceProvider(Protocol):
    """Makes the sources of one or more schemes."""

    def resolve(self, rest: str, attrs: Mapping[str, str], platform: Platform | None) -> Source:
        """Return the source of an identifier, given without its ``scheme://``.

        Raises:
            InvalidInputError: the identifier or an attribute is malformed.
        """


class SourceResolver:
    """All sources by scheme (``docker-image``, ``local``, …)."""

    def __init__(self, providers: Mapping[str, SourceProvider]) -> None:
        self._providers = dict(providers)

    @property
    def schemes(self) -> tuple[str, ...]:
        """The schemes that are served."""
        return tuple(self._providers)

    def resolve(
        self, identifier: str, attrs: Mapping[str, str], platform: Platform | None = None
    ) -> Source:
        """Return the source of a SourceOp.

        Raises:
            UnknownSchemeError: nobody serves its scheme.
            InvalidInputError: the identifier or an attribute is malformed.
        """
        scheme, separator, rest = identifier.partition("://")
        provider = self._providers.get(scheme)
        if not separator or provider is None:
            raise UnknownSchemeError(identifier)
        return provider.resolve(rest, attrs, platform)
