"""The values of RUN's ``--mount`` and ``--device``: comma separated fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast, get_args

from boxwright.core.dataclass import dataclass, field
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.golang import parse_bool, parse_ram_size, parse_uint, quote
from boxwright.dockerfile.suggest import did_you_mean, nearest
from boxwright.dockerfile.syntax import Device, Mount, MountType, SharingMode

Expander = Callable[[str], str]
"""Replaces the variables in one word; raises ExpansionError."""

_TYPES: tuple[str, ...] = get_args(MountType)
_SHARING: tuple[str, ...] = get_args(SharingMode)
_KEYS = (
    "type from source target readonly id sharing required size mode uid gid"
    " src dst destination ro rw readwrite env"
).split()
_WITH_OWNER = frozenset({"secret", "ssh", "cache"})
_WITH_REQUIRED = frozenset({"secret", "ssh"})
_WRITABLE = frozenset({"cache", "tmpfs"})
_SAME = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}
_SAME["rw"] = "readwrite"


def split_fields(text: str) -> list[str]:
    """Split one line of comma separated values; quotes as in RFC 4180.

    Raises:
        DockerfileError: empty, or a quote in the wrong place.
    """
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise DockerfileError("EOF")
    fields: list[str] = []
    position = 0
    while True:
        if text.startswith('"', position):
            value, position = _quoted_field(text, position + 1)
        else:
            end = text.find(",", position)
            end = len(text) if end < 0 else end
            value = text[position:end]
            bare = value.find('"')
            if bare >= 0:
                raise DockerfileError(
                    f'parse error on line 1, column {position + bare + 1}: bare " in'
                    " non-quoted-field",
                    token=value,
                )
            position = end
        fields.append(value)
        if position >= len(text):
            return fields
        position += 1


def _quoted_field(text: str, position: int) -> tuple[str, int]:
    out: list[str] = []
    while True:
        end = text.find('"', position)
        following = text[end + 1 : end + 2]
        if end < 0 or following not in {"", ",", '"'}:
            column = (position if end < 0 else end) + 1
            raise DockerfileError(
                f'parse error on line 1, column {column}: extraneous or missing " in quoted-field',
                token=text,
            )
        out.append(text[position:end])
        if following != '"':
            return "".join(out), end + 1
        out.append('"')
        position = end + 2


def parse_mount(text: str, expander: Expander | None = None) -> Mount:
    """Read the value of ``--mount``.

    Args:
        text: As written.
        expander: For the values. Without one only ``from`` is read and the rest is left at
            its defaults, since types and names may hold variables; that is how a file is
            parsed before any variable is known.

    Raises:
        DockerfileError: malformed, contradictory, or a key that the type does not have.
    """
    try:
        fields = split_fields(text)
    except DockerfileError as error:
        error.brief = f"failed to parse csv mounts: {error.brief}"
        raise
    draft = _Draft(text)
    for item in fields:
        key, equals, value = item.partition("=")
        key = key.lower()
        if expander is None:
            if equals and key == "from":
                draft.set_from_unexpanded(value)
        elif equals:
            draft.set(key, expander(value), item)
        else:
            draft.set_bare(key, item)
    return draft.finish()


@dataclass(slots=True)
class _Draft:
    text: str
    type: str = "bind"
    read_only: bool | None = None
    values: dict[str, Any] = field(default_factory=dict)

    def set_from_unexpanded(self, value: str) -> None:
        if "$" in value[:-1]:
            raise DockerfileError(
                "'from' doesn't support variable expansion, define alias stage instead",
                token=value,
                hint=f"add FROM {value} AS <name> and mount from=<name>",
            )
        self.values["from_"] = value

    def set_bare(self, key: str, item: str) -> None:
        """Take a field without ``=``."""
        key = _SAME.get(key, key)
        if key in {"readonly", "readwrite"}:
            self.read_only = key == "readonly"
        elif key == "required":
            self._needs(_WITH_REQUIRED, key)
            self.values["required"] = True
        else:
            raise DockerfileError(f"invalid field '{item}' must be a key=value pair", token=item)

    def set(self, written: str, value: str, item: str) -> None:
        """Take ``key=value``."""
        key = _SAME.get(written, written)
        match key:
            case "type":
                self.type = _one_of(value, _TYPES, "unsupported mount type")
            case "from":
                self.values["from_"] = value
            case "source" | "target" | "id" | "env":
                self.values[key] = value
            case "readonly" | "readwrite":
                self.read_only = self._bool(written, value) == (key == "readonly")
            case "required":
                self._needs(_WITH_REQUIRED, key)
                self.values[key] = self._bool(written, value)
            case "size":
                self._needs(frozenset({"tmpfs"}), key)
                try:
                    self.values[key] = parse_ram_size(value)
                except ValueError:
                    raise _invalid_value(written, value) from None
            case "sharing":
                self.values[key] = _one_of(value, _SHARING, "unsupported sharing value")
            case "mode" | "uid" | "gid":
                try:
                    self.values[key] = parse_uint(value, base=8 if key == "mode" else 10)
                except ValueError:
                    raise DockerfileError(f"invalid value {value} for {key}", token=item) from None
            case _:
                raise _unexpected_key(written, item, _KEYS)

    def finish(self) -> Mount:
        """Check what the fields mean together."""
        given = self.values
        if self.type not in _WITH_OWNER:
            for key in ("mode", "uid", "gid"):
                if key in given:
                    raise self._error(f"{key} not allowed for {quote(self.type)} type mounts")
        if self.type == "secret":
            self._check_secret()
        if given.get("sharing") and self.type != "cache":
            raise self._error(f"invalid cache sharing set for {self.type} mount")
        read_only = self.type not in _WRITABLE if self.read_only is None else self.read_only
        return Mount(type=cast("MountType", self.type), read_only=read_only, **given)

    def _check_secret(self) -> None:
        given = self.values
        if given.get("from_"):
            raise self._error("secret mount should not have a from")
        if given.get("sharing"):
            raise self._error("secret mount should not define sharing")
        if not (given.get("source") or given.get("target") or given.get("id")):
            raise self._error("invalid secret mount. one of source, target required")
        if given.get("source") and given.get("id"):
            raise self._error("both source and id can't be set")

    def _needs(self, types: frozenset[str], key: str) -> None:
        if self.type not in types:
            raise self._error(f"unexpected key '{key}' for mount type '{self.type}'")

    def _bool(self, key: str, value: str) -> bool:
        try:
            return parse_bool(value)
        except ValueError:
            raise _invalid_value(key, value) from None

    def _error(self, message: str) -> DockerfileError:
        return DockerfileError(message, token=self.text)


def parse_device(text: str) -> Device:
    """Read the value of ``--device``.

    Raises:
        DockerfileError: malformed.
    """
    try:
        fields = split_fields(text)
    except DockerfileError as error:
        error.brief = f"failed to parse csv devices: {error.brief}"
        raise
    name, required = "", False
    for item in fields:
        key, equals, value = item.partition("=")
        key = key.lower()
        if key == "required":
            try:
                required = parse_bool(value) if equals else True
            except ValueError:
                raise _invalid_value(key, value) from None
        elif equals and key == "name":
            if name:
                raise DockerfileError(f"device name already set to {name}", token=item)
            name = value
        elif not name:
            name = item
        elif equals:
            raise _unexpected_key(key, item, ["name", "required"])
        else:
            raise DockerfileError(f"invalid field '{item}' must be a key=value pair", token=item)
    return Device(name, required)


def _one_of(value: str, options: tuple[str, ...], message: str) -> str:
    if value.lower() in options:
        return value.lower()
    raise DockerfileError(
        did_you_mean(f"{message} {quote(value)}", nearest(value, options)),
        token=value,
        hint=f"use one of {', '.join(options)}",
    )


def _unexpected_key(key: str, item: str, keys: list[str]) -> DockerfileError:
    return DockerfileError(
        did_you_mean(f"unexpected key '{key}' in '{item}'", nearest(key, keys)),
        token=item,
        hint=f"use one of {', '.join(keys)}",
    )


def _invalid_value(key: str, value: str) -> DockerfileError:
    return DockerfileError(f"invalid value for {key}: {value}", token=f"{key}={value}")
