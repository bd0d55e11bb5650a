"""``registry ls|verify|gc``: what a registry holds, whether it is whole, and what can go.

Without an address they work on the engine's own state folder, which no process may be using; with
one they ask that registry, ours or any other, over the distribution API.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import click

from boxwright.cli.boxwright import GlobalOptions

if TYPE_CHECKING:
    from boxwright.core.reference import Reference
    from boxwright.registry.client import RegistryClient
    from boxwright.registryserver.audit import TagLine
    from boxwright.store.store import Store

T = TypeVar("T")


@click.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("registry", default="", metavar="[HOST:PORT]")
@click.pass_obj
def list_tags(options: GlobalOptions, /, *, as_json: bool, registry: str) -> None:
    """List repositories and tags.

    \b
    Examples:
      boxwright registry ls
      boxwright registry ls 127.0.0.1:5000 --json
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli import units, views
    from boxwright.cli.connect import run_with_registries

    lines = (
        run_with_registries(options, lambda client: _remote_tags(client, registry))
        if registry
        else []
    )
    if not registry:
        from boxwright.registryserver.audit import list_tags as stored_tags

        lines = _with_store(options, stored_tags)
    if as_json:
        fields = [
            {
                "repository": line.repository,
                "tag": line.tag,
                "digest": str(line.digest),
                "mediaType": line.media_type,
                "size": line.size_bytes,
            }
            for line in lines
        ]
        sys.stdout.write(views.to_json(fields) + "\n")
        return
    rows = [("REPOSITORY", "TAG", "DIGEST", "SIZE")]
    rows += [(x.repository, x.tag, x.digest[:19], units.size(x.size_bytes)) for x in lines]
    sys.stdout.write(units.table(rows))


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("registry", default="", metavar="[HOST:PORT]")
@click.pass_obj
def verify(options: GlobalOptions, /, *, as_json: bool, registry: str) -> None:
    """Check that every image can be pulled whole.

    In the state folder every blob is read. A registry that is asked gives its manifests,
    and says which blobs it has.

    \b
    Examples:
      boxwright registry verify
      boxwright registry verify registry.example.com
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli import views
    from boxwright.cli.connect import run_with_registries
    from boxwright.registryserver.audit import RegistryDamagedError, check

    if registry:
        count, damages = run_with_registries(
            options, lambda client: _remote_check(client, registry)
        )
    else:
        count, found = _with_store(options, check)
        damages = [(d.repository, str(d.manifest), str(d.blob), d.problem) for d in found]
    if as_json:
        keys = ("repository", "manifest", "blob", "problem")
        fields = {"checked": count, "damages": [dict(zip(keys, d, strict=True)) for d in damages]}
        sys.stdout.write(views.to_json(fields) + "\n")
    else:
        for repository, manifest, blob, problem in damages:
            click.echo(f"{repository}@{manifest}: {blob}: {problem}")
        click.echo(f"{count} blobs checked, {len(damages)} missing or damaged")
    sys.stdout.flush()
    if damages:
        raise RegistryDamagedError(len(damages))


@click.command()
@click.option(
    "--untagged",
    is_flag=True,
    help="Also remove manifests that no tag leads to and that refer to nothing that stays.",
)
@click.option(
    "--older-than",
    default="24h",
    show_default=True,
    metavar="DURATION",
    help="Spare what was pushed or asked for since.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_obj
def gc(options: GlobalOptions, /, *, untagged: bool, older_than: str, as_json: bool) -> None:
    """Remove blobs that nothing leads to.

    A registry that runs removes them by itself; what is being pushed is never removed.

    \b
    Examples:
      boxwright registry gc
      boxwright registry gc --untagged --older-than 7d
    """  # noqa: D301 - click reads the backspace
    from boxwright.cli import units, views
    from boxwright.cli.usage import parse_duration_ns
    from boxwright.registryserver.audit import collect

    older_ns = parse_duration_ns(older_than)
    done = _with_store(
        options,
        lambda store: collect(store, untagged=untagged, older_ns=older_ns),
        hint="that process collects by itself, and at once with 'boxwright prune'; manifests "
        "without a tag go when it has ended",
    )
    if as_json:
        fields = {"manifests": done.manifests, "blobs": done.blobs, "size": done.size_bytes}
        sys.stdout.write(views.to_json(fields) + "\n")
        return
    click.echo(
        f"removed {done.manifests} manifests and {done.blobs} blobs, {units.size(done.size_bytes)}"
    )


def _with_store(
    options: GlobalOptions,
    use: Callable[[Store], T],
    *,
    hint: str = "name the registry that serves it (HOST:PORT), or end that process",
) -> T:
    """Open the state folder, use it, close it; ``hint`` is for a folder that is in use.

    Raises:
        StoreLockedError: an engine uses it.
    """
    from boxwright.cli.image import open_store
    from boxwright.store.errors import StoreLockedError

    try:
        store = open_store(options)
    except StoreLockedError as exc:
        exc.hint = hint
        raise
    try:
        return use(store)
    finally:
        store.close()


async def _references(client: RegistryClient, host: str) -> list[Reference]:
    from boxwright.core.reference import Reference
    from boxwright.registry import listing

    return [
        Reference.parse(f"{host}/{repository}:{tag}")
        async for repository in listing.repositories(client, host)
        async for tag in listing.tags(client, host, repository)
    ]


async def _remote_tags(client: RegistryClient, host: str) -> list[TagLine]:
    from boxwright.client.imagecopy import read_tree
    from boxwright.client.imageplaces import RegistryPlace
    from boxwright.registryserver.audit import TagLine

    lines = []
    for ref in await _references(client, host):
        tree = await read_tree(RegistryPlace(client, ref))
        graph, root = tree.graph, tree.root
        size = sum(item.size for item in (*graph.manifests, *graph.blobs.values()))
        lines.append(TagLine(ref.path, ref.tag, root.digest, root.media_type, size))
    return lines


async def _remote_check(
    client: RegistryClient, host: str
) -> tuple[int, list[tuple[str, str, str, str]]]:
    """Return how many blobs were asked for, and repository, manifest, blob and problem of bad ones."""
    from boxwright.client.imagecopy import read_tree
    from boxwright.client.imageplaces import RegistryPlace
    from boxwright.errors import InvalidInputError, LimitExceededError
    from boxwright.registry.errors import RegistryError

    seen: dict[tuple[str, str], str] = {}
    bad: list[tuple[str, str, str, str]] = []
    for ref in await _references(client, host):
        try:
            tree = await read_tree(RegistryPlace(client, ref))
        except (RegistryError, InvalidInputError, LimitExceededError) as exc:
            seen[ref.path, ref.tag] = "manifest"
            bad.append((ref.path, ref.tag, ref.tag, exc.brief))
            continue
        for digest in tree.bodies:
            seen[ref.path, digest] = ""
        for item, place in tree.blobs.values():
            key = (ref.path, item.digest)
            if key not in seen:
                seen[key] = "" if await place.has(item) else "missing"
            if seen[key]:
                bad.append((ref.path, str(tree.root.digest), str(item.digest), seen[key]))
    return len(seen), bad
