"""HTTP to one registry: authentication, redirects, retries within one budget.

A :class:`Transport` belongs to one set of logins. It keeps their tokens and a retry budget:
transient failures (connection lost, 429, 5xx) are tried again with exponential waits, jitter
and the server's ``Retry-After``, but only so often in all, so that a broken registry ends the
build instead of prolonging it. Names that do not resolve are never tried again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import email.utils
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from yarl import URL

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.locks import KeyedLocks
from boxwright.registry.auth import AuthSource, Credentials, TokenCache, parse_challenges
from boxwright.registry.connections import Connections, read_limited
from boxwright.registry.errors import (
    LostBy,
    RegistryError,
    RegistryProtocolError,
    RegistryTlsError,
    RegistryUnreachableError,
)
from boxwright.registry.failures import (
    ERROR_BODY_LIMIT_BYTES,
    connection_error,
    error_from,
    is_https_complaint,
)
from boxwright.registry.hosts import Endpoint
from boxwright.registry.tokens import fetch_token

_log = logging.getLogger(__name__)

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_LONGEST_WAIT_S = 15.0
_MAX_TRIES = 5
_TRIES_BY_REASON: dict[LostBy, int] = {"name": 1, "refused": 2, "timeout": 2, "broken": 5}

BodyFactory = Callable[[], Awaitable[Any]]


@dataclass
class RetryBudget:
    """How many more times anything at all may be tried again.

    Args:
        limit: tries at once.
        refill_s: one more comes back after so many seconds.
    """

    limit: int = 10
    refill_s: float = 30.0
    _left: float = field(init=False)
    _seen_s: float = field(init=False)

    def __post_init__(self) -> None:
        self._left = float(self.limit)
        self._seen_s = time.monotonic()

    def take(self) -> bool:
        """Use one retry if there is one."""
        now = time.monotonic()
        self._left = min(self.limit, self._left + (now - self._seen_s) / self.refill_s)
        self._seen_s = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        scope: of the token that it needs; empty for requests without any.
        body: makes the payload anew for every try.
        expect: the statuses that are answers and not failures.
        idempotent: whether it may be sent again after the connection broke.
        patience: how many stall timeouts the registry may take to answer.
    """

    method: str
    url: str
    scope: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: BodyFactory | None = None
    expect: frozenset[int] = frozenset({200})
    idempotent: bool = True
    patience: int = 1


def own_scheme(asked: str, told: str) -> str:
    """Return an address that an answer names, with the scheme and port that were asked.

    Behind a proxy that ends TLS, registries often get their own scheme wrong.
    """
    here, there = urlsplit(asked), urlsplit(urljoin(asked, told))
    if (here.scheme, there.scheme) == ("https", "http") and here.hostname == there.hostname:
        there = there._replace(scheme="https", netloc=here.netloc)
    return there.geturl()


