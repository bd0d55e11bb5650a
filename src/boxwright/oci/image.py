"""The image config with Docker's additions, decoded and encoded without changing a byte.

The fields and their order are those of ``DockerOCIImage`` (image-spec ``config.md`` plus
``Healthcheck``, ``OnBuild`` and ``Shell``), the encoding is Go's: a config that passes
through here has the digest it has with other builders. Unknown fields are dropped, as
there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Self, TypeVar

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError

_T = TypeVar("_T")
_TIME = re.compile(
    r"(\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2})(?:[.,](\d+))?(Z|[+-]\d{2}:\d{2})\Z", re.ASCII
)


@dataclass(slots=True)
class Healthcheck:
    """How to check that a container is healthy; durations in ns, 0 to inherit.

    ``test`` is ``["NONE"]``, ``["CMD", …]``, ``["CMD-SHELL", text]`` or empty (inherit).
    """

    test: list[str] = field(default_factory=list)
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the object, without empty fields."""
        return _filled(
            Test=self.test,
            Interval=self.interval,
            Timeout=self.timeout,
            StartPeriod=self.start_period,
            StartInterval=self.start_interval,
            Retries=self.retries,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the object."""
        data = _folded(data)
        return cls(
            _strings(data, "test"),
            _integer(data, "interval"),
            _integer(data, "timeout"),
            _integer(data, "startperiod"),
            _integer(data, "startinterval"),
            _integer(data, "retries"),
        )


@dataclass(slots=True)
class ContainerConfig:
    """The defaults of containers made from the image.

    ``exposed_ports`` and ``volumes`` are ordered sets (dicts of None).
    """

    user: str = ""
    exposed_ports: dict[str, None] = field(default_factory=dict)
    env: list[str] = field(default_factory=list)
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    volumes: dict[str, None] = field(default_factory=dict)
    working_dir: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    args_escaped: bool = False
    healthcheck: Healthcheck | None = None
    on_build: list[str] = field(default_factory=list)
    shell: list[str] = field(default_factory=list)

    def clone(self) -> ContainerConfig:
        """Return a deep copy."""
        check = self.healthcheck
        return replace(
            self,
            exposed_ports=self.exposed_ports.copy(),
            env=self.env.copy(),
            entrypoint=self.entrypoint.copy(),
            cmd=self.cmd.copy(),
            volumes=self.volumes.copy(),
            labels=self.labels.copy(),
            healthcheck=None if check is None else replace(check, test=check.test.copy()),
            on_build=self.on_build.copy(),
            shell=self.shell.copy(),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the object, without empty fields, sets and labels sorted."""
        out = _filled(
            User=self.user,
            ExposedPorts={key: {} for key in sorted(self.exposed_ports)},
            Env=self.env,
            Entrypoint=self.entrypoint,
            Cmd=self.cmd,
            Volumes={key: {} for key in sorted(self.volumes)},
            WorkingDir=self.working_dir,
            Labels=dict(sorted(self.labels.items())),
            StopSignal=self.stop_signal,
            ArgsEscaped=self.args_escaped,
        )
        if self.healthcheck is not None:
            out["Healthcheck"] = self.healthcheck.to_json()
        return out | _filled(OnBuild=self.on_build, Shell=self.shell)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the object."""
        data = _folded(data)
        healthcheck = data.get("healthcheck")
        return cls(
            user=_text(data, "user"),
            exposed_ports=dict.fromkeys(_object(data, "exposedports")),
            env=_strings(data, "env"),
            entrypoint=_strings(data, "entrypoint"),
            cmd=_strings(data, "cmd"),
            volumes=dict.fromkeys(_object(data, "volumes")),
            working_dir=_text(data, "workingdir"),
            labels={key: str(value) for key, value in _object(data, "labels").items()},
            stop_signal=_text(data, "stopsignal"),
            args_escaped=bool(data.get("argsescaped")),
            healthcheck=Healthcheck.from_json(_object(data, "healthcheck"))
            if healthcheck is not None
            else None,
            on_build=_strings(data, "onbuild"),
            shell=_strings(data, "shell"),
        )


@dataclass(frozen=True, slots=True)
class History:
    """What made one layer, or changed the config only (``empty_layer``)."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the object, without empty fields."""
        return _filled(
            created=self.created,
            created_by=self.created_by,
            author=self.author,
            comment=self.comment,
            empty_layer=self.empty_layer,
        )

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read the object."""
        data = _folded(data)
        return cls(
            normal_time(_text(data, "created")),
            _text(data, "created_by"),
            _text(data, "author"),
            _text(data, "comment"),
            bool(data.get("empty_layer")),
        )


@dataclass(slots=True)
class Image:
    """An image config; times are RFC 3339 text in normal form, "" where absent.

    ``diff_ids`` is None where a config has none at all (JSON ``null``).
    """

    created: str = ""
    author: str = ""
    platform: Platform = field(default_factory=lambda: Platform("", ""))
    config: ContainerConfig = field(default_factory=ContainerConfig)
    rootfs_type: str = ""
    diff_ids: list[str] | None = None
    history: list[History] = field(default_factory=list)

    def clone(self) -> Image:
        """Return a copy that can be changed on its own."""
        return replace(self, config=self.config.clone(), history=self.history.copy())

    def to_json(self) -> dict[str, Any]:
        """Return the object in the order in which it is encoded."""
        platform = self.platform
        out = _filled(created=self.created, author=self.author)
        out |= {"architecture": platform.architecture, "os": platform.os}
        out |= _filled(
            **{
                "os.version": platform.os_version,
                "os.features": list(platform.os_features),
                "variant": platform.variant,
            }
        )
        out["rootfs"] = {"type": self.rootfs_type, "diff_ids": self.diff_ids}
        out |= _filled(history=[item.to_json() for item in self.history])
        out["config"] = self.config.to_json()
        return out

    def encode(self) -> bytes:
        """Return the JSON bytes."""
        return gojson.encode(self.to_json())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Read a decoded config.

        Raises:
            InvalidInputError: a field has another type than the specification gives it.
        """
        data = _folded(data)
        rootfs = _folded(_object(data, "rootfs"))
        has_ids = rootfs.get("diff_ids") is not None
        return cls(
            created=normal_time(_text(data, "created")),
            author=_text(data, "author"),
            platform=Platform(
                _text(data, "os"),
                _text(data, "architecture"),
                _text(data, "variant"),
                _text(data, "os.version"),
                tuple(_strings(data, "os.features")),
            ),
            config=ContainerConfig.from_json(_object(data, "config")),
            rootfs_type=_text(rootfs, "type"),
            diff_ids=_strings(rootfs, "diff_ids") if has_ids else None,
            history=[History.from_json(item) for item in _objects(data, "history")],
        )

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a config blob.

        Raises:
            InvalidInputError: it is not JSON, or not an image config.
        """
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise InvalidInputError("failed to parse image config", detail=str(exc)) from exc
        if not isinstance(value, dict):
            raise InvalidInputError("failed to parse image config", detail="not an object")
        return cls.from_json(value)


def normal_time(text: str) -> str:
    """Return an RFC 3339 time as Go prints it: no trailing zeros, ``Z`` for no offset.

    Raises:
        InvalidInputError: ``text`` is neither empty nor such a time.
    """
    if not text:
        return ""
    match = _TIME.match(text)
    if match is None:
        raise InvalidInputError("failed to parse image config", detail=f"time {text!r}")
    seconds, fraction, zone = match.groups(default="")
    fraction = fraction[:9].rstrip("0")
    zone = "Z" if zone[1:] == "00:00" else zone
    return seconds + (f".{fraction}" if fraction else "") + zone


def _filled(**values: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON values
    return {key: value for key, value in values.items() if value}


def _folded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Keys in lower case: names are matched without regard to case."""
    return {key.lower(): value for key, value in data.items()}


def _text(data: Mapping[str, Any], key: str) -> str:
    return _typed(data, key, str, "")


def _integer(data: Mapping[str, Any], key: str) -> int:
    return _typed(data, key, int, 0)


def _strings(data: Mapping[str, Any], key: str) -> list[str]:
    values: list[Any] = _typed(data, key, list, [])
    if not all(isinstance(value, str) for value in values):
        raise InvalidInputError("failed to parse image config", detail=f"{key} holds no strings")
    return list(values)


def _object(data: Mapping[str, Any], key: str) -> dict[str, Any]:
    return _typed(data, key, dict, {})


def _objects(data: Mapping[str, Any], key: str) -> Iterable[dict[str, Any]]:
    values: list[Any] = _typed(data, key, list, [])
    if not all(isinstance(value, dict) for value in values):
        raise InvalidInputError("failed to parse image config", detail=f"{key} holds no objects")
    return values


def _typed(data: Mapping[str, Any], key: str, kind: type[_T], default: _T) -> _T:
    value = data.get(key)
    if value is None:
        return default
    if not isinstance(value, kind):
        raise InvalidInputError(
            "failed to parse image config", detail=f"{key} is a {type(value).__name__}"
        )
    return value
