"""File vertices: copy, make and remove files without running a process.

A :class:`FileAction` is a chain: each action works on the result of the one before it, and
the whole chain is one vertex, so its intermediate trees are never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.errors import InvalidInputError
from boxwright.llb import build_caps as caps
from boxwright.llb import build_paths as paths
from boxwright.llb.marshal import EMPTY, Constraints, Marshalled, Marshaller, OpOptions, Output
from boxwright.llb.state import State
from boxwright.wire.pb import ops_pb2 as pb

Owner = str | tuple[int, int]
"""``"user[:group]"`` by name or number, or ``(uid, gid)``."""


class _Action(Protocol):
    def to_pb(self, directory: str, base: int) -> pb.FileAction:
        """Return the message; ``base`` is the input whose passwd file names are read from."""


@dataclass(frozen=True, slots=True, eq=False)
class FileAction:
    """One action and those before it; ``state`` is set when it is applied to one."""

    action: _Action
    prev: FileAction | None = None
    state: State | None = None

    def then(self, following: FileAction) -> FileAction:
        """Return a chain in which ``following`` comes after this."""
        chain = self
        for item in following.chain():
            chain = replace(item, prev=chain)
        return chain

    def on(self, state: State) -> FileAction:
        """Return this chain bound to a state, so that a copy can read from its result."""
        bound: FileAction | None = None
        for item in self.chain():
            bound = replace(item, prev=bound, state=state)
        assert bound is not None
        return bound

    def chain(self) -> list[FileAction]:
        """Return all actions of the chain, the first one first."""
        out: list[FileAction] = []
        node: FileAction | None = self
        while node is not None:
            out.append(node)
            node = node.prev
        out.reverse()
        return out


@dataclass(frozen=True, slots=True)
class _Mkdir:
    path: str
    mode: int
    parents: bool
    owner: Owner | None
    created_ns: int | None

    def to_pb(self, directory: str, base: int) -> pb.FileAction:
        return pb.FileAction(
            mkdir=pb.FileActionMkDir(
                path=paths.resolve(directory, self.path, keep_slash=False),
                mode=self.mode & 0o777,
                makeParents=self.parents,
                owner=_owner_to_pb(self.owner, base),
                timestamp=_time_to_pb(self.created_ns),
            )
        )


@dataclass(frozen=True, slots=True)
class _Mkfile:
    path: str
    data: bytes
    mode: int
    owner: Owner | None
    created_ns: int | None

    def to_pb(self, directory: str, base: int) -> pb.FileAction:
        return pb.FileAction(
            mkfile=pb.FileActionMkFile(
                path=paths.resolve(directory, self.path, keep_slash=False),
                mode=self.mode & 0o777,
                data=self.data,
                owner=_owner_to_pb(self.owner, base),
                timestamp=_time_to_pb(self.created_ns),
            )
        )


@dataclass(frozen=True, slots=True)
class _Symlink:
    old: str
    new: str
    owner: Owner | None
    created_ns: int | None

    def to_pb(self, directory: str, base: int) -> pb.FileAction:
        return pb.FileAction(
            symlink=pb.FileActionSymlink(
                oldpath=self.old,
                newpath=self.new,
                owner=_owner_to_pb(self.owner, base),
                timestamp=_time_to_pb(self.created_ns),
            )
        )


@dataclass(frozen=True, slots=True)
class _Rm:
    path: str
    allow_not_found: bool
    allow_wildcard: bool

    def to_pb(self, directory: str, base: int) -> pb.FileAction:
        return pb.FileAction(
            rm=pb.FileActionRm(
                path=paths.resolve(directory, self.path, keep_slash=False),
                allowNotFound=self.allow_not_found,
                allowWildcard=self.allow_wildcard,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How a copy behaves (``pb.FileActionCopy``).

    Attributes:
        mode: Permission bits for everything copied, or symbolic text (``u+x,go=``).
        owner: The owner of everything copied; root where None.
        contents_only: Of a source directory copy what is in it, not the directory.
        follow_symlinks: Follow a symlink that the source path ends in.
        unpack: Unpack a source that is an archive.
        create_parents: Make missing directories of the destination.
        wildcard: ``*``, ``?`` and ``[]`` in the source path match.
        empty_wildcard: A pattern may match nothing.
        required: With ``include``: paths that must exist.
        replace_existing: Replace what is in the way even if it is of another type.
        created_ns: The modification time of everything copied, ns since 1970.
    """

    mode: int | str | None = None
    owner: Owner | None = None
    contents_only: bool = False
    follow_symlinks: bool = False
    unpack: bool = False
    create_parents: bool = False
    wildcard: bool = False
    empty_wildcard: bool = False
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    required: Sequence[str] = ()
    replace_existing: bool = False
    created_ns: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Copy:
    source: State | FileAction
    src: str
    dest: str
    options: CopyOptions

    def to_pb(self, directory: str, base: int) -> pb.FileAction:
        options = self.options
        message = pb.FileActionCopy(
            src=self._source_path(),
            dest=paths.resolve(directory, self.dest, keep_slash=True),
            owner=_owner_to_pb(options.owner, base),
            mode=-1,
            followSymlink=options.follow_symlinks,
            dirCopyContents=options.contents_only,
            attemptUnpackDockerCompatibility=options.unpack,
            createDestPath=options.create_parents,
            allowWildcard=options.wildcard,
            allowEmptyWildcard=options.empty_wildcard,
            timestamp=_time_to_pb(options.created_ns),
            include_patterns=options.include,
            exclude_patterns=options.exclude,
            required_paths=options.required,
            alwaysReplaceExistingDestPaths=options.replace_existing,
        )
        if isinstance(options.mode, str):
            message.mode = 0
            message.modeStr = options.mode
        elif options.mode is not None:
            message.mode = options.mode
        return pb.FileAction(copy=message)

    def _source_path(self) -> str:
        path = paths.clean(self.src)
        if paths.is_abs(path):
            return path
        state = self.source if isinstance(self.source, State) else self.source.state
        return paths.join(state.cwd if state is not None else "/", path)


