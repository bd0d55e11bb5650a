"""The typed syntax tree of a Dockerfile.

Every node is frozen. Text in the tree is as written, before variable expansion;
:func:`boxwright.dockerfile.instructions.expand_command` returns an expanded copy.
Lines are counted from 1. Ranges are per source line, one :class:`Range` for each line an
instruction spans, because that is what ``pb.Location.ranges`` carries on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from boxwright.core.dataclass import dataclass, field

MountType = Literal["bind", "cache", "tmpfs", "secret", "ssh"]
SharingMode = Literal["shared", "private", "locked"]


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A point in the source text.

    Attributes:
        line: Counted from 1.
        column: Characters from the start of the line, counted from 0.
    """

    line: int
    column: int = 0


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """From ``start`` to ``end``, both on a line; columns 0 and 0 mean the whole line(s)."""

    start: Position
    end: Position


def line_ranges(first: int, last: int) -> tuple[Range, ...]:
    """Return one range for each of the lines ``first`` to ``last`` (inclusive)."""
    return tuple(
        Range(Position(line), Position(line)) for line in range(first, max(first, last) + 1)
    )


@dataclass(frozen=True, slots=True)
class Directive:
    """A ``# name=value`` line at the top of the file; ``name`` is in lower case."""

    name: str
    value: str
    ranges: tuple[Range, ...]


@dataclass(frozen=True, slots=True)
class Heredoc:
    """The body of one ``<<WORD`` as read from the lines below its instruction.

    Attributes:
        name: The delimiter with its quotes removed.
        expand: False when any part of the delimiter was quoted.
        chomp: True for ``<<-``: leading tabs are to be stripped.
        descriptor: The file descriptor number before ``<<`` (0 when none).
        content: The raw body, with its line ends, tabs not yet stripped.
    """

    name: str
    expand: bool = True
    chomp: bool = False
    descriptor: int = 0
    content: str = ""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One pair of ENV or LABEL; ``legacy`` when written ``key value`` without ``=``."""

    key: str
    value: str
    legacy: bool = False

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


@dataclass(frozen=True, slots=True)
class ArgDefinition:
    """One name of an ARG; ``value`` is None without a default, "" for ``name=``."""

    key: str
    value: str | None = None
    doc_comment: str = ""

    def __str__(self) -> str:
        return f"{self.key}={self.value or ''}"


@dataclass(frozen=True, slots=True)
class SourceContent:
    """A heredoc used as a source of COPY or ADD: a file ``path`` with the text ``data``."""

    path: str
    data: str
    expand: bool = True


@dataclass(frozen=True, slots=True)
class InlineFile:
    """A heredoc attached to a command line; ``data`` still has its tabs when ``chomp``."""

    name: str
    data: str
    chomp: bool = False


@dataclass(frozen=True, slots=True)
class CommandLine:
    """Arguments of RUN, CMD or ENTRYPOINT.

    Attributes:
        args: The JSON array's strings, or the one string of the shell form; () if absent.
        shell_form: True unless written as a JSON array: SHELL is to be put in front.
        files: Heredocs, in order.
    """

    args: tuple[str, ...]
    shell_form: bool = True
    files: tuple[InlineFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Mount:
    """One ``RUN --mount``. Numbers are None when not given; ``size`` is in bytes.

    ``env`` is the variable a secret is put into: None for no ``env=``, "" for the
    secret's own name. ``sharing`` is "" unless given.
    """

    type: MountType = "bind"
    from_: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    size: int = 0
    id: str = ""
    sharing: SharingMode | Literal[""] = ""
    required: bool = False
    env: str | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """One ``RUN --device`` (a CDI device name)."""

    name: str
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What all instructions have.

    Attributes:
        keyword: The instruction's name as written (``run``, ``RUN``, ``Run``).
        original: The logical line: continuations joined, comments dropped, trimmed. Step
            names and history entries are made of it. Heredoc bodies are not part of it.
        ranges: The source lines, heredoc bodies included.
        comments: The comment lines directly above, without ``#``.
        flags: The raw ``--name=value`` words, unquoted, in order.
    """

    name: ClassVar[str] = ""

    keyword: str
    original: str
    ranges: tuple[Range, ...] = ()
    comments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Command):
    """``FROM [--platform=p] base [AS stage_name]``; ``stage_name`` is in lower case or ""."""

    name: ClassVar[str] = "FROM"
    base: str
    stage_name: str = ""
    platform: str = ""
    doc_comment: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Command):
    """``RUN``. ``mounts`` hold what needs no expansion; re-read ``mount_flags`` for the rest."""

    name: ClassVar[str] = "RUN"
    line: CommandLine
    mount_flags: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    network: Literal["default", "none", "host"] = "default"
    security: Literal["sandbox", "insecure"] = "sandbox"
    devices: tuple[Device, ...] = ()
    flags_used: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileTransfer(Command):
    """What COPY and ADD share. ``sources`` are paths or URLs, ``contents`` heredoc files."""

    sources: tuple[str, ...]
    contents: tuple[SourceContent, ...] = ()
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(FileTransfer):
    """``COPY``. ``from_`` names a stage, its index, a context or an image; "" for the context."""

    name: ClassVar[str] = "COPY"
    from_: str = ""
    parents: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Add(FileTransfer):
    """``ADD``. ``keep_git_dir`` and ``unpack`` are None when the flag was not given."""

    name: ClassVar[str] = "ADD"
    checksum: str = ""
    keep_git_dir: bool | None = None
    unpack: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Command):
    """``ENV``."""

    name: ClassVar[str] = "ENV"
    pairs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Command):
    """``LABEL``."""

    name: ClassVar[str] = "LABEL"
    pairs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Command):
    """``ARG``."""

    name: ClassVar[str] = "ARG"
    args: tuple[ArgDefinition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Command):
    """``WORKDIR``."""

    name: ClassVar[str] = "WORKDIR"
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Command):
    """``USER``."""

    name: ClassVar[str] = "USER"
    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Command):
    """``VOLUME``."""

    name: ClassVar[str] = "VOLUME"
    volumes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Command):
    """``EXPOSE``; ``ports`` are sorted as strings, still unexpanded."""

    name: ClassVar[str] = "EXPOSE"
    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(Command):
    """``CMD``."""

    name: ClassVar[str] = "CMD"
    line: CommandLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(Command):
    """``ENTRYPOINT``."""

    name: ClassVar[str] = "ENTRYPOINT"
    line: CommandLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Command):
    """``HEALTHCHECK``. Durations are nanoseconds, 0 when not given.

    ``test`` is ``("NONE",)``, ``("CMD", …)`` or ``("CMD-SHELL", text)``.
    """

    name: ClassVar[str] = "HEALTHCHECK"
    test: tuple[str, ...]
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Command):
    """``SHELL``."""

    name: ClassVar[str] = "SHELL"
    shell: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSignal(Command):
    """``STOPSIGNAL``."""

    name: ClassVar[str] = "STOPSIGNAL"
    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OnBuild(Command):
    """``ONBUILD``. ``expression`` is the trigger's text with its heredoc bodies appended."""

    name: ClassVar[str] = "ONBUILD"
    expression: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Command):
    """``MAINTAINER``."""

    name: ClassVar[str] = "MAINTAINER"
    maintainer: str


