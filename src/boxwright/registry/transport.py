"""HTTP to one registry: authentication, retries within one budget, errors by cause.

One :class:`Transport` is shared by all operations of a build. It keeps a connection pool per
endpoint, a token cache, and a retry budget: transient failures (connection lost, 429, 5xx)
are tried again with exponential waits, jitter and the server's ``Retry-After``, but only so
often in all, so that a broken registry ends the build instead of prolonging it.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import aiohttp

from boxwright.registry.auth import (
    AuthSource,
    Challenge,
    Credentials,
    Token,
    TokenCache,
    parse_challenges,
    parse_token,
    realm_is_safe,
)
from boxwright.registry.errors import (
    RegistryAuthError,
    RegistryError,
    RegistryProtocolError,
    RegistryTlsError,
    RegistryUnreachableError,
)
from boxwright.registry.hosts import Endpoint

_log = logging.getLogger(__name__)

ERROR_BODY_LIMIT_BYTES = 64 << 10
_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_CONNECT_TIMEOUT_S = 20.0
_LONGEST_WAIT_S = 15.0

BodyFactory = Callable[[], Awaitable[Any]]


@dataclass
class RetryBudget:
    """How many more times anything at all may be tried again."""

    left: int = 10

    def take(self) -> bool:
        """Use one retry if there is one."""
        self.left -= 1
        return self.left >= 0


@dataclass(frozen=True)
class Request:
    """One request; ``body`` makes the payload anew for every try."""

    method: str
    url: str
    scope: str
    host: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: BodyFactory | None = None
    expect: frozenset[int] = frozenset({200})
    idempotent: bool = True


class Transport:
    """Connections, tokens and the retry budget of one user of registries.

    Made and closed inside the event loop; safe for many tasks at once.
    """

    def __init__(
        self, auth: AuthSource, *, stall_timeout_s: float = 60.0, budget: RetryBudget | None = None
    ) -> None:
        self._auth = auth
        self._tokens = TokenCache()
        self._basic: dict[str, Credentials] = {}
        self._sessions: dict[Endpoint, aiohttp.ClientSession] = {}
        self._schemes: dict[str, str] = {}
        self._token_locks: dict[tuple[str, str], asyncio.Lock] = {}
        self.stall_timeout_s = stall_timeout_s
        self.budget = budget or RetryBudget()

    async def close(self) -> None:
        """Close all connections."""
        for session in self._sessions.values():
            await session.close()
        self._sessions.clear()

    def settle(self, endpoint: Endpoint) -> Endpoint:
        """Return ``endpoint`` with the scheme that was found out for its host, if it was."""
        scheme = self._schemes.get(endpoint.host)
        return replace(endpoint, scheme=scheme) if scheme else endpoint

    async def discover(self, endpoint: Endpoint) -> Endpoint:
        """Find out whether a host whose scheme is a guess speaks HTTP or HTTPS."""
        if not endpoint.scheme_is_a_guess or endpoint.host in self._schemes:
            return self.settle(endpoint)
        order = ("http", "https") if endpoint.scheme == "http" else ("https", "http")
        failure: RegistryError | None = None
        for scheme in order:
            candidate = replace(endpoint, scheme=scheme)
            url = f"{candidate.base_url}/"
            probe = Request("GET", url, "", endpoint.host, expect=frozenset(range(200, 500)))
            try:
                async with self._once(candidate, probe, {}) as response:
                    text = await response.text(errors="replace")
                if response.status == 400 and "HTTPS" in text.upper():
                    continue
            except RegistryError as exc:
                failure = failure or exc
                continue
            self._schemes[endpoint.host] = scheme
            return candidate
        raise failure or RegistryProtocolError(
            f"registry {endpoint.host} speaks neither HTTP nor HTTPS", host=endpoint.host
        )

    @contextlib.asynccontextmanager
    async def send(
        self, endpoint: Endpoint, request: Request
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, with authentication and retries; yield a response it expects.

        Raises:
            RegistryError: one of its kinds, by cause.
        """
        attempt = 0
        challenged = False
        while True:
            headers = await self._authorization(endpoint, request)
            wait_s: float | None = None
            try:
                async with self._once(endpoint, request, headers) as response:
                    if response.status in request.expect:
                        yield response
                        return
                    if response.status == 401 and not challenged:
                        challenged = True
                        await self._answer_challenge(endpoint, request, response)
                        continue
                    error = await error_from(response, request)
                    if response.status not in _TRANSIENT or not request.idempotent:
                        raise error
                    wait_s = _retry_after(response.headers.get("Retry-After", ""))
            except RegistryUnreachableError as exc:
                if not request.idempotent:
                    raise
                error = exc
            attempt += 1
            if not self.budget.take() or attempt > 5:
                raise error
            await self._pause(attempt, wait_s, error)

    async def _pause(self, attempt: int, wait_s: float | None, error: RegistryError) -> None:
        if wait_s is None:
            wait_s = min(0.2 * 2.0**attempt, _LONGEST_WAIT_S) * (0.5 + random.random() / 2)  # noqa: S311
        _log.warning("registry: %s; trying again in %.1f s", error, wait_s)
        await asyncio.sleep(min(wait_s, _LONGEST_WAIT_S))

    @contextlib.asynccontextmanager
    async def _once(
        self, endpoint: Endpoint, request: Request, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = self._session(endpoint)
        data = await request.body() if request.body else None
        try:
            async with session.request(
                request.method,
                request.url,
                headers={**request.headers, **headers},
                data=data,
                allow_redirects=request.method in {"GET", "HEAD"},
            ) as response:
                yield response
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise connection_error(endpoint, exc, self.stall_timeout_s) from exc

    def _session(self, endpoint: Endpoint) -> aiohttp.ClientSession:
        session = self._sessions.get(endpoint)
        if session is None:
            context: ssl.SSLContext | bool = True
            if endpoint.scheme == "https":
                context = endpoint.ssl_context()
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, limit_per_host=8),
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=_CONNECT_TIMEOUT_S, sock_read=self.stall_timeout_s
                ),
                headers={"User-Agent": "boxwright"},
                auto_decompress=False,
                trust_env=True,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            self._sessions[endpoint] = session
        return session

    async def _authorization(self, endpoint: Endpoint, request: Request) -> dict[str, str]:
        token = self._tokens.get(endpoint.host, request.scope)
        if token:
            return {"Authorization": f"Bearer {token}"}
        basic = self._basic.get(endpoint.host)
        if basic:
            pair = base64.b64encode(f"{basic.username}:{basic.secret}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}

    async def _answer_challenge(
        self, endpoint: Endpoint, request: Request, response: aiohttp.ClientResponse
    ) -> None:
        self._tokens.drop(endpoint.host, request.scope)
        challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
        for challenge in challenges:
            if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                await self._fetch_token(endpoint, request, challenge)
                return
        credentials = await self._auth.credentials(request.host)
        if credentials and any(c.scheme == "basic" for c in challenges):
            self._basic[endpoint.host] = credentials
            return
        raise await error_from(response, request)

    async def _fetch_token(
        self, endpoint: Endpoint, request: Request, challenge: Challenge
    ) -> None:
        realm = challenge.parameters["realm"]
        service = challenge.parameters.get("service", "")
        scope = request.scope or challenge.parameters.get("scope", "")
        if not realm_is_safe(realm, endpoint.scheme):
            raise RegistryAuthError(
                f"registry {endpoint.host} asks to send credentials over plain HTTP",
                host=endpoint.host,
                detail=f"token realm {realm}",
            )
        lock = self._token_locks.setdefault((endpoint.host, scope), asyncio.Lock())
        async with lock:
            if self._tokens.get(endpoint.host, request.scope):
                return
            scopes = scope.split()
            token = await self._auth.fetch_token(request.host, realm, service, scopes)
            if token is None:
                credentials = await self._auth.credentials(request.host)
                token = await self._ask_token_server(
                    endpoint, request, realm, service, scopes, credentials
                )
            self._tokens.put(endpoint.host, request.scope, token)

    async def _ask_token_server(
        self,
        endpoint: Endpoint,
        request: Request,
        realm: str,
        service: str,
        scopes: list[str],
        credentials: Credentials | None,
    ) -> Token:
        session = self._session(endpoint)
        parameters = [("scope", s) for s in scopes]
        if service:
            parameters.append(("service", service))
        auth = None
        form: dict[str, str] | None = None
        if credentials and not credentials.username:
            form = {"grant_type": "refresh_token", "refresh_token": credentials.secret}
            form |= {"service": service, "scope": " ".join(scopes), "client_id": "boxwright"}
        elif credentials:
            auth = aiohttp.BasicAuth(credentials.username, credentials.secret)
        try:
            asked = (
                session.post(realm, data=form)
                if form
                else session.get(realm, params=parameters, auth=auth)
            )
            async with asked as response:
                if response.status != 200:
                    raise await error_from(response, request)
                data = json.loads(await response.content.read(1 << 20))
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as exc:
            raise RegistryAuthError(
                f"the token server of registry {endpoint.host} failed",
                host=endpoint.host,
                detail=f"{realm}: {exc}",
            ) from exc
        token = parse_token(data)
        if token is None:
            raise RegistryAuthError(
                f"the token server of registry {endpoint.host} answered without a token",
                host=endpoint.host,
                detail=realm,
            )
        return token


def connection_error(endpoint: Endpoint, exc: BaseException, stall_s: float) -> RegistryError:
    """Name the cause of a failed connection, and the key that would mend it."""
    host = endpoint.host
    text = str(exc) or type(exc).__name__
    if isinstance(exc, aiohttp.ClientConnectorCertificateError) or (
        isinstance(exc, aiohttp.ClientConnectorSSLError | ssl.SSLError)
        and "CERTIFICATE" in text.upper()
    ):
        return RegistryTlsError(
            f"the certificate of registry {host} is not trusted",
            host=host,
            detail=text,
            hint=f'set ca = ["/path/ca.pem"] under [registry."{host}"] in buildkitd.toml',
        )
    if isinstance(exc, aiohttp.ClientConnectorSSLError | ssl.SSLError):
        return RegistryProtocolError(
            f"registry {host} does not speak HTTPS",
            host=host,
            detail=text,
            hint=f'if it is an HTTP registry, set http = true under [registry."{host}"] in '
            "buildkitd.toml, or pass registry.insecure=true",
        )
    if isinstance(exc, aiohttp.ClientResponseError | aiohttp.ServerDisconnectedError) and (
        endpoint.scheme == "http" and "BadStatusLine" in type(exc).__name__ + text
    ):
        return RegistryProtocolError(
            f"registry {host} does not speak HTTP", host=host, detail=text
        )
    if isinstance(exc, TimeoutError):
        text = f"no answer or no byte for {stall_s:.0f} s" if "connect" not in text else text
    return RegistryUnreachableError(
        f"can't reach registry {host}",
        host=host,
        detail=text,
        hint="check the name, the port and the network from where the builder runs",
    )


async def error_from(response: aiohttp.ClientResponse, request: Request) -> RegistryError:
    """Turn an unexpected answer into an error with the registry's own codes."""
    body = await response.content.read(ERROR_BODY_LIMIT_BYTES)
    detail = f"{response.status} {response.reason or ''}".strip()
    codes = _error_codes(body)
    if codes:
        detail += f": {codes}"
    elif body and b"<" not in body[:1]:
        detail += f": {body[:200].decode(errors='replace').strip()}"
    path = response.url.path
    if response.status == 400 and b"HTTPS" in body:
        return RegistryProtocolError(
            f"registry {request.host} speaks HTTPS, and was asked in plain HTTP",
            host=request.host,
            detail=detail,
            hint=f'remove http = true under [registry."{request.host}"] in buildkitd.toml',
        )
    if response.status in {401, 403}:
        return RegistryAuthError(
            f"registry {request.host} denies access",
            host=request.host,
            status=response.status,
            detail=f"{request.method} {path}: {detail}",
            hint=f"log in with credentials that may do this (docker login {request.host})",
        )
    return RegistryError(
        f"registry {request.host} failed",
        host=request.host,
        status=response.status,
        detail=f"{request.method} {path}: {detail}",
    )


def _error_codes(body: bytes) -> str:
    try:
        errors = json.loads(body)["errors"]
        return "; ".join(f"{e.get('code', '')}: {e.get('message', '')}" for e in errors)[:500]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""


def _retry_after(value: str) -> float | None:
    return float(value) if value.isdigit() else None
