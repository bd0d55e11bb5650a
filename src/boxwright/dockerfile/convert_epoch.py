"""``SOURCE_DATE_EPOCH``: a number, or where to take the date from."""

from __future__ import annotations

from dataclasses import replace

from boxwright.dockerfile.contexts import BuildContexts, archive_newest_mtime
from boxwright.dockerfile.options import BuildOptions
from boxwright.dockerfile.syntax import Dockerfile
from boxwright.llb.build_env import EnvList

_KEY = "SOURCE_DATE_EPOCH"


async def resolve_epoch(
    build: BuildOptions, args: EnvList, parsed: Dockerfile, contexts: BuildContexts | None
) -> tuple[BuildOptions, EnvList, int | None]:
    """Stub."""
    value = build.build_args.get(_KEY, args.get(_KEY) or "")
    if not value:
        return build, args, None
    return build, args, int(value)
