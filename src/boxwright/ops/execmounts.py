"""The mounts of a command: from LLB's description to mounted folders, sockets and secrets.

:class:`PreparedMounts` owns everything that the command needs until it has ended: the trees that
are being made, mounts of its inputs, cache mounts, forwarded sockets. Leaving its context unmounts;
then :meth:`~PreparedMounts.commit` turns the writable trees into outputs.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from boxwright.core.dataclass import dataclass, field
from boxwright.core.workers import to_worker
from boxwright.executor.process import BindMount, DataMount, MountSpec, TmpfsMount
from boxwright.linux import mount as kernel_mount
from boxwright.linux.files import openat2_in_root
from boxwright.ops.errors import InvalidOpError, from_os_error
from boxwright.ops.result import RefResult
from boxwright.ops.sshsocket import forward_socket
from boxwright.session.base import (
    SecretNotFoundError,
    Session,
    SshAgentNotFoundError,
)
from boxwright.session.manager import SessionGroup
from boxwright.snapshots.cachemounts import CacheMounts, Sharing
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef, MutableRef
from boxwright.wire.pb import ops_pb2 as pb

_SHARING: dict[int, Sharing] = {
    pb.CacheSharingOpt.SHARED: "shared",
    pb.CacheSharingOpt.PRIVATE: "private",
    pb.CacheSharingOpt.LOCKED: "locked",
}

EMPTY = -1
SKIP_OUTPUT = -1
_ROOT = "/"


@dataclass(frozen=True, slots=True)
class MountWorld:
    """Where mounts come from; shared by all commands of an engine."""

    snapshots: SnapshotManager
    cache_mounts: CacheMounts
    run_dir: Path


@dataclass(slots=True)
class _Output:
    """What becomes of a mount with an output: a tree to commit, or an input as it was."""

    tree: MutableRef | None = None
    unchanged: ImmutableRef | None = None


@dataclass(slots=True)
class PreparedMounts:
    """The mounted world of one command."""

    root: Path
    read_only_root: bool
    mounts: tuple[MountSpec, ...]
    outputs: list[_Output] = field(default_factory=list)
    others: dict[int, MutableRef] = field(default_factory=dict)
    """Written trees of mounts that are no outputs, by the mount's number."""

    async def commit(self) -> list[RefResult]:
        """Seal the written trees and return all outputs in order, owned by the caller.

        Nothing is mounted any more. If one can't be sealed, none is returned.
        """
        results: list[RefResult] = []
        try:
            for output in self.outputs:
                if output.tree is not None:
                    results.append(RefResult(await output.tree.commit()))
                else:
                    ref = output.unchanged
                    results.append(RefResult(ref.clone() if ref is not None else None))
        except BaseException:
            for result in results:
                await result.release()
            raise
        return results


