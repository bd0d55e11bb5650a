"""Lists that come page by page: catalogs, tags, referrers (distribution-spec v1.1, "Link")."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
from yarl import URL

from boxwright.registry.errors import RegistryError
from boxwright.registry.hosts import Endpoint
from boxwright.registry.transport import Request, Transport, own_scheme

PAGE_LIMIT_BYTES = 8 << 20


async def pages(
    transport: Transport, endpoint: Endpoint, url: str, scope: str, *, accept: str = ""
) -> AsyncIterator[bytes]:
    """Yield the body of each page, from the first one at ``url`` on.

    Raises:
        RegistryError: a page can't be had, is too large, or the next one is somewhere else, where
            logins don't go.
    """
    seen: set[str] = set()
    headers = {"Accept": accept} if accept else {}
    while url and url not in seen:
        seen.add(url)
        request = Request("GET", url, scope, headers=headers)
        async with transport.send(endpoint, request) as response:
            body = await transport.body(endpoint, response, PAGE_LIMIT_BYTES)
            url = _next(endpoint, response)
        if body is None:
            raise unreadable(endpoint, f"a page of more than {PAGE_LIMIT_BYTES} bytes")
        yield body


def _next(endpoint: Endpoint, response: aiohttp.ClientResponse) -> str:
    """Return the address of the next page, nothing after the last."""
    try:
        link = response.links.get("next")
        if link is None:
            return ""
        address = own_scheme(str(response.url), str(link["url"]))
        is_here = _place(address) == _place(endpoint.base_url)
    except ValueError as exc:
        raise unreadable(endpoint, f"the next page has no valid address: {exc}") from exc
    if not is_here:
        raise unreadable(endpoint, f"the next page is at {address}")
    return address


def _place(address: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port of an address, the port also where it is not written."""
    url = URL(address)
    return url.scheme, url.host, url.port


def unreadable(endpoint: Endpoint, detail: str) -> RegistryError:
    """Return the error for a page that holds something else than its list."""
    return RegistryError(
        f"registry {endpoint.name} answers with a list that can't be read",
        host=endpoint.name,
        detail=detail,
    )
