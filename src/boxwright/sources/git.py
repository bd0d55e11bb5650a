"""Git repositories as build sources (``git://…``).

The cache key is BuildKit's (source/git): the commit, and what else shapes the tree. A ref that can
move is looked up at its remote in every build (``ls-remote``), so an unchanged one costs one
request and no fetch. A tree that was checked out once is found again by its key.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path

from boxwright.core.dataclass import dataclass, replace
from boxwright.core.locks import KeyedLocks
from boxwright.core.platform import Platform
from boxwright.core.workers import to_worker
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef
from boxwright.sources.base import SourceContext, SourceKey
from boxwright.sources.blob import BlobFiles
from boxwright.sources.bloblocator import BlobLocator
from boxwright.sources.git_access import GitAccess
from boxwright.sources.git_checkout import BUNDLE_NAME, Checkout
from boxwright.sources.git_errors import GitChecksumError, GitRefNotFoundError
from boxwright.sources.git_remote import (
    GitAttributes,
    GitResolution,
    check,
    is_commit,
    parse_default_branch,
    parse_refs,
)
from boxwright.sources.git_repository import GitRepositories
from boxwright.sources.git_run import Git
from boxwright.sources.http_save import DownloadedFile
from boxwright.sources.resolutions import resolve_once
from boxwright.store import schema

SCHEME = "git"
_RECORD_TYPE = "source.git.checkout"
_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS git_trees (
        key TEXT PRIMARY KEY,
        snapshot TEXT NOT NULL REFERENCES snapshots (id) ON DELETE CASCADE,
        creator TEXT NOT NULL DEFAULT '', trust TEXT NOT NULL DEFAULT ''
    ) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS git_trees_by_snapshot ON git_trees (snapshot)",
)

schema.register("git", _SCHEMA)


@dataclass(frozen=True, slots=True)
class GitMetadata:
    """What a source resolved to; the objects are raw, and empty unless asked for.

    Attributes:
        ref: The full name of the ref, or the commit.
        checksum: The object that the ref points at.
        commit_checksum: The commit of an annotated tag, else empty.
    """

    ref: str
    checksum: str
    commit_checksum: str = ""
    commit_object: bytes = b""
    tag_object: bytes = b""


class GitSources:
    """Provider of ``git://`` sources over one state folder."""

    def __init__(
        self,
        snapshots: SnapshotManager,
        repositories: GitRepositories,
        access: GitAccess,
        blobs: BlobFiles,
    ) -> None:
        self.snapshots = snapshots
        self.repositories = repositories
        self.access = access
        self.blobs = blobs
        self.lock = KeyedLocks()
        """Under which trees are made, by key."""
        for statement in _SCHEMA:  # a store that was opened before this module was imported
            snapshots.store.db.execute(statement)

    def resolve(self, rest: str, attrs: Mapping[str, str], platform: Platform | None) -> GitSource:
        """Return the source of ``git://<rest>``."""
        del platform
        return GitSource(self, GitAttributes.parse(rest, attrs))

    def find(self, key: str) -> ImmutableRef | None:
        """Return the tree that was made for a key, if it is still there."""
        rows = self.snapshots.store.db.execute(
            "SELECT snapshot FROM git_trees WHERE key = ?", (key,)
        )
        return self.snapshots.get(rows[0][0]) if rows else None

    def remember(self, key: str, ref: ImmutableRef) -> None:
        """Note the tree of a key."""
        self.snapshots.store.db.execute(
            "INSERT OR REPLACE INTO git_trees (key, snapshot) VALUES (?, ?)", (key, ref.id)
        )


