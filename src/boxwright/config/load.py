"""Read a ``buildkitd.toml`` into :class:`~boxwright.config.schema.Config`.

A value of the wrong type is an error that names file and key. An unknown key is a warning
with a suggestion, as BuildKit has keys for machines and back ends that we do not have; under
``[boxwright]``, which is ours alone, it is an error.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxwright.config.schema import Config
from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code

# Keys that BuildKit knows and this daemon has no use for: silently accepted.
_FOREIGN = frozenset(
    "trace proxyNetwork otel frontend system cache ghacache worker.containerd "
    "grpc.securityDescriptor worker.oci.proxySnapshotterPath worker.oci.stargzSnapshotter "
    "worker.oci.selinux "
    "worker.oci.userRemapUnsupported".split()
)
_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_BINARY_UNITS = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


class ConfigError(BoxwrightError):
    """The configuration file can't be read or holds a value that can't be used."""

    code = Code.CONFIG


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration, the file it came from or would come from, and what was odd in it."""

    config: Config
    path: Path | None
    warnings: tuple[str, ...]


def default_path(environment: Mapping[str, str], *, is_root: bool) -> Path:
    """Return the file that is read when none is named."""
    if is_root:
        return Path("/etc/buildkit/buildkitd.toml")
    base = environment.get("XDG_CONFIG_HOME") or os.path.join(
        environment.get("HOME", "/"), ".config"
    )
    return Path(base) / "buildkit" / "buildkitd.toml"


def load(path: Path | None, *, default: Path | None = None) -> LoadedConfig:
    """Read ``path``; without one read ``default`` if it exists, else return the defaults.

    Raises:
        ConfigError: a named file is missing, is not TOML, or holds a wrong value.
    """
    chosen = path or default
    if chosen is None or (path is None and not chosen.exists()):
        return LoadedConfig(Config(), chosen, ())
    import tomllib

    try:
        data = tomllib.loads(chosen.read_text("utf-8"))
    except OSError as exc:
        raise ConfigError(
            f"can't read configuration {chosen}", detail=exc.strerror or str(exc)
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"configuration {chosen} is not valid TOML", detail=str(exc)) from exc
    return parse(data, chosen)


def parse(data: Mapping[str, Any], path: Path | None = None) -> LoadedConfig:
    """Turn decoded TOML into a :class:`Config`.

    Raises:
        ConfigError: a value has the wrong type, or a key under ``[boxwright]`` is unknown.
    """
    reader = _Reader(path)
    config: Config = reader.table(Config, data, "")
    for host in config.registry:
        if "/" in host:
            reader.warnings.append(
                f'registry."{host}" has a path: configuration is per host, so this key is never '
                f'used; write registry."{host.partition("/")[0]}"'
            )
    return LoadedConfig(config, path, tuple(reader.warnings))


class _Reader:
    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.warnings: list[str] = []

    def table(self, cls: type[Any], data: Mapping[str, Any], prefix: str) -> Any:
        fields = {f.metadata["key"]: f for f in dataclasses.fields(cls)}
        hints = typing.get_type_hints(cls)
        values: dict[str, Any] = {}
        for name, value in data.items():
            dotted = f"{prefix}{name}"
            if name in fields:
                values[fields[name].name] = self.value(hints[fields[name].name], value, dotted)
                if not fields[name].metadata["is_effective"]:
                    self._without_effect(fields[name], values[fields[name].name], dotted)
            elif dotted not in _FOREIGN:
                self._unknown(dotted, name, list(fields))
        return cls(**values)

    def _without_effect(self, field: dataclasses.Field[Any], value: object, dotted: str) -> None:
        if value != field.default:
            self.warnings.append(f"configuration key {dotted} has no effect")

    def _unknown(self, dotted: str, name: str, known: list[str]) -> None:
        import difflib

        close = difflib.get_close_matches(name, known, 1, 0.6)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        if dotted.startswith("boxwright."):
            raise ConfigError(
                "unknown configuration key",
                detail=f"{dotted} in {self.path or 'the configuration'}",
                hint=f"did you mean {close[0]!r}?" if close else "remove it",
            )
        self.warnings.append(f"unknown configuration key {dotted}{hint}")

    def value(self, hint: Any, value: Any, dotted: str) -> Any:
        origin = typing.get_origin(hint)
        if origin in {typing.Union, types.UnionType}:
            options = [a for a in typing.get_args(hint) if a is not type(None)]
            for option in options:
                if type(value) is option:
                    return value
            raise self._wrong(dotted, value, " or ".join(o.__name__ for o in options))
        if origin is tuple:
            item = typing.get_args(hint)[0]
            items = value if isinstance(value, list) else [value]
            return tuple(self.value(item, v, dotted) for v in items)
        if origin is dict:
            if not isinstance(value, dict):
                raise self._wrong(dotted, value, "table")
            item = typing.get_args(hint)[1]
            return {str(k): self.value(item, v, f'{dotted}."{k}"') for k, v in value.items()}
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, dict):
                raise self._wrong(dotted, value, "table")
            return self.table(typing.cast("type[Any]", hint), value, f"{dotted}.")
        if type(value) is not hint:
            raise self._wrong(dotted, value, hint.__name__)
        return value

    def _wrong(self, dotted: str, value: object, wanted: str) -> ConfigError:
        return ConfigError(
            f"wrong value for {dotted}",
            detail=f"{value!r} in {self.path or 'the configuration'} is not of type {wanted}",
        )


