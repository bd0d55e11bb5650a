"""Complete an image config with what only the exporter knows: layers, history, times.

Frontends hand over a config without ``rootfs``. What is added, and the bytes that come out,
are upstream's (``patchImageConfig``), so that equal builds have equal image ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, replace
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.oci.image import ContainerConfig, History, Image

EXPORTER_COMMENT = "buildkit.exporter.image.v0"
INLINE_CACHE_KEY = "moby.buildkit.cache.v0"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class LayerMeta:
    """What history says of a layer that no frontend described; ``created`` is RFC 3339."""

    description: str = ""
    created: str = ""


def default_config(platform: Platform) -> bytes:
    """Return the config of a result that no frontend made one for."""
    image = Image(platform=platform, rootfs_type="layers")
    env = [] if platform.os == "windows" else [f"PATH={DEFAULT_PATH}"]
    image.config = ContainerConfig(working_dir="/", env=env)
    return image.encode()


def parse_history(config: bytes) -> list[History] | None:
    """Return the history of a config, None where it has none.

    Raises:
        InvalidInputError: the config is not a JSON object.
    """
    value = _decode(config)
    found = next((item for key, item in value.items() if key.lower() == "history"), None)
    if found is None:
        return None
    if not isinstance(found, list):
        raise InvalidInputError("invalid image config", detail="history is not a list")
    return [History.from_json(item) for item in found]


def normalize_history(
    history: Sequence[History] | None, layers: Sequence[LayerMeta]
) -> list[History] | None:
    """Return history with one non-empty item for each of ``layers``, and times for all.

    Args:
        history: what the frontend wrote.
        layers: the image's layers, base first.
    """
    items = list(history) if history is not None else None
    described = sum(not item.empty_layer for item in items or ())
    if described > len(layers):
        seen = 0
        for index, item in enumerate(items or ()):
            if seen >= len(layers):
                items[index] = replace(item, empty_layer=True)  # type: ignore[index]
            elif not item.empty_layer:
                seen += 1
    elif described < len(layers):
        items = items or []
        items += [
            History(created=meta.created, created_by=meta.description, comment=EXPORTER_COMMENT)
            for meta in layers[described:]
        ]
    if items is None:
        return None
    metas = iter(layers)
    for index, item in enumerate(items):
        if not item.empty_layer:
            meta = next(metas)
            if not item.created:
                items[index] = replace(item, created=meta.created)
    return _fill_times(items)


def _fill_times(items: list[History]) -> list[History]:
    """Give items without a time that of the first new layer, or of the one before."""
    created, missing = "", False
    for item in items:
        if item.created:
            created = item.created
            if missing:
                break
        else:
            missing = True
    missing = False
    for index, item in enumerate(items):
        if item.created:
            if missing:
                created = item.created
        else:
            missing = True
            items[index] = replace(item, created=created)
    return items


def patch_config(
    config: bytes,
    *,
    diff_ids: Sequence[str],
    history: Sequence[History] | None,
    epoch_s: int | None = None,
    base_history: Sequence[History] | None = None,
    inline_cache: bytes | None = None,
) -> bytes:
    """Return the final bytes of a config.

    Args:
        config: what the frontend wrote.
        diff_ids: digests of the uncompressed layers, base first.
        history: see :func:`normalize_history`.
        epoch_s: times after this one (seconds since the epoch) become this one.
        base_history: history of the base image; its items keep their times.
        inline_cache: cache metadata to embed.

    Raises:
        InvalidInputError: the config is malformed or names no platform.
    """
    value = _decode(config)
    for key in ("os", "architecture"):
        if not any(item for name, item in value.items() if name.lower() == key):
            raise InvalidInputError("invalid image config for export", detail=f"missing {key}")
    value["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids) or None}
    items = None if history is None else list(history)
    limit = None if epoch_s is None else gojson.time_text(epoch_s * 1_000_000_000)
    if items is not None and limit is not None and epoch_s is not None:
        items = _clamp_history(items, base_history or (), epoch_s, limit)
    value["history"] = None if items is None else [item.to_json() for item in items]
    created = value.get("created")
    if "created" not in value:
        times = [item.created for item in items or () if item.created]
        value["created"] = times[-1] if times else None
    elif (
        limit is not None
        and epoch_s is not None
        and isinstance(created, str)
        and _parse_time(created) > epoch_s * 1_000_000_000
    ):
        value["created"] = limit
    if inline_cache is not None:
        value[INLINE_CACHE_KEY] = json.loads(inline_cache)
    return gojson.encode(dict(sorted(value.items())))


def _clamp_history(
    items: list[History], base: Sequence[History], epoch_s: int, limit: str
) -> list[History]:
    diverged = False
    for index, item in enumerate(items):
        if not diverged and index < len(base) and item == base[index]:
            continue
        diverged = True
        if not item.created or _parse_time(item.created) > epoch_s * 1_000_000_000:
            items[index] = replace(item, created=limit)
    return items


def _parse_time(text: str) -> int:
    try:
        return gojson.parse_time(text)
    except ValueError as error:
        raise InvalidInputError("invalid time in an image config", detail=str(error)) from None


def _decode(config: bytes) -> dict[str, Any]:
    try:
        value = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError("invalid image config for export", detail=str(error)) from None
    if value is None:
        raise InvalidInputError("invalid null image config for export")
    if not isinstance(value, dict):
        raise InvalidInputError("invalid image config for export", detail="not a JSON object")
    return value
