"""The Dockerfile frontend: options and contexts in, solved refs and image configs out."""

from __future__ import annotations

import asyncio

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, replace
from boxwright.core.platform import Platform
from boxwright.core.workers import to_worker
from boxwright.dockerfile.bridge import (
    Announcer,
    FrontendBridge,
    FrontendRef,
    FrontendResult,
    MetaResolver,
    OciStore,
    ResolvedImage,
    ScanResult,
    ScanTarget,
)
from boxwright.dockerfile.contexts import BuildContexts, Entrypoint
from boxwright.dockerfile.convert import Converted, ConvertOptions, convert
from boxwright.dockerfile.convert_base import run_all
from boxwright.dockerfile.directives import detect_syntax
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.lint import LintWarning
from boxwright.dockerfile.options import parse_options
from boxwright.dockerfile.sbom import CORE_NAME, Scanner, find_scanner
from boxwright.dockerfile.syntax import Range
from boxwright.errors import BoxwrightError, UnimplementedError
from boxwright.llb.marshal import SourceRange
from boxwright.llb.state import State
from boxwright.wire import errdetails
from boxwright.wire.pb import errdefs_pb2

CONFIG_KEY = "containerimage.config"
BASE_CONFIG_KEY = "containerimage.base.config"
PLATFORMS_KEY = "refs.platforms"
EPOCH_KEY = "source.date.epoch"
_OWN_SYNTAX = ("docker/dockerfile", "docker.io/docker/dockerfile")
_CAPS = frozenset(
    f"moby.buildkit.frontend.{name}"
    for name in ("inputs", "subrequests", "contexts", "gitquerystring")
)


async def build(bridge: FrontendBridge) -> FrontendResult:
    """Run the frontend.

    Returns:
        The refs and, in the metadata, the image configs; for a subrequest its result.

    Raises:
        BoxwrightError: what is wrong with the options, contexts, Dockerfile or images.
            Errors with a place in the Dockerfile carry it in ``rpc_details``, an
            ``errdefs.Source`` for the wire.
    """
    worker = bridge.worker_platforms[0] if bridge.worker_platforms else Platform.host()
    options = parse_options(bridge.opts, worker)
    forward, caps_error = _check_caps(bridge.opts.get("frontend.caps", ""))
    if caps_error is not None and not forward:
        raise caps_error
    contexts = BuildContexts(bridge, options)
    entrypoint = await contexts.read_entrypoint()
    try:
        forwarded = await _other_syntax(bridge, entrypoint)
        if forwarded is not None:
            return forwarded
        if caps_error is not None:
            raise caps_error
        warnings = _WarningSink(bridge, entrypoint)
        run = ConvertOptions(
            options,
            _ResolveOnce(bridge),
            contexts,
            entrypoint.source_map,
            caps=bridge.llb_caps,
            on_warning=warnings.add,
        )
        if "requestid" in bridge.opts:
            try:
                from boxwright.dockerfile import subrequests

                return await subrequests.answer(bridge.opts["requestid"], run)
            finally:
                await warnings.flush()
        return await _Build(bridge, run, warnings).run()
    except BoxwrightError as error:
        _attach_source(error, entrypoint)
        raise


def _check_caps(text: str) -> tuple[bool, BoxwrightError | None]:
    """Return whether an unknown capability may be left to another frontend, and the error."""
    for item in text.split(",") if text else ():
        name, _, action = item.partition("+")
        if name not in _CAPS:
            error = UnimplementedError(f"unsupported frontend capability {name}")
            detail = errdetails.pack(errdefs_pb2.FrontendCap(name=name))
            error.__dict__["rpc_details"] = [detail]
            return action == "forward", error
    return False, None


async def _other_syntax(bridge: FrontendBridge, entry: Entrypoint) -> FrontendResult | None:
    """Hand over to the frontend that the file or a build argument names, if not this one."""
    if "cmdline" in bridge.opts:
        return None
    override = bridge.opts.get("build-arg:BUILDKIT_SYNTAX")
    ranges: tuple[Range, ...] = ()
    if override is not None:
        command = override
    else:
        directive = detect_syntax(entry.source_map.data)
        if directive is None:
            return None
        command, ranges = directive.value, directive.ranges
    source = command.strip().partition(" ")[0]
    if is_own_syntax(source):
        if isinstance(bridge, Announcer):
            await bridge.announce(f"[internal] {source} is built in, no frontend image is pulled")
        return None
    try:
        return await bridge.forward(source, {**bridge.opts, "cmdline": command, "source": source})
    except BoxwrightError as error:
        if ranges:
            error.__dict__.setdefault("source_ranges", ranges)
        raise