class GitSource:
    """One git op."""

    def __init__(self, provider: GitSources, wanted: GitAttributes) -> None:
        self._provider = provider
        self._wanted = wanted
        self._found: GitResolution | None = None
        self._is_verified = False

    async def cache_key(self, context: SourceContext, index: int) -> SourceKey:
        """Return the one key; a ref that can move is looked up.

        Raises:
            GitError: the remote can't be reached, or denies access.
            GitRefNotFoundError: it has no such ref.
            GitChecksumError: the ref is at another commit than the one asked for.
            SignatureError: what it is at is not signed as it has to be.
        """
        del index
        found = await self._resolve(context)
        if self._wanted.signature is not None and not self._is_verified:
            await self._objects(context, found)
        return SourceKey(self._key(found), found.object_id)

    def _key(self, found: GitResolution) -> str:
        shows_tag = self._wanted.keep_git_dir or self._wanted.checkout_bundle
        commit = found.object_id if shows_tag else found.commit
        return self._wanted.cache_key(commit, found.ref)

    async def _resolve(self, context: SourceContext) -> GitResolution:
        if self._found is None:
            self._found = self._wanted.fixed()
        if self._found is None:
            place = (self._wanted.remote, self._wanted.ref, self._wanted.bundle)
            resolved = await resolve_once(
                context.resolutions,
                GitResolution,
                place,
                lambda: self._ask(context),
                self._wanted.is_at,
            )
            self._found = resolved
        return self._found

    async def _ask(self, context: SourceContext) -> GitResolution:
        wanted = self._wanted
        if wanted.bundle is not None:
            return await self._look_into_bundle(context, wanted.bundle)
        what = f"failed to fetch remote {wanted.remote}"
        async with self._provider.access.prepared(wanted, context) as git:
            if wanted.ref:
                listing = await git.run(
                    *("ls-remote", "--", wanted.remote, wanted.ref, wanted.ref + "^{}"), what=what
                )
                found = parse_refs(wanted, listing)
            else:
                listing = await git.run(
                    *("ls-remote", "--symref", "--", wanted.remote, "HEAD"), what=what
                )
                default = parse_default_branch(listing)
                if default is None:
                    raise GitRefNotFoundError(
                        wanted.remote, "HEAD", detail="could not find its default branch"
                    )
                found = check(wanted, default)
            if git.log is not None:
                git.log.log(1, f"{found.object_id}\t{found.ref}\n".encode())
            return found

    async def _look_into_bundle(
        self, context: SourceContext, bundle: BlobLocator
    ) -> GitResolution:
        """Find a ref among those of a bundle, which does not say which commits its tags are of."""
        tag = "refs/tags/" + self._wanted.ref.removeprefix("refs/tags/")
        async with AsyncExitStack() as stack:
            git = await stack.enter_async_context(
                self._provider.access.prepared(self._wanted, context)
            )
            async with self._open_bundle(context, bundle) as path:
                what = f"failed to read bundle {bundle}"
                heads = await git.run("bundle", "list-heads", str(path), what=what)
            lines = [line.partition(" ")[::2] for line in heads.splitlines()]
            for object_id, name in tuple(lines):
                if name == tag and is_commit(object_id):
                    bare = await stack.enter_async_context(
                        self._fetched(context, git, GitResolution(name, object_id))
                    )
                    peeled = (await bare.run("rev-parse", f"{object_id}^{{commit}}")).strip()
                    if peeled != object_id:
                        lines.append((peeled, f"{name}^{{}}"))
        return parse_refs(self._wanted, "\n".join("\t".join(line) for line in lines))

    @asynccontextmanager
    async def _open_bundle(
        self, context: SourceContext, bundle: BlobLocator
    ) -> AsyncIterator[Path]:
        ref = await self._provider.blobs.tree(bundle, DownloadedFile(BUNDLE_NAME, 0o600), context)
        async with ref, ref.mounted() as root:
            yield root / BUNDLE_NAME

    def _fetched(
        self, context: SourceContext, git: Git, found: GitResolution
    ) -> AbstractAsyncContextManager[Git]:
        """Give the repository with what was found in it."""
        bundle = self._wanted.bundle
        opened = None if bundle is None else lambda: self._open_bundle(context, bundle)
        return self._provider.repositories.fetched(git, self._wanted, found, opened)

    async def snapshot(self, context: SourceContext) -> ImmutableRef:
        """Return the tree, checked out unless it is known.

        Raises:
            GitError: the commit or a submodule can't be fetched.
            GitSubdirError: the commit has no such sub-directory.
        """
        found = await self._resolve(context)
        key = self._key(found)
        async with self._provider.lock(key):
            known = self._provider.find(key)
            if known is not None:
                return known
            ref = await self._check_out(context, found)
            self._provider.remember(key, ref)
            return ref

    async def _check_out(self, context: SourceContext, found: GitResolution) -> ImmutableRef:
        provider, wanted = self._provider, self._wanted
        tree = provider.snapshots.new(
            None, description=f"git snapshot for {wanted.shown}", record_type=_RECORD_TYPE
        )
        async with tree:
            async with (
                provider.access.prepared(wanted, context) as git,
                self._fetched(context, git, found) as bare,
                tree.mounted() as root,
            ):
                scratch = provider.snapshots.folder(tree.id) / "git"
                await Checkout(bare, wanted, found, root, scratch).run()
            return await tree.commit()

    async def metadata(self, context: SourceContext, *, return_object: bool) -> GitMetadata:
        """Return what the ref stands for, on request with the raw commit and tag.

        Raises:
            GitError: the remote can't be reached, or the commit can't be fetched.
            SignatureError: what it is at is not signed as it has to be.
        """
        wanted = self._wanted
        found = await self._resolve(context)
        if wanted.keep_git_dir:
            found = replace(found, peeled="")
        if not return_object and wanted.signature is None:
            return GitMetadata(found.ref, found.object_id, found.peeled)
        objects = await self._objects(context, found)
        if return_object:
            return objects
        return GitMetadata(found.ref, found.object_id, found.peeled)

    async def _objects(self, context: SourceContext, found: GitResolution) -> GitMetadata:
        """Return what was found with the raw objects, their signatures checked if wanted."""
        wanted = self._wanted
        async with (
            self._provider.access.prepared(wanted, context) as git,
            self._fetched(context, git, found) as bare,
        ):
            objects = await _with_objects(bare, found)
        if found.peeled not in {"", objects.commit_checksum}:  # the key is made of it
            raise GitChecksumError(
                wanted.remote, found.peeled, [objects.commit_checksum or objects.checksum]
            )
        if wanted.signature is not None:
            # Not at start: few builds verify anything.
            from boxwright.sources.git_signature import verify_git

            await to_worker(
                verify_git,
                wanted.signature,
                objects.checksum,
                objects.commit_checksum or objects.checksum,
                objects.tag_object,
                objects.commit_object,
            )
            self._is_verified = True
        return objects


async def _with_objects(bare: Git, found: GitResolution) -> GitMetadata:
    kind = (await bare.run("cat-file", "-t", found.object_id)).strip()
    if kind != "tag":
        commit = await bare.run("cat-file", "commit", found.object_id)
        return GitMetadata(found.ref, found.object_id, "", _raw(commit))
    peeled = (await bare.run("rev-parse", f"{found.object_id}^{{commit}}")).strip()
    tag = await bare.run("cat-file", "tag", found.object_id)
    commit = await bare.run("cat-file", "commit", peeled)
    return GitMetadata(found.ref, found.object_id, peeled, _raw(commit), _raw(tag))


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
