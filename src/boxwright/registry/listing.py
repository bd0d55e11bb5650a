"""What a registry holds, asked over the distribution API: repositories and tags, page by page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from urllib.parse import urljoin

from boxwright.registry.auth import scope_for
from boxwright.registry.client import RegistryClient
from boxwright.registry.errors import RegistryError
from boxwright.registry.hosts import Endpoint
from boxwright.registry.transport import Request

_CATALOG_SCOPE = "registry:catalog:*"
_PAGE = 500
_PAGE_LIMIT_BYTES = 8 << 20


async def repositories(client: RegistryClient, host: str) -> AsyncIterator[str]:
    """Yield the names of a registry's repositories.

    Raises:
        RegistryError: it can't be asked, or has no catalog.
    """
    endpoint = await client.transport.discover(client.hosts.endpoint(host))
    url = f"{endpoint.base_url}/_catalog?n={_PAGE}"
    async for name in _pages(client, endpoint, url, _CATALOG_SCOPE, "repositories"):
        yield name


async def tags(client: RegistryClient, host: str, repository: str) -> AsyncIterator[str]:
    """Yield the tags of a repository.

    Raises:
        RegistryError: it can't be asked, or has no such repository.
    """
    endpoint = await client.transport.discover(client.hosts.endpoint(host))
    path = endpoint.repository(repository)
    url = f"{endpoint.base_url}/{path}/tags/list?n={_PAGE}"
    async for name in _pages(client, endpoint, url, scope_for(path, push=False), "tags"):
        yield name


async def _pages(
    client: RegistryClient, endpoint: Endpoint, url: str, scope: str, key: str
) -> AsyncIterator[str]:
    seen: set[str] = set()
    while url and url not in seen:
        seen.add(url)
        request = Request("GET", url, scope)
        body = bytearray()
        async with client.transport.send(endpoint, request) as response:
            link = response.headers.get("Link", "")
            async for data in client.transport.chunks(endpoint, response):
                body += data
                if len(body) > _PAGE_LIMIT_BYTES:
                    break
        for name in _names(endpoint, bytes(body), key):
            yield name
        url = _next(endpoint, url, link)


def _names(endpoint: Endpoint, body: bytes, key: str) -> list[str]:
    try:
        names = json.loads(body)[key] or []
        return [name for name in names if isinstance(name, str)]
    except (ValueError, TypeError, KeyError) as exc:
        raise RegistryError(
            f"registry {endpoint.name} answers with a list that can't be read",
            host=endpoint.name,
            detail=f"{key}: {exc}",
        ) from exc


def _next(endpoint: Endpoint, url: str, link: str) -> str:
    """Return the address of the next page; only on the same endpoint, to which logins go."""
    target, _, relation = link.partition(">")
    if 'rel="next"' not in relation and "rel=next" not in relation:
        return ""
    address = urljoin(url, target.lstrip("< "))
    return address if address.startswith(f"{endpoint.base_url}/") else ""
