"""The token server: from a Bearer challenge to a token (distribution's token specification)."""

from __future__ import annotations

import base64
import json

import aiohttp
from yarl import URL

from boxwright.registry.auth import (
    AuthSource,
    Challenge,
    Credentials,
    Token,
    parse_token,
    realm_is_safe,
)
from boxwright.registry.connections import Connections, read_limited
from boxwright.registry.dialing import what_broke
from boxwright.registry.errors import RegistryAuthError, RegistryUnreachableError
from boxwright.registry.failures import error_from
from boxwright.registry.hosts import Endpoint

_ANSWER_LIMIT_BYTES = 1 << 20


async def fetch_token(
    connections: Connections,
    auth: AuthSource,
    endpoint: Endpoint,
    challenge: Challenge,
    scope: str,
    stall_s: float,
) -> Token:
    """Get a token, from the credentials' owner if it does that itself, else from the server.

    Args:
        connections: to ask the server through.
        auth: has the credentials.
        endpoint: the registry that challenged.
        challenge: with the ``realm``.
        scope: what the request needs, several separated by blanks.
        stall_s: how long the server may be silent.

    Raises:
        RegistryAuthError: refused, or the realm is not safe to send credentials to.
        RegistryUnreachableError: the token server can't be reached.
    """
    realm = challenge.parameters["realm"]
    service = challenge.parameters.get("service", "")
    scopes = (scope or challenge.parameters.get("scope", "")).split()
    if not realm_is_safe(realm, endpoint.scheme):
        raise RegistryAuthError(
            f"registry {endpoint.name} asks to send credentials over plain HTTP",
            host=endpoint.name,
            detail=f"token realm {realm}",
            hint="nothing was sent; its token service must be reachable over HTTPS",
        )
    token = await auth.fetch_token(endpoint.name, realm, service, scopes)
    if token is not None:
        return token
    credentials = await auth.credentials(endpoint.name)
    return await _ask(connections, endpoint, realm, service, scopes, credentials, stall_s)


async def _ask(
    connections: Connections,
    endpoint: Endpoint,
    realm: str,
    service: str,
    scopes: list[str],
    credentials: Credentials | None,
    stall_s: float,
) -> Token:
    parameters = [("scope", scope) for scope in scopes]
    if service:
        parameters.append(("service", service))
    url, method, form = URL(realm), "GET", None
    headers: dict[str, str] = {}
    if credentials and not credentials.username:
        # An identity token: only the POST form takes one.
        method = "POST"
        form = aiohttp.FormData(
            {
                "grant_type": "refresh_token",
                "refresh_token": credentials.secret,
                "service": service,
                "scope": " ".join(scopes),
                "client_id": "boxwright",
            }
        )
    else:
        url = url.with_query([*url.query.items(), *parameters])
        if credentials:
            pair = f"{credentials.username}:{credentials.secret}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"
    try:
        async with await connections.request(
            endpoint, method, url, headers=headers, data=form, read_timeout_s=stall_s
        ) as response:
            if response.status != 200:
                raise await error_from(endpoint, method, response)
            data = json.loads(await read_limited(response, _ANSWER_LIMIT_BYTES))
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise RegistryUnreachableError(
            f"can't reach the token server of registry {endpoint.name}",
            host=endpoint.name,
            detail=f"{realm}: {what_broke(exc)}",
            hint="check that the builder may connect to it",
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise RegistryAuthError(
            f"the token server of registry {endpoint.name} sent no valid JSON",
            host=endpoint.name,
            detail=realm,
        ) from exc
    token = parse_token(data)
    if token is None:
        raise RegistryAuthError(
            f"the token server of registry {endpoint.name} answered without a token",
            host=endpoint.name,
            detail=realm,
        )
    return token
