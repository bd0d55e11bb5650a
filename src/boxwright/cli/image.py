"""``image``: the images in the engine's own store."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright.cli.boxwright import GlobalOptions
from boxwright.cli.imagetools import copy_image, create_image, inspect_image, verify_image

if TYPE_CHECKING:
    from boxwright.engine.engine import Engine
    from boxwright.executor.process import ProcessSpec
    from boxwright.oci.image import Image
    from boxwright.store.store import Store

_HELP = {"help_option_names": ["-h", "--help"]}
_DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@click.group(context_settings=_HELP)
def image() -> None:
    """Look after images: those of the engine's own store, and in registries and layouts."""


def open_store(options: GlobalOptions) -> Store:
    """Open the state folder.

    Raises:
        StoreLockedError: an engine uses it.
    """
    from boxwright.engine.process import enter
    from boxwright.engine.settings import default_root

    is_root = os.geteuid() == 0
    entered = enter()
    from boxwright.store.store import Store

    root = Path(options.root) if options.root else default_root(os.environ, is_root=is_root)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return Store.open(root, rootless=entered.rootless)


@image.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Names only.")
@click.pass_obj
def list_images(options: GlobalOptions, /, *, as_json: bool, quiet: bool) -> None:
    """List the stored images.

    \b
    Examples:
      boxwright image ls
      boxwright image ls --json
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli import units
    from boxwright.core.reference import Reference

    store = open_store(options)
    try:
        records = store.images.list()
        sizes = {record.name: graph_size(store, record.descriptor.digest) for record in records}
    finally:
        store.close()
    if as_json:
        fields: list[dict[str, Any]] = [
            {
                "name": record.name,
                "digest": str(record.descriptor.digest),
                "mediaType": record.descriptor.media_type,
                "size": sizes[record.name],
                "created": record.created_ns // 10**9,
                "updated": record.updated_ns // 10**9,
            }
            for record in records
        ]
        click.echo(json.dumps(fields, indent=2))
        return
    if quiet:
        for record in records:
            click.echo(Reference.parse(record.name).familiar)
        return
    rows = [("NAME", "DIGEST", "SIZE", "UPDATED")]
    for record in records:
        age_s = max(0, time.time_ns() - record.updated_ns) // 10**9
        rows.append(
            (
                Reference.parse(record.name).familiar,
                record.descriptor.digest[:19],
                units.size(sizes[record.name]),
                f"{age_text(age_s)} ago",
            )
        )
    sys.stdout.write(units.table(rows))


def age_text(age_s: int) -> str:
    """Return an age in its largest unit: ``3 hours``."""
    for unit, length_s in (("day", 86400), ("hour", 3600), ("minute", 60)):
        count = age_s // length_s
        if count:
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return f"{age_s} seconds"


def graph_size(store: Store, digest: str) -> int:
    """Return the bytes of a manifest or index and all that it names and is stored."""
    from boxwright.core.digest import Digest
    from boxwright.errors import BoxwrightError

    seen: set[str] = set()
    pending, total = [digest], 0
    while pending:
        current = pending.pop()
        if current in seen:
            continue
        seen.add(current)
        size = store.blobs.stat(Digest(current))
        if size is None:
            continue
        total += size
        try:
            data = json.loads(store.blobs.read(Digest(current))) if size < 1 << 20 else {}
        except (ValueError, BoxwrightError):
            continue
        if not isinstance(data, dict):
            continue
        children = [
            data.get("config"),
            *(data.get("layers") or ()),
            *(data.get("manifests") or ()),
        ]
        pending += [str(c["digest"]) for c in children if isinstance(c, dict) and "digest" in c]
    return total


@image.command("pull")
@click.option("--platform", default="", metavar="OS/ARCH", help="Which image of an index.")
@click.argument("name")
@click.pass_obj
def pull_image(options: GlobalOptions, /, *, platform: str, name: str) -> None:
    """Fetch an image from its registry into the store, by tag or by digest.

    \b
    Example:
      boxwright image pull registry.example/app@sha256:…
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli import units
    from boxwright.cli.connect import run_engine
    from boxwright.core.descriptor import Descriptor
    from boxwright.core.platform import Platform

    def arrived(blob: Descriptor) -> None:
        click.echo(f"{blob.digest[:19]}  {units.size(blob.size)}", err=True)

    async def use(engine: Engine) -> Descriptor:
        from boxwright.engine.pull import pull

        wanted = Platform.parse(platform) if platform else None
        return await pull(engine.parts, name, wanted, arrived)

    found = run_engine(options, use)
    click.echo(f"pulled {name} ({found.digest})")