def is_own_syntax(source: str) -> bool:
    """Return whether a ``# syntax`` names the language that is built in.

    That is every version of Docker's official frontend; no image is pulled for it.
    """
    name = source.partition("@")[0]
    head, colon, tail = name.rpartition(":")
    return (head if colon and "/" not in tail else name) in _OWN_SYNTAX


class _ResolveOnce:
    """Looks up each image once per build, however many stages and platforms use it."""

    def __init__(self, resolver: MetaResolver) -> None:
        self._resolver = resolver
        self._answers: dict[tuple[object, ...], ResolvedImage | BoxwrightError] = {}
        self._locks: dict[tuple[object, ...], asyncio.Lock] = {}

    async def resolve_image_config(
        self,
        ref: str,
        *,
        platform: Platform | None,
        resolve_mode: str,
        log_name: str,
        store: OciStore | None = None,
    ) -> ResolvedImage:
        key = (ref, platform, resolve_mode, log_name, store)
        async with self._locks.setdefault(key, asyncio.Lock()):
            answer = self._answers.get(key)
            if answer is None:
                try:
                    answer = await self._resolver.resolve_image_config(
                        ref,
                        platform=platform,
                        resolve_mode=resolve_mode,
                        log_name=log_name,
                        store=store,
                    )
                except BoxwrightError as error:
                    answer = error
                self._answers[key] = answer
        if isinstance(answer, BoxwrightError):
            raise answer
        return answer


class _WarningSink:
    """Collects the linter's findings, which come while nothing can be awaited."""

    def __init__(self, bridge: FrontendBridge, entry: Entrypoint) -> None:
        self._bridge = bridge
        self._entry = entry
        self._pending: list[LintWarning] = []

    def add(self, warning: LintWarning) -> None:
        self._pending.append(warning)

    async def flush(self) -> None:
        pending, self._pending = self._pending, []
        for warning in pending:
            await self._bridge.warn(
                self._entry.vertex,
                warning.short(),
                level=1,
                detail=[warning.description.encode()],
                url=warning.url,
                source=self._entry.source_map.to_pb(),
                ranges=[item.to_pb() for item in source_ranges(warning.ranges)],
            )


@dataclass(frozen=True, slots=True)
class _Solved:
    converted: Converted
    ref: FrontendRef | None
    platform: Platform


