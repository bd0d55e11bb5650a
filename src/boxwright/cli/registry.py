"""``registry``: serve the engine's own store over the distribution API, and look after it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from boxwright.cli.boxwright import GlobalOptions
from boxwright.cli.errors import UsageError
from boxwright.cli.registrycheck import gc, list_tags, verify

if TYPE_CHECKING:
    import ssl

    from boxwright.engine.engine import Engine

_HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_HELP)
def registry() -> None:
    """Pull what was built, push to it, and look after what is there."""


@registry.command()
@click.option(
    "--listen",
    default="127.0.0.1:5000",
    show_default=True,
    metavar="HOST:PORT",
    help="Where to serve.",
)
@click.option("--tls-cert", default="", metavar="FILE", help="Certificate (PEM); without: HTTP.")
@click.option("--tls-key", default="", metavar="FILE", help="Its private key (PEM).")
@click.option("--read-only", is_flag=True, help="Serve what is there, take nothing.")
@click.option(
    "--users",
    default="",
    metavar="FILE",
    help="Lines NAME:PASSWORD of who may use it; without: everybody.",
)
@click.pass_obj
def serve(
    options: GlobalOptions,
    /,
    *,
    listen: str,
    tls_cert: str,
    tls_key: str,
    read_only: bool,
    users: str,
) -> None:
    """Serve the stored images until interrupted.

    Builds on the same state folder go on meanwhile: they use this process's engine.

    \b
    Example:
      boxwright registry serve --listen 127.0.0.1:5000
    """  # noqa: D301 - click reads the backspace
    host, port = split_address(listen)
    known = read_users(users)
    context = make_context(tls_cert, tls_key)
    from boxwright.cli.connect import run_engine

    async def use(engine: Engine) -> None:
        import asyncio

        from aiohttp import web

        from boxwright.registryserver.app import ServerOptions, make_app
        from boxwright.wire.server import ListenError

        app = make_app(engine.parts.store, ServerOptions(read_only=read_only, users=known))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, ssl_context=context)
            try:
                await site.start()
            except OSError as exc:
                raise ListenError(listen, exc.strerror or str(exc)) from exc
            shown = runner.addresses[0]
            scheme = "https" if context is not None else "http"
            click.echo(f"registry listening on {scheme}://{shown[0]}:{shown[1]}", err=True)
            sys.stderr.flush()
            await asyncio.get_running_loop().create_future()
        finally:
            await runner.cleanup()

    try:
        run_engine(options, use)
    except KeyboardInterrupt:
        click.echo("registry stopped", err=True)


registry.add_command(list_tags)
registry.add_command(verify)
registry.add_command(gc)


def split_address(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT``.

    Raises:
        UsageError: it is not of that form.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not port.isdigit():
        raise UsageError(f"invalid address {text!r}", hint="write HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def read_users(path: str) -> dict[str, str]:
    """Read lines ``NAME:PASSWORD``; empty lines and comments are skipped.

    Raises:
        UsageError: the file can't be read or a line has no colon.
    """
    if not path:
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.strip() for line in file]
    except OSError as exc:
        raise UsageError(f"cannot read {path}", detail=exc.strerror or str(exc)) from exc
    users: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        name, separator, password = line.partition(":")
        if line and not line.startswith("#"):
            if not separator or not name:
                raise UsageError(f"{os.path.basename(path)}:{number}: write NAME:PASSWORD")
            users[name] = password
    return users


def make_context(cert: str, key: str) -> ssl.SSLContext | None:
    """Return the TLS context of a server; None for plain HTTP.

    Raises:
        UsageError: only one file is given, or one can't be used.
    """
    if not cert and not key:
        return None
    if not cert or not key:
        raise UsageError("TLS needs both --tls-cert and --tls-key")
    import ssl

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as exc:
        raise UsageError(f"cannot use {cert} and {key}", detail=str(exc)) from exc
    return context
