"""``boxwright build``: the flags of ``docker buildx build``."""

from __future__ import annotations

import base64
import binascii
import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from boxwright.cli.boxwright import GlobalOptions
from boxwright.cli.render import MODES

if TYPE_CHECKING:
    from typing import TextIO

    from boxwright.cli.plan import BuildPlan
    from boxwright.client.client import Client
    from boxwright.client.request import BuildRequest, BuildResult
    from boxwright.progress.events import Event, WarningEvent

_HELP = {"help_option_names": ["-h", "--help"]}
_DIGEST_KEY = "containerimage.digest"


F = TypeVar("F", bound=Callable[..., Any])


def _many(*names: str, key: str, text: str, metavar: str) -> Callable[[F], F]:
    """Declare an option that may be given several times."""
    return click.option(*names, key, multiple=True, metavar=metavar, help=text)


@click.command(context_settings=_HELP)
@click.argument("context", default=".")
@click.option("-f", "--file", default="", metavar="FILE", help="Dockerfile ('-': stdin).")
@_many("-t", "--tag", key="tags", metavar="NAME[:TAG]", text="Name of the image. Repeatable.")
@_many("--build-arg", key="build_args", metavar="NAME[=VALUE]", text="Set a build argument.")
@click.option("--target", default="", metavar="STAGE", help="Build this stage.")
@_many("--platform", key="platforms", metavar="OS/ARCH", text="Platforms to build for.")
@_many("-o", "--output", key="outputs", metavar="type=…|PATH", text="Where the result goes.")
@click.option("--push", is_flag=True, help="Push the image (short for -o type=registry).")
@click.option("--load", is_flag=True, help="Hand the image to Docker or Podman.")
@_many(
    "--secret", key="secrets", metavar="id=…", text="Offer a secret to RUN --mount=type=secret."
)
@_many("--ssh", key="ssh", metavar="default|ID=SOCKET", text="Offer an ssh agent.")
@click.option("--no-cache", is_flag=True, help="Use no cached result.")
@_many("--no-cache-filter", key="no_cache_filter", metavar="STAGE", text="Same, for stages.")
@click.option("--pull", is_flag=True, help="Ask registries even for images that are here.")
@click.option(
    "--progress",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="How progress is shown.",
)
@click.option("--iidfile", metavar="FILE", help="Write the image's digest to a file.")
@click.option("--metadata-file", metavar="FILE", help="Write what the build answered as JSON.")
@_many("--label", key="labels", metavar="KEY=VALUE", text="Set a label of the image.")
@_many("--annotation", key="annotations", metavar="KEY=VALUE", text="Annotate the manifest.")
@click.option("--network", default="", metavar="MODE", help="default, host or none.")
@_many("--add-host", key="add_hosts", metavar="HOST:IP", text="Add to /etc/hosts of RUN steps.")
@_many("--cache-from", key="cache_from", metavar="type=…", text="Import cache.")
@_many("--cache-to", key="cache_to", metavar="type=…", text="Export cache.")
@_many("--build-context", key="build_contexts", metavar="NAME=…", text="Additional context.")
@_many(
    "--allow", key="allow", metavar="ENTITLEMENT", text="Allow network.host, security.insecure."
)
@click.option(
    "--source-policy-file", default="", metavar="FILE", help="Rules for what may be used (JSON)."
)
@_many("--attest", key="attests", metavar="type=…", text="Attach an attestation.")
@click.option(
    "--provenance", default="", metavar="MODE", help="Short for --attest type=provenance."
)
@click.option("--sbom", default="", metavar="BOOL", help="Short for --attest type=sbom.")
@_many("--ulimit", key="ulimits", metavar="NAME=SOFT[:HARD]", text="Limit of RUN steps.")
@click.option("--shm-size", default="", metavar="SIZE", help="Size of /dev/shm in RUN steps.")
@click.option("--cgroup-parent", default="", metavar="PATH", help="cgroup of RUN steps.")
@click.option(
    "--call",
    default="",
    metavar="METHOD[,format=json]",
    help="check, outline or targets: don't build.",
)
@click.option("--check", is_flag=True, help="Check the Dockerfile (short for --call=check).")
@click.option(
    "--verify-reproducible",
    is_flag=True,
    help="Build twice without cache, and fail if the images differ.",
)
@click.option(
    "--debug-shell", is_flag=True, help="Open a shell where a RUN fails, before the build ends."
)
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but the image's digest.")
@click.option("--builder", default="", metavar="NAME", help="Builder to use.")
@click.option("--addr", default="", metavar="ADDRESS", help="Daemon to use.")
@click.option("--root", default="", metavar="DIR", help="State folder of the embedded engine.")
@click.pass_obj
def build(
    options: GlobalOptions,
    /,
    *,
    progress: str,
    iidfile: str | None,
    metadata_file: str | None,
    quiet: bool,
    check: bool,
    verify_reproducible: bool,
    debug_shell: bool,
    builder: str,
    addr: str,
    root: str,
    **flags: Any,  # noqa: ANN401
) -> int:
    """Build an image from a Dockerfile.

    \b
    CONTEXT is a folder, a URL, or '-' for a tar archive on standard input.
    Without an output the image is kept in the engine's own store, under its tags.

    \b
    Examples:
      boxwright build -t app .
      boxwright build -t registry.example.com/app:1.2 --push .
      boxwright build -o type=oci,dest=app.tar .
      boxwright build --target bin -o out .
      boxwright build --secret id=token,src=token.txt .
    """  # noqa: D301 - click reads the backspaces
    from boxwright.cli.plan import BuildFlags, plan_build
    from boxwright.cli.target import choose

    if root:
        options.root = root
    target = choose(os.environ, addr=addr or options.addr or "", builder=builder, tls=options.tls)
    if check:
        flags["call"] = "check"
    if debug_shell:
        refuse_shell(call=flags["call"], inputs=(flags["context"], flags["file"]))
    plan = plan_build(
        BuildFlags(**flags), os.environ, sys.stdin.buffer, is_embedded=target.is_embedded
    )
    mode = "quiet" if quiet else progress
    is_call = plan.request.via_gateway
    if debug_shell:
        mode = "plain" if mode in {"auto", "tty"} else mode  # drawing would cover the shell
    try:
        for warning in plan.warnings:
            click.echo(f"WARNING: {warning}", err=True)
        runner = BuildRun(plan, mode, twice=verify_reproducible, has_shell=debug_shell)
        from boxwright.cli.connect import run_with_client

        result = run_with_client(options, target, runner)
    finally:
        plan.close()
    if is_call:
        return show_call(result, plan.call_format)
    if runner.warnings and mode != "rawjson":
        show_warnings(runner.warnings)
    finish(plan, result, iidfile=iidfile, metadata_file=metadata_file, quiet=quiet)
    return 0


