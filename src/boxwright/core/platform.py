"""Platforms: parse, normalise, format, match (OCI image-spec config.md; containerd's rules)."""

from __future__ import annotations

import json
import os
import re
from typing import Any
from urllib.parse import unquote

from boxwright.core.dataclass import dataclass, replace
from boxwright.errors import InvalidInputError

_PART = re.compile(r"[A-Za-z0-9_.-]+\Z")
_OS_PART = re.compile(r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?\Z")
_OS_OPTION_ESCAPES = str.maketrans(
    {char: f"%{ord(char):02X}" for char in "%+()/"}
)  # what the text form uses itself
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
        features = sorted(set(self.os_features) - {""})
        parts = [part.translate(_OS_OPTION_ESCAPES) for part in (self.os_version, *features)]
        details = "+".join(parts)
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
        """Return whether an image for ``other`` is exactly for this platform.

        The image's features must all be known here. Versions of the system count on Windows
        alone, where a kernel runs no other version's programs (containerd's rules).
        """
        mine, theirs = self.normalized(), other.normalized()
        if (mine.os, mine.architecture, mine.variant) != (
            theirs.os,
            theirs.architecture,
            theirs.variant,
        ):
            return False
        features = set(theirs.os_features)
        if mine.os == "windows":
            features.discard("win32k")
            if not _is_windows_compatible(mine.os_version, theirs.os_version):
                return False
        return features <= set(mine.os_features)

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
        wrong = next((part for part in parts[1:] if not _PART.match(part)), None)
        if head is None:
            raise _malformed(
                f"{_quoted(parts[0])} is an invalid OS component of {_quoted(text)}: "
                f"OSAndVersion specifier component must match {_quoted(_go(_OS_PART))}"
            )
        if wrong is not None:
            raise _malformed(
                f"{_quoted(wrong)} is an invalid component of {_quoted(text)}: "
                f"platform specifier component must match {_quoted(_go(_PART))}"
            )
        if len(parts) > 3:
            raise _malformed(f"{_quoted(text)}: cannot parse platform specifier")
        if len(parts) == 1:
            only = parts[0].lower()
            if _OS_ALIASES.get(only, only) in _KNOWN_OS:
                return cls(only, cls.host().architecture, cls.host().variant).normalized()
            if _ARCH_ALIASES.get(only, (only, ""))[0] in _KNOWN_ARCH:
                return cls("linux", only).normalized()
            raise _malformed(f"{_quoted(text)}: unknown operating system or architecture")
        os_name, version, features = head.groups(default="")
        variant = parts[2] if len(parts) == 3 else ""
        os_features = tuple(sorted(set(map(unquote, features.split("+")[1:]))))
        return cls(os_name, parts[1], variant, unquote(version), os_features).normalized()

    @classmethod
    def host(cls) -> Platform:
        """Return the platform of this machine."""
        return cls("linux", os.uname().machine).normalized()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _go(pattern: re.Pattern[str]) -> str:
    """Return a pattern as containerd's message has it, which clients look for."""
    return "^" + pattern.pattern.removesuffix(r"\Z") + "$"


def _malformed(brief: str) -> InvalidInputError:
    return InvalidInputError(
        f"{brief}: invalid argument", hint="write os/arch[/variant], for example linux/amd64"
    )


# Builds from which on Windows runs containers of the long-term release before it.
_WINDOWS_STABLE = (20348, 26100)  # Server 2022, Server 2025
_WINDOWS_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,5})(?:\.|\Z)")


def _windows_version(text: str) -> tuple[int, int, int] | None:
    found = _WINDOWS_VERSION.match(text)
    if found is None:
        return None
    major, minor, build = map(int, found.groups())
    return (major, minor, build) if max(major, minor) < 256 and build < 65536 else None


def _is_windows_compatible(host: str, image: str) -> bool:
    """Return whether a Windows of version ``host`` runs images of version ``image``.

    Without a version on either side nothing is known, and nothing refused.
    """
    runs = _windows_version(host)
    if runs is None or not any(runs) or not image:
        return True
    made_for = _windows_version(image) or (0, 0, 0)
    if runs[:2] != made_for[:2]:
        return False
    if runs[2] < _WINDOWS_STABLE[0]:
        return runs[2] == made_for[2]
    earlier = [build for build in _WINDOWS_STABLE if build < runs[2]]
    return (earlier[-1] if earlier else _WINDOWS_STABLE[0]) <= made_for[2] <= runs[2]
