"""What a registry holds, asked over the distribution API: repositories and tags, page by page."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

from boxwright.registry.auth import scope_for
from boxwright.registry.client import RegistryClient
from boxwright.registry.hosts import Endpoint
from boxwright.registry.paging import pages, unreadable

_CATALOG_SCOPE = "registry:catalog:*"
_PAGE = 500


async def repositories(client: RegistryClient, host: str) -> AsyncIterator[str]:
    """Yield the names of a registry's repositories.

    Raises:
        RegistryError: it can't be asked, or has no catalog.
    """
    endpoint = await client.transport.discover(client.hosts.endpoint(host))
    url = f"{endpoint.base_url}/_catalog?n={_PAGE}"
    async for page in pages(client.transport, endpoint, url, _CATALOG_SCOPE):
        for name in _names(endpoint, page, "repositories"):
            yield name


async def tags(client: RegistryClient, host: str, repository: str) -> AsyncIterator[str]:
    """Yield the tags of a repository.

    Raises:
        RegistryError: it can't be asked, or has no such repository.
    """
    endpoint = await client.transport.discover(client.hosts.endpoint(host))
    path = endpoint.repository(repository)
    url = f"{endpoint.base_url}/{path}/tags/list?n={_PAGE}"
    async for page in pages(client.transport, endpoint, url, scope_for(path, push=False)):
        for name in _names(endpoint, page, "tags"):
            yield name


def _names(endpoint: Endpoint, body: bytes, key: str) -> list[str]:
    try:
        names = json.loads(body)[key] or []
        return [name for name in names if isinstance(name, str)]
    except (ValueError, TypeError, KeyError) as exc:
        raise unreadable(endpoint, f"{key}: {exc}") from exc
