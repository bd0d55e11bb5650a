"""Failures of running a process: of the process itself, or of what runs it."""

from __future__ import annotations

import signal
from collections.abc import Sequence

from boxwright.errors import BoxwrightError, Code


def go_quote(text: str) -> str:
    """Quote as Go's ``%q`` does: the form in which every BuildKit client shows a command."""
    escapes = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
    escapes |= {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\v": "\\v"}
    out = []
    for char in text:
        if char in escapes:
            out.append(escapes[char])
        elif char.isprintable():
            out.append(char)
        elif ord(char) < 0x80:
            out.append(f"\\x{ord(char):02x}")
        else:
            out.append(f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else f"\\U{ord(char):08x}")
    return '"' + "".join(out) + '"'


class ExecFailedError(BoxwrightError):
    """A process ended with an exit code that its step does not accept.

    The brief is BuildKit's own sentence, since clients and people search for it.
    """

    code = Code.EXEC_FAILED

    def __init__(self, args: Sequence[str], exit_code: int, *, detail: str = "") -> None:
        self.args_line = " ".join(args)
        self.process_exit_code = exit_code
        hint = "the command's own output, above, says why"
        if exit_code > 128 and (name := _signal_name(exit_code - 128)):
            detail = detail or f"the process was ended by {name}"
        if exit_code == 127 and not detail:
            hint = "the command was not found: check the image's PATH and what it has installed"
        super().__init__(
            f"process {go_quote(self.args_line)} did not complete successfully: "
            f"exit code: {exit_code}",
            detail=detail,
            hint=hint,
        )

    def __str__(self) -> str:
        """Return BuildKit's sentence alone: it ends with the exit code, as clients expect."""
        return self.brief


class OutOfMemoryError(ExecFailedError):
    """The kernel killed the process because its memory limit was reached."""

    code = Code.OUT_OF_MEMORY

    def __init__(
        self, args: Sequence[str], exit_code: int, *, limit_bytes: int, peak_bytes: int
    ) -> None:
        limit = f"a limit of {limit_bytes} bytes" if limit_bytes else "the machine's memory"
        super().__init__(
            args,
            exit_code,
            detail=f"the kernel killed it at {limit}; it had used {peak_bytes} bytes at its peak",
        )
        self.limit_bytes = limit_bytes
        self.peak_bytes = peak_bytes
        self.brief = (
            f"process {go_quote(self.args_line)} did not complete successfully: "
            "cannot allocate memory"
        )
        self.hint = "raise the memory limit of the builder or of the step, or let it use less"


class RuntimeFailedError(BoxwrightError):
    """The OCI runtime or the sandbox around it failed, not the user's process."""

    code = Code.RUNTIME_FAILED


class SandboxLostError(RuntimeFailedError):
    """The sandbox supervisor ended while steps were running in it."""

    retryable = True


class UserLookupError(BoxwrightError):
    """The step's user or group does not exist in its root file system."""

    code = Code.INVALID


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""
