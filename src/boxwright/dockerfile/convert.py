"""Dockerfile to LLB: from the syntax tree to the graph and config of one target.

The order of things: arguments above the first FROM, one :class:`StageState` per stage, the
dependency graph between stages, base image configs (all at once), ONBUILD triggers of
those, then every instruction of the stages that the target needs, in file order.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.dockerfile import lint_rules as rules
from boxwright.dockerfile.bridge import MetaResolver
from boxwright.dockerfile.contexts import BuildContexts, NamedContext
from boxwright.dockerfile.convert_args import (
    base_arguments,
    default_arguments,
    proxy_environment,
)
from boxwright.dockerfile.convert_base import BaseResolver
from boxwright.dockerfile.convert_epoch import resolve_epoch
from boxwright.dockerfile.convert_stage import (
    SCRATCH,
    BoundCommand,
    OutlineCapture,
    Stages,
    StageState,
    check_no_cycle,
    reachable,
)
from boxwright.dockerfile.dispatch import dispatch, set_user, set_workdir
from boxwright.dockerfile.dispatch_context import (
    SBOM_SCAN_CONTEXT,
    SBOM_SCAN_STAGE,
    DispatchContext,
    located,
)
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.expand import Expansion, expand
from boxwright.dockerfile.golang import parse_bool
from boxwright.dockerfile.lint import (
    LintConfig,
    Linter,
    LintWarning,
    report_redundant_platform,
    report_undefined_from_args,
)
from boxwright.dockerfile.options import BuildOptions
from boxwright.dockerfile.parser import parse_command, parse_dockerfile
from boxwright.dockerfile.platforms import parse_written
from boxwright.dockerfile.suggest import did_you_mean, nearest
from boxwright.dockerfile.syntax import (
    Add,
    Command,
    Copy,
    Dockerfile,
    OnBuild,
    Run,
    Stage,
    Workdir,
)
from boxwright.errors import Code, InvalidInputError
from boxwright.fsutil.patterns import PatternMatcher
from boxwright.llb import build_caps
from boxwright.llb import build_paths as paths
from boxwright.llb.build_env import EnvList
from boxwright.llb.exec_op import default_path
from boxwright.llb.marshal import DeferredOutput, SourceMap
from boxwright.llb.source_op import local
from boxwright.llb.state import State
from boxwright.oci.image import Image
from boxwright.wire.pb import ops_pb2 as pb

_INDEX = re.compile(r"[-+]?[0-9]{1,9}\Z")
_TURN = 200
"""Instructions after which other builds get their turn."""


class UnknownStageError(DockerfileError):
    """The target is no stage of the Dockerfile."""

    code = Code.UNKNOWN_STAGE


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What to convert for.

    Attributes:
        build: The build's options.
        meta: Looks up base images.
        contexts: The build's contexts; without them (``debug dump-llb``) the main context
            is the client's directory ``context`` and there are no others.
        source_map: The Dockerfile, for locations and messages.
        target_platform: None for the worker's own.
        caps: What the daemon serves.
        all_stages: Convert stages that the target does not need, too (the linter).
        on_warning: Called with each finding of the linter.
    """

    build: BuildOptions
    meta: MetaResolver
    contexts: BuildContexts | None = None
    source_map: SourceMap | None = None
    target_platform: Platform | None = None
    caps: frozenset[str] = build_caps.ALL
    all_stages: bool = False
    on_warning: Callable[[LintWarning], None] | None = None


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted target.

    Attributes:
        stage: The target's stage, for the outline.
        scan_targets: Stages, and the context, that a bill of materials covers besides.
        epoch: ``SOURCE_DATE_EPOCH`` in seconds, or None.
    """

    state: State
    image: Image
    base_image: Image | None
    stage: StageState
    platform: Platform
    caps: frozenset[str]
    scan_targets: Mapping[str, State] = field(default_factory=dict)
    epoch: int | None = None
    ignore_cache: bool = False

    def marshal(self) -> pb.Definition:
        """Return the definition."""
        return self.state.marshal(self.platform, self.caps)


async def convert(source: bytes, options: ConvertOptions) -> Converted:
    """Convert a Dockerfile.

    Args:
        source: Its bytes.
        options: See :class:`ConvertOptions`.

    Raises:
        DockerfileError: with file name, source and lines.
        UnknownStageError: the target is none of its stages.
        BoxwrightError: a base image or context can't be resolved.
    """
    filename = options.source_map.filename if options.source_map is not None else "Dockerfile"
    try:
        return await _Converter(source, filename, options).run()
    except DockerfileError as error:
        raise error.located(filename=filename, source=source) from error.__cause__


def lint_config(source: bytes, filename: str, option: LintConfig | None) -> LintConfig:
    """Return the linter's configuration: the build option's, else the ``check`` directive's."""
    from boxwright.dockerfile.directives import find_directive

    if option is not None:
        return option
    directive = find_directive("check", source)
    try:  # as upstream reads it, the value of this directive ends at a space
        return LintConfig.parse(directive.value.partition(" ")[0] if directive is not None else "")
    except InvalidInputError as error:
        assert directive is not None
        raise DockerfileError(
            f"failed to parse check options: {error.brief}",
            hint=error.hint,
            ranges=directive.ranges,
            filename=filename,
        ) from error


