"""Repositories, tags and manifests of the embedded registry, as rows of the store.

Blobs lie in the store's one blob folder; a repository only says which of them it shows. A blob
answers in a repository if it was uploaded or mounted there, or if a manifest of that repository
leads to it. Images that builds stored under a name (``boxwright build -t``) are repositories too,
read from the image store itself: what was just built can be pulled at once.

The row of a pushed manifest keeps its whole graph from collection. A pushed blob has a lease that
expires, in which it waits for its manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from boxwright.core.dataclass import dataclass
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.errors import BoxwrightError
from boxwright.registryserver.conditions import ANYTHING, Condition
from boxwright.store import trace
from boxwright.store.store import Store

# A blob that was pushed waits so long for a manifest that needs it.
BLOB_LIFE_NS = 24 * 3600 * 10**9
# Upwards from the blob: few manifests need it, whatever the size of the repository.
_NEEDED = (
    "WITH RECURSIVE above (digest) AS (VALUES (?2)"
    " UNION SELECT parent FROM blob_refs JOIN above ON child = above.digest)"
    " SELECT 1 FROM registry_manifests WHERE repository = ?1 AND digest IN"
    " (SELECT digest FROM above) LIMIT 1"
)
_INDEX_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)

_Images = Mapping[str, Sequence[tuple[str, Descriptor]]]


class ManifestInvalidError(BoxwrightError):
    """A pushed manifest that is no manifest, or needs blobs that are not there."""

    def __init__(self, brief: str, *, missing: Digest | None = None, detail: str = "") -> None:
        super().__init__(brief, detail=detail)
        self.missing = missing


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest that can be served.

    Attributes:
        is_kept: It was pushed here. Others are shown as builds stored them, and go with them.
    """

    digest: Digest
    media_type: str
    size: int
    is_kept: bool = False


def referenced(body: bytes) -> tuple[dict[str, Any], list[Descriptor], list[Descriptor]]:
    """Read a manifest or index: the object, the blobs it needs, the manifests it lists.

    Raises:
        ManifestInvalidError: it is no JSON object or has a malformed descriptor.
    """
    try:
        data = json.loads(body)
        if not isinstance(data, dict):
            raise ManifestInvalidError("manifest is not a JSON object")
        if data.get("schemaVersion") != 2:
            raise ManifestInvalidError(
                "unsupported manifest schema", detail=f"schemaVersion {data.get('schemaVersion')}"
            )
        manifests = [Descriptor.from_json(m) for m in data.get("manifests") or ()]
        entries = [data["config"]] if isinstance(data.get("config"), dict) else []
        entries += data.get("layers") or []
        blobs = [Descriptor.from_json(item) for item in entries]
    except (ValueError, TypeError, AttributeError, RecursionError) as exc:
        raise ManifestInvalidError("manifest is not valid JSON", detail=str(exc)) from exc
    except ManifestInvalidError:
        raise
    except BoxwrightError as exc:
        raise ManifestInvalidError("manifest has a malformed descriptor", detail=str(exc)) from exc
    return data, blobs, manifests


def _subject(data: dict[str, Any]) -> Digest | None:
    if data.get("subject") is None:
        return None
    try:
        return Descriptor.from_json(data["subject"]).digest
    except BoxwrightError as exc:
        raise ManifestInvalidError("manifest has a malformed subject", detail=str(exc)) from exc


