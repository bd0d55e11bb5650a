"""``store verify``: whether the state folder holds what it says."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.boxwright import GlobalOptions

if TYPE_CHECKING:
    from boxwright.engine.storecheck import StoreReport

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
def store() -> None:
    """Look after the state folder."""


@store.command(context_settings=_HELP)
@click.option("--repair", is_flag=True, help="Put right what can be.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def verify(options: GlobalOptions, /, *, repair: bool, as_json: bool) -> None:
    """Check every digest, reference, tree and row of the state folder.

    No daemon and no build may be using the folder. Every blob is read.

    \b
    Examples:
      boxwright store verify
      boxwright --root /var/lib/boxwright store verify --repair
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.connect import root_of
    from boxwright.engine.process import enter

    root = root_of(options)
    entered = enter()
    from boxwright.engine.storecheck import verify_store

    report = verify_store(root, repair=repair, rootless=entered.rootless)
    if as_json:
        from boxwright.cli import views

        sys.stdout.write(views.to_json(_to_json(report)) + "\n")
    else:
        _print(report)
    sys.stdout.flush()
    report.raise_for_damage()


def _print(report: StoreReport) -> None:
    from boxwright.cli import units

    rows = [
        (
            "damage" if each.is_damage else "leftover",
            each.kind,
            each.item,
            each.detail,
            _remedy(each.remedy, is_repaired=report.is_repaired),
        )
        for each in report.problems
    ]
    if rows:
        sys.stdout.write(units.table([("CLASS", "KIND", "ITEM", "OBSERVED", "REPAIR"), *rows]))
    sys.stdout.write(
        f"{report.blobs} blobs and {report.trees} trees checked, {len(rows)} problems\n"
    )


def _remedy(remedy: str, *, is_repaired: bool) -> str:
    if not remedy:
        return "none here"
    return f"done: {remedy}" if is_repaired else remedy


def _to_json(report: StoreReport) -> dict[str, Any]:
    return {
        "root": str(report.root),
        "blobs": report.blobs,
        "trees": report.trees,
        "sound": not report.damage,
        "repaired": report.is_repaired,
        "problems": [
            {
                "kind": each.kind,
                "item": each.item,
                "observed": each.detail,
                "damage": each.is_damage,
                "repair": each.remedy or None,
            }
            for each in report.problems
        ],
    }
