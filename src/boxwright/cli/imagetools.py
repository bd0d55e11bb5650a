"""``image inspect|copy|create|verify``: images in registries, layouts and the state folder."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from boxwright.cli.boxwright import GlobalOptions
from boxwright.cli.errors import UsageError

if TYPE_CHECKING:
    from boxwright.client.imagecopy import ImageTree
    from boxwright.client.imageplaces import Place
    from boxwright.client.imagereport import ImageOfPlatform, Statements
    from boxwright.core.descriptor import Descriptor
    from boxwright.registry.client import RegistryClient

T = TypeVar("T")
_insecure = click.option(
    "--insecure", is_flag=True, help="Allow HTTP, and certificates that can't be checked."
)


def _with_places(
    options: GlobalOptions,
    names: Sequence[str],
    use: Callable[[list[Place]], Awaitable[T]],
    *,
    insecure: bool,
) -> T:
    """Open the places that ``names`` name, use them, and close what was opened for them.

    Raises:
        StoreLockedError: one is in the state folder, and an engine uses that.
    """
    from boxwright.cli.connect import run_with_registries
    from boxwright.cli.image import open_store
    from boxwright.client.imageplaces import (
        LAYOUT_PREFIX,
        STORE_PREFIX,
        RegistryPlace,
        StorePlace,
        layout_place,
    )
    from boxwright.core.reference import Reference

    stored = any(name.startswith(STORE_PREFIX) for name in names)
    store = open_store(options) if stored else None

    async def run(client: RegistryClient) -> T:
        def place(name: str) -> Place:
            if name.startswith(LAYOUT_PREFIX):
                return layout_place(name)
            if name.startswith(STORE_PREFIX):
                assert store is not None
                return StorePlace(store, Reference.parse(name.removeprefix(STORE_PREFIX)))
            return RegistryPlace(client, Reference.parse(name), insecure=insecure)

        return await use([place(name) for name in names])

    try:
        return run_with_registries(options, run)
    finally:
        if store is not None:
            store.close()


@click.command("inspect")
@click.option("--raw", is_flag=True, help="Print the manifest's bytes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--format",
    "template",
    default="",
    metavar="TEMPLATE",
    help="Print fields: {{.Name}}, {{json .Manifest}}, .Image, .Provenance, .SBOM.",
)
@_insecure
@click.argument("name")
@click.pass_obj
def inspect_image(
    options: GlobalOptions,
    /,
    *,
    raw: bool,
    as_json: bool,
    template: str,
    insecure: bool,
    name: str,
) -> None:
    """Show the platforms of an image, and what is attested about each.

    \b
    Examples:
      boxwright image inspect registry.example.com/app:v1
      boxwright image inspect --format '{{json .Provenance}}' app:v1
      boxwright image inspect oci:layout:v1
    """  # noqa: D301 - click reads the backspace
    if sum((raw, as_json, bool(template))) > 1:
        raise UsageError("--raw, --json and --format exclude each other")

    async def use(places: list[Place]) -> None:
        from boxwright.client.imagecopy import read_tree
        from boxwright.client.imagereport import images_of, render, statements_of

        (place,) = places
        if raw:
            _, body = await place.manifest(None)
            sys.stdout.buffer.write(body)
            return
        tree = await read_tree(place)
        if template:
            click.echo(await render(template, place.name, tree))
            return
        images = [(image, await statements_of(tree, image)) for image in await images_of(tree)]
        _print(place.name, tree, images, as_json=as_json)

    _with_places(options, [name], use, insecure=insecure)


def _print(
    name: str,
    tree: ImageTree,
    images: Sequence[tuple[ImageOfPlatform, Statements]],
    *,
    as_json: bool,
) -> None:
    from boxwright.cli import units, views
    from boxwright.oci.manifest import Manifest

    rows = [("PLATFORM", "DIGEST", "LAYERS", "SIZE", "ATTESTATIONS")]
    fields: list[dict[str, Any]] = []
    for image, said in images:
        manifest = Manifest.decode(tree.bodies[image.entry.digest][1])
        size = sum(item.size for item in manifest.children())
        fields.append(
            {
                "platform": image.platform,
                "digest": str(image.entry.digest),
                "layers": len(manifest.layers),
                "size": size,
                "attestations": said.kinds(),
            }
        )
        kinds = ", ".join(said.kinds()) or "-"
        count = str(len(manifest.layers))
        rows.append((image.platform or "-", image.entry.digest, count, units.size(size), kinds))
    if as_json:
        value = {
            "name": name,
            "mediaType": tree.root.media_type,
            "digest": str(tree.root.digest),
            "images": fields,
        }
        click.echo(views.to_json(value))
        return
    click.echo(f"Name:      {name}\nMediaType: {tree.root.media_type}")
    click.echo(f"Digest:    {tree.root.digest}\n")
    click.echo(units.table(rows), nl=False)


@click.command("copy")
@click.option(
    "--platform",
    "platforms",
    multiple=True,
    metavar="OS/ARCH",
    help="Only this image of an index, with its attestations.",
)
@_insecure
@click.argument("source")
@click.argument("target")
@click.pass_obj
def copy_image(
    options: GlobalOptions,
    /,
    *,
    platforms: tuple[str, ...],
    insecure: bool,
    source: str,
    target: str,
) -> None:
    """Copy an image with all platforms and attestations, and confirm that it arrived.

    Nothing is recompressed: digests stay. Between repositories of one registry no layer is
    sent.

    \b
    Examples:
      boxwright image copy docker.io/library/debian:12 registry.example.com/debian:12
      boxwright image copy registry.example.com/app:v1 oci:layout:v1
      boxwright image copy store:app registry.example.com/app
    """  # noqa: D301 - click reads the backspace

    async def use(places: list[Place]) -> Descriptor:
        from boxwright.client.imagecopy import copy, only_platforms, read_tree
        from boxwright.core.platform import Platform

        tree = await read_tree(places[0])
        if platforms:
            tree = only_platforms(tree, [Platform.parse(item) for item in platforms])
        await copy(tree, places[1:], _arrived)
        return tree.root

    root = _with_places(options, [source, target], use, insecure=insecure)
    click.echo(f"copied {source} to {target} ({root.digest})")


def _arrived(blob: Descriptor) -> None:
    from boxwright.cli import units

    click.echo(f"{blob.digest[:19]}  {units.size(blob.size)}", err=True)


@click.command("create")
@click.option(
    "-t", "--tag", "tags", multiple=True, metavar="TARGET", help="Where to put the index."
)
@click.option(
    "--annotation", "annotations", multiple=True, metavar="KEY=VALUE", help="Annotate the index."
)
@click.option("--append", is_flag=True, help="Keep what the first target has now.")
@click.option("--dry-run", is_flag=True, help="Print the index, put it nowhere.")
@_insecure
@click.argument("sources", nargs=-1, required=True)
@click.pass_obj
def create_image(
    options: GlobalOptions,
    /,
    *,
    tags: tuple[str, ...],
    annotations: tuple[str, ...],
    append: bool,
    dry_run: bool,
    insecure: bool,
    sources: tuple[str, ...],
) -> None:
    """Make one image of several, one for each platform, with their attestations.

    \b
    Example:
      boxwright image create -t registry.example.com/app:v1 \\
          registry.example.com/app:v1-amd64 registry.example.com/app:v1-arm64
    """  # noqa: D301 - click reads the backspace
    if not tags and not dry_run:
        raise UsageError("no target for the index", hint="name one with --tag, or use --dry-run")
    notes = dict(item.partition("=")[::2] for item in annotations)
    read = [*(tags[:1] if append else ()), *sources]

    async def use(places: list[Place]) -> Descriptor:
        from boxwright.client.imagecopy import combine, copy, read_tree

        trees = [await read_tree(place) for place in places[: len(read)]]
        tree = await combine(trees, notes)
        if dry_run:
            sys.stdout.buffer.write(tree.bodies[tree.root.digest][1] + b"\n")
        else:
            await copy(tree, places[len(read) :], _arrived)
        return tree.root

    names = [*read, *(() if dry_run else tags)]
    root = _with_places(options, names, use, insecure=insecure)
    if not dry_run:
        click.echo(f"created {', '.join(tags)} ({root.digest})")


@click.command("verify")
@click.option(
    "--require",
    "required",
    multiple=True,
    type=click.Choice(["provenance", "sbom"]),
    help="Every platform must have it.",
)
@_insecure
@click.argument("name")
@click.pass_obj
def verify_image(
    options: GlobalOptions,
    /,
    *,
    required: tuple[str, ...],
    insecure: bool,
    name: str,
) -> None:
    """Confirm that an image can be pulled whole, as a push does when it ends.

    All manifests of all platforms are fetched, a registry is asked for every blob, and the
    blobs of a layout are read. Attestations must be about the images that they lie beside.

    \b
    Examples:
      boxwright image verify registry.example.com/app:v1
      boxwright image verify --require provenance --require sbom registry.example.com/app:v1
    """  # noqa: D301 - click reads the backspace

    async def use(places: list[Place]) -> None:
        from boxwright.client.imagecopy import read_tree
        from boxwright.client.imagereport import check

        (place,) = places
        tree = await read_tree(place)
        found = await check(tree, place, required)
        _print(place.name, tree, found, as_json=False)
        click.echo(f"\n{len(tree.bodies)} manifests and {len(tree.blobs)} blobs are there")

    _with_places(options, [name], use, insecure=insecure)