class MountPlanner:
    """Prepares the mounts of one command; used once, inside the caller's exit stack.

    Args:
        world: Where mounts come from.
        stack: Receives everything that must be undone when the command has ended.
        trees: Receives what must be released when the op has ended, committed or not.
        sessions: The clients of the builds that want the command.
        inputs: The op's inputs, borrowed.
        description: For listings of what is being made.
    """

    def __init__(
        self,
        world: MountWorld,
        stack: AsyncExitStack,
        trees: AsyncExitStack,
        sessions: SessionGroup,
        inputs: Sequence[ImmutableRef | None],
        description: str,
    ) -> None:
        self._world = world
        self._stack = stack
        self._trees = trees
        self._sessions = sessions
        self._inputs = inputs
        self._description = description
        self._outputs: list[_Output] = []
        self._others: dict[int, MutableRef] = {}
        self._position = 0
        self._caches: dict[str, Path] = {}

    async def prepare(self, mounts: Sequence[pb.Mount], cwd: str) -> PreparedMounts:
        """Mount everything.

        Raises:
            InvalidOpError: the description contradicts itself.
            SecretNotFoundError: a secret that is not optional is not offered.
            SshAgentNotFoundError: the same for an ssh agent.
        """
        root: Path | None = None
        read_only_root = False
        planned: list[MountSpec] = []
        for self._position, mount in enumerate(mounts):
            if mount.dest == _ROOT:
                root = await self._root(mount)
                read_only_root = mount.readonly
                continue
            spec = await self._mount(mount, destination(mount.dest, cwd))
            if spec is not None:
                planned.append(spec)
        if root is None:
            raise InvalidOpError("invalid exec op with no rootfs")
        planned.sort(key=lambda spec: spec.dest.encode())
        return PreparedMounts(root, read_only_root, tuple(planned), self._outputs, self._others)

    def _input(self, mount: pb.Mount) -> ImmutableRef | None:
        if mount.input == EMPTY:
            return None
        if not 0 <= mount.input < len(self._inputs):
            raise InvalidOpError(f"missing input {mount.input}")
        return self._inputs[mount.input]

    def _new_tree(self, mount: pb.Mount, parent: ImmutableRef | None) -> MutableRef:
        description = f"mount {mount.dest} from {self._description}"
        tree = self._world.snapshots.new(parent, description=description)
        self._trees.push_async_callback(tree.release)
        return tree

    async def _root(self, mount: pb.Mount) -> Path:
        if mount.mountType != pb.MountType.BIND:
            kind = pb.MountType.Name(mount.mountType)
            raise InvalidOpError(f"invalid mount type {kind} for {mount.dest}")
        tree = self._new_tree(mount, self._input(mount))
        if mount.output != SKIP_OUTPUT:
            self._outputs.append(_Output(tree=tree))
        else:
            self._others[self._position] = tree
        return await self._stack.enter_async_context(tree.mounted())

    async def _mount(self, mount: pb.Mount, dest: str) -> MountSpec | None:
        match mount.mountType:
            case pb.MountType.BIND:
                return await self._bind(mount, dest)
            case pb.MountType.CACHE:
                return await self._cache(mount, dest)
            case pb.MountType.TMPFS:
                return TmpfsMount(dest, max(mount.TmpfsOpt.size, 0), mount.readonly)
            case pb.MountType.SECRET:
                return await self._secret(mount, dest)
            case pb.MountType.SSH:
                return await self._ssh(mount, dest)
        raise InvalidOpError(f"mount type {mount.mountType} not implemented")

    async def _bind(self, mount: pb.Mount, dest: str) -> MountSpec:
        ref = self._input(mount)
        if mount.output != SKIP_OUTPUT:
            if mount.readonly and ref is not None:
                self._outputs.append(_Output(unchanged=ref))
                source = await self._stack.enter_async_context(ref.mounted())
            else:
                tree = self._new_tree(mount, ref)
                self._outputs.append(_Output(tree=tree))
                source = await self._stack.enter_async_context(tree.mounted())
        elif mount.readonly and ref is not None:
            source = await self._stack.enter_async_context(ref.mounted())
        else:
            tree = self._others[self._position] = self._new_tree(mount, ref)
            source = await self._stack.enter_async_context(tree.mounted())
        source = await to_worker(select_path, source, mount.selector)
        return BindMount(dest, source, mount.readonly)

    async def _cache(self, mount: pb.Mount, dest: str) -> MountSpec:
        if not mount.HasField("cacheOpt"):
            raise InvalidOpError("missing cache mount options")
        ref = self._input(mount)
        key = mount.cacheOpt.ID + (f":{ref.id}" if ref is not None else "")
        root = self._caches.get(key)
        if root is None:
            sharing = _SHARING.get(mount.cacheOpt.sharing)
            if sharing is None:
                raise InvalidOpError(f"invalid cache sharing option: {mount.cacheOpt.sharing}")
            root = await self._stack.enter_async_context(
                self._world.cache_mounts.acquired(
                    mount.cacheOpt.ID, sharing, parent=ref, description=self._cache_name(mount)
                )
            )
            self._caches[key] = root
        if mount.output != SKIP_OUTPUT and ref is not None:
            self._outputs.append(_Output(unchanged=ref))
        if posixpath.join("/", mount.selector).strip("/"):
            # Others write to the same folder: what is resolved now must be what is mounted.
            source = await self._stack.enter_async_context(
                _pinned(root, mount.selector, self._world.run_dir)
            )
            return BindMount(dest, source, mount.readonly)
        return BindMount(dest, root, mount.readonly)

    def _cache_name(self, mount: pb.Mount) -> str:
        name = f"cached mount {mount.dest} from {self._description}"
        return name if mount.dest == mount.cacheOpt.ID else f'{name} with id "{mount.cacheOpt.ID}"'

    async def _secret(self, mount: pb.Mount, dest: str) -> MountSpec | None:
        option = mount.secretOpt
        if not mount.HasField("secretOpt") or not option.ID:
            raise InvalidOpError("secret ID missing from mount options")
        data = await load_secret(self._sessions, option.ID, optional=option.optional)
        if data is None:
            return None
        return DataMount(dest, data, option.mode & 0o777, option.uid, option.gid)

    async def _ssh(self, mount: pb.Mount, dest: str) -> MountSpec | None:
        option = mount.SSHOpt
        agent_id = option.ID  # if empty, the client takes its default

        async def check(session: Session) -> Session:
            await session.ssh_check(agent_id)
            return session

        try:
            session = await self._sessions.any(check)
        except SshAgentNotFoundError:
            if option.optional:
                return None
            raise
        path = await self._stack.enter_async_context(
            forward_socket(
                self._world.run_dir,
                session,
                agent_id,
                mode=option.mode & 0o777,
                owner=(option.uid, option.gid),
            )
        )
        return BindMount(dest, path)


