"""Frontend options: the flat strings of a Solve request, as typed values.

Keys and formats are those of the wire (``FrontendOpt`` of the Dockerfile frontend).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping

from boxwright.core.dataclass import dataclass, field
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.dockerfile.bridge import CacheImport
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.golang import parse_bool, parse_int
from boxwright.dockerfile.instructions_run import split_fields
from boxwright.dockerfile.lint import LintConfig
from boxwright.errors import InvalidInputError
from boxwright.llb.marshal import LinuxResources
from boxwright.llb.source_op import ResolveMode
from boxwright.llb.state import HostIP, NetMode, Ulimit

BUILD_ARG = "build-arg:"
_MAX_CPU = 8192
_ULIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending"
    " stack".split()
)


@dataclass(frozen=True, slots=True)
class Sbom:
    """The image that makes the bill of materials, or empty for the engine; its parameters."""

    generator: str
    parameters: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What a build was asked for.

    Attributes:
        target_platforms: Empty for the worker's own.
        multi_platform: Whether results are keyed by platform, even a single one.
        no_cache: None: use the cache; empty: nowhere; else not for these stages.
        lint: From the build option; None leaves it to the Dockerfile.
        shm_size: In bytes; 0 for the default.
        session_ids: The session of a local directory, by the directory's name, where it is
            not the build's own.
    """

    build_args: dict[str, str] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)
    target: str = ""
    target_platforms: tuple[Platform, ...] = ()
    build_platforms: tuple[Platform, ...] = ()
    multi_platform: bool = False
    resolve_mode: ResolveMode = "default"
    network: NetMode = "sandbox"
    hostname: str = ""
    extra_hosts: tuple[HostIP, ...] = ()
    shm_size: int = 0
    ulimits: tuple[Ulimit, ...] = ()
    resources: LinuxResources | None = None
    cgroup_parent: str = ""
    cache_namespace: str = ""
    cache_imports: tuple[CacheImport, ...] = ()
    no_cache: tuple[str, ...] | None = None
    lint: LintConfig | None = None
    sbom: Sbom | None = None
    session_ids: dict[str, str] = field(default_factory=dict)

    def ignores_cache(self, stage: str) -> bool:
        """Return whether the stage is to be built without the cache."""
        if self.no_cache is None:
            return False
        return not self.no_cache or stage.lower() in {name.lower() for name in self.no_cache}


def parse_options(opts: Mapping[str, str], worker: Platform) -> BuildOptions:
    """Read all frontend options.

    Args:
        opts: As they came.
        worker: The platform that builds run on.

    Raises:
        InvalidInputError: naming the option and its value.
    """
    _refuse_removed(opts)
    build_args = with_prefix(opts, BUILD_ARG)
    platforms = _platforms(opts.get("platform", ""))
    lint = build_args.get("BUILDKIT_DOCKERFILE_CHECK")
    return BuildOptions(
        build_args=build_args,
        labels=with_prefix(opts, "label:"),
        target=opts.get("target", ""),
        target_platforms=platforms,
        build_platforms=(worker,),
        multi_platform=_multi_platform(opts, len(platforms)),
        resolve_mode=_resolve_mode(opts.get("image-resolve-mode", "")),
        network=_network(opts.get("force-network-mode", "")),
        hostname=build_args.get("BUILDKIT_SANDBOX_HOSTNAME") or opts.get("hostname", ""),
        extra_hosts=_extra_hosts(opts.get("add-hosts", "")),
        shm_size=_shm_size(opts),
        ulimits=_ulimits(opts.get("ulimit", "")),
        resources=_resources(opts),
        cgroup_parent=opts.get("cgroup-parent", ""),
        cache_namespace=build_args.get("BUILDKIT_CACHE_MOUNT_NS", ""),
        cache_imports=_cache_imports(opts),
        no_cache=_no_cache(opts.get("no-cache")),
        lint=None if lint is None else LintConfig.parse(lint),
        sbom=_sbom(opts),
        session_ids=with_prefix(opts, "local-sessionid:"),
    )


