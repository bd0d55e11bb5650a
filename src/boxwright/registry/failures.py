"""From a failed connection or an unexpected answer to an error that names the cause."""

from __future__ import annotations

import json
import re
import socket
import ssl

import aiohttp
from yarl import URL

from boxwright.registry.connections import (
    Connections,
    read_limited,
    speaks_http,
    speaks_tls,
    tls_alert,
)
from boxwright.registry.dialing import what_broke
from boxwright.registry.errors import (
    LostBy,
    RegistryAuthError,
    RegistryError,
    RegistryProtocolError,
    RegistryTlsError,
    RegistryUnreachableError,
)
from boxwright.registry.hosts import Endpoint

ERROR_BODY_LIMIT_BYTES = 64 << 10

_NO_SPACE = re.compile(r"\bspace\b", re.IGNORECASE)  # not "namespace"


async def connection_error(
    connections: Connections, endpoint: Endpoint, url: URL, exc: BaseException, stall_s: float
) -> RegistryError:
    """Name the cause of a failed connection, and the key that would mend it.

    Args:
        connections: knows whether this endpoint has answered before.
        endpoint: the registry.
        url: what was asked: after a redirect, another host than the registry's.
        exc: as aiohttp raised it.
        stall_s: how long silence was tolerated.
    """
    text = what_broke(exc)
    if url.host and url.host != URL(endpoint.base_url).host:
        text = f"{url.host}, where its blobs are: {text}"
    is_tls = isinstance(exc, aiohttp.ClientConnectorSSLError | ssl.SSLError)
    if is_tls and "ALERT" in text.upper():
        return _refused_handshake(endpoint, text)
    if isinstance(exc, aiohttp.ClientConnectorCertificateError) or (
        is_tls and "CERTIFICATE" in text.upper()
    ):
        return RegistryTlsError(
            f"the certificate of registry {endpoint.name} is not trusted",
            host=endpoint.name,
            detail=text,
            hint=f'set ca = ["/path/ca.pem"] under {endpoint.config_key}',
        )
    is_first = not connections.has_answered(endpoint)
    if is_first and url.scheme == endpoint.scheme and not endpoint.scheme_is_a_guess:
        other = await _other_protocol(endpoint, url, exc)
        if other is not None:
            return other
    if is_tls:
        return RegistryTlsError(
            f"the TLS handshake with registry {endpoint.name} failed",
            host=endpoint.name,
            detail=text,
        )
    reason, text = _reason(exc, text, stall_s)
    return RegistryUnreachableError(
        f"can't reach registry {endpoint.name}",
        host=endpoint.name,
        reason=reason,
        detail=text,
        hint="check the name, the port and the network from where the builder runs",
    )


def _reason(exc: BaseException, text: str, stall_s: float) -> tuple[LostBy, str]:
    if isinstance(exc, aiohttp.ClientConnectorDNSError | socket.gaierror):
        return "name", text
    if isinstance(exc, aiohttp.ConnectionTimeoutError):
        return "timeout", text
    if isinstance(exc, TimeoutError):
        return "timeout", f"no byte for {stall_s:g} s"
    if isinstance(exc, aiohttp.ClientConnectorError | ConnectionRefusedError):
        return "refused", text
    return "broken", text


async def _other_protocol(
    endpoint: Endpoint, url: URL, exc: BaseException
) -> RegistryError | None:
    """Find out whether a first contact failed because something else was to be spoken."""
    if not url.host or not url.port or isinstance(exc, TimeoutError):
        return None
    if isinstance(exc, aiohttp.ClientConnectorDNSError | aiohttp.ClientProxyConnectionError):
        return None
    is_refused = isinstance(exc, aiohttp.ClientConnectorError) and not isinstance(
        exc, aiohttp.ClientSSLError
    )
    if is_refused and isinstance(exc.__cause__, ConnectionRefusedError):
        return None
    if endpoint.scheme == "https" and not isinstance(exc, aiohttp.ClientSSLError):
        alert = await tls_alert(url.host, url.port, endpoint.ssl_context())
        if "alert" in alert.lower():
            return _refused_handshake(endpoint, alert)
    if endpoint.scheme == "https" and await speaks_http(url.host, url.port):
        return RegistryProtocolError(
            f"registry {endpoint.name} speaks plain HTTP, not HTTPS",
            host=endpoint.name,
            detail=what_broke(exc),
            hint=f"set http = true under {endpoint.config_key}; for a push alone, "
            "registry.insecure=true does as well",
        )
    if endpoint.scheme == "http" and await speaks_tls(url.host, url.port):
        return _speaks_https(endpoint, what_broke(exc))
    return None


