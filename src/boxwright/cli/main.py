"""One executable, three programs: ``boxwright``, and by its other names buildctl and buildkitd.

Start-up counts: this module imports nothing but the standard library's cheapest parts until it
knows which program is wanted, and each command loads what it needs when it runs.
"""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


# Cyclic garbage is looked for after so many new objects. Imports and large contexts make hundreds
# of thousands that live on: Python's 700 would have them walked again and again.
_COLLECT_AFTER = 50_000


def main(argv: list[str] | None = None) -> None:
    """Run the program that this executable was called as, and exit with its status."""
    gc.set_threshold(_COLLECT_AFTER)
    arguments = sys.argv if argv is None else argv
    name = os.path.basename(arguments[0])
    command: click.Command
    if name == "buildctl":
        from boxwright.cli import buildctl

        command = buildctl.command
    elif name == "buildkitd":
        from boxwright.cli import daemon

        command = daemon.buildkitd
    else:
        name = "boxwright"
        from boxwright.cli import boxwright

        command = boxwright.command
    from boxwright.cli.errors import run_command

    sys.exit(run_command(command, arguments[1:], name))
