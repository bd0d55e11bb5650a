"""The file operation: a small graph of actions inside one vertex.

An action changes its input (a tree that is being made) and may read a second one. Indexes below
the number of the vertex's inputs mean those, higher ones mean results of earlier actions. A tree
that only the next action uses is handed on as it is; one that is an output, or that several
actions use, is committed first, so nobody sees another's changes.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from boxwright.core.dataclass import dataclass, field
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError
from boxwright.executor import rootpath
from boxwright.ops import fileactions
from boxwright.ops.copier import CopyOptions, TreeCopier
from boxwright.ops.errors import (
    FileOpError,
    InvalidOpError,
    SourceMissingError,
    from_os_error,
    inside,
)
from boxwright.ops.execfailure import discard
from boxwright.ops.filemode import parse_mode
from boxwright.ops.layerview import LayerView
from boxwright.ops.result import RefResult
from boxwright.ops.wildcards import expand
from boxwright.snapshots.linkcopy import LinkCopier
from boxwright.snapshots.manager import SnapshotManager
from boxwright.snapshots.refs import ImmutableRef, MutableRef
from boxwright.solver.failure import failure_of
from boxwright.solver.types import JobContext
from boxwright.wire.pb import ops_pb2 as pb

_EMPTY = -1
_KEEP_MODE = -1


@dataclass(slots=True)
class _Tree:
    """A tree that is being made, and what was linked into it so far."""

    ref: MutableRef
    linker: LinkCopier = field(default_factory=LinkCopier)


@dataclass(frozen=True, slots=True)
class _Root:
    """Where the files of an input are: mounted, with the layers below the mount."""

    path: Path
    layers: tuple[Path, ...]


class FileOpRun:
    """One execution of a file operation; used once, inside its own block."""

    def __init__(
        self,
        snapshots: SnapshotManager,
        inputs: Sequence[ImmutableRef | None],
        actions: Sequence[pb.FileAction],
        description: str,
    ) -> None:
        self._snapshots = snapshots
        self._inputs = inputs
        self._actions = actions
        self._description = description
        self._committed: dict[int, ImmutableRef | None] = {}
        self._trees: dict[int, _Tree] = {}
        self._uses: Counter[int] = Counter()
        self._outputs: dict[int, int] = {}

    async def run(self) -> list[RefResult]:
        """Do all actions and return the outputs in order, owned by the caller.

        Raises:
            InvalidOpError: the actions contradict each other.
            FileOpError: an action is not possible on its trees.
        """
        self._check()
        for number in self._order():
            await self._do(number)
        found = (self._committed[self._outputs[n]] for n in range(len(self._outputs)))
        return [RefResult(ref.clone() if ref is not None else None) for ref in found]

    async def keep_failure(self, error: BoxwrightError, ctx: JobContext) -> None:
        """Attach to the error what the failed action worked on, for debuggers.

        It is kept as long as a build wants the vertex: the inputs, and at the places of actions
        the tree that the failed one was changing and, made by another, the one that it read.
        """
        failure = failure_of(error)
        if failure.action is None:
            return
        base = len(self._inputs)
        inputs = [RefResult(ref.clone()) if ref is not None else None for ref in self._inputs]
        for held in inputs:
            if held is not None:
                ctx.on_cleanup(held.release)
        mounts: list[RefResult | None] = [None] * len(self._actions)
        second = self._actions[failure.action].secondaryInput
        for index in {base + failure.action, second}:
            tree = self._trees.pop(index, None)
            with contextlib.suppress(BoxwrightError):  # the failure itself counts more
                if tree is not None:
                    mounts[index - base] = left = RefResult(await tree.ref.commit())
                    ctx.on_cleanup(partial(discard, self._snapshots, left))
                elif (made := self._committed.get(index)) is not None:
                    mounts[index - base] = left = RefResult(made.clone())
                    ctx.on_cleanup(left.release)
        failure.inputs, failure.mounts = tuple(inputs), tuple(mounts)

    def _check(self) -> None:
        count = len(self._inputs) + len(self._actions)
        for number, action in enumerate(self._actions):
            for index in (action.input, action.secondaryInput, *_owner_inputs(action)):
                if not _EMPTY <= index < count:
                    raise InvalidOpError(f"invalid input index {index}, {count} provided")
                self._uses[index] += 1
            if action.output != _EMPTY:
                if action.output in self._outputs:
                    raise InvalidOpError(f"duplicate output {action.output}")
                self._outputs[action.output] = len(self._inputs) + number
        if not self._outputs:
            raise InvalidOpError("no outputs specified")
        for number in range(len(self._outputs)):
            if number not in self._outputs:
                raise InvalidOpError(f"missing output index {number}")

    def _order(self) -> list[int]:
        """Return the actions that the outputs need, each after those that it needs."""
        base = len(self._inputs)
        order: list[int] = []
        state: dict[int, bool] = {}
        pending = [(index, False) for index in self._outputs.values()]
        while pending:
            index, finished = pending.pop()
            if index < base:
                continue
            if finished:
                state[index] = True
                order.append(index - base)
                continue
            if index in state:
                if not state[index]:
                    raise InvalidOpError(f"loop from index {index}")
                continue
            state[index] = False
            pending.append((index, True))
            action = self._actions[index - base]
            needs = (action.input, action.secondaryInput, *_owner_inputs(action))
            for need in needs:
                if need >= base and state.get(need) is False:
                    raise InvalidOpError(f"loop from index {need}")
                pending.append((need, False))
        return order

    async def _do(self, number: int) -> None:
        action, index = self._actions[number], len(self._inputs) + number
        tree = await self._take(action.input)
        self._trees[index] = tree
        try:
            await self._apply(action, tree)
        except RecursionError as exc:
            error = FileOpError("folders are nested too deeply")
            failure_of(error).action = number
            raise error from exc
        except BoxwrightError as error:
            failure_of(error).action = number
            raise
        if index in self._outputs.values() or self._uses[index] > 1:
            del self._trees[index]
            self._committed[index] = await tree.ref.commit()

    async def _take(self, index: int) -> _Tree:
        """Return the tree that an action changes: handed on, or a new one over a snapshot."""
        if index in self._trees:
            return self._trees.pop(index)
        parent = None if index == _EMPTY else self._snapshot(index)
        return _Tree(self._snapshots.new(parent, description=self._description))

    def _snapshot(self, index: int) -> ImmutableRef | None:
        if index < len(self._inputs):
            return self._inputs[index]
        return self._committed[index]

    async def _open(self, stack: AsyncExitStack, index: int) -> _Root:
        """Mount an input for reading."""
        if index in self._trees:
            path = await stack.enter_async_context(self._trees[index].ref.mounted())
            return _Root(path, ())
        snapshot = None if index == _EMPTY else self._snapshot(index)
        if snapshot is None:
            empty = self._snapshots.new(None, description="empty copy source")
            stack.push_async_callback(empty.release)
            return _Root(await stack.enter_async_context(empty.mounted()), ())
        path = await stack.enter_async_context(snapshot.mounted())
        return _Root(path, tuple(await snapshot.stack()))

    async def _apply(self, action: pb.FileAction, tree: _Tree) -> None:
        kind = action.WhichOneof("action")
        async with AsyncExitStack() as stack:
            owner = await self._owner(stack, action)
            if kind == "copy":
                source = await self._open(stack, action.secondaryInput)
                linked = tree.linker.linked
                await self._copy(action.copy, source, tree, owner)
                if tree.linker.linked > linked:
                    tree.ref.note_links(source.layers)
                return
            root = await stack.enter_async_context(tree.ref.mounted())
            match kind:
                case "mkdir":
                    await to_worker(fileactions.mkdir, root, action.mkdir, owner)
                case "mkfile":
                    await to_worker(fileactions.mkfile, root, action.mkfile, owner)
                case "symlink":
                    await to_worker(fileactions.symlink, root, action.symlink, owner)
                case "rm":
                    await to_worker(fileactions.rm, root, action.rm)
                case _:
                    raise InvalidOpError("file action of an unknown kind")

    async def _owner(self, stack: AsyncExitStack, action: pb.FileAction) -> fileactions.Owner:
        option = _owner_option(action)
        if option is None:
            return None
        roots: list[Path | None] = []
        for who in (option.user, option.group):
            root = None
            if who.WhichOneof("user") == "byName":
                if who.byName.input < 0:
                    raise InvalidOpError(f"invalid user index: {who.byName.input}")
                root = (await self._open(stack, who.byName.input)).path
            roots.append(root)
        return await to_worker(fileactions.read_owner, option, *roots)

    async def _copy(
        self, action: pb.FileActionCopy, source: _Root, tree: _Tree, owner: fileactions.Owner
    ) -> None:
        options = _copy_options(action, owner)
        may_write_direct = tree.ref.parent is not None
        if tree.ref.parent is not None:
            tree.linker.taken = self._snapshots.taken(source.layers, await tree.ref.parent.stack())
        with LayerView(os.fspath(source.path), source.layers) as view:
            async with tree.ref.mounted() as root:
                upper = os.fspath(tree.ref.upper) if may_write_direct else None
                copier = TreeCopier(view, os.fspath(root), upper, options, tree.linker)
                await to_worker(_run_copy, action, source.path, root, copier, owner)
                if tree.ref.is_mounted and upper is None:
                    return
            if copier.has_queued:
                await to_worker(_finish_copy, copier, action)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for tree in self._trees.values():
            await tree.ref.release()
        for ref in self._committed.values():
            if ref is not None:
                await ref.release()


def _owner_option(action: pb.FileAction) -> pb.ChownOpt | None:
    kind = action.WhichOneof("action")
    if kind is None or kind == "rm":
        return None
    details: pb.FileActionCopy | pb.FileActionMkDir = getattr(action, kind)
    return details.owner if details.HasField("owner") else None


def _owner_inputs(action: pb.FileAction) -> list[int]:
    option = _owner_option(action)
    if option is None:
        return []
    named = (who for who in (option.user, option.group) if who.WhichOneof("user") == "byName")
    return [who.byName.input for who in named]


def _copy_options(action: pb.FileActionCopy, owner: fileactions.Owner) -> CopyOptions:
    return CopyOptions(
        owner=owner,
        mode=None if action.modeStr or action.mode == _KEEP_MODE else action.mode & 0o7777,
        mode_change=parse_mode(action.modeStr) if action.modeStr else None,
        mtime_ns=fileactions.mtime_of(action.timestamp),
        include=tuple(action.include_patterns),
        exclude=tuple(action.exclude_patterns),
        dir_contents=action.dirCopyContents,
        follow_links=action.followSymlink,
        always_replace=action.alwaysReplaceExistingDestPaths,
    )


def _run_copy(
    action: pb.FileActionCopy,
    source: Path,
    target: Path,
    copier: TreeCopier,
    owner: fileactions.Owner,
) -> None:
    target_path = clean_path(action.dest)
    try:
        if not action.createDestPath:
            _check_parent(target, action.dest)
        sources = _sources(action, source)
        copier.may_meet = _may_meet(sources, source, target_path)
        for source_path in sources:
            if action.attemptUnpackDockerCompatibility and fileactions.unpack(
                source, source_path, target, target_path, owner, action.timestamp
            ):
                continue
            copier.run(source_path, target_path)
    except OSError as exc:
        raise _copy_error(exc, os.fspath(source), os.fspath(target)) from exc


def _may_meet(sources: list[str], root: Path, target_path: str) -> bool:
    """Return whether two sources could be copied to the same place."""
    if len(sources) == 1:
        return False
    names = {posixpath.basename(path) for path in sources}
    if len(names) < len(sources) or not target_path.endswith(("/", "/.")):
        return True
    return not all(stat.S_ISREG(os.lstat(f"{root}/{path}").st_mode) for path in sources)


def _finish_copy(copier: TreeCopier, action: pb.FileActionCopy) -> None:
    try:
        copier.finish()
    except OSError as exc:
        raise from_os_error("copy", action.dest, exc) from exc


def _copy_error(exc: OSError, source: str, target: str) -> FileOpError:
    path = inside(target, inside(source, exc.filename)) or "/"
    return from_os_error("copy", path, exc)


def _sources(action: pb.FileActionCopy, source: Path) -> list[str]:
    source_path = clean_path(action.src)
    if not action.allowWildcard:
        return [source_path]
    root_fd = rootpath.open_root(source)
    try:
        found = expand(root_fd, os.fspath(source), source_path, follow_links=action.followSymlink)
    finally:
        os.close(root_fd)
    if not found and not action.allowEmptyWildcard:
        raise SourceMissingError(f"{source_path} not found", path=source_path)
    return found


def _check_parent(target: Path, dest: str) -> None:
    root_fd = rootpath.open_root(target)
    try:
        place = os.fsdecode(rootpath.resolve(root_fd, os.fsencode(dest)))
        os.stat(os.path.dirname(place) or ".", dir_fd=root_fd, follow_symlinks=False)
    except OSError as exc:
        raise from_os_error("failed to stat", dest, exc) from exc
    finally:
        os.close(root_fd)


def clean_path(path: str) -> str:
    """Return an absolute path without ``.``, ``..``; a trailing ``/`` or ``/.`` stays.

    The end tells a copy "into this folder" from "to this name".
    """
    parts: list[str] = []
    for part in path.split("/"):
        if part == "..":
            del parts[-1:]
        elif part not in ("", "."):
            parts.append(part)
    cleaned = "/" + "/".join(parts)
    if path.endswith("/."):
        return "/." if cleaned == "/" else cleaned + "/."
    if path.endswith("/") and cleaned != "/":
        return cleaned + "/"
    return cleaned
