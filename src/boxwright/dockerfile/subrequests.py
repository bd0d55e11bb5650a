"""Subrequests: questions about a Dockerfile that need no build (``docker buildx build --call``).

Answers are metadata: ``result.json``, mostly ``result.txt`` for people, and the version of
the answer's format.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, replace
from boxwright.core.digest import Digest
from boxwright.dockerfile import outline
from boxwright.dockerfile.bridge import FrontendResult
from boxwright.dockerfile.convert import ConvertOptions, convert
from boxwright.dockerfile.errors import DockerfileError, render_excerpt
from boxwright.dockerfile.lint import LintWarning
from boxwright.dockerfile.outline import OutlineItem, location_json
from boxwright.dockerfile.parser import parse_dockerfile
from boxwright.dockerfile.syntax import Position, Range
from boxwright.errors import BoxwrightError, UnimplementedError
from boxwright.llb.marshal import SourceMap
from boxwright.wire import errdetails
from boxwright.wire.pb import errdefs_pb2
from boxwright.wire.pb import ops_pb2 as pb

_JSON = {"name": "result.json", "description": ""}
_TEXT = {"name": "result.txt", "description": ""}


@dataclass(frozen=True, slots=True)
class Definition:
    """What ``frontend.subrequests.describe`` says about a subrequest."""

    name: str
    version: str
    description: str
    opts: list[dict[str, str]] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "name": self.name,
            "version": self.version,
            "type": "rpc",
            "description": self.description,
            "opts": self.opts,
            "inputs": None,
            "metadata": [_JSON, _TEXT],
            "refs": None,
        }


OUTLINE = Definition(
    "frontend.outline",
    "1.0.0",
    "List all parameters current build target supports",
    [{"name": "target", "description": "Target build stage"}],
)
TARGETS = Definition("frontend.targets", "1.0.0", "List all targets current build supports", [])
LINT = Definition("frontend.lint", "1.0.0", "Lint a Dockerfile", [])
CONVERT_LLB = Definition("frontend.convertllb", "0.1.0", "Convert Dockerfile to LLB", [])
DESCRIBE = Definition("frontend.subrequests.describe", "1.0.0", "List available subrequest types")
# Lint and convertllb answer too, but are not in the list that clients know.
_DESCRIBED = (OUTLINE, TARGETS, DESCRIBE)


async def answer(request: str, options: ConvertOptions) -> FrontendResult:
    """Answer a subrequest.

    Args:
        request: Its name (``frontend.outline`` …).
        options: As for a build; they hold the Dockerfile.

    Raises:
        UnimplementedError: no such subrequest.
        BoxwrightError: the Dockerfile can't be converted (not for lint, which reports it).
    """
    source = options.source_map
    assert source is not None
    match request:
        case DESCRIBE.name:
            return _describe()
        case OUTLINE.name:
            return await _outline(source, options)
        case TARGETS.name:
            return _targets(source)
        case LINT.name:
            return await _lint(source, options)
        case CONVERT_LLB.name:
            return await _convert_llb(source, options)
    error = UnimplementedError(f"unsupported request {request}")
    detail = errdetails.pack(errdefs_pb2.Subrequest(name=request))
    error.__dict__["rpc_details"] = [detail]
    raise error


def _result(definition: Definition, data: Any, text: str | None = None) -> FrontendResult:  # noqa: ANN401
    metadata = {"result.json": gojson.encode(data, indent=2)}
    if text is not None:
        metadata["result.txt"] = text.encode("utf-8", "replace")
    metadata["version"] = definition.version.encode()
    return FrontendResult(metadata=metadata)


def table(rows: Sequence[Sequence[str]], padding: int) -> str:
    """Return rows in columns, ``padding`` blanks between the widest cells."""
    widths = [max(map(len, column)) + padding for column in zip(*rows, strict=True)][:-1]
    lines = [
        "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)) + row[-1]
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _describe() -> FrontendResult:
    rows = [["NAME", "VERSION", "DESCRIPTION"]]
    rows += [[d.name.removeprefix("frontend."), d.version, d.description] for d in _DESCRIBED]
    return _result(DESCRIBE, [item.to_json() for item in _DESCRIBED], table(rows, 1))


async def _outline(source: SourceMap, options: ConvertOptions) -> FrontendResult:
    stage = (await convert(source.data, options)).stage
    description = stage.stage.doc_comment if stage.stage is not None else ""
    found = {
        "args": outline.arguments(stage),
        "secrets": outline.secrets(stage),
        "ssh": outline.ssh_agents(stage),
    }
    data: dict[str, Any] = {"name": stage.name, "description": description}
    data |= {key: [item.to_json() for item in items] for key, items in found.items()}
    data["sources"] = [base64.b64encode(source.data).decode()]
    data = {key: value for key, value in data.items() if value}
    return _result(OUTLINE, data, _outline_text(stage.name, description, found))


def _outline_text(name: str, description: str, found: dict[str, list[OutlineItem]]) -> str:
    parts = []
    if name or description:
        rows = [["TARGET:", name or "(default)"]]
        if description:
            rows.append(["DESCRIPTION:", description])
        parts.append(table(rows, 1))
    if found["args"]:
        args = [[item.name, item.value, item.description] for item in found["args"]]
        parts.append(table([["BUILD ARG", "VALUE", "DESCRIPTION"], *args], 3))
    for key, title in (("secrets", "SECRET"), ("ssh", "SSH")):
        if found[key]:
            rows = [[item.name, "true" if item.required else ""] for item in found[key]]
            parts.append(table([[title, "REQUIRED"], *rows], 3))
    return "".join(f"{part}\n" for part in parts)


def _targets(source: SourceMap) -> FrontendResult:
    parsed = parse_dockerfile(source.data, filename=source.filename)
    targets = []
    rows = [["TARGET", "DESCRIPTION"]]
    for stage in parsed.stages:
        is_default = stage is parsed.stages[-1]
        fields = {
            "name": stage.name,
            "default": is_default,
            "description": stage.doc_comment,
            "base": stage.base,
            "platform": stage.platform,
            "location": location_json(stage.ranges),
        }
        targets.append({key: value for key, value in fields.items() if value})
        shown = f"{stage.name} (default)" if stage.name else "(default)"
        rows.append([shown if is_default else stage.name, stage.doc_comment])
    data = {"targets": targets, "sources": [base64.b64encode(source.data).decode()]}
    return _result(TARGETS, data, table(rows, 1))


async def _lint(source: SourceMap, options: ConvertOptions) -> FrontendResult:
    warnings: list[LintWarning] = []
    failure: BoxwrightError | None = None
    everything = options.all_stages or not options.build.target
    try:
        await convert(
            source.data, replace(options, on_warning=warnings.append, all_stages=everything)
        )
    except BoxwrightError as error:
        failure = error
    data: dict[str, Any] = {
        "warnings": [_warning_json(item) for item in warnings] or None,
        "sources": [message_json(source.to_pb())],
    }
    if failure is not None:
        data["buildError"] = {"message": str(failure), "location": _failure_location(failure)}
    result = _result(LINT, data, _lint_text(source, warnings))
    status = "1" if warnings or failure is not None else "0"
    result.metadata["result.statuscode"] = status.encode()
    return result


def _warning_json(item: LintWarning) -> dict[str, Any]:
    fields = {
        "ruleName": item.rule,
        "description": item.description,
        "url": item.url,
        "detail": item.message,
        "location": location_json(item.ranges) if item.ranges else {},
    }
    return {key: value for key, value in fields.items() if value or key == "location"}


def _failure_location(failure: BoxwrightError) -> dict[str, Any]:
    ranges: tuple[Range, ...] = (
        failure.ranges
        if isinstance(failure, DockerfileError)
        else getattr(failure, "source_ranges", ())
    )
    return location_json(merge_ranges(ranges)) if ranges else {}


def merge_ranges(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Return ranges by line, those that overlap made into one."""
    out: list[Range] = []
    for item in sorted(ranges, key=lambda item: item.start.line):
        if out and item.start.line <= out[-1].end.line:
            last = max(out[-1].end.line, item.end.line)
            out[-1] = Range(out[-1].start, Position(last, out[-1].end.column))
        else:
            out.append(item)
    return tuple(out)


