"""Verified success: what was pushed is there for those who pull it.

A registry that said "created" may still have lost a blob, moved the tag, or be another one than
pullers ask. So every manifest is fetched back by digest and every blob asked for, with the
rights of a puller, at the host that pullers use and never at a mirror.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.engine.parallel import gather_or_cancel
from boxwright.errors import BoxwrightError, Code
from boxwright.registry.errors import ManifestNotFoundError

if TYPE_CHECKING:
    from boxwright.registry.client import RegistryClient


class PushVerificationError(BoxwrightError):
    """The registry took the push, and can't deliver what was pushed."""

    code = Code.REGISTRY_FAILED


@dataclass
class ImageGraph:
    """An image taken apart: blobs, manifests with children first, and the root."""

    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    manifests: list[Descriptor] = field(default_factory=list)


async def verify_push(
    client: RegistryClient,
    ref: Reference,
    root: Descriptor,
    graph: ImageGraph,
    *,
    insecure: bool | None,
    by_digest: bool,
) -> None:
    """Confirm every manifest and blob, and that the tag points at ``root``.

    Args:
        client: with the logins of the push.
        ref: what was pushed to; pullers may know its host by another name.
        root: the manifest or index that was pushed.
        graph: what it consists of.
        insecure: the request's ``registry.insecure``.
        by_digest: no tag was written.

    Raises:
        PushVerificationError: something can't be pulled, or the tag leads elsewhere.
        RegistryError: the registry can't be asked, by cause.
    """
    asked = replace(ref, host=client.hosts.pull_host(ref.host), digest=None)

    async def manifest(item: Descriptor) -> None:
        try:
            wanted = replace(asked, tag="", digest=item.digest)
            await client.fetch_manifest(wanted, insecure=insecure, mirrors=False)
        except ManifestNotFoundError as exc:
            raise _lost(ref, asked, "manifest", item) from exc

    async def blob(item: Descriptor) -> None:
        if not await client.has_blob(asked, item.digest, insecure=insecure, push=False):
            raise _lost(ref, asked, "blob", item)

    checks = [manifest(item) for item in graph.manifests]
    checks += [blob(item) for item in graph.blobs.values()]
    if by_digest:
        await gather_or_cancel(checks)
        return
    tag = asyncio.ensure_future(_check_tag(client, ref, asked, root, insecure=insecure))
    try:
        await gather_or_cancel(checks)  # first: what is lost says more than a tag that is
        await tag
    finally:
        tag.cancel()
        await asyncio.gather(tag, return_exceptions=True)


async def _check_tag(
    client: RegistryClient,
    ref: Reference,
    asked: Reference,
    root: Descriptor,
    *,
    insecure: bool | None,
) -> None:
    try:
        found, body = await client.fetch_manifest(asked, insecure=insecure, mirrors=False)
    except ManifestNotFoundError as exc:
        raise PushVerificationError(
            f"{ref.familiar} does not exist after its push",
            detail=f"registry {asked.host} has {root.digest}, but no tag {asked.tag}",
            hint=f"pull it as {asked.name}@{root.digest}, or push again",
        ) from exc
    if not root.digest.matches(body):  # under whichever digest the registry knows it
        raise PushVerificationError(
            f"{ref.familiar} no longer points at what was pushed",
            detail=f"pushed {root.digest}, the registry has {found.digest}",
            hint="somebody else pushed the same tag; use a tag of your own or the digest",
        )


def _lost(ref: Reference, asked: Reference, kind: str, item: Descriptor) -> PushVerificationError:
    facts = f"{item.digest} ({item.size} bytes) in {asked.path}"
    if asked.host != ref.host:
        return PushVerificationError(
            f"{asked.host} does not have a {kind} that was pushed to {ref.host}",
            detail=facts,
            hint="pullers ask another registry than the one that was pushed to: make them one, or "
            "correct pullHosts under [boxwright] in the configuration",
        )
    return PushVerificationError(
        f"registry {asked.host} lost a {kind} that was pushed",
        detail=facts,
        hint="push again; if it happens twice, check the registry's storage",
    )
