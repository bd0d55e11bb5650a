"""Which engine a command talks to: the discovery order, and why it ended where it did."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxwright.cli.errors import UsageError
from boxwright.core.dataclass import dataclass

_DIRECT_SCHEMES = ("unix://", "tcp://")


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files for a tcp connection; empty ones are not used."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """An engine.

    Attributes:
        address: Of a daemon; empty for the embedded engine.
        name: Of the builder, where it has one.
        reason: What decided, for ``builder ls``.
    """

    address: str = ""
    name: str = ""
    reason: str = "default"
    tls: TlsFiles = TlsFiles()

    @property
    def is_embedded(self) -> bool:
        """Whether the engine runs in this process."""
        return not self.address


@dataclass(frozen=True, slots=True)
class Builder:
    """A named builder of buildx's store."""

    name: str
    driver: str
    nodes: tuple[Mapping[str, Any], ...]

    @property
    def address(self) -> str:
        """The address of its first node, where the driver names one."""
        return str(self.nodes[0].get("Endpoint") or "") if self.nodes else ""

    @property
    def tls(self) -> TlsFiles:
        """The certificates of its first node (driver options of ``remote``)."""
        options = (self.nodes[0].get("DriverOpts") if self.nodes else None) or {}
        return TlsFiles(
            str(options.get("cacert") or ""),
            str(options.get("cert") or ""),
            str(options.get("key") or ""),
            str(options.get("servername") or ""),
        )


def builders_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of buildx's builder files."""
    if config := environ.get("BUILDX_CONFIG"):
        return Path(config) / "instances"
    base = environ.get("DOCKER_CONFIG") or os.path.join(environ.get("HOME") or "/", ".docker")
    return Path(base) / "buildx" / "instances"


def load_builders(environ: Mapping[str, str]) -> list[Builder]:
    """Return the builders of buildx's store, by name; files that don't parse are left out."""
    found: list[Builder] = []
    try:
        paths = sorted(builders_folder(environ).iterdir())
    except OSError:
        return found
    for path in paths:
        try:
            data = json.loads(path.read_bytes())
            nodes = tuple(node for node in data.get("Nodes") or () if isinstance(node, dict))
            found.append(Builder(str(data["Name"]), str(data.get("Driver") or ""), nodes))
        except (OSError, ValueError, KeyError, AttributeError):
            continue
    return found


def current_file(environ: Mapping[str, str]) -> Path:
    """Return the file that holds the name of the current builder (``builder use``)."""
    base = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME") or "/", ".config")
    return Path(base) / "boxwright" / "builder"


def current_builder(environ: Mapping[str, str]) -> str:
    """Return the current builder's name, empty if none was chosen."""
    try:
        return current_file(environ).read_text("utf-8").strip()
    except OSError:
        return ""


def choose(
    environ: Mapping[str, str], *, addr: str = "", builder: str = "", tls: TlsFiles | None = None
) -> Target:
    """Return the engine to use: the first of flags, environment, current builder, embedded.

    Raises:
        UsageError: a builder or address that can't be used.
    """
    tls = tls or TlsFiles()
    if addr:
        return _at_address(addr, "--addr", tls)
    for name, reason in (
        (builder, "--builder"),
        (environ.get("BOXWRIGHT_BUILDER", ""), "BOXWRIGHT_BUILDER"),
        (environ.get("BUILDX_BUILDER", ""), "BUILDX_BUILDER"),
    ):
        if name:
            return _named(name, reason, environ, tls)
    if host := environ.get("BUILDKIT_HOST", ""):
        return _at_address(host, "BUILDKIT_HOST", tls)
    if current := current_builder(environ):
        return _named(current, "boxwright builder use", environ, tls)
    return Target()


def _named(name: str, reason: str, environ: Mapping[str, str], tls: TlsFiles) -> Target:
    if name == "embedded":
        return Target(name=name, reason=reason)
    if name.startswith(_DIRECT_SCHEMES):
        return _at_address(name, reason, tls)
    known = load_builders(environ)
    found = next((each for each in known if each.name == name), None)
    if found is None:
        names = ", ".join(each.name for each in known) or "none"
        raise UsageError(
            f"no builder named {name!r}",
            detail=f"wanted by {reason}; known: {names}",
            hint="list them with boxwright builder ls, or leave it out for the embedded engine",
        )
    if found.driver != "remote":
        raise UsageError(
            f"builder {name!r} uses the {found.driver} driver, which is not supported yet",
            hint="use a builder with the remote driver, or --addr",
        )
    target = _at_address(found.address, reason, found.tls)
    return Target(target.address, name, reason, found.tls)


def _at_address(address: str, reason: str, tls: TlsFiles) -> Target:
    if not address.startswith(_DIRECT_SCHEMES):
        raise UsageError(
            f"unusable address {address!r}",
            detail=f"from {reason}",
            hint="use unix:///path/to/socket or tcp://host:port",
        )
    return Target(address, reason=reason, tls=tls)
