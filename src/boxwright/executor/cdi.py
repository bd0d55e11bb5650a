"""Devices of the Container Device Interface: which there are, and what a step gets with one.

Source: the CDI specification (cncf-tags/container-device-interface, SPEC.md). Vendors put files
into a few folders; each describes devices of one kind (``vendor.com/class``) as changes of a
container's configuration. Files are read when a step asks for a device and looked at again when
they have changed.
"""

from __future__ import annotations

import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from boxwright.core import gobool
from boxwright.core.dataclass import dataclass, field
from boxwright.errors import InvalidInputError

_log = logging.getLogger(__name__)

_CLASS = "org.mobyproject.buildkit.device.class"
_AUTO_ALLOW = "org.mobyproject.buildkit.device.autoallow"
_LIMIT_BYTES = 16 << 20
_SUFFIXES = (".json", ".yaml")
_KIND = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]*")
_HOOKS = {
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
}

Json = dict[str, Any]


class DeviceNotFoundError(InvalidInputError):
    """A step needs a device that this machine does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f'required device "{name}" is not registered',
            hint="the daemon reads CDI specifications (.json, .yaml) in [cdi] specDirs",
        )
        self.device = name


@dataclass(frozen=True, slots=True)
class Device:
    """One device.

    Attributes:
        name: Qualified: ``vendor.com/class=name``.
        annotations: Of its file and its own.
        edits: ``containerEdits`` of its file and its own, in this order.
        is_auto_allowed: Builds get it without asking their user.
    """

    name: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    edits: Sequence[Json] = ()
    is_auto_allowed: bool = False

    @property
    def kind(self) -> str:
        """Vendor and class."""
        return self.name.partition("=")[0]


class CdiRegistry:
    """The devices of some folders; blocks on small files.

    Args:
        folders: Searched in this order; of two devices of one name the later wins.
        auto_allowed: Kinds and names that need no permission.
    """

    def __init__(self, folders: Iterable[str], auto_allowed: Iterable[str] = ()) -> None:
        self._folders = tuple(Path(folder) for folder in folders)
        self._auto_allowed = frozenset(auto_allowed)
        self._seen: tuple[tuple[str, int, int], ...] | None = None
        self._devices: dict[str, Device] = {}

    def devices(self) -> list[Device]:
        """Return all devices by name."""
        self._refresh()
        return [self._devices[name] for name in sorted(self._devices)]

    def get(self, name: str) -> Device | None:
        """Return the device of a qualified name."""
        self._refresh()
        return self._devices.get(name)

    def find(self, wanted: str, *, optional: bool = False) -> list[Device]:
        """Return the devices that a step means by a name.

        ``kind=name`` is one device, ``kind`` the first of its kind, ``kind=*`` all of them;
        anything else is a class that devices carry as an annotation.

        Raises:
            DeviceNotFoundError: there is none, and it is not optional.
        """
        every = self.devices()
        kind, _, name = wanted.partition("=")
        found: list[Device] = []
        if _KIND.fullmatch(kind):
            found = [device for device in every if device.kind == kind]
            if not name:
                found = found[:1]
            elif name != "*":
                found = [device for device in found if device.name == wanted]
        if not found:
            found = [device for device in every if device.annotations.get(_CLASS) == wanted]
        if not found:
            if not optional:
                raise DeviceNotFoundError(wanted)
            _log.warning("optional device %s is not registered", wanted)
        return found

    def _refresh(self) -> None:
        files = list(self._files())
        seen = tuple((str(path), info.st_mtime_ns, info.st_size) for path, info in files)
        if seen == self._seen:
            return
        self._seen = seen
        self._devices = {}
        for path, _ in files:
            try:
                found = parse(_decode(path))
            except (OSError, ValueError, RecursionError, InvalidInputError) as error:
                _log.warning("CDI specification %s can't be used: %s", path, error)
                continue
            for device in found:
                allowed = self._is_auto_allowed(device)
                self._devices[device.name] = Device(
                    device.name, device.annotations, device.edits, is_auto_allowed=allowed
                )

    def _files(self) -> Iterable[tuple[Path, os.stat_result]]:
        for folder in self._folders:
            try:
                paths = sorted(folder.iterdir())
            except OSError:
                continue
            for path in paths:
                if path.suffix not in _SUFFIXES:
                    continue
                try:
                    info = path.stat()
                except OSError:
                    continue
                if stat.S_ISREG(info.st_mode) and info.st_size <= _LIMIT_BYTES:
                    yield path, info

    def _is_auto_allowed(self, device: Device) -> bool:
        names = {device.name, device.kind}
        return bool(names & self._auto_allowed) or (
            device.annotations.get(_AUTO_ALLOW, "") in gobool.TRUE
        )


def _decode(path: Path) -> object:
    """Read a specification; of the two forms of the format YAML is the common one.

    Raises:
        OSError: it can't be read.
        ValueError: it is neither.
    """
    data = path.read_bytes()
    if path.suffix == ".json":
        return json.loads(data)
    import yaml

    try:
        return yaml.safe_load(data)  # not the C one: deep nesting overflows its stack
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def parse(data: object) -> list[Device]:
    """Return the devices of a decoded specification.

    Raises:
        InvalidInputError: it is none.
    """
    spec = data if isinstance(data, dict) else {}
    kind, entries = spec.get("kind"), spec.get("devices")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise InvalidInputError("a CDI specification has no valid kind", detail=str(kind)[:100])
    if not isinstance(entries, list) or not entries:
        raise InvalidInputError("a CDI specification has no devices")
    shared = _edits(spec.get("containerEdits"))
    found = []
    for entry in entries:
        name = _text(entry.get("name")) if isinstance(entry, dict) else None
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise InvalidInputError("a CDI device has no valid name", detail=str(name)[:100])
        annotations = {**_texts(spec.get("annotations")), **_texts(entry.get("annotations"))}
        edits = [*shared, *_edits(entry.get("containerEdits"))]
        found.append(Device(f"{kind}={name}", annotations, edits))
    return found


def _edits(value: object) -> list[Json]:
    if value is None:
        return []
    if not isinstance(value, dict):
        raise InvalidInputError("containerEdits of a CDI specification is no object")
    for name in ("env", "deviceNodes", "mounts", "hooks", "additionalGids"):
        if not isinstance(value.get(name, []), list):
            raise InvalidInputError(f"{name} of a CDI specification is no list")
    return [cast("Json", value)]


def _texts(value: object) -> dict[str, str]:
    return {str(k): str(_text(v)) for k, v in value.items()} if isinstance(value, dict) else {}


def _text(value: object) -> object:
    """Return a number or truth value as what it stands for in YAML where a text is due."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def inject(spec: Json, devices: Iterable[Device]) -> None:
    """Change a container's configuration as the devices say.

    Raises:
        InvalidInputError: a device node or hook is described wrongly, or is not there.
    """
    done: list[Json] = []
    for device in devices:
        for edits in device.edits:
            if edits in done:  # of the file, once for all of its devices
                continue
            done.append(edits)
            try:
                _apply(spec, edits)
            except (KeyError, TypeError, AttributeError) as exc:
                raise InvalidInputError(
                    f"CDI device {device.name} is described wrongly", detail=str(exc)
                ) from exc


