"""Attributes of cache exports and imports, as buildctl's and buildx's users write them."""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Mapping, Sequence

from boxwright.core import gobool
from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.errors import InvalidInputError, UnimplementedError
from boxwright.fsutil.compress import Compression
from boxwright.solver.exporter import ExportMode

EXPORT_TYPES = ("registry", "local", "inline")
IMPORT_TYPES = ("registry", "local")
_UNBUILT = frozenset(("gha", "s3", "azblob"))


class Place(enum.Enum):
    """Where a cache is."""

    REGISTRY = "registry"
    LOCAL = "local"
    INLINE = "inline"


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One cache export or import as a request names it (``CacheOptionsEntry``)."""

    type: str
    attrs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CacheExport:
    """A cache export, its attributes read.

    Attributes:
        place: where it goes.
        mode: which results.
        ref: of a registry cache.
        folder: the client's name for a local cache.
        compression: of layers that have no blob yet, and with ``force`` of all.
        oci_types: media types are OCI's.
        image_manifest: one image manifest instead of an index.
        insecure: plain HTTP and unverified TLS are allowed.
        ignore_error: a failure does not fail the build.
    """

    place: Place
    mode: ExportMode = ExportMode.MIN
    ref: Reference | None = None
    folder: str = ""
    compression: Compression = field(default_factory=Compression)
    oci_types: bool = True
    image_manifest: bool = True
    insecure: bool = False
    ignore_error: bool = False

    @property
    def name(self) -> str:
        """What the progress calls it."""
        if self.place is Place.REGISTRY:
            return "exporting cache to registry"
        if self.place is Place.LOCAL:
            return "exporting cache to client directory"
        return "exporting inline cache"


@dataclass(frozen=True, slots=True)
class CacheImport:
    """A cache import, its attributes read; exactly one of ``ref`` and ``folder`` is set."""

    ref: Reference | None = None
    insecure: bool = False
    folder: str = ""
    digest: Digest | None = None


def read_exports(entries: Sequence[CacheEntry]) -> list[CacheExport]:
    """Read all cache exports of a request.

    Raises:
        InvalidInputError: unknown, duplicate or malformed.
        UnimplementedError: of a type that BuildKit has and we don't.
    """
    seen: set[str] = set()
    doubled: list[str] = []
    exports: list[CacheExport] = []
    for entry in entries:
        if entry.type == "inline" and any(e.place is Place.INLINE for e in exports):
            continue
        key = import_id(entry)
        if key in seen:
            doubled.append(entry.type)
        seen.add(key)
        exports.append(_read_export(entry))
    if doubled:
        raise InvalidInputError(
            f"duplicate cache exports [{' '.join(doubled)}]",
            hint="two exports to the same place would overwrite each other; leave one out",
        )
    return exports


def _read_export(entry: CacheEntry) -> CacheExport:
    attrs = entry.attrs
    if entry.type not in EXPORT_TYPES:
        raise _unknown("exporter", entry.type, EXPORT_TYPES)
    oci_types = _flag(attrs, "oci-mediatypes", default=True)
    image_manifest = _flag(attrs, "image-manifest", default=oci_types)
    if image_manifest and not oci_types:
        raise InvalidInputError(
            "a remote cache in the form of an image manifest needs OCI media types",
            detail="image-manifest=true, oci-mediatypes=false",
            hint="leave one of the two out",
        )
    place = Place(entry.type)
    folder = attrs.get("dest", "")
    if place is Place.LOCAL and not folder:
        raise InvalidInputError("local cache exporter requires dest")
    mode = {"max": ExportMode.MAX}.get(attrs.get("mode", ""), ExportMode.MIN)
    ignore = attrs.get("ignore-error", "")
    return CacheExport(
        place=place,
        mode=mode,
        ref=_ref(entry) if place is Place.REGISTRY else None,
        folder=f"local:{folder}" if place is Place.LOCAL else "",
        compression=_compression(attrs),
        oci_types=oci_types,
        image_manifest=image_manifest,
        insecure=_flag(attrs, "registry.insecure", default=False),
        ignore_error=ignore in gobool.TRUE,
    )


def read_import(entry: CacheEntry) -> CacheImport:
    """Read one cache import.

    Raises:
        InvalidInputError: unknown or malformed.
        UnimplementedError: of a type that BuildKit has and we don't.
    """
    if entry.type == "registry":
        insecure = _flag(entry.attrs, "registry.insecure", default=False)
        return CacheImport(ref=_ref(entry), insecure=insecure)
    if entry.type != "local":
        raise _unknown("importer", entry.type, IMPORT_TYPES)
    digest, folder = entry.attrs.get("digest", ""), entry.attrs.get("src", "")
    if not digest:
        raise InvalidInputError("local cache importer requires explicit digest")
    if not folder:
        raise InvalidInputError("local cache importer requires src")
    return CacheImport(folder=f"local:{folder}", digest=Digest(digest))


def import_id(entry: CacheEntry) -> str:
    """Return what tells one place from another; it names the import in the progress."""
    if entry.type == "registry" and entry.attrs.get("ref"):
        return entry.attrs["ref"]
    text = "\0".join(f"{key}\0{value}" for key, value in sorted(entry.attrs.items()))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return f"{entry.type}:{number}"


def _unknown(what: str, kind: str, known: Sequence[str]) -> InvalidInputError | UnimplementedError:
    if kind in _UNBUILT:
        return UnimplementedError(
            f"remote caches of type {kind} are not supported yet",
            hint=f"use type={' or type='.join(known)}",
        )
    shown = kind if what == "importer" else f'"{kind}"'  # as upstream writes them
    return InvalidInputError(
        f"unknown cache {what}: {shown}", hint=f"use type={' or type='.join(known)}"
    )


def _ref(entry: CacheEntry) -> Reference:
    ref = entry.attrs.get("ref", "")
    if not ref:
        raise InvalidInputError(
            "a registry cache needs ref", hint="write type=registry,ref=HOST/NAME:TAG"
        )
    return Reference.parse(ref).with_default_tag()


def _flag(attrs: Mapping[str, str], key: str, *, default: bool) -> bool:
    if key not in attrs:
        return default
    value = gobool.parse(attrs[key])
    if value is None:
        raise InvalidInputError(
            f"failed to parse {key}", detail=f"{attrs[key]!r} is not a boolean"
        )
    return value


def _compression(attrs: Mapping[str, str]) -> Compression:
    level: int | None = None
    if "compression-level" in attrs:
        try:
            level = int(attrs["compression-level"])
        except ValueError:
            raise InvalidInputError(
                f"non-integer value {attrs['compression-level']} specified for compression-level"
            ) from None
    force = attrs.get("force-compression", "false") or "true"
    return Compression(
        attrs.get("compression", "gzip") or "gzip",
        level,
        force=_flag({"force-compression": force}, "force-compression", default=False),
    )
