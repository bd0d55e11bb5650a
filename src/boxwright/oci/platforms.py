"""Which platforms a build result is for, as frontends tell exporters (``refs.platforms``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from boxwright.core.dataclass import dataclass
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError

PLATFORMS_KEY = "refs.platforms"
CONFIG_KEY = "containerimage.config"
BASE_CONFIG_KEY = "containerimage.base.config"
EPOCH_KEY = "source.date.epoch"


@dataclass(frozen=True, slots=True)
class ResultPlatform:
    """One platform of a result and the id by which refs and metadata name it."""

    id: str
    platform: Platform


def parse_platforms(metadata: Mapping[str, bytes]) -> list[ResultPlatform]:
    """Return the platforms of a result; without a mapping, that of its config or the host.

    Raises:
        InvalidInputError: the mapping or the config is malformed.
    """
    raw = metadata.get(PLATFORMS_KEY)
    if raw is not None:
        return [_entry(item) for item in _entries(raw)]
    config = metadata.get(CONFIG_KEY)
    if config is None:
        platform = Platform.host()
    else:
        value = _json(config, "image config")
        platform = Platform.from_json(value) if isinstance(value, dict) else Platform("", "")
        if bool(platform.os) != bool(platform.architecture):
            raise InvalidInputError(
                "invalid image config", detail="os and architecture must be specified together"
            )
    platform = platform.normalized()
    return [ResultPlatform(str(platform), platform)]


def metadata_value(
    metadata: Mapping[str, bytes], key: str, platform: ResultPlatform | None
) -> bytes | None:
    """Return the value of ``key`` for a platform, else the one for all."""
    if platform is not None and (value := metadata.get(f"{key}/{platform.id}")) is not None:
        return value
    return metadata.get(key)


def _entries(raw: bytes) -> list[Any]:
    value = _json(raw, "platforms mapping")
    entries = value.get("Platforms") if isinstance(value, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InvalidInputError("invalid empty platforms index for exporter")
    return entries


def _entry(item: object) -> ResultPlatform:
    if isinstance(item, dict) and not item.get("ID"):
        raise InvalidInputError("invalid empty platform key for exporter")
    if not isinstance(item, dict) or not isinstance(item.get("Platform"), dict):
        raise InvalidInputError("invalid platform value for exporter", detail=repr(item)[:200])
    platform = Platform.from_json(item["Platform"])
    identity = str(item["ID"])
    if not platform.os or not platform.architecture:
        raise InvalidInputError("invalid platform value for exporter", detail=repr(item)[:200])
    return ResultPlatform(identity, platform.normalized())


def _json(raw: bytes, what: str) -> object:
    try:
        value: object = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"invalid {what}", detail=str(error)) from None
    return value
