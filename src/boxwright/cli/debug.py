"""``debug``: what a daemon says about itself, and build definitions made readable."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from boxwright.cli.boxwright import GlobalOptions

if TYPE_CHECKING:
    from boxwright.client.client import Client

_HELP = {"help_option_names": ["-h", "--help"]}


async def print_workers(
    client: Client, filters: tuple[str, ...], *, verbose: bool, template: str
) -> None:
    """Print the workers of a daemon."""
    from boxwright.cli import views

    as_json = views.wants_json(template)
    workers = await client.workers(filters)
    if as_json:
        sys.stdout.write(views.to_json([views.worker_json(each) for each in workers]) + "\n")
    elif verbose:
        sys.stdout.writelines(map(views.worker_details, workers))
    else:
        sys.stdout.write(views.workers_table(workers))


async def print_info(client: Client, *, template: str) -> None:
    """Print the version of a daemon."""
    from boxwright.cli import views

    as_json = views.wants_json(template)
    version = await client.info()
    if as_json:
        sys.stdout.write(views.to_json(views.info_json(version)) + "\n")
        return
    rows = [("BuildKit:", f"{version.package} {version.version} {version.revision}")]
    if version.dockerfileVersion:
        rows.append(("Dockerfile:", version.dockerfileVersion))
    width = max(len(name) for name, _ in rows)
    sys.stdout.writelines(f"{name:<{width}} {value}\n" for name, value in rows)


@click.group(context_settings=_HELP)
def debug() -> None:
    """Look inside."""


@debug.command()
@click.option("-f", "--filter", "filters", multiple=True, help="Only these workers.")
@click.option("-v", "--verbose", is_flag=True, help="Everything about each worker.")
@click.option("--format", "template", default="", help="'{{json .}}' prints JSON.")
@click.option("--builder", default="", metavar="NAME", help="Builder to ask.")
@click.pass_obj
def workers(
    options: GlobalOptions,
    /,
    *,
    filters: tuple[str, ...],
    verbose: bool,
    template: str,
    builder: str,
) -> None:
    """List the workers of the engine.

    \b
    Example:
      boxwright debug workers
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.connect import run_chosen

    async def use(client: Client) -> None:
        await print_workers(client, filters, verbose=verbose, template=template)

    run_chosen(options, builder, use)


@debug.command()
@click.option("--format", "template", default="", help="'{{json .}}' prints JSON.")
@click.option("--builder", default="", metavar="NAME", help="Builder to ask.")
@click.pass_obj
def info(options: GlobalOptions, /, *, template: str, builder: str) -> None:
    """Show the version of the engine.

    \b
    Example:
      boxwright debug info --format '{{json .}}'
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.connect import run_chosen

    async def use(client: Client) -> None:
        await print_info(client, template=template)

    run_chosen(options, builder, use)


@debug.command("dump-llb")
@click.option("--dot", "as_dot", is_flag=True, help="Write a graph for graphviz.")
@click.argument("file", default="-")
def dump_llb(*, as_dot: bool, file: str) -> None:
    """Print a build definition (FILE, or standard input) as one JSON object for each op.

    \b
    Example:
      python examples/llb/hello.py | boxwright debug dump-llb
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.dumpllb import dump, read_definition

    with click.open_file(file, "rb") as stream:
        dump(read_definition(stream), as_dot=as_dot)
