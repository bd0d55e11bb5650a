"""Looking after the registry's part of a store: what it holds, whether it is whole, what can go.

All of it is for the owner of the state folder. Collection takes nothing that a push in progress
needs: finished blobs have leases, young manifests are spared, and the store spares what was
written or asked for lately.
"""

from __future__ import annotations

from collections.abc import Iterator

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code
from boxwright.registryserver.repositories import Repositories
from boxwright.store.errors import BlobNotFoundError
from boxwright.store.store import GRACE_NS, Store


@dataclass(frozen=True, slots=True)
class TagLine:
    """One tag: what it points at, and the bytes of all that belongs to it."""

    repository: str
    tag: str
    digest: Digest
    media_type: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that a manifest needs and that can't be served."""

    repository: str
    manifest: Digest
    blob: Digest
    problem: str


class RegistryDamagedError(BoxwrightError):
    """An image of the registry can't be pulled whole."""

    code = Code.STORE_CORRUPT

    def __init__(self, count: int) -> None:
        super().__init__(
            f"{count} blobs of the registry are missing or damaged",
            hint="push the images again, or remove their tags",
        )


@dataclass(frozen=True, slots=True)
class Removed:
    """What a collection removed."""

    manifests: int
    blobs: int
    size_bytes: int


def list_tags(store: Store) -> list[TagLine]:
    """Return all tags by repository and name."""
    repositories = Repositories(store)
    found = []
    for name in repositories.names():
        for tag in repositories.tags(name):
            target = repositories.find(name, tag)
            if target is not None:
                size = sum(size or 0 for size in store.blobs.graph(target.digest).values())
                found.append(TagLine(name, tag, target.digest, target.media_type, size))
    return found


def check(store: Store) -> tuple[int, list[Damage]]:
    """Read every blob that a manifest needs; return how many, and what is wrong. Slow."""
    verdicts: dict[Digest, str] = {}
    found: list[Damage] = []
    for repository, manifest in sorted(_manifests(store)):
        for blob in store.blobs.graph(manifest):
            if blob not in verdicts:
                verdicts[blob] = _problem(store, blob)
            if verdicts[blob]:
                found.append(Damage(repository, manifest, blob, verdicts[blob]))
    return len(verdicts), found


def _manifests(store: Store) -> Iterator[tuple[str, Digest]]:
    for repository, digest in store.db.execute(
        "SELECT repository, digest FROM registry_manifests"
    ):
        yield repository, Digest(digest)
    for record in store.images.list():
        yield record.name, record.descriptor.digest


def _problem(store: Store, digest: Digest) -> str:
    try:
        return "" if store.blobs.is_sound(digest) else "damaged"
    except BlobNotFoundError:
        return "missing"
    except OSError as exc:
        return str(exc)


def collect(store: Store, *, untagged: bool, older_ns: int) -> Removed:
    """Remove what nothing leads to.

    Args:
        store: whose owner the caller is.
        untagged: also manifests without a tag, unless a tagged index lists them or they
            refer to an image that stays.
        older_ns: of these, only those that were pushed and asked for longer ago.
    """
    manifests = _remove_untagged(store, older_ns) if untagged else 0
    done = store.gc(grace_ns=min(older_ns, GRACE_NS))
    Repositories(store).forget_lost()
    return Removed(manifests, done.blobs, done.size_bytes)


def _remove_untagged(store: Store, older_ns: int) -> int:
    before = store.clock.now_ns() - older_ns
    rows = store.db.execute(
        "SELECT m.repository, m.digest, m.subject, coalesce(max(b.created_ns, b.used_ns), 0)"
        " FROM registry_manifests m LEFT JOIN blobs b ON b.digest = m.digest"
    )
    tagged = store.db.execute("SELECT repository, digest FROM registry_tags")
    kept: set[tuple[str, str]] = set()
    pending = [(str(repository), str(digest)) for repository, digest in tagged]
    # What is too young to go keeps what it needs and what refers to it as well.
    pending += [(row[0], row[1]) for row in rows if row[3] > before]
    referrers: dict[tuple[str, str], list[str]] = {}
    for repository, digest, subject, _ in rows:
        if subject:
            referrers.setdefault((repository, subject), []).append(digest)
    while pending:
        item = pending.pop()
        if item in kept:
            continue
        kept.add(item)
        repository, digest = item
        pending += [(repository, str(child)) for child in store.blobs.refs(Digest(digest))]
        pending += [(repository, other) for other in referrers.get(item, ())]
    removed = 0
    with store.db.transaction(durable=True) as cursor:
        for repository, digest, _, _ in rows:
            if (repository, digest) in kept:
                continue
            cursor.execute(
                "DELETE FROM registry_manifests WHERE repository = ?1 AND digest = ?2"
                " AND NOT EXISTS (SELECT 1 FROM registry_tags"
                " WHERE repository = ?1 AND digest = ?2)",
                (repository, digest),
            )
            removed += cursor.rowcount
    return removed
