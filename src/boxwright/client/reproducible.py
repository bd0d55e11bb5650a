"""Two builds of the same input, compared: which files of which layers differ, and in what.

Both are OCI layouts in folders. Equal digests need no further look; otherwise manifests are
taken in pairs by platform, configs field by field, and layers entry by entry. Attestations are left
out, as they say when a build ran.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boxwright.client.imagecopy import is_attestation
from boxwright.core.dataclass import dataclass
from boxwright.core.descriptor import Descriptor
from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.fsutil.compress import open_decompressor
from boxwright.fsutil.tar import TarReader
from boxwright.oci import layout, mediatypes
from boxwright.oci.manifest import Index, Manifest

_SHOWN = 20
_HINT_EPOCH = (
    "set SOURCE_DATE_EPOCH and add rewrite-timestamp=true to the output: only times differ"
)
_HINT_FILES = "make the steps that write these files depend on their inputs alone"


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that differs.

    Attributes:
        where: ``config``, ``layer 2 (RUN …)``, with the platform in front if there are several.
        what: A path in the layer, or a field of the config.
        aspects: What of it: ``content``, ``mtime``, ``mode``, ``only in the first`` …
    """

    where: str
    what: str
    aspects: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.where}: {self.what}: {', '.join(self.aspects)}"


class NotReproducibleError(BoxwrightError):
    """Two builds of the same input gave different images."""

    code = Code.NOT_REPRODUCIBLE

    def __init__(self, differences: list[Difference]) -> None:
        lines = [str(each) for each in differences[:_SHOWN]]
        if len(differences) > _SHOWN:
            lines.append(f"and {len(differences) - _SHOWN} more")
        only_times = all(_is_time(each) for each in differences)
        super().__init__(
            "two builds of the same input differ",
            detail="\n".join(lines),
            hint=_HINT_EPOCH if only_times else _HINT_FILES,
        )
        self.differences = differences


def _is_time(difference: Difference) -> bool:
    if difference.where.endswith("config"):
        return difference.what.rpartition(".")[2] == "created"
    return difference.aspects == ("mtime",)


def compare_layouts(first: Path, second: Path) -> list[Difference]:
    """Return how the images in two layouts differ; nothing if their digests are equal. Blocks.

    Raises:
        InvalidInputError: a layout is malformed.
        BoxwrightError: a layer is damaged.
    """
    one, two = _images(first), _images(second)
    if {k: d.digest for k, d in one.items()} == {k: d.digest for k, d in two.items()}:
        return []
    found = [
        Difference("image", name or "platform", ("only in one of both builds",))
        for name in sorted(one.keys() ^ two.keys())
    ]
    for name in one.keys() & two.keys():
        prefix = f"{name}: " if len(one) > 1 else ""
        pair = _Pair(first, second, prefix)
        found += pair.compare(one[name], two[name])
    return found


def _blob(root: Path, descriptor: Descriptor) -> Path:
    return root / layout.blob_path(descriptor.digest)


def _images(root: Path) -> dict[str, Descriptor]:
    """Return the image manifests of a layout by platform."""
    try:
        found = Index.decode((root / layout.INDEX_FILE).read_bytes()).manifests
    except OSError as error:
        raise InvalidInputError(f"{root} is no image layout", detail=str(error)) from None
    images: dict[str, Descriptor] = {}
    pending = list(found[:1])
    while pending:
        descriptor = pending.pop(0)
        if mediatypes.is_index(descriptor.media_type):
            pending += Index.decode(_blob(root, descriptor).read_bytes()).manifests
        elif not is_attestation(descriptor):
            images[str(descriptor.platform or "")] = descriptor
    return images


class _Pair:
    """Two images of one platform."""

    def __init__(self, first: Path, second: Path, prefix: str) -> None:
        self._roots = (first, second)
        self._prefix = prefix

    def compare(self, one: Descriptor, two: Descriptor) -> list[Difference]:
        if one.digest == two.digest:
            return []
        manifests = [
            Manifest.decode(_blob(root, item).read_bytes())
            for root, item in zip(self._roots, (one, two), strict=True)
        ]
        configs = [
            json.loads(_blob(root, each.config).read_bytes())
            for root, each in zip(self._roots, manifests, strict=True)
        ]
        labels = list(_layer_names(configs[0]))
        found: list[Difference] = []
        pairs = list(zip(manifests[0].layers, manifests[1].layers, strict=False))
        for number, (left, right) in enumerate(pairs, 1):
            if left.digest != right.digest:
                label = f" ({labels[number - 1]})" if number <= len(labels) else ""
                found += self._layers(f"{self._prefix}layer {number}{label}", left, right)
        counts = [len(each.layers) for each in manifests]
        if counts[0] != counts[1]:
            text = f"{counts[0]} and {counts[1]}"
            found.append(Difference(f"{self._prefix}manifest", "number of layers", (text,)))
        for config in configs:  # follows from the layers
            config.pop("rootfs", None)
        where = f"{self._prefix}config"
        found += [Difference(where, what, ("value",)) for what in _fields(configs[0], configs[1])]
        if not found:
            found.append(Difference(f"{self._prefix}manifest", str(one.digest), ("annotations",)))
        return found

    def _layers(self, where: str, left: Descriptor, right: Descriptor) -> list[Difference]:
        one, two = (
            _entries(_blob(root, item))
            for root, item in zip(self._roots, (left, right), strict=True)
        )
        found = [
            Difference(where, f"/{name}", ("only in the first",))
            for name in one
            if name not in two
        ]
        found += [
            Difference(where, f"/{name}", ("only in the second",))
            for name in two
            if name not in one
        ]
        for name, facts in one.items():
            other = two.get(name, facts)
            aspects = tuple(key for key, value in facts.items() if other[key] != value)
            if aspects:
                found.append(Difference(where, f"/{name}", aspects))
        if found:
            return found
        same = list(one) == list(two)
        return [Difference(where, "archive", ("compression" if same else "order of entries",))]


def _entries(path: Path) -> dict[str, dict[str, object]]:
    """Return what a layer says of each of its entries."""
    found: dict[str, dict[str, object]] = {}
    with path.open("rb") as file:
        reader = TarReader(open_decompressor(file)[1])
        for entry in reader:
            content = hashlib.sha256()
            for piece in reader.chunks():
                content.update(piece)
            name = entry.name.decode("utf-8", "backslashreplace").rstrip("/")
            found[name] = {
                "type": entry.type,
                "mode": entry.mode,
                "owner": (entry.uid, entry.gid),
                "mtime": (entry.mtime, entry.mtime_nsec),
                "link": entry.linkname,
                "device": (entry.dev_major, entry.dev_minor),
                "attributes": entry.xattrs,
                "size": entry.size,
                "content": content.digest(),
            }
    return found


def _layer_names(config: dict[str, Any]) -> Iterator[str]:
    """Yield what made each layer, from the image's history."""
    for item in config.get("history") or ():
        if not item.get("empty_layer"):
            yield str(item.get("created_by") or "")[:60].replace("\n", " ")


def _fields(one: object, two: object, name: str = "") -> Iterator[str]:
    """Yield the paths of the fields in which two JSON values differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        for key in sorted(one.keys() | two.keys()):
            yield from _fields(one.get(key), two.get(key), f"{name}.{key}" if name else key)
    elif isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        for number, (left, right) in enumerate(zip(one, two, strict=True)):
            yield from _fields(left, right, f"{name}[{number}]")
    elif one != two:
        yield name