class _Build:
    """One ordinary build: convert and solve for every platform, then put together."""

    def __init__(
        self, bridge: FrontendBridge, options: ConvertOptions, warnings: _WarningSink
    ) -> None:
        self._bridge = bridge
        self._options = options
        self._warnings = warnings

    async def run(self) -> FrontendResult:
        scanner = await self._scanner()
        targets = self._options.build.target_platforms or (None,)
        solved: list[_Solved | None] = [None] * len(targets)

        async def one(number: int, platform: Platform | None) -> None:
            solved[number] = await self._solve(platform, first=number == 0)

        await run_all([one(number, platform) for number, platform in enumerate(targets)])
        done = [item for item in solved if item is not None]
        result = self._put_together(done)
        if self._options.build.sbom is not None:
            await run_all([self._scan(item, scanner, result) for item in done])
        return result

    async def _scanner(self) -> Scanner | None:
        """Look up the scanner image that is asked for; None if the engine is to scan."""
        build = self._options.build
        if build.sbom is None or not build.sbom.generator:
            return None
        platform = build.build_platforms[0] if build.build_platforms else Platform.host()
        return await find_scanner(
            self._bridge,
            build.sbom.generator,
            build.sbom.parameters,
            platform,
            build.resolve_mode,
        )

    async def _scan(self, item: _Solved, scanner: Scanner | None, result: FrontendResult) -> None:
        """Add the bills of materials of one platform, and of what is scanned besides."""
        key = str(item.platform.normalized())
        scans = result.scans.setdefault(key, [])
        converted = item.converted
        if scanner is not None:
            out = scanner.scan(
                key,
                converted.state,
                converted.scan_targets,
                ignore_cache=converted.ignore_cache,
            )
            scans.append(ScanResult(await self._solve_state(out, converted)))
            return
        scans.append(ScanTarget(CORE_NAME, item.ref, is_core=True))
        for name in sorted(converted.scan_targets):
            ref = await self._solve_state(converted.scan_targets[name], converted)
            scans.append(ScanTarget(f"{CORE_NAME}-{name}", ref))

    async def _solve_state(self, state: State, converted: Converted) -> FrontendRef | None:
        definition = await to_worker(state.marshal, converted.platform, converted.caps)
        return await self._bridge.solve(definition)

    async def _solve(self, platform: Platform | None, *, first: bool) -> _Solved:
        build = self._options.build
        options = replace(
            self._options,
            build=replace(build, build_args=build.build_args.copy()),
            target_platform=platform,
            on_warning=self._options.on_warning if first else None,
        )
        try:
            converted = await convert(self._options_source(), options)
        finally:
            if first:
                await self._warnings.flush()
        definition = await to_worker(converted.marshal)
        ref = await self._bridge.solve(definition, cache_imports=build.cache_imports)
        return _Solved(converted, ref, platform or Platform.host())

    def _options_source(self) -> bytes:
        assert self._options.source_map is not None
        return self._options.source_map.data

    def _put_together(self, solved: list[_Solved]) -> FrontendResult:
        result = FrontendResult()
        platforms = []
        for item in solved:
            platform = item.platform.normalized()
            key = str(platform)
            exported = _exported_platform(platform, item.converted.image.platform)
            platforms.append({"ID": key, "Platform": exported.to_json()})
            suffix = ""
            if self._options.build.multi_platform:
                result.refs[key] = item.ref
                suffix = f"/{key}"
            else:
                result.ref = item.ref
            result.metadata[CONFIG_KEY + suffix] = item.converted.image.encode()
            if item.converted.base_image is not None:
                result.metadata[BASE_CONFIG_KEY + suffix] = item.converted.base_image.encode()
            if item.converted.epoch is not None:
                result.metadata[EPOCH_KEY + suffix] = str(item.converted.epoch).encode()
        result.metadata[PLATFORMS_KEY] = gojson.encode({"Platforms": platforms})
        return result


def _exported_platform(platform: Platform, image: Platform) -> Platform:
    """Return the platform for the index; Windows takes its version from the base image."""
    if platform.os != "windows" or image.os != "windows":
        return platform
    return replace(
        platform,
        os_version=platform.os_version or image.os_version,
        os_features=platform.os_features or image.os_features,
    ).normalized()


def source_ranges(ranges: tuple[Range, ...]) -> list[SourceRange]:
    """Return lines and columns as they go over the wire."""
    return [
        SourceRange(item.start.line, item.start.column, item.end.line, item.end.column)
        for item in ranges
    ]


def _attach_source(error: BoxwrightError, entry: Entrypoint) -> None:
    """Give an error the typed detail from which clients show the excerpt."""
    ranges: tuple[Range, ...] = getattr(error, "source_ranges", ())
    if isinstance(error, DockerfileError):
        error.located(filename=entry.source_map.filename, source=entry.source_map.data)
        ranges = _with_focus(error.ranges, error.focus)
    if ranges:
        source = errdefs_pb2.Source(
            info=entry.source_map.to_pb(),
            ranges=[item.to_pb() for item in source_ranges(ranges)],
        )
        details = error.__dict__.setdefault("rpc_details", [])
        details.append(errdetails.pack(source))


def _with_focus(ranges: tuple[Range, ...], focus: Range | None) -> tuple[Range, ...]:
    """Return ``ranges`` with the columns of the words at fault on their line.

    Stock clients mark whole lines and ignore columns; ours puts a marker under the words.
    """
    if focus is None:
        return ranges
    return tuple(
        focus if item.start.line == focus.start.line == item.end.line else item for item in ranges
    )