@image.command("rm")
@click.argument("names", nargs=-1, required=True)
@click.pass_obj
def remove_images(options: GlobalOptions, /, *, names: tuple[str, ...]) -> None:
    """Remove names of images; what no other name needs goes with the next prune.

    \b
    Example:
      boxwright image rm app:old
    """  # noqa: D301 - click reads the backspace
    from boxwright.core.reference import Reference
    from boxwright.errors import NotFoundError

    store = open_store(options)
    try:
        for name in names:
            full = str(Reference.parse(name).with_default_tag())
            if not store.images.delete(full):
                raise NotFoundError(
                    f"no image named {name}", hint="list them with boxwright image ls"
                )
            click.echo(f"removed {full}")
    finally:
        store.close()


@image.command("run", context_settings={**_HELP, "ignore_unknown_options": True})
@click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Set a variable.")
@click.option("-w", "--workdir", default="", metavar="DIR", help="Working folder.")
@click.option("-u", "--user", default="", metavar="USER", help="User to run as.")
@click.option("--entrypoint", default="", metavar="PROGRAM", help="Instead of the image's own.")
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run_image(options: GlobalOptions, /, *, name: str, **wanted: Any) -> int:  # noqa: ANN401
    """Run a command of a stored image in a sandbox; what it changes is thrown away.

    \b
    Example:
      boxwright image run app
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli.connect import run_engine

    async def use(engine: Engine) -> int:
        return await _run_in_engine(engine, name, wanted)

    return run_engine(options, use)


async def _run_in_engine(engine: Engine, name: str, wanted: dict[str, Any]) -> int:
    from boxwright.core.platform import Platform
    from boxwright.engine.images import ImageProvider
    from boxwright.executor.errors import ExecFailedError
    from boxwright.oci.image import Image
    from boxwright.sources.base import SourceContext
    from boxwright.sources.fetch import BlobFetcher

    parts = engine.parts
    _, _, config = await parts.images.resolve_config(
        name, platform=Platform.host(), resolve_mode="local", sessions=()
    )
    process = process_of(Image.from_json(json.loads(config)), wanted)
    provider = ImageProvider(parts.images, parts.snapshots, BlobFetcher(parts.store.blobs))
    source = provider.resolve(name, {"image.resolvemode": "local"}, None)
    base = await source.snapshot(SourceContext(parts.sessions.group()))
    root = parts.snapshots.new(base, description=f"run {name}")
    try:
        async with root.mounted() as path:
            run_id = f"run-{os.getpid()}"
            await parts.executor.run(run_id, path, process, stdout=_writer(1), stderr=_writer(2))
        return 0
    except ExecFailedError as exc:
        return exc.process_exit_code
    finally:
        await root.release()
        if base is not None:
            await base.release()


def _writer(descriptor: int) -> Any:  # noqa: ANN401 - the executor's sink
    def write(data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]

    return write


def process_of(built: Image, wanted: dict[str, Any]) -> ProcessSpec:
    """Return the process of an image's config, changed by flags.

    Raises:
        UsageError: there is nothing to run.
    """
    from boxwright.cli.errors import UsageError
    from boxwright.executor.process import ProcessSpec

    config = built.config
    command = list(wanted["command"])
    if wanted["entrypoint"]:
        args = [wanted["entrypoint"], *command]
    else:
        args = [*config.entrypoint, *(command or config.cmd)]
    if not args:
        raise UsageError(
            "the image has neither ENTRYPOINT nor CMD", hint="name a command after the image"
        )
    env = {item.partition("=")[0]: item for item in (_DEFAULT_PATH, *config.env)}
    env |= {item.partition("=")[0]: item for item in wanted["env"]}
    return ProcessSpec(
        args=tuple(args),
        env=tuple(env.values()),
        cwd=wanted["workdir"] or config.working_dir or "/",
        user=wanted["user"] or config.user or "",
    )


for _command in (inspect_image, copy_image, create_image, verify_image):
    image.add_command(_command)
