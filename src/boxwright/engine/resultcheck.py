"""Whether a result is for the platforms that were asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.oci.platforms import PLATFORMS_KEY, parse_platforms


def platform_warnings(
    options: Mapping[str, str], metadata: Mapping[str, bytes], refs: int, *, is_map: bool
) -> list[str]:
    """Compare the frontend's option ``platform`` with what it has returned.

    A frontend may ignore the option, or misspell a platform; the image would look right until it
    is run somewhere.

    Args:
        options: The frontend's options.
        metadata: Of the result.
        refs: How many trees the result has.
        is_map: Whether they are named.

    Raises:
        InvalidInputError: the result's own platforms are malformed.
    """
    if PLATFORMS_KEY not in metadata:
        if is_map:
            raise InvalidInputError(
                "build result contains multiple refs without platforms mapping"
            )
        if not refs:
            return []
    made = [each.platform.normalized() for each in parse_platforms(metadata)]
    texts = options["platform"].split(",") if "platform" in options else [str(Platform.host())]
    wanted, warnings = _requested(texts)
    if warnings:
        return warnings
    if len(wanted) == 1 and len(made) == 1:
        if _is_one_of(made[0], wanted):
            return []
        return [
            f'Requested platform "{texts[0]}" does not match result platform "{made[0]}"',
        ]
    if not is_map and len(wanted) > 1:
        return ["Multiple platforms requested but result is not multi-platform"]
    if len(wanted) == len(made) and all(each in wanted for each in made):
        return []
    return [f"Requested platforms {_listed(wanted)} do not match result platforms {_listed(made)}"]


def _requested(texts: Sequence[str]) -> tuple[list[Platform], list[str]]:
    wanted: list[Platform] = []
    warnings: list[str] = []
    for text in texts:
        try:
            platform = Platform.parse(text).normalized()
        except InvalidInputError as error:
            warnings.append(f'Invalid platform result requested "{text}": {error.brief}')
            continue
        if platform in wanted:
            warnings.append(f'Duplicate platform result requested "{text}"')
        else:
            wanted.append(platform)
    return wanted, warnings


def _is_one_of(made: Platform, wanted: Sequence[Platform]) -> bool:
    """Return whether a platform was asked for; no version asked for is any."""
    return any(
        (each.os, each.architecture, each.variant) == (made.os, made.architecture, made.variant)
        and each.os_version in {"", made.os_version}
        for each in wanted
    )


def _listed(platforms: Sequence[Platform]) -> str:
    return ",".join(sorted(map(str, platforms)))
