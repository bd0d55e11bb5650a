"""From a fetched commit to a tree of files.

Files are written by git into a folder that nothing else has been in, with a repository of its own
beside it that borrows the objects of the shared one; git itself refuses names that lead out of
it. What is moved afterwards is opened without following links.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from boxwright.core.dataclass import dataclass
from boxwright.core.workers import to_worker
from boxwright.linux.files import openat2_beneath
from boxwright.sources.git_errors import GitChecksumError, GitError, GitSubdirError
from boxwright.sources.git_remote import GitAttributes, GitResolution, bundle_ref
from boxwright.sources.git_repository import OWN_REFS
from boxwright.sources.git_run import Git
from boxwright.store.trash import remove_tree

_SHA256_LENGTH = 64
_GITLINK = b"gitdir: "
BUNDLE_NAME = "bundle"


@dataclass(frozen=True, slots=True)
class Checkout:
    """One checkout.

    Attributes:
        bare: The shared repository, holding the commit.
        wanted: The source.
        found: What it resolved to.
        root: The empty folder that becomes the tree.
        scratch: A folder of the same file system, gone afterwards.
    """

    bare: Git
    wanted: GitAttributes
    found: GitResolution
    root: Path
    scratch: Path

    async def run(self) -> None:
        """Fill ``root``.

        Raises:
            GitError: git failed, for example on a submodule.
            GitSubdirError: there is no such sub-directory.
        """
        await to_worker(self.scratch.mkdir, mode=0o700)
        try:
            await self._run()
        finally:
            await to_worker(remove_tree, self.scratch)

    async def _run(self) -> None:
        if self.wanted.checkout_bundle:
            await self._make_bundle()
        else:
            await self._make_tree()

    async def _make_bundle(self) -> None:
        """Write the commit with its history into one file, under the natural name of its ref."""
        found, what = self.found, f"failed to make a bundle of {self.wanted.shown}"
        git = (await self._borrowing_repository(None, what)).locally()
        name = bundle_ref(found.ref)
        await git.run("update-ref", name, found.object_id, what=what)
        target = self.root / BUNDLE_NAME
        await git.quietly().run("bundle", "create", "--quiet", str(target), name, what=what)
        if self.wanted.mtime == "commit":
            await to_worker(_set_times, self.root, await self._commit_time(git, found.object_id))

    async def _make_tree(self) -> None:
        wanted = self.wanted
        what = f"failed to checkout remote {wanted.shown}"
        keeps_repository = wanted.keep_git_dir and not wanted.subdir
        tree = self.scratch / "tree" if wanted.subdir else self.root
        await to_worker(tree.mkdir, exist_ok=True)
        if keeps_repository:
            git = await self._own_repository(tree, what)
        else:
            git = await self._borrowing_repository(tree, what)
        commit = (
            await git.run("rev-parse", "--verify", f"{self.found.object_id}^{{commit}}")
        ).strip()
        if self.found.peeled not in {"", commit}:  # the remote said so; the key is made of it
            raise GitChecksumError(wanted.remote, self.found.peeled, [commit])
        await git.run("remote", "add", "origin", wanted.remote)
        await git.run("checkout", "--quiet", "--detach", "--force", commit, what=what)
        if not wanted.skip_submodules and await to_worker(os.path.lexists, tree / ".gitmodules"):
            await self._update_submodules(git)
        time_s: int | None = None
        if wanted.mtime == "commit":
            time_s = await self._commit_time(git, commit)
        await to_worker(self._arrange, tree, keeps_repository, time_s)

    async def _update_submodules(self, git: Git) -> None:
        """Check out submodules, without history where their servers can do that."""
        update = ("submodule", "--quiet", "update", "--init", "--recursive")
        what = f"failed to update submodules for {self.wanted.remote}"
        try:
            await git.run(*update, "--depth=1", what=what)
        except GitError as exc:
            if "shallow" not in exc.stderr:
                raise
            await git.run(*update, what=what)

    async def _own_repository(self, tree: Path, what: str) -> Git:
        """Make a repository that stays with the tree; its one ref has its natural name.

        Steps may work in it: it has the folders and the settings that git gives to repositories.
        """
        init = ("init", "--quiet", *self._format(), str(tree))
        await self.bare.anywhere().with_templates().run(*init, what=what)
        git = self.bare.at(tree / ".git", tree)
        await git.run("config", "core.logallrefupdates", "true", what=what)
        target = self.found.ref if self.found.ref.startswith("refs/") else ""
        spec = f"{OWN_REFS}{self.found.object_id}:{target}".removesuffix(":")
        await (
            git.locally()
            .quietly()
            .run(
                *("fetch", "--quiet", "--no-tags", "--depth=1", "--update-head-ok", "--"),
                *(str(self.bare.git_dir), spec),
                what=what,
            )
        )
        return git

    async def _commit_time(self, git: Git, name: str) -> int:
        return int(await git.run("log", "-1", "--format=%ct", f"{name}^{{commit}}"))

    async def _borrowing_repository(self, tree: Path | None, what: str) -> Git:
        folder = self.scratch / "repository"
        arguments = ["--quiet", "--bare", *self._format(), str(folder)]
        await self.bare.anywhere().run("init", *arguments, what=what)
        await to_worker(self._borrow, folder)
        return self.bare.at(folder, tree)

    def _format(self) -> list[str]:
        is_sha256 = len(self.found.object_id) == _SHA256_LENGTH
        return ["--object-format=sha256"] if is_sha256 else []

    def _borrow(self, folder: Path) -> None:
        shared = self.bare.git_dir
        assert shared is not None
        info = folder / "objects/info"
        info.mkdir(exist_ok=True)
        (info / "alternates").write_bytes(os.fsencode(shared / "objects") + b"\n")
        with suppress(FileNotFoundError):
            (folder / "shallow").write_bytes((shared / "shallow").read_bytes())

    def _arrange(self, tree: Path, keeps_repository: bool, time_s: int | None) -> None:  # noqa: FBT001
        if keeps_repository:
            for name in ("FETCH_HEAD", "ORIG_HEAD"):
                (tree / ".git" / name).unlink(missing_ok=True)
        else:
            _remove_gitlinks(tree)
        if self.wanted.subdir:
            _move_content(tree, self.wanted.subdir, self.root, self.wanted.remote)
        if time_s is not None:
            _set_times(self.root, time_s)


def _remove_gitlinks(tree: Path) -> None:
    """Remove the files by which submodules found repositories that are about to go."""
    for folder, _, names in os.walk(tree):
        path = Path(folder) / ".git"
        if ".git" in names and not path.is_symlink() and path.read_bytes().startswith(_GITLINK):
            path.unlink()


def _move_content(tree: Path, subdir: str, root: Path, remote: str) -> None:
    base = os.open(tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY
        source = openat2_beneath(base, os.fsencode(subdir.strip("/")), flags)
    except OSError as exc:
        raise GitSubdirError(remote, subdir, exc.strerror or str(exc)) from exc
    finally:
        os.close(base)
    target = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(source):
            os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)
    finally:
        os.close(source)
        os.close(target)


def _set_times(root: Path, time_s: int) -> None:
    """Give everything one time, folders after what is in them."""
    times = (time_s, time_s)
    for folder, folders, names in os.walk(os.fsencode(root), topdown=False):
        for name in (*names, *folders):
            os.utime(os.path.join(folder, name), times, follow_symlinks=False)
    os.utime(root, times)
