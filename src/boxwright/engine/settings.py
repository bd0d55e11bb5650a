"""What an engine is opened with: the configuration, made definite."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from boxwright.config.load import parse_disk_space, parse_duration_ns
from boxwright.config.schema import Config, OciWorkerConfig
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.engine.usage import PrunePolicy
from boxwright.errors import BoxwrightError, Code

_GB = 10**9
_TWO_DAYS_NS = 48 * 3600 * 10**9
_SIXTY_DAYS_NS = 60 * 24 * 3600 * 10**9


def default_root(environment: Mapping[str, str], *, is_root: bool) -> Path:
    """Return the state folder that is used when none is named."""
    named = environment.get("BOXWRIGHT_ROOT")
    if named:
        return Path(named)
    if is_root:
        return Path("/var/lib/boxwright")
    home = environment.get("HOME") or "/"
    return (
        Path(environment.get("XDG_DATA_HOME") or os.path.join(home, ".local/share")) / "boxwright"
    )


class OnlyFloorError(BoxwrightError):
    """Rules that say how much is kept, and none how much may be used.

    Such rules remove all that they may down to what they keep, which is hardly ever meant: in
    older versions of BuildKit, and under older names of the key, they were ceilings.
    """

    code = Code.INVALID

    def __init__(self, count: int) -> None:
        super().__init__(
            "the garbage collection rules are only floors",
            detail=f"{count} [[worker.oci.gcpolicy]] with reservedSpace (keepBytes), which is "
            "kept in any case; no rule says how much may be used",
            hint='add maxUsedSpace = "20GB" (a ceiling) or minFreeSpace = "10%" to a rule',
        )


@dataclass(frozen=True)
class EngineSettings:
    """Everything that an engine needs to know before it opens its state folder.

    ``keeps_provenance`` is for engines whose records clients read (``buildx history``).
    """

    root: Path
    config: Config = field(default_factory=Config)
    rootless: bool = False
    creator: str = ""
    config_path: Path | None = None
    keeps_provenance: bool = False


def _refuse_only_floors(rules: Sequence[PrunePolicy]) -> None:
    limited = any(
        rule.max_used_space or rule.min_free_space or rule.keep_duration_ns for rule in rules
    )
    if not limited and any(rule.reserved_space for rule in rules):
        raise OnlyFloorError(len(rules))


def gc_policies(worker: OciWorkerConfig, disk_bytes: int) -> list[PrunePolicy]:
    """Return the rules of garbage collection; BuildKit's default ones if none are configured.

    Its default limits hold where none is configured: ``reservedSpace`` alone is one, because a rule
    without a ceiling removes all that it may down to its floor.

    Raises:
        ConfigError: a size or duration can't be read.
        OnlyFloorError: no configured rule has a limit.
    """

    def size(value: str | int) -> int:
        return parse_disk_space(value, disk_bytes=disk_bytes)

    if worker.gc_policy:
        rules = [
            PrunePolicy(
                all=rule.all,
                filters=rule.filters,
                keep_duration_ns=parse_duration_ns(rule.keep_duration),
                reserved_space=size(rule.reserved_space) or size(rule.keep_bytes),
                max_used_space=size(rule.max_used_space),
                min_free_space=size(rule.min_free_space),
            )
            for rule in worker.gc_policy
        ]
        _refuse_only_floors(rules)
        return rules
    reserved, ceiling = size(worker.reserved_space), size(worker.max_used_space)
    free = size(worker.min_free_space)
    if not (reserved or ceiling or free):  # who says what may be used gets no other limits besides
        reserved = size(worker.gc_keep_storage)
    if not (reserved or ceiling or free):
        reserved = min(10 * _GB, size("10%"))
        ceiling, free = min(100 * _GB, size("80%")), size("20%")
    limited = PrunePolicy(reserved_space=reserved, max_used_space=ceiling, min_free_space=free)
    short_lived = PrunePolicy(
        filters=("type==source.local", "type==exec.cachemount", "type==source.git.checkout"),
        keep_duration_ns=_TWO_DAYS_NS,
        max_used_space=512 * 10**6,
    )
    return [
        short_lived,
        replace(limited, keep_duration_ns=_SIXTY_DAYS_NS),
        limited,
        replace(limited, all=True),
    ]
