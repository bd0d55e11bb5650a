"""Builds that a daemon remembers: list, show their logs, pin, remove."""

from __future__ import annotations

import base64
import os
import sys
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.boxwright import GlobalOptions
from boxwright.cli.errors import UsageError
from boxwright.errors import BoxwrightError, NotFoundError

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from google.protobuf.timestamp_pb2 import Timestamp

    from boxwright.client.client import Client
    from boxwright.wire.pb.control_pb2 import BuildHistoryEvent, BuildHistoryRecord

_HELP = {"help_option_names": ["-h", "--help"]}
_LISTED = ("TYPE", "REF", "CREATED", "COMPLETED", "GENERATION", "PINNED")
_REMOVED = _LISTED[:-1]


async def print_histories(client: Client, *, template: str = "") -> None:
    """Print the builds that the daemon remembers, as a table or a JSON object for each."""
    from boxwright.cli import views
    from boxwright.wire.pb import control_pb2

    as_json = views.wants_json(template)
    events = client.history(control_pb2.BuildHistoryRequest(EarlyExit=True))
    if as_json:
        async for event in events:
            sys.stdout.write(views.to_json(message_json(event)) + "\n")
        return
    _write_table(_LISTED, [_row(event) async for event in events])


async def prune_histories(client: Client, *, template: str = "") -> None:
    """Remove all remembered builds but those that are pinned, and print each.

    Raises:
        BoxwrightError: some could not be removed; the others are.
    """
    from boxwright.cli import views
    from boxwright.wire.pb import control_pb2

    as_json = views.wants_json(template)
    failures: list[BoxwrightError] = []
    removed: list[BuildHistoryEvent] = []
    async for event in client.history(control_pb2.BuildHistoryRequest(EarlyExit=True)):
        if event.record.pinned or not event.record.Ref:
            continue
        try:
            await _remove(client, event.record.Ref)
        except BoxwrightError as error:
            failures.append(error)
        else:
            removed.append(event)
    if as_json:
        sys.stdout.writelines(views.to_json(message_json(each)) + "\n" for each in removed)
    else:
        _write_table(_REMOVED, [_row(event)[:-1] for event in removed])
    if failures:
        raise failures[0]


async def replay(client: Client, ref: str, mode: str) -> None:
    """Show the progress of a build, past or running, on standard output."""
    from boxwright.cli.render import make_renderer

    renderer = make_renderer(mode, os.environ, sys.stdout)
    try:
        await client.follow(ref, renderer.update)
    finally:
        renderer.close()


async def print_trace(client: Client, ref: str) -> None:
    """Write the trace of a build, which the daemon may have to finish first.

    Raises:
        NotFoundError: no such build, or it has no trace.
    """
    record = await find(client, ref)
    if not record.HasField("trace"):
        from boxwright.wire.pb import control_pb2

        await client.update_history(control_pb2.UpdateBuildHistoryRequest(Ref=ref, Finalize=True))
        record = await find(client, ref)
    if not record.HasField("trace"):
        raise NotFoundError(f"ref {ref} does not have trace")
    await print_blob(client, record.trace.digest)


async def print_blob(client: Client, digest: str) -> None:
    """Write a blob of the daemon's content store to standard output."""
    async for data in client.read_blob(digest):
        sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


async def find(client: Client, ref: str) -> BuildHistoryRecord:
    """Return the record of a build.

    Raises:
        NotFoundError: there is none.
    """
    from boxwright.wire.pb import control_pb2

    request = control_pb2.BuildHistoryRequest(Ref=ref, EarlyExit=True)
    async for event in client.history(request):
        if event.record.Ref == ref:
            return event.record
    raise NotFoundError(f"ref {ref} not found", hint="boxwright history ls shows what there is")


async def update(
    client: Client, ref: str, *, is_pinned: bool = False, is_deleted: bool = False
) -> None:
    """Pin, unpin or remove a build.

    Raises:
        NotFoundError: there is none of this ref.
    """
    from boxwright.wire.pb import control_pb2

    await client.update_history(
        control_pb2.UpdateBuildHistoryRequest(Ref=ref, Pinned=is_pinned, Delete=is_deleted)
    )


async def _remove(client: Client, ref: str) -> None:
    await update(client, ref, is_deleted=True)


async def monitor(client: Client, *, ref: str = "", with_completed: bool = False) -> None:
    """Print events of builds as they come, until interrupted."""
    from boxwright.wire.pb import control_pb2

    request = control_pb2.BuildHistoryRequest(Ref=ref, ActiveOnly=not with_completed)
    async for event in client.history(request):
        sys.stdout.write(describe_event(event))
        sys.stdout.flush()


