"""Failures of talking to a registry; each names the registry and what it answered."""

from __future__ import annotations

from typing import Literal

from boxwright.errors import BoxwrightError, Code

LostBy = Literal["name", "refused", "timeout", "broken"]
"""How a connection failed: unknown name, refused or unroutable, silence, broken off."""


class RegistryError(BoxwrightError):
    """The registry answered with an error that is none of the more precise ones."""

    code = Code.REGISTRY_FAILED

    def __init__(
        self, brief: str, *, host: str = "", status: int = 0, detail: str = "", hint: str = ""
    ) -> None:
        super().__init__(brief, detail=detail, hint=hint)
        self.host = host
        self.status = status


class RegistryUnreachableError(RegistryError):
    """No connection: name not known, refused, timed out, or broken off for good.

    Args:
        brief: as in :class:`~boxwright.errors.BoxwrightError`.
        host: the registry.
        reason: how it failed; decides whether another try makes sense.
        detail: the system's text.
        hint: what to do.
    """

    code = Code.REGISTRY_UNREACHABLE
    retryable = True

    def __init__(
        self,
        brief: str,
        *,
        host: str = "",
        reason: LostBy = "broken",
        detail: str = "",
        hint: str = "",
    ) -> None:
        super().__init__(brief, host=host, detail=detail, hint=hint)
        self.reason = reason


class RegistryProtocolError(RegistryError):
    """Plain HTTP was spoken where HTTPS was expected, or the reverse."""

    code = Code.REGISTRY_PROTOCOL


class RegistryTlsError(RegistryError):
    """The registry's certificate is not trusted, expired, or for another name."""

    code = Code.REGISTRY_TLS


class RegistryAuthError(RegistryError):
    """Credentials are missing, wrong, or do not allow this."""

    code = Code.REGISTRY_AUTH


class ManifestNotFoundError(RegistryError):
    """The repository has no such tag or digest (or the registry will not say)."""

    code = Code.NOT_FOUND


class BlobNotFoundError(RegistryError):
    """The repository has no such blob."""

    code = Code.NOT_FOUND


class StalledTransferError(RegistryError):
    """Bytes stopped flowing: names registry, blob, offset and the last status."""

    code = Code.REGISTRY_UNREACHABLE
    retryable = True


class ContentMismatchError(RegistryError):
    """The registry sent bytes that are not what the digest or size promised."""

    code = Code.DIGEST_MISMATCH
