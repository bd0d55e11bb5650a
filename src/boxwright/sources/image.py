"""Images as build sources: resolve, key, and snapshot; layers are fetched only when read.

Where an image's bytes come from is an :class:`ImageRemote` (a registry, an OCI layout, the
store's own tags); what is made of them is the same for all. Cache keys are BuildKit's
(source/containerimage): first a key of the manifest and platform, then the chain id.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from boxwright.core.dataclass import dataclass, replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import BoxwrightError, Code, InvalidInputError, NotFoundError
from boxwright.oci.annotations import REFERENCE_TYPE
from boxwright.oci.mediatypes import OCI_INDEX, OCI_MANIFEST, is_index
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.node import LayerBlob
from boxwright.snapshots.refs import ImmutableRef
from boxwright.sources.base import SourceContext, SourceKey
from boxwright.sources.fetch import BlobFetcher, ImageRemote, MemorySink

_CONFIG_LIMIT_BYTES = 8 << 20
_MAX_LAYERS = 500
_MAX_INDEX_DEPTH = 4
_LEVEL = re.compile(r"v(\d)(?:\.(\d))?")


class PlatformNotFoundError(NotFoundError):
    """An index has no image for the wanted platform."""

    def __init__(self, name: str, wanted: Platform, offered: Sequence[str]) -> None:
        super().__init__(
            f"{name}: no match for platform in manifest: not found",
            detail=f"wanted {wanted}; the index has {', '.join(offered) or 'none'}",
            hint="choose one of them with --platform",
        )


class MalformedImageError(BoxwrightError):
    """A manifest or config that contradicts the image specification."""

    code = Code.INVALID


@dataclass(frozen=True)
class ResolvedManifest:
    """An image for one platform: the root it was named by, its manifest, config and layers."""

    root: Descriptor
    manifest: Descriptor
    config: bytes
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[Digest, ...]


def platform_choices(wanted: Platform) -> list[Platform]:
    """Return the platforms whose images run on ``wanted``, best first (containerd's Only)."""
    wanted = wanted.normalized()
    machines: list[tuple[str, str]] = []
    level = _LEVEL.fullmatch(wanted.variant or "v8")
    major, minor = (int(part or 0) for part in level.groups()) if level else (0, 0)
    match wanted.architecture:
        case "amd64":
            if wanted.variant:
                machines = [("amd64", f"v{n}") for n in range(major - 1, 1, -1)] + [("amd64", "")]
            machines.append(("386", ""))
        case "arm64":
            if major == 9:
                machines = [("arm64", f"v9.{n}") for n in range(minor - 1, -1, -1)]
                machines += [("arm64", f"v8.{n}") for n in range(minor + 5, -1, -1)]
            elif major == 8:
                machines = [("arm64", f"v8.{n}") for n in range(minor - 1, -1, -1)]
            machines += [("arm", f"v{n}") for n in range(8, 4, -1)]
        case "arm":
            machines = [("arm", f"v{n}") for n in range(major - 1, 4, -1)]
    others = (replace(wanted, architecture=name, variant=variant) for name, variant in machines)
    return [wanted, *(choice.normalized() for choice in others)]


def choose_manifest(index: Mapping[str, Any], wanted: Platform, name: str) -> Descriptor:
    """Return the manifest of an index for a platform.

    Raises:
        PlatformNotFoundError: there is none.
    """
    candidates = [Descriptor.from_json(entry) for entry in index.get("manifests") or ()]
    images = [c for c in candidates if REFERENCE_TYPE not in c.annotations]
    for choice in platform_choices(wanted):
        found = [c for c in images if c.platform is not None and choice.matches(c.platform)]
        if found:  # the one that makes use of most features, then the first
            return max(found, key=lambda c: len(c.platform.os_features) if c.platform else 0)
    unnamed = [c for c in images if c.platform is None]
    if len(unnamed) == 1 and len(images) == 1:
        return unnamed[0]
    raise PlatformNotFoundError(name, wanted, [str(c.platform) for c in images if c.platform])


OpenImage = Callable[[Sequence[str]], Awaitable[tuple[ImageRemote, Descriptor, bytes]]]


class ImageSource:
    """One image for one platform, as a source of a build (:class:`sources.base.Source`).

    Args:
        name: as the user knows it.
        open_image: finds a place that has the image, given the ids of the sessions whose
            logins may be used; returns it with the root manifest.
        platform: which image of an index.
        snapshots: where the layers go.
        fetcher: brings blobs into the store.
        checksum: the digest that the root must have.
        layer_limit: take only so many layers from the base.
        record_type: of the snapshots, for usage listings.
    """

    def __init__(
        self,
        name: str,
        open_image: OpenImage,
        platform: Platform,
        snapshots: SnapshotManager,
        fetcher: BlobFetcher,
        *,
        checksum: Digest | None = None,
        layer_limit: int | None = None,
        record_type: str = "regular",
    ) -> None:
        self._name = name
        self._open_image = open_image
        self._platform = platform
        self._snapshots = snapshots
        self._fetcher = fetcher
        self._checksum = checksum
        self._layer_limit = layer_limit
        self._record_type = record_type
        self._found: tuple[ImageRemote, ResolvedManifest] | None = None

    async def _resolve(self, context: SourceContext) -> tuple[ImageRemote, ResolvedManifest]:
        if self._found is not None:
            return self._found
        remote, root, body = await self._open_image(context.sessions.ids)
        if self._checksum and root.digest != self._checksum:
            raise InvalidInputError(
                f"image digest {root.digest} for {self._name} does not match expected checksum "
                f"{self._checksum}"
            )
        resolved = await resolve_manifest(remote, self._name, root, body, self._platform)
        if self._layer_limit is not None and self._layer_limit > len(resolved.layers):
            raise InvalidInputError(
                f"layer limit {self._layer_limit} is greater than the number of layers in the "
                f"image {len(resolved.layers)}"
            )
        self._found = (remote, resolved)
        return self._found

    async def cache_key(self, context: SourceContext, index: int) -> SourceKey:
        """Return the manifest's key, then the chain id, which other names may share.

        Raises:
            BoxwrightError: not found, unreachable, malformed, or another digest than asked for.
        """
        remote, resolved = await self._resolve(context)
        pin = str(resolved.root.digest)
        if index == 0:
            self._snapshots.offer(self._layers(remote, resolved, context))
        if index > 0 and resolved.diff_ids:
            return SourceKey(str(chain_id(self._limited(resolved.diff_ids))), pin, done=True)
        key = self._manifest_key(resolved.root.digest)
        return SourceKey(str(key), pin, done=index > 0)

    def _manifest_key(self, digest: Digest) -> Digest:
        platform = self._platform
        fields: dict[str, Any] = {
            "Digest": str(digest),
            "OS": platform.os,
            "Arch": platform.architecture,
        }
        if platform.variant:
            fields["Variant"] = platform.variant
        if platform.os_version:
            fields["OSVersion"] = platform.os_version
        if platform.os_features:
            fields["OSFeatures"] = list(platform.os_features)
        if self._layer_limit is not None:
            fields["Limit"] = self._layer_limit
        return Digest.of(json.dumps(fields, separators=(",", ":")).encode())

    def _limited(self, items: Sequence[Any]) -> Sequence[Any]:
        return items if self._layer_limit is None else items[: self._layer_limit]

    async def snapshot(self, context: SourceContext) -> ImmutableRef | None:
        """Return the snapshot of all layers, owned by the caller; None for an empty image.

        Nothing is fetched before somebody reads it.
        """
        remote, resolved = await self._resolve(context)
        layers = self._layers(remote, resolved, context)
        if not layers:
            return None
        return self._snapshots.from_blobs(
            layers, description=f"pulled from {self._name}", record_type=self._record_type
        )

    def _layers(
        self, remote: ImageRemote, resolved: ResolvedManifest, context: SourceContext
    ) -> list[LayerBlob]:
        return [
            LayerBlob(
                descriptor,
                diff_id,
                self._fetch_function(remote, descriptor, context),
                remote.source_labels,
            )
            for descriptor, diff_id in zip(
                self._limited(resolved.layers), self._limited(resolved.diff_ids), strict=True
            )
        ]

    def _fetch_function(
        self, remote: ImageRemote, descriptor: Descriptor, context: SourceContext
    ) -> Callable[[], Awaitable[None]]:
        async def fetch() -> None:
            progress = context.progress
            if progress is None:
                await self._fetcher.fetch(remote, descriptor)
                return
            name, total, started = str(descriptor.digest), descriptor.size, time.time_ns()
            seen = 0

            def on_progress(current: int) -> None:
                nonlocal seen
                seen = current
                progress.status(name, current=current, total=total, started_ns=started)

            on_progress(0)
            try:
                await self._fetcher.fetch(remote, descriptor, on_progress)
                seen = total
            finally:  # a layer that can't be had is not on its way any more
                now = time.time_ns()
                progress.status(
                    name, current=seen, total=total, started_ns=started, completed_ns=now
                )

        return fetch


async def resolve_manifest(
    remote: ImageRemote, name: str, root: Descriptor, body: bytes, platform: Platform
) -> ResolvedManifest:
    """Go from a named root to the manifest, config and layers for a platform.

    Raises:
        PlatformNotFoundError: the index has nothing for it.
        MalformedImageError: what is served is not an image.
    """
    manifest = root
    data = _object(body, name)
    depth = 0
    while is_index(manifest.media_type):
        depth += 1
        if depth > _MAX_INDEX_DEPTH:
            raise MalformedImageError(f"{name}: indexes are nested too deeply")
        with _as_malformed(name):
            chosen = choose_manifest(data, platform, name)
        manifest, body = await remote.manifest(chosen.digest)
        data = _object(body, name)
    config_descriptor, layers = _parts(data, manifest, name)
    config = await small_blob(remote, config_descriptor, name, "config")
    with _as_malformed(name):
        rootfs = _object(config, name).get("rootfs") or {}
        diff_ids = tuple(Digest(str(d)) for d in rootfs.get("diff_ids") or ())
    if len(diff_ids) != len(layers):
        raise MalformedImageError(
            f"{name}: manifest and config disagree",
            detail=f"{len(layers)} layers, {len(diff_ids)} diff ids",
        )
    return ResolvedManifest(root, manifest, config, layers, diff_ids)


def _parts(
    data: dict[str, Any], manifest: Descriptor, name: str
) -> tuple[Descriptor, tuple[Descriptor, ...]]:
    """Return the config and the layers of a manifest."""
    if data.get("schemaVersion") == 1:
        raise MalformedImageError(
            f"{name} has the manifest format of Docker before 1.10",
            detail=f"media type {manifest.media_type}, schemaVersion 1",
            hint="copy it with a tool that converts it, such as skopeo copy --format oci",
        )
    if not isinstance(data.get("config"), dict):
        raise MalformedImageError(
            f"{name} is not an image", detail=f"media type {manifest.media_type or 'unknown'}"
        )
    with _as_malformed(name):
        config = Descriptor.from_json(data["config"])
        layers = tuple(Descriptor.from_json(layer) for layer in data.get("layers") or ())
    if len(layers) > _MAX_LAYERS:
        raise MalformedImageError(f"{name} has {len(layers)} layers")
    return config, layers


@contextlib.contextmanager
def _as_malformed(name: str) -> Iterator[None]:
    """Turn what reading foreign JSON objects raises into one error that names the image."""
    try:
        yield
    except (TypeError, AttributeError, ValueError) as exc:
        raise MalformedImageError(f"{name}: malformed manifest", detail=str(exc)) from exc
    except InvalidInputError as exc:
        raise MalformedImageError(f"{name}: malformed manifest", detail=str(exc)) from exc


async def small_blob(
    remote: ImageRemote, descriptor: Descriptor, name: str, what: str = "document"
) -> bytes:
    """Return a blob that fits into memory, verified.

    Raises:
        MalformedImageError: it is over 8 MiB, or something else than its digest says.
        BoxwrightError: of the place that has it.
    """
    if descriptor.size > _CONFIG_LIMIT_BYTES:
        raise MalformedImageError(f"{name}: {what} of {descriptor.size} bytes is too large")
    sink = MemorySink(descriptor.size)
    await remote.blob(descriptor, sink)
    if not descriptor.digest.matches(sink.data):
        raise MalformedImageError(
            f"{name}: {what} does not have its digest", detail=str(descriptor.digest)
        )
    return bytes(sink.data)


def _object(body: bytes, name: str) -> dict[str, Any]:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise MalformedImageError(f"{name}: not valid JSON", detail=str(exc)) from exc
    if not isinstance(data, dict):
        raise MalformedImageError(f"{name}: not a JSON object")
    return data


def manifest_media_type(body: bytes) -> str:
    """Return what a manifest says it is, or what it looks like if it does not say.

    Raises:
        MalformedImageError: it is no JSON object.
    """
    data = _object(body, "manifest")
    return str(data.get("mediaType") or (OCI_INDEX if "manifests" in data else OCI_MANIFEST))


def chain_id(diff_ids: Sequence[Digest]) -> Digest:
    """Return the chain id of a stack of layers (image-spec, config.md, "Layer ChainID")."""
    current = diff_ids[0]
    for diff_id in diff_ids[1:]:
        current = Digest.of(f"{current} {diff_id}".encode())
    return current