def mkdir(
    path: str,
    mode: int = 0o755,
    *,
    parents: bool = False,
    owner: Owner | None = None,
    created_ns: int | None = None,
) -> FileAction:
    """Make a directory; with ``parents`` also missing ones above it.

    ``created_ns`` is its modification time in nanoseconds since 1970.
    """
    return FileAction(_Mkdir(path, mode, parents, owner, created_ns))


def mkfile(
    path: str,
    data: bytes,
    mode: int = 0o644,
    *,
    owner: Owner | None = None,
    created_ns: int | None = None,
) -> FileAction:
    """Write a file; its directory must exist."""
    return FileAction(_Mkfile(path, data, mode, owner, created_ns))


def symlink(
    old: str, new: str, *, owner: Owner | None = None, created_ns: int | None = None
) -> FileAction:
    """Make a symlink at ``new`` that points to ``old``."""
    return FileAction(_Symlink(old, new, owner, created_ns))


def rm(path: str, *, allow_not_found: bool = False, wildcard: bool = False) -> FileAction:
    """Remove a file or a whole directory."""
    return FileAction(_Rm(path, allow_not_found, wildcard))


def copy(
    source: State | FileAction, src: str, dest: str, options: CopyOptions | None = None
) -> FileAction:
    """Copy ``src`` of ``source`` to ``dest``.

    Args:
        source: A state, or a chain bound to one with :meth:`FileAction.on`.
        src: Absolute, or relative to the source state's directory.
        dest: Absolute, or relative to the directory of the state copied to. A trailing
            slash makes it a directory into which is copied.
        options: See :class:`CopyOptions`.

    Raises:
        InvalidInputError: ``source`` is a chain that is bound to no state.
    """
    if isinstance(source, FileAction) and source.state is None:
        raise InvalidInputError("a copy needs a state to read from", hint="bind it with .on()")
    return FileAction(_Copy(source, src, dest, options or CopyOptions()))


def apply(state: State, action: FileAction, options: OpOptions) -> State:
    """Return ``state`` with the actions applied, as one vertex."""
    return state.with_output(Output(FileOp(action.on(state), Constraints.of(options))))


@dataclass(slots=True, eq=False)
class _Placed:
    """An action with the inputs it was given; ``*_target`` count actions, not inputs."""

    action: FileAction
    base: int
    input: int = EMPTY
    input_target: int | None = None
    second: int = EMPTY
    second_target: int | None = None
    target: int = 0