def describe_event(event: BuildHistoryEvent) -> str:
    """Return an event of a build as some lines of text."""
    from boxwright.wire.pb import control_pb2

    record = event.record
    kind = control_pb2.BuildHistoryEventType.Name(event.type)
    lines = [f"event: {kind} ref:{record.Ref}"]
    if record.numTotalSteps:
        lines.append(f"  cache: {record.numCachedSteps}/{record.numTotalSteps}")
    if record.numWarnings:
        lines.append(f"  warnings: {record.numWarnings}")
    stored = [name for name in ("logs", "trace") if record.HasField(name)]
    lines += [f"  {name}: {_one_line(getattr(record, name))}" for name in stored]
    results = [("", record.Result)] if record.HasField("Result") else []
    results += [(f"[{platform}] ", each) for platform, each in sorted(record.Results.items())]
    for prefix, result in results:
        found = [item for _, item in sorted(result.Results.items())]
        if not found and result.HasField("ResultDeprecated"):
            found = [result.ResultDeprecated]
        lines += [f"  {prefix}descriptor: {_one_line(each)}" for each in found]
        lines += [f"  {prefix}attestation: {_one_line(each)}" for each in result.Attestations]
    return "\n".join(lines) + "\n"


def _one_line(message: Message) -> str:
    from google.protobuf import text_format

    return text_format.MessageToString(message, as_one_line=True)


def message_json(message: Message) -> dict[str, Any]:
    """Return a message as Go's ``encoding/json`` writes its struct.

    Fields have the names of the proto file, enums and 64-bit integers are numbers, and a
    timestamp is its seconds and nanoseconds; what is not set is left out.
    """
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            plain = entry.fields_by_name["value"].message_type is None
            found[field.name] = {
                str(key): value[key] if plain else message_json(value[key])
                for key in sorted(value)
            }
        elif field.is_repeated:
            found[field.name] = [_plain(each) for each in value]
        else:
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:  # noqa: ANN401 - a field's value, whatever its type
    from google.protobuf.message import Message

    if isinstance(value, Message):
        return message_json(value)
    return base64.b64encode(value).decode() if isinstance(value, bytes) else value


def _row(event: BuildHistoryEvent) -> tuple[str, ...]:
    from boxwright.wire.pb import control_pb2

    record = event.record
    return (
        control_pb2.BuildHistoryEventType.Name(event.type),
        record.Ref,
        _time(record.CreatedAt) if record.HasField("CreatedAt") else "",
        _time(record.CompletedAt) if record.HasField("CompletedAt") else "",
        str(record.Generation),
        "*" if record.pinned else "",
    )


def _time(stamp: Timestamp) -> str:
    local = datetime.fromtimestamp(stamp.seconds).astimezone()
    return local.isoformat(timespec="seconds").replace("+00:00", "Z")


def _write_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """Write columns that tabs keep apart, as buildctl's do."""
    from boxwright.cli import units

    sys.stdout.write(units.tabbed("\n".join("\t".join(line) for line in (head, *rows))))


@click.group(context_settings=_HELP)
def history() -> None:
    """Look at builds that are over, or running."""


_BUILDER = click.option("--builder", default="", metavar="NAME", help="Builder to ask.")


@history.command("ls")
@click.option("--format", "template", default="", help="'{{json .}}' prints JSON.")
@_BUILDER
@click.pass_obj
def ls(options: GlobalOptions, /, *, template: str, builder: str) -> None:
    """List the builds that the engine remembers.

    \b
    Example:
      boxwright history ls
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.connect import run_chosen

    run_chosen(options, builder, lambda client: print_histories(client, template=template))


@history.command("logs")
@click.option("--progress", default="plain", metavar="MODE", help="plain, tty or rawjson.")
@_BUILDER
@click.argument("ref")
@click.pass_obj
def logs(options: GlobalOptions, /, *, ref: str, progress: str, builder: str) -> None:
    """Show the progress and the output of the build REF again.

    \b
    Example:
      boxwright history logs aeo5m0ng7dnr9gnjhqvohkgpz
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.render import MODES

    if progress not in MODES:
        raise UsageError(f"invalid --progress {progress!r}", hint=f"write {', '.join(MODES)}")
    from boxwright.cli.connect import run_chosen

    run_chosen(options, builder, lambda client: replay(client, ref, progress))


@history.command("rm")
@click.option("--all", "is_all", is_flag=True, help="All that are not pinned.")
@_BUILDER
@click.argument("refs", nargs=-1, metavar="REF...")
@click.pass_obj
def rm(options: GlobalOptions, /, *, refs: tuple[str, ...], is_all: bool, builder: str) -> None:
    """Forget builds.

    \b
    Example:
      boxwright history rm --all
    """  # noqa: D301 - click reads the backspace
    if is_all == bool(refs):
        raise UsageError("name builds, or write --all", hint="boxwright history ls shows them")

    async def use(client: Client) -> None:
        if is_all:
            await prune_histories(client)
        for ref in refs:
            await update(client, ref, is_deleted=True)

    from boxwright.cli.connect import run_chosen

    run_chosen(options, builder, use)


@history.command("pin")
@click.option("--off", "is_off", is_flag=True, help="Let it go again.")
@_BUILDER
@click.argument("ref")
@click.pass_obj
def pin(options: GlobalOptions, /, *, ref: str, is_off: bool, builder: str) -> None:
    """Keep the build REF from being forgotten.

    \b
    Example:
      boxwright history pin aeo5m0ng7dnr9gnjhqvohkgpz
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.connect import run_chosen

    run_chosen(options, builder, lambda client: update(client, ref, is_pinned=not is_off))
