"""What refers to a manifest: signatures and other artifacts (distribution-spec v1.1, "Referrers").

Registries without the API keep the same list under a tag made of the digest.
"""

from __future__ import annotations

import json

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.errors import BoxwrightError
from boxwright.oci.mediatypes import OCI_INDEX
from boxwright.registry.auth import scope_for
from boxwright.registry.client import RegistryClient
from boxwright.registry.errors import ManifestNotFoundError, RegistryError
from boxwright.registry.hosts import Endpoint
from boxwright.registry.paging import pages, unreadable

_NO_API = frozenset({400, 404, 405, 501})


async def referrers(client: RegistryClient, ref: Reference, subject: Digest) -> list[Descriptor]:
    """Return the manifests of a repository that name ``subject``; none if nothing is known.

    Mirrors are not asked: what they have not fetched they do not list.

    Raises:
        RegistryError: the registry can't be asked, or answers with something else.
    """
    endpoint = await client.transport.discover(client.hosts.endpoint(ref.host))
    repository = endpoint.repository(ref.path)
    url = f"{endpoint.base_url}/{repository}/referrers/{subject}"
    scope = scope_for(repository, push=False)
    found: list[Descriptor] = []
    try:
        async for page in pages(client.transport, endpoint, url, scope, accept=OCI_INDEX):
            found += _read(endpoint, page)
    except RegistryError as exc:
        if found or exc.status not in _NO_API:
            raise
        return await _by_tag(client, endpoint, ref, subject)
    return found


async def _by_tag(
    client: RegistryClient, endpoint: Endpoint, ref: Reference, subject: Digest
) -> list[Descriptor]:
    tagged = Reference(ref.host, ref.path, tag=str(subject).replace(":", "-", 1))
    try:
        _, body = await client.fetch_manifest(tagged, mirrors=False)
    except ManifestNotFoundError:
        return []
    return _read(endpoint, body)


def _read(endpoint: Endpoint, body: bytes) -> list[Descriptor]:
    try:
        entries = json.loads(body)["manifests"] or []
        return [Descriptor.from_json(entry) for entry in entries]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
        raise unreadable(endpoint, f"referrers: {exc}") from exc
    except BoxwrightError as exc:
        raise unreadable(endpoint, f"referrers: {exc.detail}") from exc