class Repositories:
    """The registry's view of one store. Methods block for a row's read or a durable write."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._db = store.db
        self._built: tuple[int, _Images] | None = None

    # --- names -------------------------------------------------------------------------------

    def _built_images(self) -> _Images:
        """Return tags and targets of the images that builds stored, by repository.

        Kept until a name changes: most requests ask, and there may be thousands.
        """
        changes = self._store.images.changes
        kept = self._built
        if kept is None or kept[0] != changes:
            kept = self._built = (changes, self._read_images())
        return kept[1]

    def _read_images(self) -> _Images:
        found: dict[str, list[tuple[str, Descriptor]]] = {}
        for record in self._store.images.list():
            try:
                ref = Reference.parse(record.name)
            except BoxwrightError:
                continue
            for name in {ref.path, ref.path.removeprefix("library/")}:
                found.setdefault(name, []).append((ref.tag or "latest", record.descriptor))
        return found

    def _images_of(self, repository: str) -> Sequence[tuple[str, Descriptor]]:
        return self._built_images().get(repository, ())

    def names(self) -> list[str]:
        """Return all repositories in order."""
        rows = self._db.execute(
            "SELECT DISTINCT repository FROM registry_manifests"
        ) + self._db.execute("SELECT DISTINCT repository FROM registry_tags")
        found = {str(row[0]) for row in rows}
        found |= {name for name in self._built_images() if not name.startswith("library/")}
        return sorted(found)

    def tags(self, repository: str) -> list[str]:
        """Return a repository's tags in order; empty if there is no such repository."""
        rows = self._db.execute(
            "SELECT tag FROM registry_tags WHERE repository = ?", (repository,)
        )
        found = {str(row[0]) for row in rows}
        found |= {tag for tag, _ in self._images_of(repository)}
        return sorted(found)

    def exists(self, repository: str) -> bool:
        """Return whether anything is known under this name."""
        for table in ("registry_manifests", "registry_blobs", "registry_tags"):
            if self._db.execute(
                f"SELECT 1 FROM {table} WHERE repository = ? LIMIT 1",  # noqa: S608
                (repository,),
            ):
                return True
        return repository in self._built_images()

    # --- manifests ---------------------------------------------------------------------------

    def find(self, repository: str, reference: str) -> StoredManifest | None:
        """Return the manifest of a tag or digest."""
        if ":" in reference:
            return self._find_digest(repository, Digest(reference))
        rows = self._db.execute(
            "SELECT digest FROM registry_tags WHERE repository = ? AND tag = ?",
            (repository, reference),
        )
        if rows:
            return self._find_digest(repository, Digest(rows[0][0]))
        for tag, target in self._images_of(repository):
            if tag == reference:
                return self._stored(target.digest, target.media_type)
        return None

    def _find_digest(self, repository: str, digest: Digest) -> StoredManifest | None:
        rows = self._db.execute(
            "SELECT media_type FROM registry_manifests WHERE repository = ? AND digest = ?",
            (repository, digest),
        )
        if rows:
            return self._stored(digest, str(rows[0][0]), is_kept=True)
        for _, target in self._images_of(repository):
            if target.digest == digest:
                return self._stored(digest, target.media_type)
            if target.media_type in _INDEX_TYPES:
                for child in self._children(target.digest):
                    if child.digest == digest:
                        return self._stored(digest, child.media_type)
        return None

    def _children(self, index: Digest) -> list[Descriptor]:
        try:
            return referenced(self._store.blobs.read(index))[2]
        except BoxwrightError:
            return []

    def _stored(
        self, digest: Digest, media_type: str, *, is_kept: bool = False
    ) -> StoredManifest | None:
        size = self._store.blobs.stat(digest)
        return None if size is None else StoredManifest(digest, media_type, size, is_kept)

    def put_manifest(
        self,
        repository: str,
        digest: Digest,
        tags: Sequence[str],
        media_type: str,
        body: bytes,
        now_ns: int,
        condition: Condition = ANYTHING,
    ) -> Digest | None:
        """Store a manifest under its digest and any tags; return its subject's digest.

        Raises:
            DigestMismatchError: it has another digest.
            ManifestInvalidError: malformed, or something it needs is not in this repository.
            PreconditionFailedError: what has these names is not what ``condition`` says.
        """
        data, blobs, manifests = referenced(body)
        subject_digest = _subject(data)
        stated = data.get("mediaType")
        if stated and media_type and stated != media_type:
            raise ManifestInvalidError(
                "manifest media type differs from Content-Type",
                detail=f"{stated} in the manifest, {media_type} in the header",
            )
        artifact_type = str(data.get("artifactType") or "")
        if not artifact_type and isinstance(data.get("config"), dict):
            artifact_type = str(data["config"].get("mediaType") or "")
        needed = [d.digest for d in (*blobs, *manifests) if not d.urls]
        with self._store.leases.create(labels={"registry": repository}) as holding:
            # From here on no collection takes what is about to be found complete.
            holding.add_blobs([digest, *needed])
            for item in blobs:
                if not item.urls and not self.shows_blob(repository, item.digest):
                    raise ManifestInvalidError("blob unknown", missing=item.digest)
            for item in manifests:
                if self.find(repository, str(item.digest)) is None:
                    raise ManifestInvalidError("manifest unknown", missing=item.digest)
            self._store.blobs.put(body, expected=digest)
            self._store.blobs.add_refs(digest, needed)
            trace.point("manifest-stored")
            kind = str(stated or media_type)
            annotations = json.dumps(data.get("annotations") or {})
            row = (repository, digest, kind, subject_digest, artifact_type, annotations)
            self._record(row, tags, now_ns, condition)
            trace.point("manifest-recorded")
        return subject_digest

    def _record(
        self, row: tuple[Any, ...], tags: Sequence[str], now_ns: int, condition: Condition
    ) -> None:
        repository, digest = row[:2]
        with self._db.transaction(durable=True) as cursor:
            for name in (tags or [str(digest)]) if condition != ANYTHING else ():
                # Nobody changes it between this look and the rows: of several who saw the same
                # state, one writes.
                condition.check_write(self._known(repository, name))
            cursor.execute(
                "INSERT OR REPLACE INTO registry_manifests"
                " (repository, digest, media_type, subject, artifact_type, annotations)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            cursor.executemany(
                "INSERT OR REPLACE INTO registry_tags (repository, tag, digest, updated_ns)"
                " VALUES (?, ?, ?, ?)",
                [(repository, tag, digest, now_ns) for tag in tags],
            )

    def _known(self, repository: str, name: str) -> str | None:
        """Return the digest of what has a name; cheap enough for a transaction."""
        table, column = ("manifests", "digest") if ":" in name else ("tags", "tag")
        rows = self._db.execute(
            f"SELECT digest FROM registry_{table} WHERE repository = ? AND {column} = ?",  # noqa: S608
            (repository, name),
        )
        if rows:
            return str(rows[0][0])
        built = (
            str(target.digest)
            for tag, target in self._images_of(repository)
            if name in {tag, target.digest}
        )
        return next(built, None)

    def delete_manifest(
        self, repository: str, reference: str, condition: Condition = ANYTHING
    ) -> bool:
        """Remove a tag, or a manifest with all its tags; return whether it was there.

        Raises:
            PreconditionFailedError: it is not what ``condition`` says.
        """
        with self._db.transaction(durable=True) as cursor:
            if condition != ANYTHING:
                condition.check_write(self._known(repository, reference))
            if ":" in reference:
                cursor.execute(
                    "DELETE FROM registry_manifests WHERE repository = ? AND digest = ?",
                    (repository, reference),
                )
                removed = cursor.rowcount
                cursor.execute(
                    "DELETE FROM registry_tags WHERE repository = ? AND digest = ?",
                    (repository, reference),
                )
            else:
                cursor.execute(
                    "DELETE FROM registry_tags WHERE repository = ? AND tag = ?",
                    (repository, reference),
                )
                removed = cursor.rowcount
        return removed > 0

    def referrers(self, repository: str, subject: str, artifact_type: str) -> list[dict[str, Any]]:
        """Return descriptors of the manifests that name ``subject`` (distribution-spec 1.1)."""
        rows = self._db.execute(
            "SELECT digest, media_type, artifact_type, annotations FROM registry_manifests"
            " WHERE repository = ? AND subject = ? ORDER BY digest",
            (repository, subject),
        )
        found = []
        for digest, media_type, kind, noted in rows:
            if artifact_type and kind != artifact_type:
                continue
            size = self._store.blobs.stat(Digest(digest)) or 0
            entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": size}
            if kind:
                entry["artifactType"] = kind
            if noted != "{}":
                entry["annotations"] = json.loads(noted)
            found.append(entry)
        return found

    # --- blobs -------------------------------------------------------------------------------

    def shows_blob(self, repository: str, digest: Digest) -> bool:
        """Return whether a blob may be seen in a repository, and is there."""
        if self._store.blobs.stat(digest) is None:
            return False
        if self._db.execute(
            "SELECT 1 FROM registry_blobs WHERE repository = ? AND digest = ?",
            (repository, digest),
        ):
            return True
        return self.needs_blob(repository, digest)

    def expect_blob(self, digest: Digest, now_ns: int) -> None:
        """Keep a blob that is being pushed from collection for a day.

        Not beyond a restart: the push that it belongs to does not survive that either.
        """
        lease = self._store.leases.create(
            f"registry/blob/{digest}", expires_ns=now_ns + BLOB_LIFE_NS
        )
        lease.add_blob(digest)

    def add_blob(self, repository: str, digest: Digest) -> None:
        """Show an uploaded or mounted blob in a repository.

        Not forced to the disk: a manifest that needs it is, and that takes this along.
        """
        with self._db.transaction() as cursor:
            cursor.execute(
                "INSERT OR IGNORE INTO registry_blobs VALUES (?, ?)", (repository, digest)
            )

    def needs_blob(self, repository: str, digest: Digest) -> bool:
        """Return whether a manifest of the repository leads to a blob."""
        if self._db.execute(_NEEDED, (repository, digest)):
            return True
        return any(
            digest in self._store.blobs.graph(target.digest)
            for _, target in self._images_of(repository)
        )

    def forget_lost(self) -> int:
        """Drop rows of blobs that were collected; return how many."""
        rows = self._db.execute(
            "DELETE FROM registry_blobs WHERE digest NOT IN (SELECT digest FROM blobs)"
            " RETURNING digest"
        )
        return len(rows)

    def remove_blob(self, repository: str, digest: Digest) -> bool:
        """Stop showing a blob; return whether it was shown by itself."""
        with self._db.transaction(durable=True) as cursor:
            cursor.execute(
                "DELETE FROM registry_blobs WHERE repository = ? AND digest = ?",
                (repository, digest),
            )
            return cursor.rowcount > 0
