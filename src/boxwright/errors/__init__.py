"""Every expected failure has a type, a stable code and an exit status.

Three classes of failure are never mixed: *expected* ones (a :class:`BoxwrightError`
subclass, shown without a traceback), *bugs* (anything else: code ``internal``), and
*cancellation* (:class:`asyncio.CancelledError`, which always passes through untouched).

Subclasses live beside the code that raises them; only the base and the table of codes
are central.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar


class Code(enum.StrEnum):
    """Stable machine-readable codes; documented in docs/errors.md and never reused."""

    INTERNAL = "internal"
    USAGE = "usage"
    INVALID = "invalid"
    DOCKERFILE_SYNTAX = "dockerfile-syntax"
    UNKNOWN_STAGE = "unknown-stage"
    NOT_FOUND = "not-found"
    SOURCE_NOT_FOUND = "source-not-found"
    EXEC_FAILED = "exec-failed"
    RUNTIME_FAILED = "runtime-failed"
    OUT_OF_MEMORY = "out-of-memory"
    REGISTRY_UNREACHABLE = "registry-unreachable"
    REGISTRY_PROTOCOL = "registry-protocol"
    REGISTRY_TLS = "registry-tls"
    REGISTRY_AUTH = "registry-auth"
    REGISTRY_FAILED = "registry-failed"
    DIGEST_MISMATCH = "digest-mismatch"
    DISK_FULL = "disk-full"
    STORE_LOCKED = "store-locked"
    STORE_VERSION = "store-version"
    STORE_CORRUPT = "store-corrupt"
    PERMISSION = "permission"
    UNIMPLEMENTED = "unimplemented"
    UNAVAILABLE = "unavailable"
    SESSION_LOST = "session-lost"
    CANCELLED = "cancelled"
    CONFIG = "config"
    HOSTILE_INPUT = "hostile-input"
    ENVIRONMENT = "environment"
    LIMIT = "limit"
    DISK_CAP = "disk-cap"
    NOT_REPRODUCIBLE = "not-reproducible"
    SIGNATURE = "signature"


EXIT_CODES: dict[Code, int] = {
    Code.INTERNAL: 70,
    Code.USAGE: 2,
    Code.INVALID: 3,
    Code.DOCKERFILE_SYNTAX: 4,
    Code.UNKNOWN_STAGE: 5,
    Code.NOT_FOUND: 6,
    Code.SOURCE_NOT_FOUND: 7,
    Code.EXEC_FAILED: 8,
    Code.RUNTIME_FAILED: 9,
    Code.OUT_OF_MEMORY: 10,
    Code.REGISTRY_UNREACHABLE: 11,
    Code.REGISTRY_PROTOCOL: 12,
    Code.REGISTRY_TLS: 13,
    Code.REGISTRY_AUTH: 14,
    Code.REGISTRY_FAILED: 15,
    Code.DIGEST_MISMATCH: 16,
    Code.DISK_FULL: 17,
    Code.STORE_LOCKED: 18,
    Code.STORE_VERSION: 19,
    Code.STORE_CORRUPT: 20,
    Code.PERMISSION: 21,
    Code.UNIMPLEMENTED: 22,
    Code.UNAVAILABLE: 23,
    Code.SESSION_LOST: 24,
    Code.CONFIG: 25,
    Code.HOSTILE_INPUT: 26,
    Code.ENVIRONMENT: 27,
    Code.LIMIT: 28,
    Code.DISK_CAP: 29,
    Code.NOT_REPRODUCIBLE: 30,
    Code.SIGNATURE: 31,
    Code.CANCELLED: 130,
}


class BoxwrightError(Exception):
    """Base of all expected failures.

    Args:
        brief: One sentence, no final period, naming the thing that failed.
        detail: Facts: observed, wanted, path, syscall.
        hint: What to do next, imperative. Left out rather than guessed.
    """

    code: ClassVar[Code] = Code.INTERNAL
    retryable: ClassVar[bool] = False

    def __init__(self, brief: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(brief)
        self.brief = brief
        self.detail = detail
        self.hint = hint
        self.vertex = ""
        """Digest of the build step that failed; set by the solver."""

    @property
    def exit_code(self) -> int:
        """The process exit status that the command line ends with for this failure."""
        return EXIT_CODES[self.code]

    def __str__(self) -> str:
        """Return brief and detail in one line, as carried in a gRPC status message."""
        return f"{self.brief}: {self.detail}" if self.detail else self.brief


@contextmanager
def named(what: str) -> Iterator[None]:
    """Say in front of an error of the block what failed, once: several may wait for one error."""
    try:
        yield
    except BoxwrightError as error:
        if not error.brief.startswith(f"{what}: "):
            error.brief = f"{what}: {error.brief}"
        raise


class InvalidInputError(BoxwrightError):
    """A request or value from outside that can't be accepted."""

    code = Code.INVALID


class NotFoundError(BoxwrightError):
    """A named thing (ref, record, blob, image) that does not exist."""

    code = Code.NOT_FOUND


class UnimplementedError(BoxwrightError):
    """A wire method or option that this version does not serve."""

    code = Code.UNIMPLEMENTED


class PermissionDeniedError(BoxwrightError):
    """The caller may not do this (entitlement, role, file permission)."""

    code = Code.PERMISSION


class LimitExceededError(BoxwrightError):
    """Input over one of the documented size or count limits."""

    code = Code.LIMIT
