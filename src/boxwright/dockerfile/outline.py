"""The outline of a target: arguments, secrets and ssh agents it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from boxwright.core.dataclass import dataclass
from boxwright.dockerfile.convert_stage import OutlineCapture, RequiredInput, StageState
from boxwright.dockerfile.syntax import Range


def location_json(ranges: tuple[Range, ...]) -> dict[str, Any]:
    """Return ``pb.Location`` as JSON, without zeros."""
    return {
        "ranges": [
            {
                "start": _position(item.start.line, item.start.column),
                "end": _position(item.end.line, item.end.column),
            }
            for item in ranges
        ]
    }


def _position(line: int, character: int) -> dict[str, int]:
    out = {"line": line, "character": character}
    return {key: value for key, value in out.items() if value}


@dataclass(frozen=True, slots=True)
class OutlineItem:
    """One row: an argument, or a secret or ssh agent (``required``)."""

    name: str
    ranges: tuple[Range, ...]
    description: str = ""
    value: str = ""
    required: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object, without empty fields."""
        out: dict[str, Any] = {"name": self.name}
        for key in ("description", "value", "required"):
            if getattr(self, key):
                out[key] = getattr(self, key)
        if self.ranges:
            out["location"] = location_json(self.ranges)
        return out


def arguments(stage: StageState) -> list[OutlineItem]:
    """Return the arguments that the stage or what it is built from uses, by line."""
    out: dict[str, OutlineItem] = {}
    for item in _below(stage):
        for name in _with_dependencies(item.outline):
            info = item.outline.all_args.get(name)
            if info is not None and name not in out:
                out[name] = OutlineItem(
                    info.definition.key, info.ranges, info.definition.doc_comment, info.value
                )
    return _by_line(out)


def secrets(stage: StageState) -> list[OutlineItem]:
    """Return the secrets that are mounted, by line."""
    return _inputs(stage, lambda outline: outline.secrets)


def ssh_agents(stage: StageState) -> list[OutlineItem]:
    """Return the ssh agents that are mounted, by line."""
    return _inputs(stage, lambda outline: outline.ssh)


def _inputs(
    stage: StageState, pick: Callable[[OutlineCapture], dict[str, RequiredInput]]
) -> list[OutlineItem]:
    out: dict[str, OutlineItem] = {}
    for item in _below(stage):
        for name, info in pick(item.outline).items():
            out.setdefault(name, OutlineItem(name, info.ranges, required=info.required))
    return _by_line(out)


def _by_line(items: dict[str, OutlineItem]) -> list[OutlineItem]:
    return sorted(items.values(), key=lambda item: item.ranges[0].start.line if item.ranges else 0)


def _below(stage: StageState) -> Iterator[StageState]:
    """Yield the stage, what it starts from and what it reads, depth first."""
    seen: set[StageState] = set()
    stack = [stage]
    while stack:
        item = stack.pop()
        if item in seen:
            continue
        seen.add(item)
        yield item
        stack.extend(reversed(item.deps))
        if item.base is not None:
            stack.append(item.base)


def _with_dependencies(outline: OutlineCapture) -> list[str]:
    out: dict[str, None] = {}
    stack = list(reversed(outline.used_args))
    while stack:
        name = stack.pop()
        if name in out:
            continue
        out[name] = None
        if name in outline.all_args:
            stack.extend(sorted(outline.all_args[name].deps))
    return list(out)
