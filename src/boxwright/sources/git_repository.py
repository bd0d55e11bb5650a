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
from collections.abc import AsyncIterator
from pathlib import Path

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
_SECRET_KEY = "git-repositories"  # noqa: S105 - the name of a row
_SHA256_LENGTH = 64


class GitRepositories:
    """The shared repositories of one store."""

    def __init__(self, cache_mounts: CacheMounts, database: Database) -> None:
        self._cache_mounts = cache_mounts
        self._secret = _own_secret(database)

    @contextlib.asynccontextmanager
    async def fetched(
        self, git: Git, wanted: GitAttributes, found: GitResolution
    ) -> AsyncIterator[Git]:
        """Give the repository of a remote with an object in it; nobody else uses it meanwhile.

        Args:
            git: prepared for the remote.
            wanted: the source.
            found: what must be there.

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
            try:
                bare = await _fetch_into(path, git, wanted, found, name)
            except _Damaged as exc:
                if not is_old:
                    raise exc.cause from exc
                # Renamed branches or damage: what is here is only a cache.
                await to_worker(remove_tree, path)
                bare = await _fetch_into(path, git, wanted, found, name)
            yield bare


class _Damaged(Exception):  # noqa: N818 - never leaves this module
    """The repository can't take a fetch; a new one may."""

    def __init__(self, cause: GitError) -> None:
        super().__init__(str(cause))
        self.cause = cause


async def _fetch_into(
    path: Path, git: Git, wanted: GitAttributes, found: GitResolution, object_format: str
) -> Git:
    if not await to_worker(path.exists):
        staged = path.with_suffix(".new")
        await to_worker(remove_tree, staged)
        arguments = ["--quiet", "--bare", f"--object-format={object_format}", str(staged)]
        await git.run("init", *arguments, what="failed to make a git repository")
        staged.rename(path)
    bare = git.at(path)
    if not await _has(bare, found):
        await _fetch(bare, wanted, found)
    await bare.run("update-ref", OWN_REFS + found.object_id, found.object_id)
    return bare


async def _fetch(bare: Git, wanted: GitAttributes, found: GitResolution) -> None:
    """Fetch one object without history, or everything where the server can't do that."""
    what = f"failed to fetch remote {wanted.remote}"
    flags = ["--no-tags", "--no-recurse-submodules"]
    try:
        await bare.run(
            "fetch", "--depth=1", *flags, "--", wanted.remote, found.object_id, what=what
        )
    except (GitDeniedError, GitUnreachableError, GitRemoteNotFoundError):
        raise
    except GitError:
        await _fetch_all(bare, wanted, found, what)
        if not await _has(bare, found):  # a ref that has moved; servers of files have it still
            with contextlib.suppress(GitError):
                await bare.run("fetch", *flags, "--", wanted.remote, found.object_id, what=what)
    if not await _has(bare, found):
        raise GitRefNotFoundError(wanted.remote, found.object_id)


async def _fetch_all(bare: Git, wanted: GitAttributes, found: GitResolution, what: str) -> None:
    flags = ["--tags", "--force", "--prune", "--no-recurse-submodules"]
    assert bare.git_dir is not None
    if (bare.git_dir / "shallow").exists():
        flags.append("--unshallow")
    specs = ["+refs/heads/*:refs/remotes/origin/*"]
    if not is_commit(found.ref) and not found.ref.startswith(("refs/heads/", "refs/tags/")):
        specs.append(f"+{found.ref}:refs/remotes/named/{found.object_id}")
    try:
        await bare.run("fetch", *flags, "--", wanted.remote, *specs, what=what)
    except (GitDeniedError, GitUnreachableError, GitRemoteNotFoundError):
        raise
    except GitError as exc:
        raise _Damaged(exc) from exc


async def _has(bare: Git, found: GitResolution) -> bool:
    return await bare.succeeds("cat-file", "-e", f"{found.object_id}^{{tree}}")


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