class BuildRun:
    """Runs a planned build with a client and draws its progress."""

    def __init__(
        self,
        plan: BuildPlan,
        mode: str,
        *,
        trace: TextIO | None = None,
        twice: bool = False,
        has_shell: bool = False,
    ) -> None:
        self._plan = plan
        self._twice = twice
        self._has_shell = has_shell
        self._trace = trace
        self._mode = mode
        self.warnings: list[WarningEvent] = []

    async def __call__(self, client: Client) -> BuildResult:
        """Build; the progress is drawn to its end whatever happens."""
        if not self._twice:
            return await self._once(client, self._plan.request)
        from boxwright.cli.reproducible import build_verified

        return await build_verified(self._plan, partial(self._once, client))

    async def _once(self, client: Client, request: BuildRequest) -> BuildResult:
        from boxwright.cli.render import RawJsonRenderer, make_renderer
        from boxwright.progress.events import WarningEvent

        renderer = make_renderer(self._mode, os.environ)
        recorder = RawJsonRenderer(self._trace) if self._trace is not None else None
        self.warnings = []

        def draw(events: list[Event]) -> None:
            self.warnings += [event for event in events if isinstance(event, WarningEvent)]
            renderer.update(events)
            if recorder is not None:
                recorder.update(events)

        try:
            if self._has_shell:
                return await _with_shell(client, request, draw)
            return await client.build(request, draw)
        finally:
            renderer.close()


