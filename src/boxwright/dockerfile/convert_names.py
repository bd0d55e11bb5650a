"""Step names: ``[linux/amd64 build 3/7] RUN make``."""

from __future__ import annotations

from collections.abc import Mapping

from boxwright.core.platform import Platform
from boxwright.dockerfile.convert_stage import StageState
from boxwright.dockerfile.expand import ExpansionError, expand
from boxwright.errors import InvalidInputError


def upper_keyword(text: str) -> str:
    """Return an instruction with its keyword in upper case."""
    keyword, blank, rest = text.partition(" ")
    return keyword.upper() + blank + rest


def expanded(text: str, env: Mapping[str, str], escape: str, *, keep_quotes: bool = False) -> str:
    """Return an instruction with variables replaced, or as it is where that fails.

    With ``keep_quotes`` (RUN) quotes stay and unset variables too: the shell sees them.
    """
    try:
        result = expand(text, env, escape=escape, raw_quotes=keep_quotes, skip_unset=keep_quotes)
    except ExpansionError:
        return text
    return result.text


def step_name(
    stage: StageState, text: str, platform: Platform | None, env: Mapping[str, str]
) -> str:
    """Return the name of the stage's next step and count it."""
    if stage.command_total == 0:
        return text
    stage.command_index += 1
    return step_prefix(stage, platform, env) + ("ONBUILD " if stage.in_on_build else "") + text


def step_prefix(stage: StageState, platform: Platform | None, env: Mapping[str, str]) -> str:
    """Return the bracketed part of the present step's name."""
    out = "["
    if stage.prefix_platform and platform is not None:
        out += str(platform) + _cross(platform, platform_of(env)) + " "
    if stage.display_name:
        out += stage.display_name + " "
    total = str(stage.command_total)
    return out + f"{stage.command_index:>{len(total)}}/{total}] "


def _cross(base: Platform, target: Platform | None) -> str:
    """Return ``->arm64`` where a stage that runs on ``base`` builds for another platform."""
    if target is None:
        return ""
    target = Platform(
        target.os or base.os, target.architecture or base.architecture, target.variant
    ).normalized()
    if target.os != base.os:
        return f"->{target}"
    if target.architecture != base.architecture:
        return f"->{target.architecture}" + (f"/{target.variant}" if target.variant else "")
    return ""


def platform_of(env: Mapping[str, str]) -> Platform | None:
    """Return the platform that the ``TARGET…`` variables name, as far as a stage has them."""
    values = {"TARGETOS": "", "TARGETARCH": "", "TARGETVARIANT": ""}
    found = False
    for key, value in env.items():
        if key == "TARGETPLATFORM":
            try:
                return Platform.parse(value)
            except InvalidInputError:
                continue
        if key in values:
            values[key] = value
            found = True
    os, arch, variant = values.values()
    return Platform(os, arch, variant) if found else None


def summarize_heredoc(data: str) -> str:
    """Return the first line of a heredoc, with ``...`` where there are more."""
    first, newline, _ = data.strip().replace("\r\n", "\n").partition("\n")
    first = first.encode("utf-8", "replace").decode()
    return first + ("..." if newline else "")
