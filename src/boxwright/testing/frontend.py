"""An in-memory :class:`FrontendBridge`: runs the Dockerfile frontend without an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.dockerfile.bridge import (
    CacheImport,
    FrontendResult,
    NotAnImageError,
    OciStore,
    ResolvedImage,
    SourceMetadata,
)
from boxwright.errors import NotFoundError, UnimplementedError
from boxwright.llb import build_caps
from boxwright.wire.pb import ops_pb2 as pb


@dataclass(frozen=True, slots=True)
class MemoryRef:
    """A solved definition; files are those of the sources in it."""

    definition: pb.Definition
    files: Mapping[str, bytes]

    async def read_file(self, path: str, *, offset: int = 0, length: int = 0) -> bytes:
        """Return a file's content.

        Raises:
            NotFoundError: no source of the definition has it.
        """
        if path not in self.files:
            raise NotFoundError(f"open {path}: no such file or directory")
        data = self.files[path][offset:]
        return data[:length] if length else data


@dataclass(frozen=True, slots=True)
class SeenWarning:
    """One call of :meth:`MemoryBridge.warn`."""

    vertex: str
    message: str
    level: int
    detail: tuple[bytes, ...]
    url: str
    lines: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class MemoryBridge:
    """Records what a frontend asks for.

    Attributes:
        sources: Files by source identifier (``local://context``, ``https://…``), then path.
            An HTTP source has one file, under whatever name the frontend gives it.
        images: Config blobs by reference, or by ``reference|platform``.
        replaced: What a policy has in place of images, by reference: identifiers of sources.
        metadata: What source ops resolve to, by identifier.
        definitions: Everything that was solved, in order.
        resolved: Every look-up of an image: reference, platform, mode, name shown.
    """

    opts: dict[str, str] = field(default_factory=dict)
    sources: dict[str, dict[str, bytes]] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    replaced: dict[str, str] = field(default_factory=dict)
    named_inputs: dict[str, pb.Definition] = field(default_factory=dict)
    metadata: dict[str, SourceMetadata] = field(default_factory=dict)
    session_id: str = "sessionid"
    worker_platforms: Sequence[Platform] = (Platform("linux", "amd64"),)
    llb_caps: frozenset[str] = build_caps.ALL
    definitions: list[pb.Definition] = field(default_factory=list)
    cache_imports: list[CacheImport] = field(default_factory=list)
    resolved: list[tuple[str, str, str, str]] = field(default_factory=list)
    warnings: list[SeenWarning] = field(default_factory=list)
    announced: list[str] = field(default_factory=list)
    forwarded: list[str] = field(default_factory=list)

    async def solve(
        self,
        definition: pb.Definition,
        *,
        evaluate: bool = False,
        cache_imports: Sequence[CacheImport] = (),
    ) -> MemoryRef | None:
        """Record the definition and return the files of its sources."""
        self.definitions.append(definition)
        self.cache_imports.extend(cache_imports)
        files: dict[str, bytes] = {}
        for data in getattr(definition, "def"):
            op = pb.Op.FromString(data)
            if not op.HasField("source"):
                continue
            found = self.sources.get(op.source.identifier, {})
            name = op.source.attrs.get("http.filename", "")
            files |= {name: next(iter(found.values()))} if name and found else found
        return MemoryRef(definition, files) if getattr(definition, "def") else None

    async def forward(self, source: str, opts: Mapping[str, str]) -> FrontendResult:
        """Refuse, as an engine without the gateway does.

        Raises:
            UnimplementedError: always.
        """
        self.forwarded.append(source)
        raise UnimplementedError("frontend images are not supported", detail=source)

    async def resolve_image_config(
        self,
        ref: str,
        *,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: OciStore | None = None,
    ) -> ResolvedImage:
        """Return a config of ``images``; the digest is that of the reference's text.

        Raises:
            NotFoundError: it is not in ``images``.
            NotAnImageError: it is in ``replaced``.
        """
        mode = f"oci:{store.store_id}" if store is not None else resolve_mode
        self.resolved.append((ref, str(platform or ""), mode, log_name))
        if ref in self.replaced:
            raise NotAnImageError(ref, self.replaced[ref])
        config = self.images.get(f"{ref}|{platform}", self.images.get(ref))
        if config is None:
            raise NotFoundError(f"{ref}: not found")
        return ResolvedImage(ref, Digest.of(ref.encode()), config)

    async def resolve_source_metadata(
        self, op: pb.SourceOp, *, log_name: str, return_object: bool = False
    ) -> SourceMetadata:
        """Return what ``metadata`` says, or nothing known."""
        return self.metadata.get(op.identifier, SourceMetadata())

    async def inputs(self) -> Mapping[str, pb.Definition]:
        """Return ``named_inputs``."""
        return self.named_inputs

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
        """Record a warning."""
        lines = tuple((item.start.line, item.end.line) for item in ranges)
        self.warnings.append(SeenWarning(vertex, message, level, tuple(detail), url, lines))

    async def announce(self, name: str) -> None:
        """Record an announcement."""
        self.announced.append(name)
