"""``gc explain``: what garbage collection keeps and frees, and why."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.boxwright import GlobalOptions

if TYPE_CHECKING:
    from boxwright.client.client import Client
    from boxwright.engine.gcexplain import Verdict

_HELP = {"help_option_names": ["-h", "--help"]}
_ID_LENGTH = 25


@click.group(context_settings=_HELP)
def gc() -> None:
    """Look at garbage collection."""


@gc.command(context_settings=_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--builder", default="", metavar="NAME", help="Builder to ask.")
@click.pass_obj
def explain(options: GlobalOptions, /, *, as_json: bool, builder: str) -> None:
    """Show for every record which rule keeps or frees it, and what holds it.

    Nothing is removed. It works with any BuildKit-compatible daemon. A stock one does not tell
    what its disk has free: its minFreeSpace is taken as satisfied.

    \b
    Examples:
      boxwright gc explain
      boxwright gc explain --json
    """  # noqa: D301 - click reads the backspaces
    from boxwright.cli.connect import run_chosen

    run_chosen(options, builder, partial(print_verdicts, as_json=as_json))


async def print_verdicts(client: Client, *, as_json: bool) -> None:
    """Print what a collection would do now."""
    from boxwright.cli import units, views
    from boxwright.engine import gcexplain

    workers = await client.workers()
    rules = [gcexplain.policy_of(rule) for rule in (workers[0].GCPolicy if workers else ())]
    records = [gcexplain.record_of(message) for message in await client.disk_usage()]
    now_ns = time.time_ns()
    space = await client.space()
    verdicts = gcexplain.explain(
        records,
        rules,
        now_ns,
        free_bytes=None if space is None else space.free,
        blob_bytes=0 if space is None else space.blobs,
    )
    if as_json:
        sys.stdout.write(views.to_json([_to_json(each) for each in verdicts]) + "\n")
        return
    rows = [("ID", "SIZE", "TYPE", "VERDICT", "WHY")]
    rows += [
        (
            each.record.id[:_ID_LENGTH],
            units.size(each.record.size_bytes or 0),
            each.record.record_type,
            "freed" if each.freed_by else "kept",
            _why(each),
        )
        for each in verdicts
    ]
    sys.stdout.write(units.table(rows))
    freed = sum(each.record.size_bytes or 0 for each in verdicts if each.freed_by)
    total = sum(each.record.size_bytes or 0 for each in verdicts)
    sys.stdout.write(f"Freed:\t{units.size(freed)}\nTotal:\t{units.size(total)}\n")


def _why(verdict: Verdict) -> str:
    if not verdict.pinned_by:
        return verdict.reason
    first = verdict.pinned_by[0][:_ID_LENGTH]
    more = len(verdict.pinned_by) - 1
    return f"{verdict.reason} by {first}" + (f" and {more} more" if more else "")


def _to_json(verdict: Verdict) -> dict[str, Any]:
    record = verdict.record
    return {
        "id": record.id,
        "type": record.record_type,
        "description": record.description,
        "bytes": record.size_bytes or 0,
        "freed": verdict.freed_by is not None,
        "rule": verdict.freed_by,
        "reason": verdict.reason,
        "pinnedBy": list(verdict.pinned_by),
    }