def _apply(spec: Json, edits: Json) -> None:
    process, linux = spec["process"], spec["linux"]
    for item in edits.get("env", ()):
        name = str(item).partition("=")[0] + "="
        process["env"] = [old for old in process["env"] if not old.startswith(name)]
        process["env"].append(str(item))
    for node in edits.get("deviceNodes", ()):
        _add_node(linux, node)
    spec["mounts"] = spec["mounts"] + [
        {
            "destination": str(mount["containerPath"]),
            "source": str(mount["hostPath"]),
            "type": str(mount.get("type") or "bind"),
            "options": [str(option) for option in mount.get("options") or ("rbind",)],
        }
        for mount in edits.get("mounts", ())
    ]
    for hook in edits.get("hooks", ()):
        if hook["hookName"] not in _HOOKS:
            raise InvalidInputError(f"unknown CDI hook {hook['hookName']}")
        planned = {key: hook[key] for key in ("path", "args", "env", "timeout") if key in hook}
        spec.setdefault("hooks", {}).setdefault(hook["hookName"], []).append(planned)
    groups = [int(group) for group in edits.get("additionalGids", ()) if int(group)]
    user = process["user"]
    user["additionalGids"] = list(dict.fromkeys((*user["additionalGids"], *groups)))


def _add_node(linux: Json, node: Json) -> None:
    path = str(node["path"])
    host_path = str(node.get("hostPath") or path)
    kind, major, minor = node.get("type", ""), node.get("major", 0), node.get("minor", 0)
    if not kind or (kind in ("b", "c", "u") and not major and not minor):
        try:
            info = os.stat(host_path)
        except OSError as exc:
            raise InvalidInputError(
                f"device node {host_path} can't be read", detail=exc.strerror or str(exc)
            ) from exc
        if not stat.S_ISCHR(info.st_mode) and not stat.S_ISBLK(info.st_mode):
            raise InvalidInputError(f"{host_path} is no device node")
        kind = "b" if stat.S_ISBLK(info.st_mode) else "c"
        major, minor = os.major(info.st_rdev), os.minor(info.st_rdev)
        node = {"fileMode": stat.S_IMODE(info.st_mode), **node}
    planned: Json = {"path": path, "type": kind, "major": int(major), "minor": int(minor)}
    planned |= {key: int(node[key]) for key in ("fileMode", "uid", "gid") if key in node}
    others = [item for item in linux.get("devices", ()) if item["path"] != path]
    linux["devices"] = [*others, planned]
    if "resources" in linux:
        access = str(node.get("permissions") or "rwm")
        rule = {"allow": True, "type": kind, "major": planned["major"], "minor": planned["minor"]}
        linux["resources"]["devices"] = [
            *linux["resources"]["devices"],
            {**rule, "access": access},
        ]
