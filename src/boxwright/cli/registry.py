"""``registry``: serve the engine's own store over the distribution API, and look after it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from boxwright.cli.boxwright import GlobalOptions
from boxwright.cli.registrycheck import gc, list_tags, verify

if TYPE_CHECKING:
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
    from boxwright.cli.connect import run_engine
    from boxwright.registryserver import serve as server
    from boxwright.registryserver.app import ServerOptions

    host, port = server.parse_address(listen)
    wanted = server.ListenOptions(
        host,
        port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        server=ServerOptions(read_only=read_only, users=server.read_users(users)),
    )
    wanted.ssl_context()  # before anything is started

    async def use(engine: Engine) -> None:
        import asyncio

        async with server.serving(engine.parts.store, wanted) as address:
            click.echo(f"registry listening on {address}", err=True)
            sys.stderr.flush()
            await asyncio.get_running_loop().create_future()

    try:
        run_engine(options, use)
    except KeyboardInterrupt:
        click.echo("registry stopped", err=True)


registry.add_command(list_tags)
registry.add_command(verify)
registry.add_command(gc)