def _refused_handshake(endpoint: Endpoint, detail: str) -> RegistryTlsError:
    return RegistryTlsError(
        f"registry {endpoint.name} refuses the TLS handshake",
        host=endpoint.name,
        detail=detail,
        hint=f"if it wants a client certificate, set keypair under {endpoint.config_key}",
    )


def _speaks_https(endpoint: Endpoint, detail: str) -> RegistryProtocolError:
    return RegistryProtocolError(
        f"registry {endpoint.name} speaks HTTPS, and was asked in plain HTTP",
        host=endpoint.name,
        detail=detail,
        hint=f"remove http = true under {endpoint.config_key}",
    )


async def error_from(
    endpoint: Endpoint, method: str, response: aiohttp.ClientResponse
) -> RegistryError:
    """Turn an unexpected answer into an error with the registry's own codes."""
    try:
        body = await read_limited(response, ERROR_BODY_LIMIT_BYTES)
    except (aiohttp.ClientError, OSError, TimeoutError):
        body = b""
    detail = f"{response.status} {response.reason or ''}".strip()
    codes = _error_codes(body)
    if codes:
        detail += f": {codes}"
    elif body and not body.lstrip().startswith(b"<"):
        detail += f": {body[:200].decode(errors='replace').strip()}"
    if response.status == 400 and endpoint.scheme == "http" and is_https_complaint(body):
        return _speaks_https(endpoint, detail)
    detail = f"{method} {response.url.path}: {detail}"
    if response.status in {401, 403}:
        return RegistryAuthError(
            f"registry {endpoint.name} denies access",
            host=endpoint.name,
            status=response.status,
            detail=detail,
            hint=f"log in with credentials that may do this (docker login {endpoint.name})",
        )
    brief, hint = _explain(endpoint, method, response, codes)
    return RegistryError(
        brief, host=endpoint.name, status=response.status, detail=detail, hint=hint
    )


def _explain(
    endpoint: Endpoint, method: str, response: aiohttp.ClientResponse, codes: str
) -> tuple[str, str]:
    """Return what an error of a registry comes to, and what to do about it, if it is known."""
    name, status, path = endpoint.name, response.status, response.url.path
    is_write = method not in {"GET", "HEAD"}
    if "NAME_INVALID" in codes:
        hint = "this registry may not take '_' in names: use '-'" if "_" in path else ""
        return f"registry {name} does not take this image name", hint
    if "NAME_UNKNOWN" in codes and is_write:
        return f"registry {name} has no such repository", "create it there first, then push again"
    if status == 405 and is_write:
        return (
            f"registry {name} takes no pushes",
            "it is read-only or a mirror of another one: push to that one",
        )
    if status == 429:
        return (
            f"registry {name} was asked too often",
            f"wait, or log in (docker login {name}): limits are higher for known users",
        )
    if status == 413:
        return (
            f"registry {name}, or a proxy before it, does not take requests of this size",
            "raise the proxy's limit (nginx: client_max_body_size 0)",
        )
    if status in {507, 500} and _NO_SPACE.search(codes):
        return f"registry {name} has no space left", "free space there"
    if status >= 500:
        return (
            f"registry {name} failed",
            "that is its own failure: see its log, or try again later",
        )
    return f"registry {name} refused a request", ""


def is_https_complaint(body: bytes) -> bool:
    """Return whether a 400 says that the port wants TLS, as Go's and nginx's servers do."""
    return b"HTTPS" in body.upper()


def _error_codes(body: bytes) -> str:
    try:
        errors = json.loads(body)["errors"]
        found = (f"{e.get('code', '')}: {e.get('message', '')}".strip(": ") for e in errors)
        return "; ".join(found)[:500]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""
