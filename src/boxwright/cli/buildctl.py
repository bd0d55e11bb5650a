"""``buildctl``: BuildKit's client program, with its commands, flags and outputs."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from boxwright._version import __version__
from boxwright.cli.build import BuildRun, decode_response, show_call, write_file
from boxwright.cli.buildctldebug import debug
from boxwright.cli.errors import UsageError
from boxwright.cli.render import MODES
from boxwright.cli.target import Target, TlsFiles
from boxwright.cli.usage import (
    PruneLimits,
    list_usage,
    prune_flags,
    prune_records,
    usage_flags,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import TextIO

    from boxwright.client.client import Client
    from boxwright.client.request import BuildRequest, BuildResult

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_HELP = {"help_option_names": ["-h", "--help"]}
_VERSION_LINE = f"buildctl boxwright v0.32.2 {__version__}"
_TLS_NAMES = (("ca.pem", "cert.pem", "key.pem"), ("ca.crt", "tls.crt", "tls.key"))


def default_address() -> str:
    """Return the daemon's address: ``BUILDKIT_HOST``, else the usual socket."""
    if host := os.environ.get("BUILDKIT_HOST"):
        return host
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if os.geteuid() != 0 and runtime:
        return f"unix://{runtime}/buildkit/buildkitd.sock"
    return "unix:///run/buildkit/buildkitd.sock"


class Globals:
    """The flags before the command."""

    def __init__(
        self, addr: str, tls: TlsFiles, timeout_s: float, *, is_waiting: bool = False
    ) -> None:
        self.addr = addr
        self.tls = tls
        self.timeout_s = timeout_s
        self.is_waiting = is_waiting

    def run(self, use: Callable[[Client], Awaitable[T]]) -> T:
        """Connect, await ``use(client)``, close."""
        from boxwright.cli.boxwright import GlobalOptions
        from boxwright.cli.connect import run_with_client

        target = Target(self.addr, reason="--addr", tls=self.tls)
        return run_with_client(
            GlobalOptions(), target, use, timeout_s=self.timeout_s, is_waiting=self.is_waiting
        )


@click.group(context_settings=_HELP)
@click.version_option(__version__, message=_VERSION_LINE)
@click.option("--debug", "is_debug", is_flag=True, help="Enable debug output in logs.")
@click.option("--addr", default=default_address, help="buildkitd address.")
@click.option("--log-format", default="text", help="Log formatter: json or text.")
@click.option("--tlsservername", default="", help="Name in the daemon's certificate.")
@click.option("--tlscacert", default="", help="CA certificate for validation.")
@click.option("--tlscert", default="", help="Client certificate.")
@click.option("--tlskey", default="", help="Client key.")
@click.option("--tlsdir", default="", help="Folder of ca.pem, cert.pem and key.pem.")
@click.option("--timeout", "timeout_s", type=float, default=5.0, help="Seconds to connect.")
@click.option("--wait", "is_waiting", is_flag=True, help="Wait until the daemon answers.")
@click.pass_context
def command(
    context: click.Context,
    /,
    *,
    is_debug: bool,
    addr: str,
    log_format: str,
    tlsservername: str,
    tlscacert: str,
    tlscert: str,
    tlskey: str,
    tlsdir: str,
    timeout_s: float,
    is_waiting: bool,
) -> None:
    """Build and look after a BuildKit-compatible daemon."""
    del log_format
    if is_debug:
        from boxwright.cli.logs import configure

        configure("debug", "text")
    tls = TlsFiles(tlscacert, tlscert, tlskey, tlsservername)
    if tlsdir:
        tls = _tls_of_folder(Path(tlsdir), tlsservername)
    context.obj = Globals(addr, tls, timeout_s, is_waiting=is_waiting)


def _tls_of_folder(folder: Path, server_name: str) -> TlsFiles:
    for names in _TLS_NAMES:
        if all((folder / name).exists() for name in names):
            ca, cert, key = (str(folder / name) for name in names)
            return TlsFiles(ca, cert, key, server_name)
    raise UsageError(f"no certificates in {folder}", hint="put ca.pem, cert.pem and key.pem there")


def _repeated(*names: str, key: str, text: str) -> Callable[[F], F]:
    return click.option(*names, key, multiple=True, help=text)


