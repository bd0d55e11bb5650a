"""``FROM --platform``: platforms as they are written, which is not always their normal form."""

from __future__ import annotations

from dataclasses import replace

from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError


def parse_written(text: str) -> Platform:
    """Parse a platform, keeping what vertices of such stages carry on the wire.

    The variant that an architecture has by default is left out where it was not written
    (``linux/arm``), and is kept where it was (``linux/arm64/v8``). These values are part of
    vertex digests and so of what builds share.

    Raises:
        InvalidInputError: no platform.
    """
    if text == "local":
        raise InvalidInputError("unknown operating system or architecture", detail=repr(text))
    platform = Platform.parse(text)
    explicit = text.count("/") == 2
    if platform.architecture == "arm" and platform.variant == "v7" and not explicit:
        return replace(platform, variant="")
    if platform.architecture == "arm64" and not platform.variant and explicit:
        return replace(platform, variant="v8")
    return platform
