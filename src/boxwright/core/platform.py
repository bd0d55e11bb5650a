"""Platforms: parse, normalise, format, match (OCI image-spec config.md; containerd's rules)."""

from __future__ import annotations

import os
import re
from typing import Any

from boxwright.core.dataclass import dataclass, replace
from boxwright.errors import InvalidInputError

_PART = re.compile(r"[A-Za-z0-9_.-]+\Z")
_OS_PART = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?\Z")
_OS_ALIASES = {"macos": "darwin"}
_ARCH_ALIASES: dict[str, tuple[str, str]] = {
    "i386": ("386", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "amd64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "arm64": ("arm64", ""),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
}
_KNOWN_OS = frozenset(
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 "
    "solaris wasip1 windows zos".split()
)
_KNOWN_ARCH = frozenset(
    "386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle mips64 mips64le "
    "mips64p32 mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm".split()
)


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, an architecture and its variant, in normal form."""

    os: str
    architecture: str
    variant: str = ""
    os_version: str = ""
    os_features: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return ``os[(version+feature…)]/arch[/variant]``, as containerd's FormatAll does."""
        details = "+".join([self.os_version, *sorted(set(self.os_features))])
        head = f"{self.os}({details})" if details else self.os
        return "/".join(part for part in (head, self.architecture, self.variant) if part)

    def normalized(self) -> Platform:
        """Return the normal form: ``x86_64`` is ``amd64``, ``arm64/v8`` is ``arm64``."""
        os_name = _OS_ALIASES.get(self.os.lower(), self.os.lower())
        arch, variant = self.architecture.lower(), self.variant.lower()
        alias, default_variant = _ARCH_ALIASES.get(arch, (arch, ""))
        variant = variant or default_variant
        if alias == "arm64":
            variant = {"8": "", "v8": "", "v8.0": "", "9": "v9", "9.0": "v9", "v9.0": "v9"}.get(
                variant, variant
            )
        if alias == "amd64" and variant == "v1":
            variant = ""
        if alias == "arm":
            variant = {"": "v7", "7": "v7", "5": "v5", "6": "v6", "8": "v8"}.get(variant, variant)
        return replace(self, os=os_name, architecture=alias, variant=variant)

    def matches(self, other: Platform) -> bool:
        """Return whether an image for ``other`` is exactly for this platform."""
        mine, theirs = self.normalized(), other.normalized()
        return (mine.os, mine.architecture, mine.variant) == (
            theirs.os,
            theirs.architecture,
            theirs.variant,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of a descriptor's ``platform``."""
        out: dict[str, Any] = {"architecture": self.architecture, "os": self.os}
        if self.os_version:
            out["os.version"] = self.os_version
        if self.os_features:
            out["os.features"] = list(self.os_features)
        if self.variant:
            out["variant"] = self.variant
        return out

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Platform:
        """Read a descriptor's ``platform`` object; missing fields are empty."""
        return cls(
            os=str(data.get("os") or ""),
            architecture=str(data.get("architecture") or ""),
            variant=str(data.get("variant") or ""),
            os_version=str(data.get("os.version") or ""),
            os_features=tuple(str(f) for f in data.get("os.features") or ()),
        )

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Parse ``os/arch[/variant]``, or ``arch`` or ``os`` alone, or ``local``.

        Raises:
            InvalidInputError: the text names no known platform.
        """
        if text == "local":
            return cls.host()
        parts = text.strip().split("/")
        head = _OS_PART.match(parts[0])
        if head is None or len(parts) > 3 or not all(map(_PART.match, parts[1:])):
            raise InvalidInputError(
                "invalid platform", detail=repr(text), hint="write os/arch[/variant]"
            )
        if len(parts) == 1:
            only = parts[0].lower()
            if _OS_ALIASES.get(only, only) in _KNOWN_OS:
                return cls(only, cls.host().architecture, cls.host().variant).normalized()
            if _ARCH_ALIASES.get(only, (only, ""))[0] in _KNOWN_ARCH:
                return cls("linux", only).normalized()
            raise InvalidInputError(
                "unknown operating system or architecture",
                detail=repr(text),
                hint="write os/arch[/variant], for example linux/amd64",
            )
        os_name, version, features = head.groups(default="")
        variant = parts[2] if len(parts) == 3 else ""
        os_features = tuple(sorted(set(features.split("+")[1:])))
        return cls(os_name, parts[1], variant, version, os_features).normalized()

    @classmethod
    def host(cls) -> Platform:
        """Return the platform of this machine."""
        return cls("linux", os.uname().machine).normalized()
