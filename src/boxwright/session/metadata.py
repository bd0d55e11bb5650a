"""Metadata keys of session calls, and how lists of patterns travel in them (session/filesync).

Values that are not ASCII are query-escaped, all of a key's values at once, and the key is
marked with a companion ``<key>-encoded: 1``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from boxwright.session.base import SyncRequest

SESSION_ID = "x-docker-expose-session-uuid"
SESSION_NAME = "x-docker-expose-session-name"
SESSION_SHARED_KEY = "x-docker-expose-session-sharedkey"
SESSION_METHOD = "x-docker-expose-session-grpc-method"
SESSION_HEALTH_TIMEOUT = "x-buildkit-session-health-custom-timeout"

DIR_NAME = "dir-name"
INCLUDE_PATTERNS = "include-patterns"
EXCLUDE_PATTERNS = "exclude-patterns"
FOLLOW_PATHS = "followpaths"
EXPORTER_ID = "buildkit-attachable-exporter-id"
EXPORTER_METADATA = "exporter-md-"
EXPORTER_MULTI_PLATFORM = "buildkit-exporter-multi-platform"
SSH_ID = "buildkit.ssh.id"
URL_PATH = "urlpath"
CONTENT_STORE = "buildkit-attachable-store-id"
_ENCODED = "-encoded"
_SAFE = "-_.~"


class Fields(Protocol):
    """Received metadata."""

    def get_all(self, name: str) -> list[str]:
        """Return all values of a key, in order."""


def encode(key: str, values: Iterable[str]) -> list[tuple[str, str]]:
    """Return the metadata items of one key."""
    items = list(values)
    if all(text.isascii() and text.isprintable() for text in items):
        return [(key, text) for text in items]
    escaped = [quote_from_bytes(os.fsencode(text), safe=_SAFE) for text in items]
    return [(key, text) for text in escaped] + [(key + _ENCODED, "1")]


def decode(fields: Fields, key: str) -> tuple[str, ...]:
    """Return the values of one key."""
    values = fields.get_all(key)
    if fields.get_all(key + _ENCODED)[:1] not in (["1"], ["true"], ["t"]):
        return tuple(values)
    return tuple(os.fsdecode(unquote_to_bytes(text.replace("+", " "))) for text in values)


def encode_sync(name: str, request: SyncRequest) -> list[tuple[str, str]]:
    """Return the metadata of a FileSync call."""
    return [
        *encode(DIR_NAME, [name]),
        *encode(INCLUDE_PATTERNS, request.include),
        *encode(EXCLUDE_PATTERNS, request.exclude),
        *encode(FOLLOW_PATHS, request.follow),
    ]


def decode_sync(fields: Fields) -> tuple[str, SyncRequest]:
    """Return the folder's name and the request of a FileSync call."""
    name = decode(fields, DIR_NAME)
    request = SyncRequest(
        decode(fields, INCLUDE_PATTERNS),
        decode(fields, EXCLUDE_PATTERNS),
        decode(fields, FOLLOW_PATHS),
    )
    return (name[0] if name else ""), request


def encode_export(exporter_id: int, metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the metadata of a FileSend call."""
    items = [(EXPORTER_METADATA + key.lower(), value) for key, value in metadata.items()]
    return [*items, (EXPORTER_ID, str(exporter_id))]


def decode_export(
    fields: Fields, all_items: Iterable[tuple[str, str | bytes]]
) -> tuple[int, dict[str, str]]:
    """Return the exporter's number and the metadata of a FileSend call."""
    number = (fields.get_all(EXPORTER_ID) or ["0"])[0]
    metadata = {
        key.removeprefix(EXPORTER_METADATA): value
        for key, value in all_items
        if key.startswith(EXPORTER_METADATA) and isinstance(value, str)
    }
    return (int(number) if number.isascii() and number.isdigit() else 0), metadata