@command.command("build", context_settings=_HELP)
@_repeated("-o", "--output", key="outputs", text="Where the result goes.")
@click.option("--progress", type=click.Choice(MODES), default="auto", help="How it is shown.")
@click.option("--trace", default="", metavar="FILE", help="Write the progress as JSON, too.")
@_repeated("--local", key="local_dirs", text="NAME=FOLDER that the build may read.")
@_repeated("--oci-layout", key="layouts", text="NAME=FOLDER of an OCI layout.")
@click.option("--frontend", default="", help="Frontend to use; without: LLB on standard input.")
@_repeated("--opt", key="opts", text="KEY=VALUE for the frontend.")
@click.option("--no-cache", is_flag=True, help="Disable cache for all the vertices.")
@_repeated("--export-cache", key="cache_to", text="type=registry,ref=…")
@_repeated("--import-cache", key="cache_from", text="type=registry,ref=…")
@_repeated("--secret", key="secrets", text="id=NAME,src=FILE")
@_repeated("--allow", key="allow", text="Extra entitlement: network.host, security.insecure.")
@_repeated("--ssh", key="ssh", text="default|ID=SOCKET")
@click.option("--metadata-file", default="", help="Write the answer as JSON.")
@click.option("--source-policy-file", default="", help="Read source policy from a JSON file.")
@click.option("--ref-file", default="", help="Write the build's ref to a file.")
@_repeated("--registry-auth-tlscontext", key="auth_tls", text="TLS of token servers.")
@click.pass_obj
def build(
    options: Globals,
    /,
    *,
    progress: str,
    metadata_file: str,
    ref_file: str,
    trace: str,
    source_policy_file: str,
    auth_tls: tuple[str, ...],
    **flags: Any,  # noqa: ANN401
) -> int:
    """Build with a frontend, or from LLB on standard input."""
    from boxwright.cli.plan import BuildPlan

    request = make_request(auth_tls=auth_tls, **flags)
    if source_policy_file:
        from boxwright.client.sourcepolicy import read_policy

        request.source_policy = read_policy(source_policy_file)
    if ref_file:
        write_file(ref_file, request.ref)
    with _open_trace(trace) as stream:
        runner = BuildRun(BuildPlan(request), progress, trace=stream)
        result: BuildResult = options.run(runner)
    if metadata_file:
        import json

        write_file(metadata_file, json.dumps(decode_response(result.exporter_response), indent=2))
    return show_call(result) if request.via_gateway else 0


def _open_trace(path: str) -> AbstractContextManager[TextIO | None]:
    if not path:
        return nullcontext()
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as exc:
        raise UsageError(f"can't write the trace {path}: {exc.strerror}") from exc


def make_request(
    *,
    frontend: str,
    opts: tuple[str, ...],
    local_dirs: tuple[str, ...],
    outputs: tuple[str, ...],
    cache_from: tuple[str, ...],
    cache_to: tuple[str, ...],
    secrets: tuple[str, ...],
    ssh: tuple[str, ...],
    allow: tuple[str, ...],
    no_cache: bool,
    layouts: tuple[str, ...] = (),
    auth_tls: tuple[str, ...] = (),
) -> BuildRequest:
    """Turn flags into a request.

    Raises:
        UsageError: flags that make no sense.
    """
    from boxwright.cli import parse
    from boxwright.client.request import BuildRequest
    from boxwright.session.providers.auth import AuthProvider
    from boxwright.session.providers.contents import OciLayouts
    from boxwright.session.providers.dockerconfig import DockerConfig

    options = frontend_options(opts)
    definition = None
    if not frontend:
        if sys.stdin.isatty():
            raise UsageError("please specify --frontend or pipe LLB definition to stdin")
        from boxwright.cli.dumpllb import read_definition

        definition = read_definition(sys.stdin.buffer)
        if no_cache:
            for metadata in definition.metadata.values():
                metadata.ignore_cache = True
    elif no_cache:
        options["no-cache"] = ""
    folders = parse.parse_assignments(local_dirs, "--local")
    for name, folder in folders.items():
        if not os.path.isdir(folder):
            raise UsageError(f"invalid local: {name}={folder} is not a directory")
    stores = OciLayouts() if layouts else None
    for name, folder in parse.parse_assignments(layouts, "--oci-layout").items():
        assert stores is not None
        stores.add_source(name, Path(folder))
    caches = parse.parse_cache(cache_to, "--export-cache")
    return BuildRequest(
        frontend=frontend,
        definition=definition,
        opts=options,
        locals={name: Path(folder) for name, folder in folders.items()},
        layouts=stores,
        secrets=parse.parse_secrets(secrets),
        ssh=parse.parse_ssh(ssh),
        auth=AuthProvider(
            DockerConfig.load(os.environ), os.environ, tls=parse.parse_auth_tls(auth_tls)
        ),
        exports=tuple(parse.to_export(parse.parse_output(text)) for text in outputs),
        cache_from=parse.parse_cache(cache_from, "--import-cache"),
        cache_to=tuple(type(each)(each.type, {"mode": "min", **each.attrs}) for each in caches),
        entitlements=allow,
        via_gateway="requestid" in options,
    )


