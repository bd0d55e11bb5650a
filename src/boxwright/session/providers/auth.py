"""Registry logins of a client, and tokens that it fetches itself (session/auth).

A daemon that is given tokens never sees the password. So that one client can't use the tokens
of another, a daemon keeps them under a public key that the client derives from a seed of its
own and the daemon's salt, and later lets the client prove that it has the key.
"""

from __future__ import annotations

import base64
import binascii
import fcntl
import hmac
import json
import os
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, Code
from boxwright.registry.auth import Credentials, Token, parse_token
from boxwright.session.providers.dockerconfig import DockerConfig, Login, config_dir

if TYPE_CHECKING:
    import ssl

    from aiohttp import ClientResponse
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_CLIENT_ID = "buildkit-client"
_LOGIN_LIFE_S = 290.0
_TOKEN_TIMEOUT_S = 30.0
_MAX_ANSWER_BYTES = 1 << 20
_SEED_BYTES = 16
_FALL_BACK_TO_GET = frozenset((401, 404, 405))


class TokenFetchError(BoxwrightError):
    """A token server that gave no token."""

    code = Code.REGISTRY_AUTH

    def __init__(self, realm: str, detail: str) -> None:
        super().__init__(
            f"failed to fetch a registry token from {realm}",
            detail=detail,
            hint="log in again with docker login",
        )


class AuthProvider:
    """The logins of one client.

    Args:
        config: Where logins are stored.
        environ: The client's environment (``DOCKER_CONFIG``, ``BUILDKIT_NO_CLIENT_TOKEN``).
        tls: What to trust and show at the token servers of a registry, by its host; the
            system's roots for others.
    """

    def __init__(
        self,
        config: DockerConfig,
        environ: Mapping[str, str] = os.environ,
        *,
        tls: Mapping[str, ssl.SSLContext] | None = None,
    ) -> None:
        self._config = config
        self._tls = tls or {}
        self._logins: dict[str, tuple[float, Login | None]] = {}
        self._seeds = TokenSeeds(config_dir(environ))
        self.makes_tokens = environ.get("BUILDKIT_NO_CLIENT_TOKEN", "").lower() not in {
            "1",
            "t",
            "true",
        }

    async def _login(self, host: str) -> Login | None:
        """Ask at most every few minutes: helpers are slow and their secrets expire."""
        asked_s, login = self._logins.get(host, (float("-inf"), None))
        if time.monotonic() - asked_s > _LOGIN_LIFE_S:
            login = await self._config.login(host)
            self._logins[host] = (time.monotonic(), login)
        return login

    async def credentials(self, host: str) -> Credentials | None:
        """Return the login for a host, or None."""
        login = await self._login(host)
        return login.credentials if login is not None else None

    async def fetch_token(
        self, host: str, realm: str, service: str, scopes: Sequence[str]
    ) -> Token:
        """Ask a token server, with the login for ``host`` if there is one.

        Raises:
            TokenFetchError: it can't be reached or refuses.
        """
        login = await self._login(host)
        if login is not None and login.registry_token:
            return Token(login.registry_token)
        credentials = login.credentials if login is not None else None
        context = self._tls.get(host)
        return await _ask_token_server(realm, service, scopes, credentials, context)

    async def authority_key(self, host: str, salt: bytes) -> bytes:
        """Return the 32-byte public key under which a daemon keeps this client's tokens."""
        key = await self._private_key(host, salt)
        return key.public_key().public_bytes_raw()

    async def sign(self, host: str, salt: bytes, payload: bytes) -> bytes:
        """Return the 64-byte ed25519 signature of ``payload``, followed by it."""
        key = await self._private_key(host, salt)
        return key.sign(payload) + payload

    async def _private_key(self, host: str, salt: bytes) -> Ed25519PrivateKey:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        credentials = await self.credentials(host)
        mac = hmac.new(salt, digestmod="sha256")
        if credentials is not None and credentials.secret:
            mac.update(await to_worker(self._seeds.get, host))
        return Ed25519PrivateKey.from_private_bytes(mac.digest())


async def _ask_token_server(
    realm: str,
    service: str,
    scopes: Sequence[str],
    credentials: Credentials | None,
    context: ssl.SSLContext | None,
) -> Token:
    import aiohttp

    from boxwright.registry.dialing import what_broke
    from boxwright.registry.trust import client_context

    timeout = aiohttp.ClientTimeout(total=_TOKEN_TIMEOUT_S)
    connector = aiohttp.TCPConnector(ssl=context or client_context())
    try:
        async with aiohttp.ClientSession(
            timeout=timeout, trust_env=True, connector=connector
        ) as http:
            if credentials is not None and credentials.secret:
                form = _oauth_form(service, scopes, credentials)
                async with http.post(realm, data=form) as response:
                    if response.status not in _FALL_BACK_TO_GET:
                        return await _read_token(realm, response)
            query = [("service", service)] if service else []
            query += [("scope", scope) for scope in scopes]
            auth = None
            if credentials is not None and credentials.username:
                auth = aiohttp.BasicAuth(credentials.username, credentials.secret)
                query.append(("account", credentials.username))
            async with http.get(realm, params=query, auth=auth) as response:
                return await _read_token(realm, response)
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise TokenFetchError(realm, what_broke(exc)) from exc


def _oauth_form(service: str, scopes: Sequence[str], credentials: Credentials) -> dict[str, str]:
    form = {"client_id": _CLIENT_ID, "service": service, "scope": " ".join(scopes)}
    if credentials.username:
        return form | {
            "grant_type": "password",
            "username": credentials.username,
            "password": credentials.secret,
        }
    return form | {"grant_type": "refresh_token", "refresh_token": credentials.secret}


async def _read_token(realm: str, response: ClientResponse) -> Token:
    body = await response.content.read(_MAX_ANSWER_BYTES)
    if response.status != 200:
        raise TokenFetchError(realm, f"HTTP status {response.status}")
    try:
        token = parse_token(json.loads(body))
    except ValueError:
        token = None
    if token is None:
        raise TokenFetchError(realm, "the answer holds no token")
    return token


class TokenSeeds:
    """Random seeds by host in Docker's configuration folder, shared with Docker's own client."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seeds: dict[str, bytes] = {}

    def get(self, host: str) -> bytes:
        """Return the seed of a host, made on first use (blocking).

        Where the folder can't be written the seed lives as long as this object.
        """
        if host in self._seeds:
            return self._seeds[host]
        path = self._folder / ".token_seed"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._folder / ".token_seed.lock", "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                stored = _read_seeds(path)
                seed = _seed_of(stored, host)
                if seed is None:
                    seed = secrets.token_bytes(_SEED_BYTES)
                    stored[host] = {"Seed": base64.b64encode(seed).decode()}
                    _write_private(path, json.dumps(stored, indent=2))
        except OSError:
            seed = secrets.token_bytes(_SEED_BYTES)
        self._seeds[host] = seed
        return seed


def _read_seeds(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def _seed_of(stored: Mapping[str, Any], host: str) -> bytes | None:
    try:
        return base64.b64decode(stored[host]["Seed"])
    except (KeyError, TypeError, binascii.Error):
        return None


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