class Transport:
    """Tokens and retries of one user of registries, over connections that may be shared.

    Safe for many tasks at once.

    Args:
        auth: where credentials come from.
        connections: shared ones, which their owner closes.
        stall_timeout_s: how long nothing may move.
        budget: of retries.
    """

    def __init__(
        self,
        auth: AuthSource,
        connections: Connections,
        *,
        stall_timeout_s: float = 60.0,
        budget: RetryBudget | None = None,
    ) -> None:
        self.auth = auth
        self.connections = connections
        self.stall_timeout_s = stall_timeout_s
        self.budget = budget or RetryBudget()
        self._tokens = TokenCache()
        self._basic: dict[str, Credentials] = {}
        self._login_locks = KeyedLocks()

    async def discover(self, endpoint: Endpoint) -> Endpoint:
        """Find out whether a host whose scheme is a guess speaks HTTP or HTTPS.

        Raises:
            RegistryError: it speaks neither, or can't be reached.
        """
        if not endpoint.scheme_is_a_guess:
            return endpoint
        known = self.connections.known_scheme(endpoint.host)
        if known:
            return replace(endpoint, scheme=known)
        failures: list[RegistryError] = []
        for scheme in ("http", "https") if endpoint.scheme == "http" else ("https", "http"):
            candidate = replace(endpoint, scheme=scheme)
            probe = Request("GET", f"{candidate.base_url}/", "")
            try:
                async with await self._once(candidate, probe, {}) as response:
                    body = await read_limited(response, ERROR_BODY_LIMIT_BYTES)
            except RegistryError as exc:
                failures.append(exc)
                continue
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                failures.append(await self.lost(candidate, URL(probe.url), exc))
                continue
            if response.status == 400 and scheme == "http" and is_https_complaint(body):
                continue
            self.connections.learn_scheme(endpoint.host, scheme)
            return candidate
        # Who has a certificate speaks HTTPS, so that is the failure to mend.
        failures.sort(key=lambda failure: not isinstance(failure, RegistryTlsError))
        if failures:
            raise failures[0]
        raise RegistryProtocolError(
            f"registry {endpoint.name} speaks neither HTTP nor HTTPS", host=endpoint.name
        )

    @contextlib.asynccontextmanager
    async def send(
        self, endpoint: Endpoint, request: Request
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request, with authentication and retries; yield a response it expects.

        Read its body with :meth:`chunks`.

        Raises:
            RegistryError: one of its kinds, by cause.
        """
        response = await self._answer(endpoint, request)
        try:
            yield response
        finally:
            response.release()

    async def chunks(
        self, endpoint: Endpoint, response: aiohttp.ClientResponse
    ) -> AsyncIterator[bytes]:
        """Yield a response's body in pieces.

        Raises:
            RegistryUnreachableError: the connection broke off, or nothing moves any more.
        """
        while True:
            try:
                data = await response.content.readany()
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                raise await self.lost(endpoint, response.url, exc) from exc
            if not data:
                return
            yield data

    async def body(
        self, endpoint: Endpoint, response: aiohttp.ClientResponse, limit: int
    ) -> bytes | None:
        """Return a response's whole body, ``None`` if it has more than ``limit`` bytes.

        Raises:
            RegistryUnreachableError: the connection broke off, or nothing moves any more.
        """
        body = bytearray()
        async for data in self.chunks(endpoint, response):
            body += data
            if len(body) > limit:
                return None
        return bytes(body)

    async def lost(self, endpoint: Endpoint, url: URL, exc: BaseException) -> RegistryError:
        """Return the error for a connection that failed."""
        return await connection_error(self.connections, endpoint, url, exc, self.stall_timeout_s)

    async def _answer(self, endpoint: Endpoint, request: Request) -> aiohttp.ClientResponse:
        tries = 0
        has_logged_in = False
        while True:
            authorization = self._authorization(endpoint, request)
            wait_s: float | None = None
            limit = _MAX_TRIES
            try:
                response = await self._once(endpoint, request, authorization)
            except RegistryUnreachableError as exc:
                if not request.idempotent:
                    raise
                failure: RegistryError = exc
                limit = _TRIES_BY_REASON[exc.reason]
            else:
                if response.status in request.expect:
                    return response
                async with response:
                    if response.status == 401 and not has_logged_in:
                        has_logged_in = True
                        await self._log_in(endpoint, request, response, authorization)
                        continue
                    failure = await error_from(endpoint, request.method, response)
                    # 429 is said before anything is done: even a POST may be sent again.
                    may_repeat = request.idempotent or response.status == 429
                    if response.status not in _TRANSIENT or not may_repeat:
                        raise failure
                    wait_s = retry_after(response.headers.get("Retry-After", ""))
            tries += 1
            if tries >= limit or not self.budget.take():
                raise failure
            await self._pause(tries, wait_s, failure)

    async def _pause(self, tries: int, wait_s: float | None, failure: RegistryError) -> None:
        if wait_s is None:
            wait_s = 0.2 * 2.0**tries * (0.5 + random.random() / 2)  # noqa: S311
        wait_s = min(wait_s, _LONGEST_WAIT_S)
        _log.warning("%s; trying again in %.1f s", failure, wait_s)
        await asyncio.sleep(wait_s)

    async def _once(
        self, endpoint: Endpoint, request: Request, authorization: Mapping[str, str]
    ) -> aiohttp.ClientResponse:
        """Send once, following redirects; logins never leave the registry's own origin."""
        url = URL(request.url, encoded=True)
        headers = {**request.headers, **authorization}
        asked = endpoint
        for _ in range(_MAX_REDIRECTS + 1):
            try:
                response = await self.connections.request(
                    asked,
                    request.method,
                    url,
                    headers=headers,
                    data=await request.body() if request.body else None,
                    read_timeout_s=self.stall_timeout_s * request.patience,
                )
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                raise await self.lost(endpoint, url, exc) from exc
            location = response.headers.get("Location", "")
            follows = request.method in {"GET", "HEAD"} and response.status in _REDIRECTS
            if not follows or not location:
                return response
            response.release()
            target = URL(urljoin(str(url), location), encoded=True)
            if target.scheme not in {"http", "https"}:
                break
            if target.origin() != url.origin():
                headers = dict(request.headers)
                asked = replace(endpoint, keypairs=())
            url = target
        raise RegistryError(
            f"registry {endpoint.name} redirects without end",
            host=endpoint.name,
            detail=f"{request.method} {request.url}, at last to {url.with_query(None)}",
        )

    # --- logins ------------------------------------------------------------------------------

    def _authorization(self, endpoint: Endpoint, request: Request) -> dict[str, str]:
        if not request.scope:
            return {}
        token = self._tokens.get(endpoint.host, request.scope)
        if token:
            return {"Authorization": f"Bearer {token}"}
        basic = self._basic.get(endpoint.host)
        if basic:
            pair = base64.b64encode(f"{basic.username}:{basic.secret}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}

    async def _log_in(
        self,
        endpoint: Endpoint,
        request: Request,
        response: aiohttp.ClientResponse,
        refused: Mapping[str, str],
    ) -> None:
        """Answer a challenge, once for all who meet it at the same time."""
        challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
        token = refused.get("Authorization", "").removeprefix("Bearer ")
        self._tokens.drop(endpoint.host, request.scope, token)
        async with self._login_locks((endpoint.host, request.scope)):
            if self._authorization(endpoint, request) not in ({}, refused):
                return
            for challenge in challenges:
                if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                    found = await fetch_token(
                        self.connections,
                        self.auth,
                        endpoint,
                        challenge,
                        request.scope,
                        self.stall_timeout_s,
                    )
                    self._tokens.put(endpoint.host, request.scope, found)
                    return
            credentials = await self.auth.credentials(endpoint.name)
            if credentials and any(c.scheme == "basic" for c in challenges):
                self._basic[endpoint.host] = credentials
                return
        raise await error_from(endpoint, request.method, response)


def retry_after(value: str) -> float | None:
    """Read a ``Retry-After`` header: seconds, or a date; None if it is neither."""
    if value.isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, moment.timestamp() - time.time())