async def load_secret(sessions: SessionGroup, secret_id: str, *, optional: bool) -> bytes | None:
    """Return a secret of any session; ``None`` if it may be missing and is.

    Raises:
        SecretNotFoundError: no session offers it.
    """
    try:
        return await sessions.secret(secret_id)
    except SecretNotFoundError:
        if optional:
            return None
        raise


def select_path(root: Path, selector: str) -> Path:
    """Return the place below ``root`` that ``selector`` names, links resolved inside it.

    Raises:
        FileOpError: it does not exist.
    """
    if not posixpath.join("/", selector).strip("/"):
        return root
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fd = openat2_in_root(root_fd, selector, os.O_PATH)
        try:
            return Path(os.readlink(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)
    except OSError as exc:
        raise from_os_error("open", posixpath.join("/", selector), exc) from exc
    finally:
        os.close(root_fd)


@contextlib.asynccontextmanager
async def _pinned(root: Path, selector: str, run_dir: Path) -> AsyncIterator[Path]:
    """Bind what ``selector`` names right now to a folder or file of our own."""
    target = await to_worker(_pin, root, selector, run_dir)
    try:
        yield target
    finally:
        await to_worker(_unpin, target)


def _pin(root: Path, selector: str, run_dir: Path) -> Path:
    root_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    target = run_dir / f"pin-{os.urandom(8).hex()}"
    try:
        fd = openat2_in_root(root_fd, selector, os.O_PATH)
        try:
            if os.path.isdir(f"/proc/self/fd/{fd}"):
                target.mkdir(mode=0o711)
            else:
                target.touch(mode=0o600)
            kernel_mount.bind(f"/proc/self/fd/{fd}", target)
        finally:
            os.close(fd)
    except OSError as exc:
        raise from_os_error("open", posixpath.join("/", selector), exc) from exc
    finally:
        os.close(root_fd)
    return target


def _unpin(target: Path) -> None:
    kernel_mount.umount(target, detach=True)
    if target.is_dir():
        target.rmdir()
    else:
        target.unlink()


def destination(dest: str, cwd: str) -> str:
    """Return where in a command's world a mount lies."""
    found = posixpath.normpath(posixpath.join("/", cwd, dest))
    return "/" + found.lstrip("/")
