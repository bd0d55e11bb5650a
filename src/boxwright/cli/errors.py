"""From an exception to what the user reads and the status that the program ends with."""

from __future__ import annotations

import logging
import os
import sys
import uuid
from typing import TYPE_CHECKING, TextIO

from boxwright.errors import EXIT_CODES, BoxwrightError, Code

if TYPE_CHECKING:
    import click

_log = logging.getLogger(__name__)


class UsageError(BoxwrightError):
    """The command line is wrong."""

    code = Code.USAGE


def run_command(command: click.Command, arguments: list[str], name: str) -> int:
    """Run a click command and return the exit status; no traceback reaches the user."""
    import click

    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as exc:
        return exc.exit_code
    except click.ClickException as exc:
        exc.show()
        return EXIT_CODES[Code.USAGE]
    except (KeyboardInterrupt, click.Abort):
        sys.stderr.write("\ncancelled\n")
        return EXIT_CODES[Code.CANCELLED]
    except BoxwrightError as exc:
        show(exc, sys.stderr)
        return exc.exit_code
    except BrokenPipeError:
        # Whoever read our output has gone: nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as exc:  # noqa: BLE001 - the last line of defence: bugs become an id
        return report_bug(exc, sys.stderr)
    return int(result) if isinstance(result, int) else 0


def show(error: BoxwrightError, stream: TextIO) -> None:
    """Print an expected failure: excerpt, what failed, what was observed, what to do, code."""
    from boxwright.cli.excerpt import of_error

    lines = of_error(error)
    if lines:
        stream.write(lines.rstrip("\n") + "\n")
    stream.write(f"error: {error.brief}\n")
    stream.writelines(f"  {line}\n" for line in error.detail.splitlines())
    if error.hint:
        stream.write(f"hint: {error.hint}\n")
    stream.write(f"code: {error.code}\n")


def report_bug(error: BaseException, stream: TextIO) -> int:
    """Print an id for something that should not happen; the traceback only with a switch."""
    mark = uuid.uuid4().hex[:8]
    stream.write(f"error: internal error {mark} ({type(error).__name__}: {error})\n")
    if os.environ.get("BOXWRIGHT_DEBUG"):
        import traceback

        traceback.print_exception(error, file=stream)
    else:
        stream.write("hint: run again with BOXWRIGHT_DEBUG=1 and report what it prints\n")
    stream.write(f"code: {Code.INTERNAL}\n")
    return EXIT_CODES[Code.INTERNAL]
