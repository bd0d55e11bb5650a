"""What a failed connection is called."""

from __future__ import annotations

import os
import re
import socket

import aiohttp

_UNKNOWN_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)
_ERRNO = re.compile(r"\[Errno (\d+)\]")


def what_broke(exc: BaseException) -> str:
    """Return why a request got no answer, in words that name the address and the cause.

    aiohttp's own text for a refused connection shows its TLS setting and a Python tuple.
    """
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        return f"connect to {_address(exc)}: {exc.certificate_error}"
    if isinstance(exc, aiohttp.ClientConnectorSSLError):
        return f"connect to {_address(exc)}: {exc.os_error}"
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        # Go's words, which scripts around builds look for.
        unknown = exc.os_error.errno in _UNKNOWN_NAME
        why = "no such host" if unknown else exc.os_error.strerror or exc.os_error
        return f"dial tcp: lookup {exc.host}: {why}"
    if isinstance(exc, aiohttp.ClientConnectorError):
        return f"connect to {_address(exc)}: {_cause(exc.os_error)}"
    return str(exc) or type(exc).__name__


def _address(exc: aiohttp.ClientConnectorError | aiohttp.ClientConnectorCertificateError) -> str:
    return f"[{exc.host}]:{exc.port}" if ":" in exc.host else f"{exc.host}:{exc.port}"


def _cause(error: OSError) -> str:
    # One address: the number is on the error. Several: the numbers are only in its text.
    numbers = [error.errno] if error.errno else map(int, _ERRNO.findall(str(error)))
    causes = dict.fromkeys(os.strerror(number).lower() for number in numbers)
    return ", ".join(causes) or str(error)
