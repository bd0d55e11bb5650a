"""Failures of downloads; URLs in them carry no passwords."""

from __future__ import annotations

from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code, LimitExceededError


class HttpError(BoxwrightError):
    """A download that failed.

    Args:
        url: what was asked for, already without credentials.
        detail: what was observed.
        hint: what to do.
    """

    code = Code.UNAVAILABLE

    def __init__(self, url: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(f"failed to download {url}", detail=detail, hint=hint)
        self.url = url


class HttpUnreachableError(HttpError):
    """No answer: name not known, refused, timed out, TLS not trusted, or broken off."""

    retryable = True


class HttpStatusError(HttpError):
    """The server answered with an error."""

    def __init__(self, url: str, status: int, reason: str, *, hint: str = "") -> None:
        super().__init__(url, detail=f"invalid response status {status} {reason}", hint=hint)
        self.status = status


class HttpNotFoundError(HttpStatusError):
    """There is nothing under this URL (404, 410)."""

    code = Code.SOURCE_NOT_FOUND


class HttpDeniedError(HttpStatusError):
    """The server wants a login, or another one (401, 403, 407)."""

    code = Code.PERMISSION


class HttpTooLargeError(LimitExceededError):
    """More bytes than a download may have."""

    def __init__(self, url: str, limit_bytes: int) -> None:
        super().__init__(f"{url} is larger than {limit_bytes} bytes")
        self.url = url
        self.limit_bytes = limit_bytes


class HttpSignatureError(BoxwrightError):
    """The content is not signed by the key that was given."""

    code = Code.SIGNATURE

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            "failed to verify pgp signature",
            detail=f"{url}: {reason}",
            hint="has the file, its signature or the signer's key changed?",
        )
        self.url = url


class HttpDigestMismatchError(BoxwrightError):
    """The content is not the one that was asked for, or changed while the build ran."""

    code = Code.DIGEST_MISMATCH

    def __init__(self, url: str, got: Digest, want: Digest) -> None:
        super().__init__(
            f"digest mismatch {got}: {want}",
            hint=f"has {url} changed? the checksum in the build file may be outdated",
        )
        self.url = url
        self.got = got
        self.want = want


def status_error(url: str, status: int, reason: str, secret_hint: str) -> HttpStatusError:
    """Return the error for a status that is no success.

    Args:
        url: without credentials.
        status: 100 to 599.
        reason: the server's words.
        secret_hint: which secret the server's login may be given in.
    """
    if status in {404, 410}:
        return HttpNotFoundError(url, status, reason)
    if status in {401, 403, 407}:
        return HttpDeniedError(url, status, reason, hint=secret_hint)
    return HttpStatusError(url, status, reason)
