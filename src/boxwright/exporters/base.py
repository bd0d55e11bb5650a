"""What exporters take and give, and what they all share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from boxwright.core import gobool
from boxwright.core.clock import Clock, SystemClock
from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.exporters.attestation import Attestation
from boxwright.oci.platforms import EPOCH_KEY, ResultPlatform, metadata_value, parse_platforms
from boxwright.progress.step import StepProgress
from boxwright.session.base import Session
from boxwright.snapshots.refs import ImmutableRef
from boxwright.store import Store
from boxwright.store.leases import Lease

if TYPE_CHECKING:
    from boxwright.snapshots.layerblobs import SnapshotBlobs
    from boxwright.snapshots.layers import LayerForm

DIGEST_KEY = "containerimage.digest"
CONFIG_DIGEST_KEY = "containerimage.config.digest"
DESCRIPTOR_KEY = "containerimage.descriptor"
NAME_KEY = "image.name"


class ExportError(BoxwrightError):
    """A result that can't be exported in the form that was asked for."""

    code = Code.INVALID


class SessionSource(Protocol):
    """Where an exporter finds the client that gets the output."""

    async def get(self, session_id: str, *, timeout_s: float = 5.0) -> Session:
        """Return the session, waiting for a late one.

        Raises:
            SessionLostError: it does not come.
        """
        ...


class PushTarget(Protocol):
    """Sends an image with everything it refers to to a registry."""

    async def push(
        self,
        name: str,
        descriptor: Descriptor,
        *,
        insecure: bool,
        by_digest: bool,
        step: StepProgress,
        absent: SnapshotBlobs | None = None,
    ) -> None:
        """Push and verify ``descriptor``.

        Args:
            name: the full or familiar reference to push to.
            descriptor: manifest or index.
            insecure: plain HTTP and unverified TLS are allowed.
            by_digest: no tag is written.
            step: where progress goes.
            absent: delivers the blobs that are not in the store; only those are asked for that
                the registry has in no repository that is known.

        Raises:
            BoxwrightError: the registry refused or could not be reached.
        """
        ...


@dataclass(slots=True)
class ExportSource:
    """What a build made: one ref, or one for each platform id, and the frontend's metadata.

    ``attestations`` are by platform id, also where there is only one ref.
    """

    ref: ImmutableRef | None = None
    refs: Mapping[str, ImmutableRef | None] = field(default_factory=dict)
    metadata: Mapping[str, bytes] = field(default_factory=dict)
    attestations: Mapping[str, Sequence[Attestation]] = field(default_factory=dict)

    @property
    def is_map(self) -> bool:
        """Whether the result has one ref for each platform."""
        return bool(self.refs)

    def platforms(self) -> list[ResultPlatform]:
        """Return the platforms of the result.

        Raises:
            InvalidInputError: several refs without a mapping, or a malformed one.
        """
        if self.is_map and "refs.platforms" not in self.metadata:
            raise InvalidInputError("unable to export multiple refs, missing platforms mapping")
        platforms = parse_platforms(self.metadata)
        if not self.is_map and len(platforms) > 1:
            raise InvalidInputError("unable to export multiple platforms without map")
        return platforms

    def find(self, platform: ResultPlatform) -> ImmutableRef | None:
        """Return the ref of a platform; None is an empty root.

        Raises:
            InvalidInputError: the result has no ref for it.
        """
        if not self.is_map:
            return self.ref
        if platform.id not in self.refs:
            raise InvalidInputError(f"failed to find ref for ID {platform.id}")
        return self.refs[platform.id]


InlineCache = Callable[[], Awaitable[Mapping[str, bytes]]]


@dataclass(slots=True)
class ExportContext:
    """What an exporter works with during one export.

    Attributes:
        store: where blobs are made; all under ``lease``.
        sessions: clients.
        session_id: the client that gets files.
        exporter_id: position of this output in the solve request.
        step: the progress of this export.
        lease: keeps what is made until the build's end, when its owner releases it.
        push: how images get to registries; None where pushing is not possible.
        inline_cache: returns cache metadata by platform id (empty id: the only one).
        clock: for times that have no other source.
    """

    store: Store
    sessions: SessionSource
    session_id: str
    step: StepProgress
    lease: Lease
    exporter_id: int = 0
    push: PushTarget | None = None
    inline_cache: InlineCache | None = None
    clock: Clock = field(default_factory=SystemClock)


@dataclass(slots=True)
class ExportResult:
    """What an export reports.

    Attributes:
        response: for the solve response, such as ``containerimage.digest``.
        descriptor: the image that was made, for the build's history.
        finalize: what is left to do once all exports of the build have succeeded (a push);
            it may run together with those of other exports.
    """

    response: dict[str, str] = field(default_factory=dict)
    descriptor: Descriptor | None = None
    finalize: Callable[[], Awaitable[None]] | None = None


class Exporter(Protocol):
    """One output of a build, its attributes already read."""

    @property
    def type(self) -> str:
        """The kind of output as requests name it."""
        ...

    @property
    def name(self) -> str:
        """What the progress calls it."""
        ...

    def layer_forms(self, source: ExportSource) -> dict[str, LayerForm]:
        """Return in which form the output will want layers, before there is a result.

        Args:
            source: its metadata and the ids of its refs; the refs themselves are not looked at.

        Returns:
            Forms by ref id (empty for a single ref); nothing if no layers are wanted.

        Raises:
            BoxwrightError: :meth:`export` will refuse the result.
        """
        ...

    async def export(self, source: ExportSource, context: ExportContext) -> ExportResult:
        """Make the output.

        Raises:
            BoxwrightError: it could not be made or delivered.
        """
        ...


def parse_bool(key: str, value: str, *, empty: bool | None = None) -> bool:
    """Read a boolean attribute as Go does.

    Raises:
        InvalidInputError: another word; or an empty value where ``empty`` is None.
    """
    parsed = empty if value == "" else gobool.parse(value)
    if parsed is not None:
        return parsed
    raise InvalidInputError(f"non-bool value specified for {key}", detail=repr(value))


def parse_epoch(key: str, value: str) -> int | None:
    """Read seconds since the epoch; empty is None.

    Raises:
        InvalidInputError: not an integer.
    """
    if not value:
        return None
    digits = value.removeprefix("-").removeprefix("+")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise InvalidInputError(f"invalid {key}", detail=repr(value))
    return int(value)


def source_epoch(source: ExportSource, platform: ResultPlatform | None) -> int | None:
    """Return the SOURCE_DATE_EPOCH that the frontend reports for a platform, if any.

    Raises:
        InvalidInputError: not an integer.
    """
    value = metadata_value(source.metadata, EPOCH_KEY, platform)
    if value is None:
        return None
    return parse_epoch("SOURCE_DATE_EPOCH from frontend", value.decode("utf-8", "replace"))