@dataclass(slots=True, eq=False)
class _Placement:
    """Numbers the inputs and actions of a chain."""

    marshaller: Marshaller
    inputs: list[pb.Input] = field(default_factory=list)
    placed: list[_Placed] = field(default_factory=list)
    _known: dict[int, _Placed] = field(default_factory=dict)

    def add_chain(self, last: FileAction) -> _Placed:
        before: _Placed | None = None
        for action in last.chain():
            known = self._known.get(id(action))
            before = known if known is not None else self._add(action, before)
        assert before is not None
        return before

    def _add(self, action: FileAction, before: _Placed | None) -> _Placed:
        out = _Placed(action, self._input(action.state))
        if before is None:
            out.input = out.base
        else:
            out.input_target = before.target
        if isinstance(action.action, _Copy):
            source = action.action.source
            if isinstance(source, State):
                out.second = self._input(source)
            else:
                out.second_target = self.add_chain(source).target
        out.target = len(self.placed)
        self._known[id(action)] = out
        self.placed.append(out)
        return out

    def _input(self, state: State | None) -> int:
        edge = self.marshaller.input(state.output) if state is not None else None
        if edge is None:
            return EMPTY
        if edge in self.inputs:
            return self.inputs.index(edge)
        self.inputs.append(edge)
        return len(self.inputs) - 1


class FileOp:
    """A vertex of one or more file actions (``pb.FileOp``)."""

    def __init__(self, action: FileAction, constraints: Constraints) -> None:
        self.action = action
        self.constraints = constraints

    def inputs(self) -> Sequence[Output]:
        """Return base and copy sources, those of the last action first."""
        out: list[Output] = []
        stack = [self.action]
        while stack:
            last = stack.pop()
            nested: list[FileAction] = []
            for action in reversed(last.chain()):
                if action.state is not None and action.state.output is not None:
                    out.append(action.state.output)
                if isinstance(action.action, _Copy):
                    source = action.action.source
                    if isinstance(source, FileAction):
                        nested.append(source)
                    elif source.output is not None:
                        out.append(source.output)
            stack.extend(reversed(nested))
        return list(dict.fromkeys(out))

    def marshal(self, marshaller: Marshaller) -> Marshalled:
        """Return the op's bytes."""
        placement = _Placement(marshaller)
        placement.add_chain(self.action)
        op = marshaller.new_op(self.constraints, platform=False)
        op.inputs.extend(placement.inputs)
        count = len(placement.inputs)
        for number, item in enumerate(placement.placed, 1):
            directory = item.action.state.cwd if item.action.state is not None else ""
            message = item.action.action.to_pb(directory, item.base)
            message.input = _index(item.input, item.input_target, count)
            message.secondaryInput = _index(item.second, item.second_target, count)
            message.output = 0 if number == len(placement.placed) else EMPTY
            op.file.actions.append(message)
        # Finer capabilities (patterns, mode strings) exist, but clients write this one only;
        # metadata equal to theirs keeps definitions comparable.
        return Marshalled.of(op, self.constraints.with_caps(caps.FILE_BASE))


def _index(number: int, target: int | None, count: int) -> int:
    return number if target is None else count + target


def _time_to_pb(created_ns: int | None) -> int:
    return -1 if created_ns is None else created_ns


def _owner_to_pb(owner: Owner | None, base: int) -> pb.ChownOpt | None:
    if owner is None:
        return None
    if isinstance(owner, tuple):
        uid, gid = owner
        return pb.ChownOpt(user=pb.UserOpt(byID=uid), group=pb.UserOpt(byID=gid))
    user, colon, group = owner.partition(":")
    return pb.ChownOpt(
        user=_user_to_pb(user, base), group=_user_to_pb(group, base) if colon else None
    )


def _user_to_pb(name: str, base: int) -> pb.UserOpt:
    if name == "root":
        return pb.UserOpt(byID=0)
    digits = name.removeprefix("-").removeprefix("+")
    if digits.isascii() and digits.isdigit() and -(2**31) <= int(name) < 2**31:
        return pb.UserOpt(byID=int(name) & 0xFFFFFFFF)
    if not name:
        return pb.UserOpt(byID=0)
    return pb.UserOpt(byName=pb.NamedUserOpt(name=name, input=base))