async def _with_shell(
    client: Client, request: BuildRequest, draw: Callable[[list[Event]], None]
) -> BuildResult:
    """Build; a command that fails leaves a shell in its place."""
    from boxwright.cli.debugshell import DebugShell
    from boxwright.errors import BoxwrightError

    shell = DebugShell(draw)
    request.via_gateway, request.on_failed_step = True, shell.open
    try:
        return await client.build(request, shell.update)
    except BoxwrightError:
        if not shell.was_asked:
            click.echo("no shell was opened: what failed is no RUN", err=True)
        raise


def refuse_shell(*, call: str, inputs: tuple[str, ...]) -> None:
    """Refuse ``--debug-shell`` where it can't be.

    Raises:
        UsageError: nothing is run, or standard input is something else already.
    """
    from boxwright.cli.errors import UsageError

    if call and call != "build":
        raise UsageError(f"--debug-shell and --call={call} exclude each other")
    if "-" in inputs:
        raise UsageError(
            "--debug-shell needs standard input", hint="name a folder and a file instead of '-'"
        )


def show_call(result: BuildResult, form: str = "") -> int:
    """Print what a subrequest answered, as text or with ``form`` json; return its status."""
    metadata = result.metadata
    text = metadata.get("result.json" if form == "json" else "result.txt")
    if text is None:
        text = b"".join(
            key.encode() + b"\n" + value + b"\n"
            for key, value in metadata.items()
            if key.startswith("result.")
        )
    if not text and "version" in metadata:
        text = b"Check complete, no warnings found.\n"
    sys.stdout.buffer.write(text if text.endswith(b"\n") else text + b"\n")
    sys.stdout.flush()
    status = metadata.get("result.statuscode", b"0")
    return int(status) if status.isdigit() else 0


def show_warnings(warnings: list[WarningEvent]) -> None:
    """Print the warnings of a build with the lines that they are about."""
    from boxwright.cli.excerpt import excerpt

    count = len(warnings)
    click.echo(f"\n {count} warning{'s' if count > 1 else ''} found:", err=True)
    for warning in warnings:
        click.echo(f" - {warning.short.decode('utf-8', 'replace')}", err=True)
        spans = [(each.start_line, each.end_line) for each in warning.ranges]
        lines = excerpt(warning.filename, warning.source, spans)
        if lines:
            click.echo(lines, err=True, nl=False)


def finish(
    plan: BuildPlan,
    result: BuildResult,
    *,
    iidfile: str | None,
    metadata_file: str | None,
    quiet: bool,
) -> None:
    """Write the files that were asked for and say where the result is."""
    digest = result.exporter_response.get(_DIGEST_KEY, "")
    if iidfile:
        write_file(iidfile, digest)
    if metadata_file:
        fields = decode_response(result.exporter_response)
        fields["buildx.build.ref"] = result.ref
        write_file(metadata_file, json.dumps(fields, indent=2, sort_keys=True))
    if quiet:
        click.echo(digest)
        return
    for verb, names in (("stored", plan.stored_names), ("pushed", plan.pushed_names)):
        if names and digest:
            click.echo(f"{verb} {', '.join(names)} ({digest})", err=True)


def decode_response(response: Mapping[str, str]) -> dict[str, Any]:
    """Return an exporter's answer with values that are base64 of a JSON object decoded."""
    out: dict[str, Any] = {}
    for key, value in response.items():
        out[key] = value
        try:
            decoded = json.loads(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError):
            continue
        if isinstance(decoded, dict) and decoded:
            out[key] = decoded
    return out


def write_file(path: str, text: str) -> None:
    """Write a small file as a whole.

    Raises:
        UsageError: it can't be written.
    """
    from boxwright.cli.errors import UsageError

    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(target)
    except OSError as exc:
        raise UsageError(f"cannot write {path}", detail=exc.strerror or str(exc)) from exc
