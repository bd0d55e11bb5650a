"""What a frontend needs of the engine that runs it (the gateway's calls, as Python).

The engine implements these Protocols; the tests do so in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.wire.pb import ops_pb2 as pb


class NotAnImageError(InvalidInputError):
    """The source policy puts something in an image's place that is none.

    Args:
        ref: The image.
        identifier: Of what takes its place, such as ``local://name``.
    """

    def __init__(self, ref: str, identifier: str) -> None:
        super().__init__(
            "the source policy replaces an image by a source that is none",
            detail=f"{ref}: {identifier}",
            hint="in place of an image in FROM, name another image; a --build-context may be "
            "replaced by any source",
        )
        self.ref = ref
        self.identifier = identifier


@dataclass(frozen=True, slots=True)
class ResolvedImage:
    """What an image reference stands for: its final form, manifest digest, config blob.

    ``digest`` is None where the reference is to be used as it is.
    """

    ref: str
    digest: Digest | None
    config: bytes


@dataclass(frozen=True, slots=True)
class OciStore:
    """An OCI layout that a client offers, in place of a registry."""

    session_id: str
    store_id: str


@dataclass(frozen=True, slots=True)
class CacheImport:
    """A cache to import before solving (``CacheOptionsEntry``)."""

    type: str
    attrs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GitMetadata:
    """What a git source resolved to; ``commit_object`` is the raw commit."""

    commit_object: bytes = b""


@dataclass(frozen=True, slots=True)
class SourceMetadata:
    """What a source op resolved to.

    Attributes:
        git: For git sources.
        http_last_modified_ns: For HTTP sources that say when they last changed.
    """

    git: GitMetadata | None = None
    http_last_modified_ns: int | None = None


class FrontendRef(Protocol):
    """The result of a solve; evaluated when first read."""

    async def read_file(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """Return a file's content; ``length`` 0 is all of it.

        Raises:
            NotFoundError: there is no such file.
        """


class MetaResolver(Protocol):
    """Looks up image configs."""

    async def resolve_image_config(
        self,
        ref: str,
        *,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: OciStore | None = None,
    ) -> ResolvedImage:
        """Return the config of ``ref`` for ``platform``.

        Args:
            ref: In full form.
            platform: Which manifest of an index to take; the host's where None.
            resolve_mode: ``default``, ``pull`` or ``local``.
            log_name: The name under which progress shows the look-up.
            store: Look in this OCI layout, not in a registry.

        Raises:
            NotAnImageError: the source policy puts something else in its place.
        """


class FrontendBridge(MetaResolver, Protocol):
    """The engine's side of one frontend run."""

    @property
    def opts(self) -> Mapping[str, str]:
        """The frontend options of the build."""

    @property
    def session_id(self) -> str:
        """The session of the client that started the build."""

    @property
    def worker_platforms(self) -> Sequence[Platform]:
        """The platforms the worker runs, its own first."""

    @property
    def llb_caps(self) -> frozenset[str]:
        """The LLB capabilities that the engine serves."""

    async def solve(
        self,
        definition: pb.Definition,
        *,
        evaluate: bool = False,
        cache_imports: Sequence[CacheImport] = (),
    ) -> FrontendRef | None:
        """Return the result of a definition; None when it is an empty filesystem."""

    async def forward(self, source: str, opts: Mapping[str, str]) -> FrontendResult:
        """Run another frontend, the image ``source``, in place of this one.

        Raises:
            UnimplementedError: frontends in images are not served.
        """

    async def resolve_source_metadata(
        self, op: pb.SourceOp, *, log_name: str, return_object: bool = False
    ) -> SourceMetadata:
        """Return what a git or HTTP source resolves to."""

    async def inputs(self) -> Mapping[str, pb.Definition]:
        """Return the definitions given to the build as named inputs."""

    async def warn(
        self,
        vertex: str,
        message: str,
        *,
        level: int = 1,
        detail: Sequence[bytes] = (),
        url: str = "",
        source: pb.SourceInfo | None = None,
        ranges: Sequence[pb.Range] = (),
    ) -> None:
        """Show a warning beside a vertex."""


@runtime_checkable
class Announcer(Protocol):
    """A bridge that can show a step which is done as soon as it is named; optional."""

    async def announce(self, name: str) -> None:
        """Show a finished step in the build's progress."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """What a scanner image has left: a folder of in-toto statements."""

    ref: FrontendRef | None


@dataclass(frozen=True, slots=True)
class ScanTarget:
    """A tree of which the engine's own scanner is to make a bill of materials."""

    name: str
    ref: FrontendRef | None
    is_core: bool = False


@dataclass(slots=True)
class FrontendResult:
    """What a frontend returns: one ref, or one for each platform id, and metadata.

    ``scans`` are bills of materials by platform id, also where there is one platform.

    ``ref`` and the values of ``refs`` are None for empty filesystems. ``refs`` is used
    where several platforms were asked for, and then ``ref`` has no meaning.
    """

    ref: FrontendRef | None = None
    refs: dict[str, FrontendRef | None] = field(default_factory=dict)
    metadata: dict[str, bytes] = field(default_factory=dict)
    scans: dict[str, list[ScanResult | ScanTarget]] = field(default_factory=dict)
