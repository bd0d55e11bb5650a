"""``builder``: which engines there are, and which one is used."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click

from boxwright.cli.boxwright import GlobalOptions

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
def builder() -> None:
    """Choose the engine that builds."""


@builder.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def list_builders(options: GlobalOptions, /, *, as_json: bool) -> None:
    """List the builders, and say which one a build would use and why.

    \b
    Example:
      boxwright builder ls
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli import units
    from boxwright.cli.target import choose, load_builders

    chosen = choose(os.environ, addr=options.addr or "", tls=options.tls)
    found: list[dict[str, Any]] = [
        {"name": "embedded", "driver": "embedded", "address": "", "used": chosen.is_embedded}
    ]
    for each in load_builders(os.environ):
        is_used = each.name == chosen.name
        found.append(
            {
                "name": each.name,
                "driver": each.driver,
                "address": each.address,
                "used": is_used,
            }
        )
    if chosen.address and not chosen.name:
        found.append({"name": "-", "driver": "remote", "address": chosen.address, "used": True})
    for entry in found:
        entry["reason"] = chosen.reason if entry["used"] else ""
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [("NAME", "DRIVER", "ADDRESS", "USED BECAUSE OF")]
    for entry in found:
        mark = "*" if entry["used"] else ""
        rows.append((entry["name"] + mark, entry["driver"], entry["address"], entry["reason"]))
    sys.stdout.write(units.table(rows))


@builder.command("use")
@click.argument("name")
def use_builder(*, name: str) -> None:
    """Make a builder the current one ('embedded': the engine in the command itself).

    \b
    Examples:
      boxwright builder use team
      boxwright builder use embedded
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.build import write_file
    from boxwright.cli.target import choose, current_file

    choose(os.environ, builder=name)
    path = current_file(os.environ)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(str(path), name + "\n")
