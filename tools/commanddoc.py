#!/usr/bin/env python3
"""Make the option tables of docs/commands/*.md from the commands themselves.

The prose of a page is written by hand; what stands between the marks is replaced.

Usage: .venv/bin/python tools/commanddoc.py [--check]
"""

from __future__ import annotations

from pathlib import Path

import click
from generated import ROOT, fill, finish

from boxwright.cli import boxwright, buildctl, daemon

TOOL = "tools/commanddoc.py"
FOLDER = ROOT / "docs/commands"


def cell(text: str) -> str:
    """Return text that can stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def option_row(ctx: click.Context, option: click.Option) -> str:
    names, _, rest = (option.get_help_record(ctx) or ("", "", ""))[0].partition("  ")
    default = option.default
    has_default = option.show_default and isinstance(default, (str, int, float))
    shown = f"`{default}`" if has_default else ""
    repeat = "yes" if option.multiple else ""
    text = cell(option.help or "")
    return f"| `{cell(names + rest)}` | {repeat} | {shown} | {text} |"


def options(command: click.Command, path: str) -> list[str]:
    """Return the options of one command as a table."""
    ctx = click.Context(command, info_name=path)
    arguments = " ".join(
        each.make_metavar(ctx) for each in command.params if isinstance(each, click.Argument)
    )
    lines = [f"### `{path}{' ' + arguments if arguments else ''}`", ""]
    summary = (command.help or "").split("\b")[0].strip().split("\n\n")[0]
    if summary:
        lines += [" ".join(summary.split()), ""]
    shown = [
        each
        for each in command.params
        if isinstance(each, click.Option) and not each.hidden and each.name != "help"
    ]
    if shown:
        lines += ["| option | repeatable | default | |", "|---|---|---|---|"]
        lines += [option_row(ctx, each) for each in shown]
        lines.append("")
    return lines


def with_subcommands(command: click.Command, path: str) -> list[str]:
    """Return the tables of a command and of everything below it."""
    lines = options(command, path)
    if isinstance(command, click.Group):
        ctx = click.Context(command, info_name=path)
        for name in command.list_commands(ctx):
            inner = command.get_command(ctx, name)
            if inner is not None and not inner.hidden:
                lines += with_subcommands(inner, f"{path} {name}")
    return lines


def pages() -> dict[Path, list[str]]:
    """Return every page with the lines that belong into it."""
    group = boxwright.command
    ctx = click.Context(group, info_name="boxwright")
    found = {FOLDER / "README.md": options(group, "boxwright")}
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        found[FOLDER / f"{name}.md"] = with_subcommands(command, f"boxwright {name}")
    found[FOLDER / "buildctl.md"] = with_subcommands(buildctl.command, "buildctl")
    found[FOLDER / "buildkitd.md"] = options(daemon.buildkitd, "buildkitd")
    return found


def main() -> int:
    files: dict[Path, str] = {}
    for path, lines in pages().items():
        if not path.exists():
            raise SystemExit(f"error: {path.relative_to(ROOT)} is missing: write what it is for")
        files[path] = fill(path.read_text(), "\n".join(["## Options", "", *lines]), TOOL)
    return finish(files)


if __name__ == "__main__":
    raise SystemExit(main())
