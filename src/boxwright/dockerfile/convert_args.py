"""Arguments: predefined ones, those above the first FROM, and proxies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from boxwright.core.platform import Platform
from boxwright.dockerfile.convert_stage import ArgInfo
from boxwright.dockerfile.dispatch_context import located
from boxwright.dockerfile.expand import expand
from boxwright.dockerfile.syntax import Arg
from boxwright.llb.build_env import EnvList
from boxwright.llb.exec_op import ProxyEnv


def default_arguments(
    build: Platform, target: Platform, given: Mapping[str, str], stage: str
) -> EnvList:
    """Return the arguments every FROM may use without declaring them.

    Args:
        build: The platform that steps run on.
        target: The platform the result is for.
        given: The build's arguments; they may override.
        stage: The name of the target stage.
    """
    predefined = {
        "BUILDPLATFORM": str(replace(build, os_version="", os_features=())),
        "BUILDOS": build.os,
        "BUILDOSVERSION": build.os_version,
        "BUILDARCH": build.architecture,
        "BUILDVARIANT": build.variant,
        "TARGETPLATFORM": str(target),
        "TARGETOS": target.os,
        "TARGETOSVERSION": target.os_version,
        "TARGETARCH": target.architecture,
        "TARGETVARIANT": target.variant,
        "TARGETSTAGE": stage,
    }
    return EnvList((key, given.get(key, value)) for key, value in predefined.items())


def base_arguments(
    commands: tuple[Arg, ...], env: EnvList, given: Mapping[str, str], escape: str
) -> tuple[EnvList, dict[str, ArgInfo]]:
    """Evaluate the ARGs above the first FROM.

    Returns:
        ``env`` with them added, and what the outline shows of each.

    Raises:
        DockerfileError: a default that can't be expanded.
    """
    infos: dict[str, ArgInfo] = {}
    for command in commands:
        for arg in command.args:
            value, deps = arg.value, frozenset[str]()
            if arg.key in given:
                value = given[arg.key]
            elif value is not None:
                with located(command.ranges):
                    result = expand(value, env, escape=escape)
                value, deps = result.text, frozenset(result.matched)
                if arg.key in deps:
                    # It extends its former value and so depends on what that depended on.
                    former = infos[arg.key].deps if arg.key in infos else frozenset()
                    deps = deps - {arg.key} | former
            if value is not None:
                env = env.set(arg.key, value)
            definition = replace(arg, value=value)
            infos[arg.key] = ArgInfo(definition, command.ranges, value or "", deps)
    return env, infos


def proxy_environment(given: Mapping[str, str]) -> ProxyEnv | None:
    """Return the proxy variables among the build's arguments, in whatever case."""
    names = {"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"}
    found = {key.lower(): given[key] for key in sorted(given) if key.lower() in names}
    return ProxyEnv(**found) if found else None