class _Converter:
    """One conversion; fields are filled in the order of :meth:`run`."""

    def __init__(self, source: bytes, filename: str, options: ConvertOptions) -> None:
        self.source = source
        self.filename = filename
        self.options = options
        self.build = options.build
        worker = self.build.build_platforms or (options.target_platform or Platform.host(),)
        self.build_platforms = worker
        self.target_platform = options.target_platform or worker[0]
        self.implicit_target = options.target_platform is None
        self.stages = Stages()
        self.outline = OutlineCapture()
        self.global_args = EnvList()
        self.epoch: int | None = None
        self.escape = "\\"

    async def run(self) -> Converted:
        linter = Linter(
            lint_config(self.source, self.filename, self.build.lint), self.options.on_warning
        )
        self.linter = linter
        parsed = parse_dockerfile(self.source, filename=self.filename, linter=linter)
        if not parsed.stages:
            raise DockerfileError("dockerfile contains no stages to build")
        self.escape = parsed.escape
        await self._arguments(parsed)
        for number, stage in enumerate(parsed.stages):
            with located(stage.ranges):
                self._add_stage(number, stage)
        target = self._target()
        self._bind_commands()
        needed = await self._resolve(target)
        context_output, used = await self._dispatch(target, needed)
        await self._finish(target, context_output, used)
        return self._result(target, self.context.build_context)

    async def _arguments(self, parsed: Dockerfile) -> None:
        target = self.build.target or parsed.stages[-1].name or "default"
        defaults = default_arguments(
            self.build_platforms[0], self.target_platform, self.build.build_args, target
        )
        self._check_default_bases(parsed, defaults)
        self.global_args, self.outline.all_args = base_arguments(
            parsed.meta_args, defaults, self.build.build_args, self.escape
        )
        self.build, self.global_args, self.epoch = await resolve_epoch(
            self.build, self.global_args, parsed, self.options.contexts
        )

    def _check_default_bases(self, parsed: Dockerfile, defaults: EnvList) -> None:
        """Report bases that are no references as long as nobody gives build arguments."""
        try:
            args, _ = base_arguments(parsed.meta_args, defaults, {}, self.escape)
            names = [expand(s.base, args, escape=self.escape).text for s in parsed.stages]
        except DockerfileError:
            return  # the build proper fails with the same error, unless arguments mend it
        for stage, name in zip(parsed.stages, names, strict=True):
            try:
                Reference.parse(name)
            except InvalidInputError:
                self.linter.emit(rules.INVALID_DEFAULT_ARG_IN_FROM, stage.ranges, base=stage.base)

    def _add_stage(self, number: int, stage: Stage) -> None:
        linter = self.linter.for_comments(stage.comments)
        name = expand(stage.base, self.global_args, escape=self.escape)
        self._report_undefined(name, stage, linter)
        if not name.text:
            message = f"base name ({stage.base}) should not be blank"
            raise DockerfileError(message, token=stage.base, hint="give the ARG a default")
        state = StageState(
            name.text,
            stage.ranges,
            stage,
            display_name=stage.name,
            prefix_platform=self.build.multi_platform,
            epoch=self.epoch,
            outline=self.outline.clone(),
        )
        used = dict.fromkeys(name.matched)
        if stage.platform:
            state.platform = self._stage_platform(stage, linter, used)
        if stage.name:
            context = self.named_context(stage.name, state.platform, state)
            if context is not None:
                state.named_context = context
                self.stages.add(state)
                state.base = None
                return
        else:
            state.display_name = f"stage-{number}"
        self.stages.add(state)
        state.outline.used_args |= used
        own_base = state.base_name != SCRATCH and state.base is None
        steps = sum(isinstance(item, Add | Copy | Run | Workdir) for item in stage.commands)
        state.command_total = own_base + steps
        state.ignore_cache = self.options.contexts is not None and self.build.ignores_cache(
            stage.name
        )

    def _stage_platform(self, stage: Stage, linter: Linter, used: dict[str, None]) -> Platform:
        value = expand(stage.platform, self.global_args, escape=self.escape)
        self._report_undefined(value, stage, linter)
        report_redundant_platform(linter, stage.platform, value, self.global_args, stage.ranges)
        _report_constant_platform(linter, stage, value)
        suggestion = _suggestion(value, self.global_args)
        if not value.text:
            message = f"empty platform value from expression {stage.platform}"
            raise DockerfileError(did_you_mean(message, suggestion), token=stage.platform)
        try:
            platform = parse_written(value.text)
        except InvalidInputError as error:
            raise DockerfileError(
                f"failed to parse platform {stage.platform}",
                detail=did_you_mean(str(error), suggestion),
                token=stage.platform,
                hint=error.hint,
            ) from error
        used |= dict.fromkeys(value.matched)
        return platform

    def _report_undefined(self, value: Expansion, stage: Stage, linter: Linter) -> None:
        declared = [*self.outline.all_args, *self.global_args]
        report_undefined_from_args(linter, value.unmatched, declared=declared, ranges=stage.ranges)

    def named_context(
        self, name: str, platform: Platform | None, stage: StageState
    ) -> NamedContext | None:
        """Return the context that replaces a stage or image, or None."""
        if self.options.contexts is None or name.lower() in {SCRATCH, "context"}:
            return None
        return self.options.contexts.named(
            name,
            platform=platform or self.options.target_platform,
            resolve_mode=self.build.resolve_mode,
            follow=lambda: follow_paths(stage.paths),
        )

    def _target(self) -> StageState:
        name = self.build.target
        if not name:
            return self.stages.last
        found = self.stages.by_name(name)
        if found is None:
            suggestion = nearest(name, self.stages.names())
            raise UnknownStageError(
                did_you_mean(f'target stage "{name}" could not be found', suggestion),
                hint="the stages are: " + ", ".join(self.stages.names()),
            )
        return found

    def _bind_commands(self) -> None:
        for stage in list(self.stages):
            assert stage.stage is not None
            for command in stage.stage.commands:
                with located(command.ranges):
                    self._bind(stage, self._bound(command))
        check_no_cycle(self.stages)
        if len(self.stages) == 1:
            self.stages.last.display_name = ""

    def _bind(self, stage: StageState, bound: BoundCommand) -> None:
        stage.commands.append(bound)
        for source in bound.sources:
            stage.deps[source] = bound.command
            if source.unregistered:
                self.stages.add(source)

    def _bound(self, command: Command, *, on_build: bool = False) -> BoundCommand:
        sources: tuple[StageState, ...] = ()
        if isinstance(command, Copy) and command.from_:
            sources = (self._copy_source(command),)
        elif isinstance(command, Run):
            sources = tuple(
                self.stages.by_name(mount.from_ or SCRATCH)
                or StageState(mount.from_ or SCRATCH, unregistered=True)
                for mount in command.mounts
            )
        return BoundCommand(command, sources, on_build)

    def _copy_source(self, command: Copy) -> StageState:
        name = command.from_
        if expand(name, {}, escape=self.escape).text != name:
            raise DockerfileError(
                "variable expansion is not supported for --from, define a new stage with FROM"
                " using ARG from global scope as a workaround",
                token=name,
            )
        if _INDEX.match(name):
            return self.stages.by_index(int(name))
        return self.stages.by_name(name) or StageState(name, command.ranges, unregistered=True)

    async def _resolve(self, target: StageState) -> Mapping[StageState, None]:
        """Resolve base images, again for those that ONBUILD triggers bring in."""
        resolver = BaseResolver(self.options, self)
        while True:
            needed = reachable(target)
            await resolver.resolve_all(
                list(self.stages), set(self.stages) if self.options.all_stages else set(needed)
            )
            more = False
            for stage in _bases_first(needed):
                stage.inherit()
                with located(stage.ranges):
                    more |= self._add_triggers(stage)
            if not more:
                return needed

    def _add_triggers(self, stage: StageState) -> bool:
        """Put a base's ONBUILD commands first; return whether they need more stages.

        What is only read from runs nothing, its triggers neither: an image whose trigger
        reads an image with triggers would never come to an end.
        """
        if stage.unregistered:
            return False
        triggers = stage.image.config.on_build.copy()
        if stage.base is not None and not stage.on_build_done:
            stage.on_build_done = True
            triggers += [
                bound.command.expression
                for bound in stage.base.commands
                if isinstance(bound.command, OnBuild)
            ]
        if not triggers:
            return False
        own, stage.commands = stage.commands, []
        for trigger in triggers:
            command = parse_command(trigger, ranges=stage.ranges)
            self._bind(stage, self._bound(command, on_build=True))
        more = any(bound.sources for bound in stage.commands)
        stage.command_total += len(stage.commands)
        stage.commands += own
        stage.image.config.on_build = []
        return more

    async def _dispatch(
        self, target: StageState, needed: Mapping[StageState, None]
    ) -> tuple[DeferredOutput, set[str]]:
        contexts = self.options.contexts
        patterns = await contexts.ignore_patterns() if contexts is not None else ()
        context_output = DeferredOutput()
        self.context = DispatchContext(
            stages=self.stages,
            options=self.build,
            global_args=self.global_args,
            escape=self.escape,
            build_context=State.new(context_output),
            proxy=proxy_environment(self.build.build_args),
            target_platform=self.target_platform,
            caps=self.options.caps,
            source_map=self.options.source_map,
            linter=self.linter,
            ignored=PatternMatcher(patterns) if patterns else None,
        )
        used: set[str] = set()
        for stage in list(self.stages):
            skip = stage not in needed or stage.dispatched
            if skip and not self.options.all_stages:
                continue
            await self._dispatch_stage(stage)
            used |= stage.ctx_paths
        target.paths.add("/")
        return context_output, used

    async def _dispatch_stage(self, stage: StageState) -> None:
        stage.inherit()
        stage.dispatched = True
        if stage.platform is None:
            stage.platform = self.target_platform
        config = stage.image.config
        has_path = any(item.partition("=")[0] == "PATH" for item in config.env)
        if not has_path and stage.platform.os != "windows":
            config.env.append("PATH=" + default_path(stage.platform.os))
        for item in config.env:
            key, _, value = item.partition("=")
            stage.state = stage.state.add_env(key, value)
        if self.build.hostname:
            stage.state = stage.state.with_hostname(self.build.hostname)
        if config.working_dir:
            with located(stage.ranges):
                set_workdir(stage, config.working_dir)
        if config.user:
            set_user(stage, config.user)
        stage.state = stage.state.with_network(self.build.network)
        for number, bound in enumerate(stage.commands, 1):
            with located(bound.command.ranges):
                dispatch(stage, bound, self.context)
            if number % _TURN == 0:
                await asyncio.sleep(0)
        stage.scan_context = self._scan_wanted(stage, SBOM_SCAN_CONTEXT)
        stage.scan_stage = self._scan_wanted(stage, SBOM_SCAN_STAGE)

    def _scan_wanted(self, stage: StageState, name: str) -> bool:
        wanted = _enabled_for(stage.display_name, self.global_args.get(name))
        for arg in stage.build_args:
            if arg.key == name and arg.value is not None:
                wanted = _enabled_for(stage.display_name, arg.value)
        return wanted

    async def _finish(
        self, target: StageState, context_output: DeferredOutput, used: set[str]
    ) -> None:
        target.image.config.labels |= self.build.labels
        if error := self.linter.error():
            raise error
        follow = follow_paths(used)
        if self.options.contexts is not None:
            context = await self.options.contexts.main_context(follow)
        else:
            context = local(
                "context",
                follow=follow,
                shared_key="context",
                name="[internal] load build context",
            )
        context_output.set(context.output)
        image = target.image
        if not self.implicit_target:
            image.platform = _exported_platform(image.platform, self.target_platform)
        image.platform = image.platform.normalized()

    def _result(self, target: StageState, build_context: State) -> Converted:
        extra: dict[str, State] = {}
        if target.scan_context:
            extra["context"] = build_context
        ignore_cache = target.ignore_cache
        for stage in reachable(target):
            if stage is not target and stage.scan_stage:
                extra[stage.display_name] = stage.state
                ignore_cache |= stage.ignore_cache
        return Converted(
            target.state,
            target.image,
            target.base_image,
            target,
            self.target_platform,
            self.options.caps,
            extra,
            self.epoch,
            ignore_cache,
        )