def frontend_options(opts: tuple[str, ...]) -> dict[str, str]:
    """Parse ``--opt``; a build argument without value comes from the environment."""
    found: dict[str, str] = {}
    if epoch := os.environ.get("SOURCE_DATE_EPOCH"):
        found["build-arg:SOURCE_DATE_EPOCH"] = epoch
    for text in opts:
        key, separator, value = text.partition("=")
        if separator:
            found[key] = value
        elif key.startswith("build-arg:"):
            name = key.removeprefix("build-arg:")
            if name in os.environ:
                found[key] = os.environ[name]
        else:
            raise UsageError(f"invalid value for --opt: {text!r}", hint="write KEY=VALUE")
    return found


@command.command("du", context_settings=_HELP)
@usage_flags
@click.pass_obj
def du(options: Globals, /, *, filters: tuple[str, ...], verbose: bool, template: str) -> None:
    """Show what takes space."""
    options.run(lambda client: list_usage(client, filters, verbose=verbose, template=template))


@command.command("prune", context_settings=_HELP)
@usage_flags
@prune_flags
@click.pass_obj
def prune(
    options: Globals,
    /,
    *,
    filters: tuple[str, ...],
    verbose: bool,
    template: str,
    **limits: Any,  # noqa: ANN401
) -> None:
    """Remove cache that no build uses."""
    wanted = PruneLimits(**limits)
    options.run(
        lambda client: prune_records(client, filters, wanted, verbose=verbose, template=template)
    )


@command.command("prune-histories", context_settings=_HELP)
@click.option("--format", "template", default="", help="'{{json .}}' prints JSON.")
@click.pass_obj
def prune_histories(options: Globals, /, *, template: str) -> None:
    """Forget all past builds that are not pinned."""
    from boxwright.cli import history

    options.run(lambda client: history.prune_histories(client, template=template))


command.add_command(debug)


@command.command("dial-stdio", hidden=True, context_settings=_HELP)
@click.pass_obj
def dial_stdio(options: Globals, /) -> None:
    """Connect standard input and output with the daemon's socket."""
    path = options.addr.removeprefix("unix://")
    if path == options.addr:
        raise UsageError(f"invalid address {options.addr} (expected unix://)")
    asyncio.run(join_stdio(path))


async def join_stdio(path: str) -> None:
    """Pass bytes between standard input and output and a unix socket until either ends.

    Raises:
        ConnectError: nobody answers.
    """
    from boxwright.linux import unixpath
    from boxwright.wire.client import ConnectError

    loop = asyncio.get_running_loop()
    try:
        with unixpath.usable(path) as name:
            reader, writer = await asyncio.open_unix_connection(name)
    except OSError as exc:
        raise ConnectError(f"unix://{path}", exc.strerror or str(exc)) from exc

    async def upwards() -> None:
        source = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(source)
        await loop.connect_read_pipe(
            lambda: protocol, os.fdopen(0, "rb", buffering=0, closefd=False)
        )
        while data := await source.read(1 << 16):
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    async def downwards() -> None:
        while data := await reader.read(1 << 16):
            await loop.run_in_executor(None, _write_all, data)

    sending = asyncio.ensure_future(upwards())
    try:
        await downwards()
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.close()


def _write_all(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
