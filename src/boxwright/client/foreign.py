"""What a failed build of a daemon that is not ours was about.

BuildKit answers nearly every failed build with the status UNKNOWN and says the rest in its
message. The messages are stable enough for a stable code, so that scripts can tell a failed
step from a bad Dockerfile whichever daemon built.
"""

from __future__ import annotations

from boxwright.errors import BoxwrightError, Code
from boxwright.wire.status import RpcError, StatusCode, from_rpc_error

_SIGNS: tuple[tuple[str, Code], ...] = (
    ("did not complete successfully: cannot allocate memory", Code.OUT_OF_MEMORY),
    ("did not complete successfully", Code.EXEC_FAILED),
    ("dockerfile parse error", Code.DOCKERFILE_SYNTAX),
    ("unknown instruction", Code.DOCKERFILE_SYNTAX),
    ("target stage", Code.UNKNOWN_STAGE),
    ("failed to calculate checksum", Code.SOURCE_NOT_FOUND),
    ("failed to compute cache key", Code.SOURCE_NOT_FOUND),
    ("failed to read dockerfile", Code.SOURCE_NOT_FOUND),
    ("no space left on device", Code.DISK_FULL),
    ("x509:", Code.REGISTRY_TLS),
    ("server gave HTTP response to HTTPS client", Code.REGISTRY_PROTOCOL),
    ("authorization failed", Code.REGISTRY_AUTH),
    ("insufficient_scope", Code.REGISTRY_AUTH),
    ("401 Unauthorized", Code.REGISTRY_AUTH),
    ("failed to do request", Code.REGISTRY_UNREACHABLE),
    ("failed to push", Code.REGISTRY_FAILED),
    ("failed to resolve source metadata", Code.REGISTRY_FAILED),
    ("context canceled", Code.CANCELLED),
)


def typed_error(error: RpcError) -> BoxwrightError:
    """Return the error that a Boxwright daemon sent, or ``error`` with the code it is about."""
    found = from_rpc_error(error)
    if found is error and error.status is StatusCode.UNKNOWN:
        sign = next((code for text, code in _SIGNS if text in error.message), Code.INVALID)
        error.__dict__["code"] = sign
    return found