def _bases_first(stages: Mapping[StageState, None]) -> list[StageState]:
    """Order stages so that each comes after its base, from which it inherits."""
    out: dict[StageState, None] = {}
    for stage in stages:
        chain: list[StageState] = []
        node: StageState | None = stage
        while node is not None and node not in out:
            chain.append(node)
            node = node.base
        out |= dict.fromkeys(reversed(chain))
    return list(out)


def _exported_platform(image: Platform, target: Platform) -> Platform:
    """Return the config's platform: the target's, with details the base is known to have."""
    same = (image.os, image.architecture) == (target.os, target.architecture)
    return replace(
        target,
        variant=target.variant or (image.variant if same else ""),
        os_version=target.os_version or (image.os_version if same else ""),
        os_features=target.os_features or image.os_features,
    )


def follow_paths(used: set[str]) -> list[str]:
    """Return which paths of a local context to send; empty for all of it."""
    if "/" in used:
        return []
    return sorted(paths.join(".", path) for path in used)


def _enabled_for(stage: str, value: str | None) -> bool:
    if value is None:
        return False
    try:
        return parse_bool(value)
    except ValueError:
        return stage in value.split(",")


def _suggestion(value: Expansion, env: EnvList) -> str:
    """Return what may be meant by an undefined variable; "" for no idea."""
    return next(filter(None, (nearest(name, env) for name in value.unmatched)), "")


def _report_constant_platform(linter: Linter, stage: Stage, value: Expansion) -> None:
    if value.matched or value.unmatched:
        return
    try:
        platform = Platform.parse(value.text)
    except InvalidInputError:
        return  # fails a little later
    if platform.os in stage.name or platform.architecture in stage.name:
        return
    linter.emit(rules.FROM_PLATFORM_FLAG_CONST_DISALLOWED, stage.ranges, platform=value.text)