def parse_size(value: str | int, *, total_bytes: int) -> int:
    """Read bytes, a size such as ``10GB`` or ``512MiB``, or a percentage of ``total_bytes``.

    Raises:
        ConfigError: it is none of these, or negative.
    """
    if isinstance(value, int):
        if value < 0:
            raise ConfigError("invalid size", detail=f"{value} is negative")
        return value
    text = value.strip().lower()
    number, unit = text.rstrip("abcdefghijklmnopqrstuvwxyz%"), ""
    unit = text[len(number) :].strip()
    try:
        amount = float(number)
    except ValueError as exc:
        raise ConfigError(
            "invalid size", detail=repr(value), hint="write 10GB, 512MiB, 20% or bytes"
        ) from exc
    if unit == "%" and 0 <= amount <= 100:
        return int(total_bytes * amount / 100)
    unit = unit.removesuffix("b")
    scale = _UNITS.get(unit) or _BINARY_UNITS.get(unit)
    if scale is None or amount < 0:
        raise ConfigError(
            "invalid size", detail=repr(value), hint="write 10GB, 512MiB, 20% or bytes"
        )
    return int(amount * scale)


def parse_disk_space(value: str | int, *, disk_bytes: int) -> int:
    """Read a size of BuildKit's garbage collection: of 1024s, whatever the unit's name.

    A percentage is as many GB as that part of the disk has GiB, and one more.

    Raises:
        ConfigError: it is no size.
    """
    text = value.strip().lower() if isinstance(value, str) else ""
    if text.endswith("%"):
        share = parse_size(text, total_bytes=disk_bytes)
        return (share // (1 << 30) + 1) * 10**9 if text.strip("0.%") else 0
    match = re.fullmatch(r"([\d.]+) ?([kmgt])(i?b)?", text)
    return parse_size(f"{match[1]}{match[2]}ib" if match else value, total_bytes=disk_bytes)


def parse_timeout_s(value: str | int) -> float:
    """Read a duration that is not empty, as seconds.

    Raises:
        ConfigError: it is none.
    """
    found = parse_duration_ns(value)
    if found <= 0:
        raise ConfigError("invalid timeout", detail=repr(value), hint="write 60s or 2m")
    return found / 1e9


def parse_duration_ns(value: str | int) -> int:
    """Read seconds as a number, or a duration such as ``48h`` or ``1h30m``, as nanoseconds.

    Raises:
        ConfigError: it is neither.
    """
    if isinstance(value, int):
        return value * 1_000_000_000
    scales = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
    total, number, rest = 0.0, "", value.strip()
    try:
        if rest.isdigit():
            return int(rest) * 10**9
        while rest:
            digits = len(rest) - len(rest.lstrip("0123456789."))
            number, rest = rest[:digits], rest[digits:]
            unit = next(u for u in ("ns", "us", "ms", "s", "m", "h") if rest.startswith(u))
            rest = rest[len(unit) :]
            total += float(number) * scales[unit]
    except (ValueError, StopIteration) as exc:
        raise ConfigError("invalid duration", detail=repr(value), hint="write 48h or 90m") from exc
    return int(total)
