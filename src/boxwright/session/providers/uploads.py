"""Streams that a build pulls from its client: a context on standard input (Upload.Pull)."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import BinaryIO

from boxwright.core.workers import to_worker
from boxwright.errors import NotFoundError

URL_PREFIX = "http://buildkit-session/"
_CHUNK_BYTES = 1 << 20


class UploadProvider:
    """Streams by random id; each can be pulled once."""

    def __init__(self) -> None:
        self._streams: dict[str, BinaryIO] = {}

    def add(self, stream: BinaryIO) -> str:
        """Offer a stream; return the URL that stands for it in the build's options."""
        upload_id = secrets.token_hex(16)
        self._streams[upload_id] = stream
        return URL_PREFIX + upload_id

    async def pull(self, url_path: str) -> AsyncIterator[bytes]:
        """Yield the stream of a URL or of its path.

        Raises:
            NotFoundError: unknown, or pulled already.
        """
        stream = self._streams.pop(url_path.rstrip("/").rpartition("/")[2], None)
        if stream is None:
            raise NotFoundError("no such upload in the session", detail=url_path[:200])
        while data := await to_worker(stream.read, _CHUNK_BYTES):
            yield data
