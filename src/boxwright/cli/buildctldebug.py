"""``buildctl debug``: what is inside the daemon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol

import click

from boxwright.cli.errors import UsageError
from boxwright.cli.render import MODES

if TYPE_CHECKING:
    from boxwright.client.client import Client

_HELP = {"help_option_names": ["-h", "--help"]}


class Runs(Protocol):
    """The flags before the command: they know how to connect."""

    def run(self, use: Callable[[Client], Awaitable[Any]]) -> Any:  # noqa: ANN401 - what use returns
        """Connect, await ``use(client)``, close."""


@click.group("debug", context_settings=_HELP)
def debug() -> None:
    """Look inside the daemon."""


@debug.command("workers", context_settings=_HELP)
@click.option("-f", "--filter", "filters", multiple=True, help="Only these workers.")
@click.option("-v", "--verbose", is_flag=True, help="Everything about each worker.")
@click.option("--format", "template", default="", help="'{{json .}}' prints JSON.")
@click.pass_obj
def workers(options: Runs, /, *, filters: tuple[str, ...], verbose: bool, template: str) -> None:
    """List workers."""
    from boxwright.cli.debug import print_workers

    options.run(lambda client: print_workers(client, filters, verbose=verbose, template=template))


@debug.command("info", context_settings=_HELP)
@click.option("--format", "template", default="", help="'{{json .}}' prints JSON.")
@click.pass_obj
def info(options: Runs, /, *, template: str) -> None:
    """Show the daemon's version."""
    from boxwright.cli.debug import print_info

    options.run(lambda client: print_info(client, template=template))


@debug.command("dump-llb", context_settings=_HELP)
@click.option("--dot", "as_dot", is_flag=True, help="Write a graph for graphviz.")
@click.argument("file", default="-")
def dump_llb(*, as_dot: bool, file: str) -> None:
    """Print a build definition as JSON."""
    from boxwright.cli.dumpllb import dump, read_definition

    with click.open_file(file, "rb") as stream:
        dump(read_definition(stream), as_dot=as_dot)


@debug.command("histories", context_settings=_HELP)
@click.option("--format", "template", default="", help="'{{json .}}' prints JSON.")
@click.pass_obj
def histories(options: Runs, /, *, template: str) -> None:
    """List build records."""
    from boxwright.cli import history

    options.run(lambda client: history.print_histories(client, template=template))


@debug.command("logs", context_settings=_HELP)
@click.option("--progress", type=click.Choice(MODES), default="auto", help="How it is shown.")
@click.option("--trace", "wants_trace", is_flag=True, help="Write the stored trace instead.")
@click.argument("ref", default="")
@click.pass_obj
def logs(options: Runs, /, *, ref: str, progress: str, wants_trace: bool) -> None:
    """Show the progress of the build REF again."""
    from boxwright.cli import history

    _need(ref, "build ref")
    if wants_trace:
        options.run(lambda client: history.print_trace(client, ref))
    else:
        options.run(lambda client: history.replay(client, ref, progress))


@debug.command("ctl", context_settings=_HELP)
@click.option("--pin", is_flag=True, help="Keep the record from being collected.")
@click.option("--unpin", is_flag=True, help="Let it go again.")
@click.option("--delete", is_flag=True, help="Remove the record.")
@click.argument("ref", default="")
@click.pass_obj
def ctl(options: Runs, /, *, ref: str, pin: bool, unpin: bool, delete: bool) -> None:
    """Pin, unpin or remove the build record REF."""
    from boxwright.cli import history

    _need(ref, "build ref")
    if not (pin or unpin or delete):
        raise UsageError("must specify one of --pin, --unpin, --delete")
    if pin and unpin:
        raise UsageError("cannot specify both --pin and --unpin")
    if delete and (pin or unpin):
        raise UsageError("cannot specify --delete with --pin or --unpin")
    options.run(lambda client: history.update(client, ref, is_pinned=pin, is_deleted=delete))


@debug.command("get", context_settings=_HELP)
@click.argument("digest", default="")
@click.pass_obj
def get(options: Runs, /, *, digest: str) -> None:
    """Write the blob DIGEST of the content store to standard output."""
    from boxwright.cli import history

    _need(digest, "blob digest")
    options.run(lambda client: history.print_blob(client, digest))


@debug.command("monitor", context_settings=_HELP)
@click.option(
    "--completed", "with_completed", is_flag=True, help="Show builds that are over, too."
)
@click.option("--ref", default="", help="Only this build.")
@click.pass_obj
def monitor(options: Runs, /, *, ref: str, with_completed: bool) -> None:
    """Show events of builds as they come."""
    from boxwright.cli import history

    options.run(lambda client: history.monitor(client, ref=ref, with_completed=with_completed))


def _need(argument: str, what: str) -> None:
    if not argument:
        raise UsageError(f"{what} must be specified")