def _lint_text(source: SourceMap, warnings: list[LintWarning]) -> str:
    parts = []
    for item in sorted(warnings, key=lambda w: w.ranges[0].start.line if w.ranges else 0):
        link = f" - {item.url}" if item.url else ""
        parts.append(f"\nWARNING: {item.rule}{link}\n{item.message}\n")
        parts.append(render_excerpt(source.data, item.ranges, None, source.filename))
    return "".join(parts)


async def _convert_llb(source: SourceMap, options: ConvertOptions) -> FrontendResult:
    definition = (await convert(source.data, options)).marshal()
    ops = {Digest.of(data): pb.Op.FromString(data) for data in getattr(definition, "def")}
    data = {
        "def": {key: json_format.MessageToDict(ops[key]) for key in sorted(ops)},
        "metadata": {
            key: message_json(definition.metadata[key]) for key in sorted(definition.metadata)
        },
        "source": json_format.MessageToDict(definition.Source),
    }
    return _result(CONVERT_LLB, data)


def message_json(message: Message) -> dict[str, Any]:
    """Return a message as Go's plain JSON encoder writes it: wire names, no zeros."""
    out: dict[str, Any] = {}
    for item, value in message.ListFields():
        kind = item.message_type
        if kind is not None and kind.GetOptions().map_entry:
            inner = kind.fields_by_name["value"]
            out[item.name] = {key: _plain(inner, value[key]) for key in sorted(value)}
        elif item.is_repeated:
            out[item.name] = [_plain(item, entry) for entry in value]
        else:
            out[item.name] = _plain(item, value)
    return out


def _plain(item: FieldDescriptor, value: Any) -> Any:  # noqa: ANN401 - JSON values
    if item.type == FieldDescriptor.TYPE_MESSAGE:
        return message_json(value)
    if item.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    return value
