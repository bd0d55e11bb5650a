"""The named parts of an op's share of its cache key: what a user would call what changed.

Pure. What is not in the key (proxy settings, addresses of extra hosts, session ids …) is no
part; see :mod:`boxwright.ops.cachemap`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.message import DecodeError

from boxwright.core.platform import Platform
from boxwright.llb.marshal import platform_from_pb
from boxwright.ops.cachemap import CacheMapError, exec_document, keyed_action, to_json
from boxwright.wire.pb import ops_pb2 as pb

Part = tuple[str, str]
"""What kind of part, and which one of its kind (a variable's name; empty if there is one)."""

IMAGE = "docker-image://"
LOCAL = "local://"
_META = {
    "cwd": "workdir",
    "user": "user",
    "hostname": "hostname",
    "cgroup_parent": "cgroup-parent",
}
_SESSION_ATTRIBUTES = frozenset({"local.session", "local.unique", "local.sharedkeyhint"})
_ALL_INPUTS = 1 << 30


def op_of(data: bytes) -> pb.Op | None:
    """Return a stored op; None if it was too large to be stored, or is damaged."""
    if not data:
        return None
    try:
        return pb.Op.FromString(data)
    except DecodeError:
        return None


def parts_of(op: pb.Op) -> dict[Part, str]:
    """Return all parts of an op's share of its key with their values as text."""
    match op.WhichOneof("op"):
        case "exec":
            return dict(_exec(op))
        case "file":
            return dict(_file(op.file))
        case "source":
            return dict(_source(op))
        case str(kind):
            return dict(_flat("option", kind, to_json(getattr(op, kind))))
    return {}


def _platform(op: pb.Op) -> Platform | None:
    return platform_from_pb(op.platform) if op.HasField("platform") else None


def _exec(op: pb.Op) -> Iterator[tuple[Part, str]]:
    document: dict[str, Any] = exec_document(op.exec, _platform(op) or Platform.host())
    names = (document["OS"], document["Arch"], document.get("Variant", ""))
    yield ("platform", ""), "/".join(name for name in names if name)
    command = document["Exec"]
    meta = command.pop("meta", {})
    yield ("command", ""), _command(meta.pop("args", []))
    for setting in meta.pop("env", []):
        name, _, value = setting.partition("=")
        yield ("env", name), value
    for field, kind in _META.items():
        if field in meta:
            yield (kind, ""), str(meta.pop(field))
    for mount in command.pop("mounts", []):
        yield ("mount", mount.get("dest", "")), _compact(mount)
    for variable in command.pop("secretenv", []):
        yield ("secret-env", variable.get("name", "")), _compact(variable)
    yield from _flat("option", "", meta)
    yield from _flat("option", "", command)


def _command(args: Sequence[str]) -> str:
    if len(args) == 3 and args[0] == "/bin/sh" and args[1] == "-c":
        return args[2]
    return shlex.join(args)


def _file(op: pb.FileOp) -> Iterator[tuple[Part, str]]:
    for number, action in enumerate(op.actions, 1):
        verb = str(action.WhichOneof("action"))
        try:
            keyed = to_json(keyed_action(action, _ALL_INPUTS, {}))
        except CacheMapError:
            continue
        name = verb if len(op.actions) == 1 else f"{verb} {number}"
        yield from _flat("option", name, keyed)
        shape = [action.input, action.secondaryInput, action.output]
        yield ("option", f"{name} inputs"), _compact(shape)


def _source(op: pb.Op) -> Iterator[tuple[Part, str]]:
    source = op.source
    kind = "image" if source.identifier.startswith(IMAGE) else "source"
    yield (kind, ""), source.identifier.removeprefix(IMAGE)
    for name, value in sorted(source.attrs.items()):
        if name not in _SESSION_ATTRIBUTES:
            yield ("attribute", name), value
    platform = _platform(op)
    if platform is not None and not source.identifier.startswith(LOCAL):
        yield ("platform", ""), str(platform)


def _flat(kind: str, name: str, value: object) -> Iterator[tuple[Part, str]]:
    """Yield the leaves of a document, each named by the fields on the way."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(kind, f"{name} {key}".strip(), item)
    else:
        yield (kind, name), value if isinstance(value, str) else _compact(value)


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
