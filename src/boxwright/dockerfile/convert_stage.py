"""Stages while they are converted: what each has become so far, and what it depends on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from boxwright.core.dataclass import dataclass, field
from boxwright.core.platform import Platform
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.syntax import ArgDefinition, Command, Range, Stage
from boxwright.llb.state import State
from boxwright.oci.image import Image

if TYPE_CHECKING:
    from boxwright.dockerfile.contexts import NamedContext

SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class ArgInfo:
    """An ARG as the outline shows it; ``deps`` are the arguments its default uses."""

    definition: ArgDefinition
    ranges: tuple[Range, ...]
    value: str = ""
    deps: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class RequiredInput:
    """A secret or ssh agent that a RUN mounts."""

    required: bool
    ranges: tuple[Range, ...]


@dataclass(slots=True)
class OutlineCapture:
    """What a stage takes from outside: arguments, secrets, ssh agents."""

    all_args: dict[str, ArgInfo] = field(default_factory=dict)
    used_args: dict[str, None] = field(default_factory=dict)
    secrets: dict[str, RequiredInput] = field(default_factory=dict)
    ssh: dict[str, RequiredInput] = field(default_factory=dict)

    def clone(self) -> OutlineCapture:
        """Return a copy that can grow on its own."""
        return OutlineCapture(
            self.all_args.copy(), self.used_args.copy(), self.secrets.copy(), self.ssh.copy()
        )


@dataclass(frozen=True, slots=True)
class BoundCommand:
    """A command with the stages it reads from (RUN: one for each mount)."""

    command: Command
    sources: tuple[StageState, ...] = ()
    on_build: bool = False


@dataclass(slots=True, eq=False)
class StageState:
    """A stage, or an image or context that is only read from (``unregistered``).

    Attributes:
        base_name: The base with arguments expanded; later its full reference.
        display_name: What step names show; "" for the only stage of a file.
        ctx_paths: Paths used of the build context.
        paths: Paths that others use of this stage; shared with the base.
        state: The filesystem so far.
        base_image: The base's config as it was, or None.
    """

    base_name: str
    ranges: tuple[Range, ...] = ()
    stage: Stage | None = None
    display_name: str = ""
    unregistered: bool = False
    prefix_platform: bool = False
    epoch: int | None = None
    outline: OutlineCapture = field(default_factory=OutlineCapture)
    platform: Platform | None = None
    named_context: NamedContext | None = None
    base: StageState | None = None
    state: State = field(default_factory=State)
    image: Image = field(default_factory=Image)
    base_image: Image | None = None
    commands: list[BoundCommand] = field(default_factory=list)
    deps: dict[StageState, Command] = field(default_factory=dict)
    build_args: list[ArgDefinition] = field(default_factory=list)
    ctx_paths: set[str] = field(default_factory=set)
    paths: set[str] = field(default_factory=set)
    dispatched: bool = False
    resolved: bool = False
    on_build_done: bool = False
    ignore_cache: bool = False
    command_index: int = 0
    command_total: int = 0
    in_on_build: bool = False
    scan_stage: bool = False
    scan_context: bool = False
    workdir_set: bool = False
    last_used: dict[str, tuple[Range, ...]] = field(default_factory=dict)
    """Lines of the last CMD, ENTRYPOINT and HEALTHCHECK of this very stage."""

    @property
    def name(self) -> str:
        """The stage's own name in lower case, or ""."""
        return self.stage.name if self.stage is not None else ""

    @property
    def env(self) -> dict[str, str]:
        """The environment so far, in order."""
        return dict(self.state.env)

    def require_platform(self) -> Platform:
        """Return the platform, which is known once the stage is dispatched."""
        assert self.platform is not None
        return self.platform

    def inherit(self) -> None:
        """Take over what the base stage has become."""
        base = self.base
        if base is None:
            return
        self.state = base.state
        self.platform = base.platform
        self.image = base.image.clone()
        self.image.config.on_build = []  # triggers act on the next stage only
        self.base_image = base.base_image.clone() if base.base_image is not None else None
        self.paths = base.paths
        self.workdir_set = base.workdir_set
        self.build_args.extend(base.build_args)


class Stages:
    """All stages in order, the unregistered ones after those that read them."""

    def __init__(self) -> None:
        self._all: list[StageState] = []
        self._by_name: dict[str, StageState] = {}

    def __iter__(self) -> Iterator[StageState]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    @property
    def last(self) -> StageState:
        """The stage that is built when no target is given."""
        return self._all[-1]

    def names(self) -> list[str]:
        """Return all names, as suggestions for a misspelt one."""
        return [stage.display_name for stage in self._all if stage.display_name]

    def add(self, stage: StageState) -> None:
        """Append a stage; its base is the last stage of that very name above it."""
        self._all.append(stage)
        base = self._by_name.get(stage.base_name)
        if base is not None:
            stage.base = base
            stage.outline = base.outline.clone()
        if stage.name:
            self._by_name[stage.name.lower()] = stage

    def by_name(self, name: str) -> StageState | None:
        """Return the last stage of that name, whatever its case."""
        return self._by_name.get(name.lower())

    def by_index(self, index: int) -> StageState:
        """Return the stage of that number, counted from 0.

        Raises:
            DockerfileError: there is none.
        """
        if not 0 <= index < len(self._all):
            raise DockerfileError(f"invalid stage index {index}")
        return self._all[index]


def reachable(target: StageState) -> dict[StageState, None]:
    """Return the stages that ``target`` needs, itself first."""
    seen: dict[StageState, None] = {}
    stack = [target]
    while stack:
        stage = stack.pop()
        if stage in seen:
            continue
        seen[stage] = None
        stack.extend(reversed(stage.deps))
        if stage.base is not None:
            stack.append(stage.base)
    return seen


def check_no_cycle(stages: Stages) -> None:
    """Check that no stage reads from itself, directly or through others.

    Raises:
        DockerfileError: naming the stage and the lines that make the circle.
    """
    done: set[StageState] = set()
    for start in stages:
        path: dict[StageState, None] = {}
        # (stage, command that led to it, iterator over what it depends on)
        stack = [(start, iter(start.deps.items()))]
        trail: list[Command] = []
        if start in done:
            continue
        path[start] = None
        while stack:
            stage, following = stack[-1]
            step = next(following, None)
            if step is None:
                stack.pop()
                path.pop(stage)
                done.add(stage)
                if trail:
                    trail.pop()
                continue
            dep, command = step
            if dep in path:
                ranges = tuple(item for used in (*trail, command) for item in used.ranges)
                raise DockerfileError(
                    f"circular dependency detected on stage: {start.display_name}",
                    ranges=ranges,
                )
            if dep not in done:
                path[dep] = None
                trail.append(command)
                stack.append((dep, iter(dep.deps.items())))
