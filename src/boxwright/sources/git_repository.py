"""The repositories that fetches go to: one bare repository per remote, kept from build to build.

They lie where cache mounts lie, so they are listed, pruned and dropped after a power cut with
them. The key of each holds a secret of this store: a step may name any cache mount, and whoever
can write to a repository's configuration can run programs in the engine's name.

In a repository, ``refs/boxwright/<object>`` is what builds asked for; ``refs/remotes`` and tags
are there only after the whole repository had to be fetched.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.sources.git_errors import (
    GitDeniedError,
    GitError,
    GitRefNotFoundError,
    GitRemoteNotFoundError,
    GitUnreachableError,
)
from boxwright.sources.git_remote import GitAttributes, GitResolution, is_commit
from boxwright.sources.git_run import Git
from boxwright.store.database import Database
from boxwright.store.trash import remove_tree

OWN_REFS = "refs/boxwright/"
OpenBundle = Callable[[], AbstractAsyncContextManager[Path]]
_SECRET_KEY = "git-repositories"  # noqa: S105 - the name of a row
_SHA256_LENGTH = 64


class GitRepositories:
    """The shared repositories of one store."""

    def __init__(self, cache_mounts: CacheMounts, database: Database) -> None:
        self._cache_mounts = cache_mounts
        self._secret = _own_secret(database)

    @contextlib.asynccontextmanager
    async def fetched(
        self,
        git: Git,
        wanted: GitAttributes,
        found: GitResolution,
        open_bundle: OpenBundle | None = None,
    ) -> AsyncIterator[Git]:
        """Give the repository of a remote with an object in it; nobody else uses it meanwhile.

        Args:
            git: prepared for the remote.
            wanted: the source.
            found: what must be there; with all of its history if a bundle is to be made of it.
            open_bundle: gives the file that has it, if it is not to come from the remote.

        Raises:
            GitError: it can't be fetched.
            GitRefNotFoundError: the remote does not have it.
        """
        name = "sha256" if len(found.object_id) == _SHA256_LENGTH else "sha1"
        key = Digest.of(f"{name} {wanted.remote}".encode("utf-8", "surrogateescape"))
        async with self._cache_mounts.acquired(
            f"git:{self._secret}:{key}",
            "locked",
            description=f"shared git repo for {wanted.remote}",
        ) as root:
            path = root / "bare"
            is_old = await to_worker(_tidy, path)
            fetch = _Fetch(git, wanted, found, open_bundle)
            try:
                bare = await fetch.into(path, name)
            except _Damaged as exc:
                if not is_old:
                    raise exc.cause from exc
                # Renamed branches or damage: what is here is only a cache.
                await to_worker(remove_tree, path)
                bare = await fetch.into(path, name)
            yield bare


class _Damaged(Exception):  # noqa: N818 - never leaves this module
    """The repository can't take a fetch; a new one may."""

    def __init__(self, cause: GitError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True, slots=True)
class _Fetch:
    """Brings what a source has resolved to into a repository."""

    git: Git
    wanted: GitAttributes
    found: GitResolution
    open_bundle: OpenBundle | None

    async def into(self, path: Path, object_format: str) -> Git:
        if not await to_worker(path.exists):
            staged = path.with_suffix(".new")
            await to_worker(remove_tree, staged)
            arguments = ["--quiet", "--bare", f"--object-format={object_format}", str(staged)]
            await self.git.run("init", *arguments, what="failed to make a git repository")
            staged.rename(path)
        bare = self.git.at(path)
        if self.open_bundle is not None:
            if not await self._has(bare):
                await self._take_bundle(bare, self.open_bundle)
        elif self.wanted.checkout_bundle:
            if not await self._has(bare) or await to_worker((path / "shallow").exists):
                await self._fetch_all(bare)
        elif not await self._has(bare):
            await self._fetch(bare)
        object_id = self.found.object_id
        await bare.run("update-ref", OWN_REFS + object_id, object_id)
        return bare

    async def _has(self, bare: Git) -> bool:
        return await bare.succeeds("cat-file", "-e", f"{self.found.object_id}^{{tree}}")

    async def _fetch(self, bare: Git) -> None:
        """Fetch one object without history, or everything where the server can't do that."""
        remote, object_id = self.wanted.remote, self.found.object_id
        flags = ["--depth=1", "--no-tags", "--no-recurse-submodules"]
        try:
            await bare.run("fetch", *flags, "--", remote, object_id, what=self._what)
        except (GitDeniedError, GitUnreachableError, GitRemoteNotFoundError):
            raise
        except GitError:
            await self._fetch_all(bare)
        if not await self._has(bare):
            raise GitRefNotFoundError(remote, object_id)

    async def _fetch_all(self, bare: Git) -> None:
        """Fetch all branches and tags with their history, and the object if it is in none."""
        remote, found = self.wanted.remote, self.found
        flags = ["--tags", "--force", "--prune", "--no-recurse-submodules"]
        assert bare.git_dir is not None
        if (bare.git_dir / "shallow").exists():
            flags.append("--unshallow")
        specs = ["+refs/heads/*:refs/remotes/origin/*"]
        if not is_commit(found.ref) and not found.ref.startswith(("refs/heads/", "refs/tags/")):
            specs.append(f"+{found.ref}:refs/remotes/named/{found.object_id}")
        try:
            await bare.run("fetch", *flags, "--", remote, *specs, what=self._what)
        except (GitDeniedError, GitUnreachableError, GitRemoteNotFoundError):
            raise
        except GitError as exc:
            raise _Damaged(exc) from exc
        if not await self._has(bare):  # a ref that has moved; servers of files have it still
            with contextlib.suppress(GitError):
                flags = ["--no-tags", "--no-recurse-submodules"]
                await bare.run("fetch", *flags, "--", remote, found.object_id, what=self._what)
        if not await self._has(bare):
            raise GitRefNotFoundError(remote, found.object_id)

    async def _take_bundle(self, bare: Git, open_bundle: OpenBundle) -> None:
        """Take all objects out of a bundle; its refs stay outside."""
        shown = f"bundle {self.wanted.bundle}"
        async with open_bundle() as path:
            await (
                bare.locally()
                .quietly()
                .run("bundle", "unbundle", str(path), what=f"failed to read {shown}")
            )
        if not await self._has(bare):
            raise GitRefNotFoundError(shown, self.found.object_id)

    @property
    def _what(self) -> str:
        return f"failed to fetch remote {self.wanted.remote}"


def _tidy(path: Path) -> bool:
    """Remove what a killed git left behind (nobody else is here); return if there is anything."""
    for pattern in ("*.lock", "refs/**/*.lock", "objects/pack/tmp_*", "objects/**/tmp_obj_*"):
        for leftover in path.glob(pattern):
            leftover.unlink(missing_ok=True)
    return path.exists()


def _own_secret(database: Database) -> str:
    database.execute(
        "INSERT OR IGNORE INTO meta (key, value) VALUES (?, ?)",
        (_SECRET_KEY, secrets.token_hex(16)),
    )
    return str(database.execute("SELECT value FROM meta WHERE key = ?", (_SECRET_KEY,))[0][0])
