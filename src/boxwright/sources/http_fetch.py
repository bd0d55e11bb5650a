"""GET and HEAD for sources: redirects, proxies, limits, and errors that name the cause.

Unlike a browser, a login is sent to no other host than the one it is for, nor from TLS to plain
text; cookies and ``.netrc`` are not used. Connections are shared by all builds.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from boxwright._version import USER_AGENT
from boxwright.errors import InvalidInputError
from boxwright.registry.connections import proxy_for
from boxwright.registry.dialing import what_broke
from boxwright.registry.trust import client_context
from boxwright.sources.http_errors import HttpTooLargeError, HttpUnreachableError
from boxwright.sources.http_request import HttpRequest, redacted

_CONNECT_TIMEOUT_S = 30.0
_STALL_TIMEOUT_S = 120.0
_READ_BUFFER_BYTES = 1 << 20
_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_LOGIN = "Authorization"


class HttpAnswer:
    """The head of an answer, and its body to be read once."""

    def __init__(self, response: aiohttp.ClientResponse, shown_url: str, limit: int) -> None:
        self._response = response
        self._shown_url = shown_url
        self._limit = limit
        self.status = response.status
        self.reason = response.reason or ""
        self.headers: CIMultiDictProxy[str] = response.headers

    @property
    def size_bytes(self) -> int:
        """How many bytes are announced on the wire; 0 if unknown."""
        length = self.headers.get("Content-Length", "")
        return int(length) if length.isdecimal() else 0

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the content, with the compression of the transfer undone.

        Raises:
            HttpTooLargeError: over the limit.
            HttpUnreachableError: broken off, or no byte for two minutes.
        """
        count = 0
        if self.size_bytes > self._limit:
            raise HttpTooLargeError(self._shown_url, self._limit)
        with connection_errors(self._shown_url):
            while data := await self._response.content.readany():
                count += len(data)
                if count > self._limit:
                    raise HttpTooLargeError(self._shown_url, self._limit)
                yield data


class HttpFetcher:
    """Sends requests. Made and closed inside the event loop.

    Args:
        limit_bytes: how large a body may be.
    """

    def __init__(self, *, limit_bytes: int = 64 << 30) -> None:
        self._limit_bytes = limit_bytes
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    @contextlib.asynccontextmanager
    async def send(self, method: str, request: HttpRequest) -> AsyncIterator[HttpAnswer]:
        """Follow redirects to the answer, open for the length of the block.

        Raises:
            HttpUnreachableError: no answer.
            InvalidInputError: the URL or a header is malformed.
        """
        shown = redacted(request.url)
        url = parse_url(request.url)
        login = request.login
        if login is not None:  # it wins over a user in the URL
            url = url.with_user(None)
        for _ in range(_MAX_REDIRECTS + 1):
            headers = {"User-Agent": USER_AGENT, "Accept-Encoding": "gzip", **request.headers}
            if login is not None:
                headers[_LOGIN] = login
            with connection_errors(shown):
                response = await self._open().request(
                    method, url, headers=headers, allow_redirects=False, proxy=proxy_for(url)
                )
            try:
                target = response.headers.get("Location", "")
                if response.status not in _REDIRECTS or not target:
                    yield HttpAnswer(response, shown, self._limit_bytes)
                    return
            finally:
                response.close()
            previous, url = url, parse_url(target, url)
            if not _may_log_in(previous, url):
                login = None
            elif url.host == previous.host and url.user is None and previous.user is not None:
                url = url.with_user(previous.user).with_password(previous.password)
        raise HttpUnreachableError(shown, detail=f"stopped after {_MAX_REDIRECTS} redirects")

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=client_context()),
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_READ_BUFFER_BYTES,
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=_STALL_TIMEOUT_S
                ),
            )
        return self._session


def parse_url(text: str, base: URL | None = None) -> URL:
    """Return an http or https URL as it is written, percent-encoding what can't be sent.

    Args:
        text: The URL.
        base: What a relative one starts from.

    Raises:
        InvalidInputError: it is none.
    """
    is_clean = text.isascii() and text.isprintable() and not set(text) & set(' "<>\\^`{|}')
    try:
        url = URL(text, encoded=is_clean)
        if base is not None:
            url = base.join(url)
        if url.scheme in {"http", "https"} and url.host and url.port:
            return url
    except ValueError as exc:
        raise InvalidInputError(f"invalid URL {redacted(text)}", detail=str(exc)) from exc
    raise InvalidInputError(f"invalid URL {redacted(text)}", hint="give an http or https URL")


def _may_log_in(before: URL, after: URL) -> bool:
    is_same_host = before.host == after.host and (
        before.port == after.port or before.scheme != after.scheme
    )
    return is_same_host and not (before.scheme == "https" and after.scheme == "http")


@contextlib.contextmanager
def connection_errors(shown_url: str) -> Iterator[None]:
    """Turn aiohttp's and the system's errors into ours."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as exc:
        raise HttpUnreachableError(
            shown_url,
            detail=what_broke(exc),
            hint="install the server's CA on the machine of the builder",
        ) from exc
    except (aiohttp.ClientConnectorDNSError, aiohttp.ClientConnectorError) as exc:
        raise HttpUnreachableError(
            shown_url,
            detail=what_broke(exc),
            hint="check the name, the port and the network from where the builder runs",
        ) from exc
    except TimeoutError as exc:
        raise HttpUnreachableError(
            shown_url, detail=str(exc) or f"no byte for {_STALL_TIMEOUT_S:g} s"
        ) from exc
    except (aiohttp.ClientError, ssl.SSLError, ConnectionError) as exc:
        raise HttpUnreachableError(shown_url, detail=what_broke(exc)) from exc
    except ValueError as exc:
        # A header with a line break: the value may be a secret, so it is not shown.
        raise InvalidInputError(f"a header for {shown_url} is malformed") from exc
