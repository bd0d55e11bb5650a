"""``build --verify-reproducible``: build twice without the cache, compare, then build what was asked for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from boxwright.cli.errors import UsageError
from boxwright.core.dataclass import replace

if TYPE_CHECKING:
    from boxwright.cli.plan import BuildPlan
    from boxwright.client.request import BuildRequest, BuildResult

_NOT_COMPARED = ("push", "push-by-digest", "store", "unpack", "dest", "registry.insecure")
_IMAGES = ("image", "oci", "docker")


async def build_verified(
    plan: BuildPlan, build: Callable[[BuildRequest], Awaitable[BuildResult]]
) -> BuildResult:
    """Build twice without the cache and compare; then make the outputs, from the cache.

    Args:
        plan: what was asked for.
        build: runs one build and draws its progress.

    Raises:
        UsageError: the build can't be done twice, or makes no image.
        NotReproducibleError: the images differ; no output was made.
        BoxwrightError: a build failed.
    """
    from boxwright.client.reproducible import NotReproducibleError, compare_layouts
    from boxwright.core.workers import to_worker

    request = plan.request
    if request.via_gateway:
        raise UsageError("--verify-reproducible builds, which --call does not")
    if request.uploads is not None:
        raise UsageError(
            "--verify-reproducible can't read the context from standard input twice",
            hint="unpack it into a folder",
        )
    with tempfile.TemporaryDirectory(prefix="boxwright-verify-") as name:
        folders = [Path(name) / "first", Path(name) / "second"]
        for folder in folders:
            click.echo(f"verifying: {folder.name} build, without cache", err=True)
            await build(_once(request, folder))
        differences = await to_worker(compare_layouts, *folders)
    if differences:
        raise NotReproducibleError(differences)
    result = await build(request)
    click.echo("both builds gave the same image", err=True)
    return result


def _once(request: BuildRequest, folder: Path) -> BuildRequest:
    """Return a request for an uncached build of the image alone, into a layout."""
    from boxwright.client.request import Export
    from boxwright.session.services import new_id

    wanted = next((each.attrs for each in request.exports if each.type in _IMAGES), {})
    attrs = {key: value for key, value in wanted.items() if key not in _NOT_COMPARED}
    attrs["tar"] = "false"
    os.makedirs(folder)
    opts = {key: value for key, value in request.opts.items() if not key.startswith("attest:")}
    return replace(
        request,
        opts={**opts, "no-cache": ""},
        exports=(Export("oci", attrs, path=folder),),
        cache_to=(),
        ref=new_id(),
    )
