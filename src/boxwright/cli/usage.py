"""``du`` and ``prune``: what takes space, and making room."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from boxwright.cli.boxwright import GlobalOptions
from boxwright.cli.errors import UsageError
from boxwright.core.dataclass import dataclass

if TYPE_CHECKING:
    from boxwright.client.client import Client
    from boxwright.wire.pb.control_pb2 import UsageRecord

F = TypeVar("F", bound=Callable[..., Any])
_HELP = {"help_option_names": ["-h", "--help"]}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|ms|s|m|h|d)")
_UNIT_NS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 24 * 3600 * 10**9,
}


def parse_duration_ns(text: str) -> int:
    """Parse ``48h``, ``1h30m`` or a number of seconds.

    Raises:
        UsageError: it is none of them.
    """
    if not text:
        return 0
    if text.isdigit():
        return int(text) * 10**9
    parts = _DURATION.findall(text)
    if "".join(number + unit for number, unit in parts) != text:
        raise UsageError(f"invalid duration {text!r}", hint="write 48h, 30m or 90s")
    return sum(int(float(number) * _UNIT_NS[unit]) for number, unit in parts)


def usage_flags(function: F) -> F:
    """Declare the flags that both commands share."""
    for decorate in (
        click.option("--format", "template", default="", help="'{{json .}}' prints JSON."),
        click.option("-v", "--verbose", is_flag=True, help="Everything about each record."),
        click.option("-f", "--filter", "filters", multiple=True, help="Only these records."),
    ):
        function = decorate(function)
    return function


def prune_flags(function: F) -> F:
    """Declare what ``prune`` keeps."""
    for decorate in (
        click.option("--all", "everything", is_flag=True, help="Internal records, too."),
        click.option("--free-storage", type=float, default=0.0, help="Free at least so many MB."),
        click.option(
            "--keep-storage-min", type=float, default=0.0, help="Always keep so many MB."
        ),
        click.option("--keep-storage", type=float, default=0.0, help="Keep at most so many MB."),
        click.option("--keep-duration", default="", help="Keep what was used since (48h)."),
    ):
        function = decorate(function)
    return function


@dataclass(frozen=True, slots=True)
class PruneLimits:
    """What is kept; storage in MB (10^6 bytes)."""

    keep_duration: str = ""
    keep_storage: float = 0.0
    keep_storage_min: float = 0.0
    free_storage: float = 0.0
    everything: bool = False


async def list_usage(
    client: Client, filters: tuple[str, ...], *, verbose: bool, template: str
) -> None:
    """Print the records that take space."""
    from boxwright.cli import views

    as_json = views.wants_json(template)
    records = await client.disk_usage(filters)
    write = sys.stdout.write
    if as_json:
        write(views.to_json([views.usage_json(each) for each in records]) + "\n")
        return
    if verbose:
        sys.stdout.writelines(map(views.usage_details, records))
    else:
        write(views.usage_table(records))
    if not filters:
        write(views.usage_summary(records))


async def prune_records(
    client: Client,
    filters: tuple[str, ...],
    limits: PruneLimits,
    *,
    verbose: bool,
    template: str,
) -> None:
    """Remove records and print each as it goes."""
    from boxwright.cli import units, views
    from boxwright.wire.pb import control_pb2

    as_json = views.wants_json(template)
    request = control_pb2.PruneRequest(
        filter=filters,
        all=limits.everything,
        keepDuration=parse_duration_ns(limits.keep_duration),
        reservedSpace=int(limits.keep_storage_min * 1e6),
        maxUsedSpace=int(limits.keep_storage * 1e6),
        minFreeSpace=int(limits.free_storage * 1e6),
    )
    total, is_first = 0, True
    async for record in client.prune(request):
        total += record.Size
        if as_json:
            sys.stdout.write(views.to_json(views.usage_json(record)) + "\n")
        elif verbose:
            sys.stdout.write(views.usage_details(record))
        else:
            _print_row(record, is_first=is_first)
        is_first = False
    if not as_json:
        sys.stdout.write(f"Total:\t{units.size(total)}\n")


def _print_row(record: UsageRecord, *, is_first: bool) -> None:
    from boxwright.cli import views

    sys.stdout.write(views.usage_table([record], with_head=is_first))
    sys.stdout.flush()


@click.command(context_settings=_HELP)
@usage_flags
@click.option("--builder", default="", metavar="NAME", help="Builder to ask.")
@click.pass_obj
def du(
    options: GlobalOptions,
    /,
    *,
    filters: tuple[str, ...],
    verbose: bool,
    template: str,
    builder: str,
) -> None:
    """Show what takes space.

    \b
    Examples:
      boxwright du
      boxwright du --filter type==exec.cachemount
      boxwright du --format '{{json .}}'
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.connect import run_chosen

    async def use(client: Client) -> None:
        await list_usage(client, filters, verbose=verbose, template=template)

    run_chosen(options, builder, use)


@click.command(context_settings=_HELP)
@usage_flags
@prune_flags
@click.option("--builder", default="", metavar="NAME", help="Builder to ask.")
@click.option("--reset", "is_reset", is_flag=True, help="With --all: images, history, everything.")
@click.pass_obj
def prune(
    options: GlobalOptions,
    /,
    *,
    filters: tuple[str, ...],
    verbose: bool,
    template: str,
    builder: str,
    is_reset: bool,
    **limits: Any,  # noqa: ANN401
) -> None:
    """Remove cache that no build uses.

    \b
    Examples:
      boxwright prune --keep-storage 10000
      boxwright prune --all
      boxwright prune --all --reset   # the state folder itself; no engine may be using it
    """  # noqa: D301 - click reads the backspaces
    if is_reset:
        if not limits["everything"] or filters:
            raise UsageError("--reset removes everything", hint="give it with --all alone")
        from boxwright.cli.connect import erase_root

        sys.stdout.write(f"removed {erase_root(options)}\n")
        return
    from boxwright.cli.connect import run_chosen

    async def use(client: Client) -> None:
        await prune_records(
            client, filters, PruneLimits(**limits), verbose=verbose, template=template
        )

    run_chosen(options, builder, use)
