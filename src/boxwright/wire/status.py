"""gRPC status codes and the conversion between them and Boxwright's errors.

Ours carry a ``BoxError`` detail, so that a Boxwright client gets code, brief, detail and hint
back; BuildKit's clients skip it and read the typed details that exceptions carry in their
``rpc_details`` attribute (a list of ``google.protobuf.Any``, see
:func:`boxwright.wire.errdetails.pack`).
"""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Iterable
from typing import Final

from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from boxwright.errors import BoxwrightError, Code
from boxwright.wire import errdetails
from boxwright.wire.pb import boxerror_pb2, status_pb2

_log = logging.getLogger(__name__)


class StatusCode(enum.IntEnum):
    """gRPC status codes (grpc/grpc, doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


# A failed step or a bad Dockerfile is UNKNOWN, as BuildKit sends it: stock clients print such
# messages without a code name before them.
_TO_STATUS: Final[dict[Code, StatusCode]] = {
    Code.INTERNAL: StatusCode.INTERNAL,
    Code.USAGE: StatusCode.INVALID_ARGUMENT,
    Code.INVALID: StatusCode.INVALID_ARGUMENT,
    Code.DOCKERFILE_SYNTAX: StatusCode.UNKNOWN,
    Code.UNKNOWN_STAGE: StatusCode.UNKNOWN,
    Code.NOT_FOUND: StatusCode.NOT_FOUND,
    Code.SOURCE_NOT_FOUND: StatusCode.UNKNOWN,
    Code.EXEC_FAILED: StatusCode.UNKNOWN,
    Code.RUNTIME_FAILED: StatusCode.UNKNOWN,
    Code.OUT_OF_MEMORY: StatusCode.RESOURCE_EXHAUSTED,
    Code.REGISTRY_UNREACHABLE: StatusCode.UNKNOWN,
    Code.REGISTRY_PROTOCOL: StatusCode.UNKNOWN,
    Code.REGISTRY_TLS: StatusCode.UNKNOWN,
    Code.REGISTRY_AUTH: StatusCode.UNKNOWN,
    Code.REGISTRY_FAILED: StatusCode.UNKNOWN,
    Code.DIGEST_MISMATCH: StatusCode.DATA_LOSS,
    Code.DISK_FULL: StatusCode.RESOURCE_EXHAUSTED,
    Code.DISK_CAP: StatusCode.RESOURCE_EXHAUSTED,
    Code.STORE_LOCKED: StatusCode.FAILED_PRECONDITION,
    Code.STORE_VERSION: StatusCode.FAILED_PRECONDITION,
    Code.STORE_CORRUPT: StatusCode.DATA_LOSS,
    Code.PERMISSION: StatusCode.PERMISSION_DENIED,
    Code.UNIMPLEMENTED: StatusCode.UNIMPLEMENTED,
    Code.UNAVAILABLE: StatusCode.UNAVAILABLE,
    Code.SESSION_LOST: StatusCode.UNAVAILABLE,
    Code.CANCELLED: StatusCode.CANCELLED,
    Code.CONFIG: StatusCode.INVALID_ARGUMENT,
    Code.HOSTILE_INPUT: StatusCode.INVALID_ARGUMENT,
    Code.ENVIRONMENT: StatusCode.FAILED_PRECONDITION,
    Code.LIMIT: StatusCode.RESOURCE_EXHAUSTED,
    Code.NOT_REPRODUCIBLE: StatusCode.FAILED_PRECONDITION,
    Code.SIGNATURE: StatusCode.FAILED_PRECONDITION,
}

_PLAIN_IN_STEPS: Final = frozenset(
    (
        StatusCode.INVALID_ARGUMENT,
        StatusCode.NOT_FOUND,
        StatusCode.PERMISSION_DENIED,
        StatusCode.UNAVAILABLE,
        StatusCode.DATA_LOSS,
    )
)

_TO_CODE: Final[dict[StatusCode, Code]] = {
    StatusCode.CANCELLED: Code.CANCELLED,
    StatusCode.INVALID_ARGUMENT: Code.INVALID,
    StatusCode.DEADLINE_EXCEEDED: Code.UNAVAILABLE,
    StatusCode.NOT_FOUND: Code.NOT_FOUND,
    StatusCode.PERMISSION_DENIED: Code.PERMISSION,
    StatusCode.RESOURCE_EXHAUSTED: Code.LIMIT,
    StatusCode.UNIMPLEMENTED: Code.UNIMPLEMENTED,
    StatusCode.UNAVAILABLE: Code.UNAVAILABLE,
    StatusCode.UNAUTHENTICATED: Code.PERMISSION,
}


class RpcError(BoxwrightError):
    """A call ended with a status other than OK.

    Attributes:
        status: the gRPC status code.
        message: the status message as sent, without a code name.
        details: typed details, unknown ones included.
        rpc_details: the same list, under the name by which all errors are given more of them.
    """

    def __init__(
        self, status: StatusCode, message: str, details: Iterable[Any] = (), *, hint: str = ""
    ) -> None:
        super().__init__(message or status.name, hint=hint)
        self.status = status
        self.message = message
        self.details: list[Any] = list(details)
        self.rpc_details = self.details
        # An instance value over the class one: the code follows from the status.
        self.__dict__["code"] = _TO_CODE.get(status, Code.INTERNAL)

    def detail_messages(self) -> list[Message]:
        """Return the details whose type is known, decoded."""
        decoded = (errdetails.unpack(detail) for detail in self.details)
        return [message for message in decoded if message is not None]


class RemoteError(BoxwrightError):
    """An error that a Boxwright daemon reported: same code, brief, detail and hint.

    Attributes:
        status: the gRPC status code that it came with.
        rpc_details: BuildKit's typed details (vertex, source, …).
    """

    def __init__(self, box: boxerror_pb2.BoxError, cause: RpcError) -> None:
        super().__init__(box.brief, detail=box.detail, hint=box.hint)
        self.status = cause.status
        self.rpc_details = cause.details
        self.__dict__["code"] = Code(box.code)
        self.__dict__["retryable"] = box.retryable


def _chain(exc: BaseException) -> Iterable[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def to_rpc_error(exc: BaseException) -> RpcError:
    """Convert what a handler raised into what goes on the wire.

    Anything unexpected becomes INTERNAL without its text, and is logged with its traceback.
    """
    if isinstance(exc, RpcError):
        exc.details = exc.rpc_details
        if exc.brief == (exc.message or exc.status.name):
            return exc
        # Whoever passed it on has said what it was about.
        return RpcError(exc.status, str(exc), exc.details, hint=exc.hint)
    if isinstance(exc, asyncio.CancelledError):
        return RpcError(StatusCode.CANCELLED, "the call was cancelled")
    if isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        return to_rpc_error(exc.exceptions[0])
    details: list[Any] = []
    for link in _chain(exc):
        details += getattr(link, "rpc_details", ())
    if not isinstance(exc, BoxwrightError):
        _log.error("internal error in a call handler", exc_info=exc)
        return RpcError(StatusCode.INTERNAL, f"internal error: {type(exc).__name__}", details)
    details = [detail for detail in details if not errdetails.is_box_error(detail)]
    box = boxerror_pb2.BoxError(
        code=exc.code.value,
        brief=exc.brief,
        detail=exc.detail,
        hint=exc.hint,
        retryable=exc.retryable,
    )
    details.append(errdetails.pack(box))
    status = getattr(exc, "status", None)
    if not isinstance(status, StatusCode):
        status = _TO_STATUS.get(exc.code, StatusCode.UNKNOWN)
        is_lost = exc.code is Code.SESSION_LOST  # of the call, whatever the step is
        if exc.vertex and status in _PLAIN_IN_STEPS and not is_lost:
            status = StatusCode.UNKNOWN
    return RpcError(status, str(exc), details)


def from_rpc_error(error: RpcError) -> BoxwrightError:
    """Return the typed error that a Boxwright daemon sent, or ``error`` itself."""
    for message in error.detail_messages():
        if isinstance(message, boxerror_pb2.BoxError):
            try:
                return RemoteError(message, error)
            except ValueError:  # a code of a newer version
                break
    return error


def to_pb(error: RpcError) -> status_pb2.Status:
    """Return the status message (history records, ReturnRequest, exec exits)."""
    return status_pb2.Status(code=int(error.status), message=error.message, details=error.details)


def from_pb(status: status_pb2.Status) -> RpcError | None:
    """Return the error that ``status`` describes, or None for OK."""
    if status.code == 0:
        return None
    try:
        code = StatusCode(status.code)
    except ValueError:
        code = StatusCode.UNKNOWN
    return RpcError(code, status.message, status.details)
