"""Base images: which image each stage starts from, and what its config says."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.dockerfile import lint_rules as rules
from boxwright.dockerfile.convert_names import step_name
from boxwright.dockerfile.convert_stage import SCRATCH, StageState
from boxwright.dockerfile.dispatch_context import description, locations
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.image import auto_detect_platform, empty_image
from boxwright.dockerfile.suggest import did_you_mean, nearest
from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.llb.source_op import image
from boxwright.llb.state import State
from boxwright.oci.image import Image

if TYPE_CHECKING:
    from boxwright.dockerfile.convert import ConvertOptions, _Converter

_COMMON_IMAGES = ("alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora")


class BaseResolver:
    """Resolves the stages that start from an image or a named context."""

    def __init__(self, options: ConvertOptions, converter: _Converter) -> None:
        self._options = options
        self._converter = converter

    async def resolve_all(self, stages: list[StageState], needed: set[StageState]) -> None:
        """Resolve every stage without a base of its own; only needed ones are looked up.

        Raises:
            DockerfileError: a base that is no reference.
            BoxwrightError: a base that can't be found; with the lines in ``source_ranges``.
        """
        pending = []
        for stage in stages:
            if stage.base is not None or stage.dispatched or stage.resolved:
                continue
            stage.resolved = stage in needed
            if stage.base_name == SCRATCH and stage.named_context is None:
                target = self._converter.target_platform
                stage.state, stage.platform = State(), target
                stage.image = empty_image(target)
                stage.dispatched = stage.unregistered
                continue
            pending.append(self._resolve(stage, reachable=stage in needed))
        await run_all(pending)

    async def _resolve(self, stage: StageState, *, reachable: bool) -> None:
        try:
            await self._resolve_base(stage, reachable=reachable)
        except DockerfileError as error:
            raise error.located(stage.ranges) from error.__cause__
        except InvalidInputError as error:
            raise DockerfileError(
                error.brief, detail=error.detail, hint=error.hint, ranges=stage.ranges
            ) from error
        except BoxwrightError as error:
            add_ranges(error, stage)
            raise
        finally:
            stage.dispatched = stage.dispatched or stage.unregistered

    async def _resolve_base(self, stage: StageState, *, reachable: bool) -> None:
        written = stage.base_name
        try:
            ref = Reference.parse(written)
        except InvalidInputError as error:
            raise DockerfileError(
                f'failed to parse stage name "{written}": {error.brief}',
                token=written,
                hint=error.hint,
            ) from error
        platform = stage.platform or self._converter.target_platform
        stage.base_name = str(ref.with_default_tag())
        from_scratch = False
        if reachable:
            if stage.named_context is not None:
                await self._load_stage_context(stage)
                return
            if await self._load_base_context(stage, platform):
                return
            platform, from_scratch = await self._load_image(stage, written, platform)
        if from_scratch:
            stage.state = State()
        else:
            stage.state = image(
                stage.base_name,
                resolve_mode=self._converter.build.resolve_mode,
                description=description(stage.stage.from_.original if stage.stage else ""),
                platform=platform,
                name=step_name(stage, f"FROM {stage.base_name}", platform, {}),
                locations=locations(self._options.source_map, stage.ranges),
            )
            if reachable:
                self._check_platform(stage, written, platform)
        stage.platform = platform

    async def _load_stage_context(self, stage: StageState) -> None:
        """Replace a whole stage by the context of its name."""
        assert stage.named_context is not None
        stage.state, config = await stage.named_context.load()
        stage.dispatched = True
        stage.image.platform = stage.platform or self._converter.target_platform
        if config is not None:
            stage.image = config
            config.created = ""
            if config.platform.architecture and config.platform.os:
                stage.platform = config.platform

    async def _load_base_context(self, stage: StageState, platform: Platform) -> bool:
        """Replace a base image by the context of its name, if there is one."""
        context = self._converter.named_context(stage.base_name, platform, stage)
        if context is None:
            return False
        state, config = await context.load()
        stage.image = config or empty_image(platform)
        stage.base_image = stage.image.clone()
        stage.image.created = ""
        stage.state = state.with_platform(platform)
        stage.platform = platform
        return True

    async def _load_image(
        self, stage: StageState, written: str, platform: Platform
    ) -> tuple[Platform, bool]:
        """Look up the config; return the image's platform and whether it is empty."""
        converter = self._converter
        prefix = f"{platform} " if converter.build.multi_platform else ""
        try:
            resolved = await self._options.meta.resolve_image_config(
                stage.base_name,
                platform=platform,
                resolve_mode=converter.build.resolve_mode,
                log_name=f"[{prefix}internal] load metadata for {stage.base_name}",
            )
        except BoxwrightError as error:
            if not error.brief.startswith(written):
                error.brief = f"{written}: {error.brief}"
            suggestion = nearest(written, [*converter.stages.names(), *_common_names()])
            if suggestion and error.detail:
                error.detail = did_you_mean(error.detail, suggestion)
            else:
                error.brief = did_you_mean(error.brief, suggestion)
            raise
        config = Image.decode(resolved.config)
        stage.base_image = config.clone()
        config.created = ""
        if stage.platform is None and converter.implicit_target:
            platform = auto_detect_platform(
                config.platform, platform, tuple(converter.build_platforms)
            )
        ref = Reference.parse(resolved.ref)
        if resolved.digest is not None:
            ref = ref.with_digest(resolved.digest)
        stage.base_name = str(ref.with_default_tag())
        stage.image = config
        has_layers = bool(config.diff_ids) or not all(item.empty_layer for item in config.history)
        return platform, not has_layers

    def _check_platform(self, stage: StageState, written: str, wanted: Platform) -> None:
        actual = stage.image.platform
        if (wanted.os, wanted.architecture) != (actual.os, actual.architecture):
            self._converter.linter.emit(
                rules.INVALID_BASE_IMAGE_PLATFORM,
                stage.ranges,
                image=written,
                expected=str(wanted.normalized()),
                actual=str(actual.normalized()),
            )


def add_ranges(error: BoxwrightError, stage: StageState) -> None:
    """Note the lines of a FROM on an error that is not the Dockerfile's own."""
    if stage.ranges and not hasattr(error, "source_ranges"):
        error.__dict__["source_ranges"] = stage.ranges


def _common_names() -> Iterable[str]:
    for name in _COMMON_IMAGES:
        yield name
        yield f"{name}:latest"


async def run_all(pending: list[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first failure ends the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for item in pending:
                group.create_task(item)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors.exceptions[0].__cause__
