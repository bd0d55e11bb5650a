"""From how the runtime ended to what the step's user is told."""

from __future__ import annotations

from boxwright.executor import runtime
from boxwright.executor.errors import ExecFailedError, OutOfMemoryError, RuntimeFailedError
from boxwright.executor.link import Outcome
from boxwright.executor.process import ExitStatus, ProcessSpec


def interpret(process: ProcessSpec, outcome: Outcome) -> ExitStatus:
    """Return the exit status of an accepted end.

    Raises:
        ExecFailedError: the exit code is not accepted, or the command can't be executed.
        OutOfMemoryError: the kernel killed something in the step for memory.
        RuntimeFailedError: the sandbox failed, not the command.
    """
    usage = outcome.usage
    message = runtime.message_of(outcome.log)
    if outcome.signal and not outcome.asked:
        raise RuntimeFailedError(
            "the container runtime was killed while the step ran",
            detail=f"signal {outcome.signal}",
            hint="run the build again: finished steps are cached",
        )
    code = 128 + outcome.signal if outcome.signal else outcome.code
    if message:
        raise _not_started(process, code, message)
    accepted = process.valid_exit_codes or frozenset((0,))
    if code not in accepted:
        if usage.get("oom_kills"):
            raise OutOfMemoryError(
                process.args,
                code,
                limit_bytes=usage.get("limit", 0),
                peak_bytes=usage.get("peak", 0),
            )
        raise ExecFailedError(process.args, code)
    return ExitStatus(code, usage.get("peak", 0), usage.get("cpu_usec", 0))


def _not_started(
    process: ProcessSpec, code: int, message: str
) -> ExecFailedError | RuntimeFailedError:
    """Tell a command that can't be executed, which is the user's, from a broken sandbox."""
    lowered = message.lower()
    user_facts = (
        "executable file",
        "exec:",
        "open executable",
        "exec format error",
        "is not executable",
    )
    if any(fact in lowered for fact in user_facts):
        return ExecFailedError(process.args, code or 1, detail=message)
    return RuntimeFailedError(
        "the container runtime can't start the step's process", detail=message
    )