def with_prefix(opts: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Return the options whose key has the prefix, without it."""
    return {
        key.removeprefix(prefix): value for key, value in opts.items() if key.startswith(prefix)
    }


def _refuse_removed(opts: Mapping[str, str]) -> None:
    if opts.get("override-copy-image"):
        raise InvalidInputError(
            "the option override-copy-image is no longer supported",
            hint="leave it out: files are copied without a helper image",
        )
    if _is_true(opts.get("build-arg:BUILDKIT_DISABLE_FILEOP", "")):
        raise InvalidInputError(
            "the build argument BUILDKIT_DISABLE_FILEOP is no longer supported",
            hint="leave it out: files are copied without a helper image",
        )


def _is_true(text: str) -> bool:
    try:
        return parse_bool(text)
    except ValueError:
        return False


def _platforms(text: str) -> tuple[Platform, ...]:
    out = []
    for part in text.split(",") if text else ():
        try:
            out.append(Platform.parse(part).normalized())
        except InvalidInputError as error:
            raise InvalidInputError(
                f"failed to parse target platform {part}", detail=str(error), hint=error.hint
            ) from error
    return tuple(out)


def _multi_platform(opts: Mapping[str, str], count: int) -> bool:
    text = opts.get("build-arg:BUILDKIT_MULTI_PLATFORM") or opts.get("multi-platform", "")
    if not text:
        return count > 1
    try:
        wanted = parse_bool(text)
    except ValueError:
        raise InvalidInputError(f"invalid boolean value for multi-platform: {text}") from None
    if not wanted and count > 1:
        raise InvalidInputError(
            "conflicting config: returning multiple target platforms is not allowed"
        )
    return wanted


def _resolve_mode(text: str) -> ResolveMode:
    match text:
        case "" | "default":
            return "default"
        case "pull":
            return "pull"
        case "local":
            return "local"
    raise InvalidInputError(f"invalid image-resolve-mode: {text}", hint="use default, pull, local")


def _network(text: str) -> NetMode:
    match text:
        case "" | "sandbox":
            return "sandbox"
        case "none":
            return "none"
        case "host":
            return "host"
    raise InvalidInputError(f"invalid netmode {text}", hint="use sandbox, none or host")


def _fields(option: str, text: str) -> list[str]:
    if not text:
        return []
    try:
        return split_fields(text)
    except DockerfileError as error:
        raise InvalidInputError(f"failed to parse {option}", detail=error.brief) from error


def _extra_hosts(text: str) -> tuple[HostIP, ...]:
    out = []
    for item in _fields("add-hosts", text):
        host, equals, address = item.lower().partition("=")
        if not equals:
            raise InvalidInputError(
                "failed to parse additional hosts", detail=f"invalid key-value pair {item}"
            )
        out.append(HostIP(host, _address(address)))
    return tuple(out)


def _address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text:
        raise InvalidInputError(
            "failed to parse additional hosts", detail=f"failed to parse IP {text}"
        )
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return str(address)


def _ulimits(text: str) -> tuple[Ulimit, ...]:
    return tuple(_ulimit(item) for item in _fields("ulimit", text))


def _ulimit(item: str) -> Ulimit:
    name, equals, value = item.partition("=")
    limits = value.split(":")
    if not equals or name not in _ULIMITS or len(limits) > 2:
        raise InvalidInputError(
            "failed to parse ulimit", detail=repr(item), hint="write name=soft[:hard]"
        )
    try:
        soft = parse_int(limits[0], bits=64)
        hard = parse_int(limits[-1], bits=64)
    except ValueError as exc:
        raise InvalidInputError("failed to parse ulimit", detail=str(exc)) from None
    if hard != -1 and (soft == -1 or soft > hard):
        raise InvalidInputError(
            "ulimit soft limit must be less than or equal to hard limit",
            detail=f"{soft} > {hard}",
        )
    return Ulimit(name, soft, hard)


def _number(opts: Mapping[str, str], key: str, *, minimum: int = 1) -> int:
    text = opts.get(key, "")
    if not text:
        return 0
    try:
        value = parse_int(text, bits=64)
    except ValueError as exc:
        raise InvalidInputError(f"invalid {key} value: {text}", detail=str(exc)) from None
    if value < minimum or value == 0:
        wanted = "must be -1 (unlimited) or > 0" if minimum < 0 else "must be > 0"
        raise InvalidInputError(f"invalid {key} value: {text}", detail=wanted)
    return value


def _shm_size(opts: Mapping[str, str]) -> int:
    try:
        return parse_int(opts.get("shm-size") or "0", bits=64)
    except ValueError as exc:
        raise InvalidInputError("failed to parse shm size", detail=str(exc)) from None


def _resources(opts: Mapping[str, str]) -> LinuxResources | None:
    out = LinuxResources(
        memory=_number(opts, "memory"),
        memory_swap=_number(opts, "memswap", minimum=-1),
        cpu_shares=_number(opts, "cpushares"),
        cpu_period=_number(opts, "cpuperiod"),
        cpu_quota=_number(opts, "cpuquota"),
        cpuset_cpus=_cpuset(opts, "cpusetcpus"),
        cpuset_mems=_cpuset(opts, "cpusetmems"),
    )
    return None if out == LinuxResources() else out


def _cpuset(opts: Mapping[str, str], key: str) -> str:
    text = opts.get(key, "")
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if not low and not dash:
            continue
        try:
            first = parse_int(low.strip(), bits=64)
            last = parse_int(high.strip(), bits=64) if dash else first
        except ValueError:
            first, last = 0, -1
        if not 0 <= first <= last <= _MAX_CPU:
            raise InvalidInputError(
                f"invalid {key} value: {text}", detail=f"invalid cpuset element {part.strip()!r}"
            )
    return text


def _no_cache(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    return tuple(text.split(",")) if text else ()


def _cache_imports(opts: Mapping[str, str]) -> tuple[CacheImport, ...]:
    out = []
    if text := opts.get("cache-imports", ""):
        try:
            for item in json.loads(text) or ():
                folded = {key.lower(): value for key, value in item.items()}
                attrs = {str(k): str(v) for k, v in (folded.get("attrs") or {}).items()}
                out.append(CacheImport(str(folded.get("type") or ""), attrs))
        except (ValueError, AttributeError, TypeError) as exc:
            raise InvalidInputError(
                "failed to unmarshal cache-imports", detail=f"{text!r}: {exc}"
            ) from exc
    if text := opts.get("cache-from", ""):
        out.extend(CacheImport("registry", {"ref": ref}) for ref in text.split(","))
    return tuple(out)


def parse_attestations(opts: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return the attributes of the attestations that are asked for, by ``sbom``, ``provenance``.

    Raises:
        InvalidInputError: another kind, or malformed attributes.
    """
    wanted: dict[str, str] = {}
    for prefix in ("attest:", "build-arg:BUILDKIT_ATTEST_"):
        wanted |= {key.lower(): value for key, value in with_prefix(opts, prefix).items()}
    for kind in wanted:
        if kind not in {"sbom", "provenance"}:
            raise InvalidInputError(f'unknown attestation type "{kind}"')
    return {
        kind: {key: value for key, _, value in (i.partition("=") for i in _fields(kind, text))}
        for kind, text in wanted.items()
    }


def _sbom(opts: Mapping[str, str]) -> Sbom | None:
    found = parse_attestations(opts).get("sbom")
    if found is None:
        return None
    attrs = dict(found)
    generator = attrs.pop("generator", None)
    if generator is None:
        return Sbom("", attrs)
    if not generator:
        raise InvalidInputError("sbom generator cannot be empty", hint="name an image")
    try:
        ref = Reference.parse(generator).with_default_tag()
    except InvalidInputError as error:
        raise InvalidInputError(
            f"failed to parse sbom scanner {generator}", detail=error.detail
        ) from error
    return Sbom(str(ref), attrs)
