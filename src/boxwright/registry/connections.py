"""Connections to registries: one pool per endpoint, shared by all who ask it.

Nothing of a user is in here, so builds of different users may share it: credentials and tokens
belong to a :class:`~boxwright.registry.transport.Transport`.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from boxwright._version import USER_AGENT
from boxwright.core.workers import to_worker
from boxwright.registry.hosts import Endpoint, is_loopback

_CONNECT_TIMEOUT_S = 20.0
_PROBE_TIMEOUT_S = 5.0
_ALERT_TIMEOUT_S = 1.0
_READ_BUFFER_BYTES = 1 << 18
_PER_HOST = 8


class Connections:
    """Open connections by endpoint. Made and closed inside the event loop."""

    def __init__(self) -> None:
        self._sessions: dict[Endpoint, aiohttp.ClientSession] = {}
        self._schemes: dict[str, str] = {}
        self._answered: set[tuple[str, str]] = set()

    async def close(self) -> None:
        """Close all connections; new ones may be made afterwards."""
        sessions, self._sessions = list(self._sessions.values()), {}
        for session in sessions:
            await session.close()

    def known_scheme(self, host: str) -> str:
        """Return the scheme that was found out for ``host``, or nothing."""
        return self._schemes.get(host, "")

    def learn_scheme(self, host: str, scheme: str) -> None:
        """Remember what ``host`` speaks."""
        self._schemes[host] = scheme

    def has_answered(self, endpoint: Endpoint) -> bool:
        """Return whether the endpoint has ever answered in the protocol that it is spoken to."""
        return (endpoint.scheme, endpoint.host) in self._answered

    async def request(
        self,
        endpoint: Endpoint,
        method: str,
        url: URL,
        *,
        headers: dict[str, str],
        data: object = None,
        read_timeout_s: float,
    ) -> aiohttp.ClientResponse:
        """Send one request and return the answer's head; redirects are not followed.

        Raises:
            aiohttp.ClientError, OSError, TimeoutError: as aiohttp raises them.
        """
        response = await self._session(endpoint).request(
            method,
            url,
            headers=headers,
            data=data,
            allow_redirects=False,
            proxy=proxy_for(url),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=read_timeout_s
            ),
        )
        self._answered.add((endpoint.scheme, endpoint.host))
        return response

    def _session(self, endpoint: Endpoint) -> aiohttp.ClientSession:
        session = self._sessions.get(endpoint)
        if session is None:
            # Redirects may lead from an HTTP registry to an HTTPS store: TLS is always set up.
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=endpoint.ssl_context(), limit=0, limit_per_host=_PER_HOST
                ),
                headers={"User-Agent": USER_AGENT},
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                read_bufsize=_READ_BUFFER_BYTES,
            )
            self._sessions[endpoint] = session
        return session


async def read_limited(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """Return the body, or its first ``limit`` bytes if there is more.

    Raises:
        aiohttp.ClientError, OSError, TimeoutError: the connection broke off.
    """
    body = bytearray()
    while len(body) < limit and (data := await response.content.read(limit - len(body))):
        body += data
    return bytes(body)


def proxy_for(url: URL) -> str | None:
    """Return the proxy that the environment names for ``url``; loopback is always direct."""
    host = url.host or ""
    if is_loopback(host):
        return None
    if proxy_bypass(f"{host}:{url.port}"):
        return None
    return getproxies().get(url.scheme)


async def speaks_tls(host: str, port: int) -> bool:
    """Return whether a TLS handshake with ``host`` succeeds, whatever its certificate."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.close()
    except (OSError, ValueError):
        return False
    return True


async def tls_alert(host: str, port: int, context: ssl.SSLContext) -> str:
    """Return what a server objects to after the handshake; nothing if it does not.

    In TLS 1.3 a missing client certificate shows only when the first answer is read. Blocking
    sockets, as asyncio turns the alert into a plain end of the connection.
    """
    return await to_worker(_tls_alert, host, port, context)


def _tls_alert(host: str, port: int, context: ssl.SSLContext) -> str:
    try:
        with (
            socket.create_connection((host, port), _PROBE_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as tls,
        ):
            # Nothing is asked: bytes that the server never reads would reset the connection and
            # take the alert with them.
            tls.settimeout(_ALERT_TIMEOUT_S)
            tls.recv(1)
    except ssl.SSLError as exc:
        return str(exc)
    except (OSError, ValueError):
        return ""
    return ""


async def speaks_http(host: str, port: int) -> bool:
    """Return whether ``host`` answers a plain HTTP request with an HTTP status line."""
    try:
        async with asyncio.timeout(_PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"GET /v2/ HTTP/1.1\r\nHost: %b\r\n\r\n" % host.encode("idna"))
                line = await reader.readline()
            finally:
                writer.close()
    except (OSError, ValueError):
        return False
    # A TLS port that is spoken to in plain HTTP often says so with a 400.
    return line.startswith(b"HTTP/") and b" 400" not in line