@dataclass(frozen=True, slots=True)
class Stage:
    """A FROM and the instructions up to the next one."""

    from_: From
    commands: tuple[Command, ...] = ()

    @property
    def name(self) -> str:
        """The name after AS in lower case, or ""."""
        return self.from_.stage_name

    @property
    def base(self) -> str:
        """The base as written: image, stage or context name."""
        return self.from_.base

    @property
    def platform(self) -> str:
        """The ``--platform`` value as written, or ""."""
        return self.from_.platform

    @property
    def ranges(self) -> tuple[Range, ...]:
        """Source lines of the FROM."""
        return self.from_.ranges

    @property
    def comments(self) -> tuple[str, ...]:
        """Comments directly above the FROM."""
        return self.from_.comments

    @property
    def doc_comment(self) -> str:
        """What the comment above says about the stage's name, or ""."""
        return self.from_.doc_comment


@dataclass(frozen=True, slots=True)
class Dockerfile:
    r"""A whole parsed file.

    Attributes:
        stages: In file order, at least one unless the file has ARGs only.
        meta_args: ARGs above the first FROM.
        escape: ``\\`` or a backtick.
        directives: By lower-case name (``syntax``, ``escape``, ``check``).
        source: The bytes that were parsed.
        filename: For messages.
    """

    stages: tuple[Stage, ...]
    meta_args: tuple[Arg, ...] = ()
    escape: str = "\\"
    directives: Mapping[str, Directive] = field(default_factory=dict)
    source: bytes = b""
    filename: str = "Dockerfile"

    def stage_index(self, name: str) -> int | None:
        """Return the index of the first stage of that name, whatever its case, or None."""
        folded = name.casefold()
        for index, stage in enumerate(self.stages):
            if stage.name.casefold() == folded:
                return index
        return None
