"""``boxwright``: its commands, each loaded only when it is called."""

from __future__ import annotations

import importlib

import click

from boxwright._version import __version__
from boxwright.cli.target import TlsFiles

# name → module:attribute, in the order of the help page
_COMMANDS = {
    "build": "boxwright.cli.build:build",
    "image": "boxwright.cli.image:image",
    "daemon": "boxwright.cli.daemon:daemon",
    "registry": "boxwright.cli.registry:registry",
    "du": "boxwright.cli.usage:du",
    "prune": "boxwright.cli.usage:prune",
    "gc": "boxwright.cli.gc:gc",
    "store": "boxwright.cli.store:store",
    "history": "boxwright.cli.history:history",
    "why": "boxwright.cli.why:why",
    "builder": "boxwright.cli.builder:builder",
    "debug": "boxwright.cli.debug:debug",
    "doctor": "boxwright.cli.doctor:doctor",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the help page."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Suggest a command for a misspelt one."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as exc:
            import difflib

            close = difflib.get_close_matches(args[0], _COMMANDS, 1)
            if not close:
                raise
            message = f"{exc.message} Did you mean {close[0]!r}?"
            raise click.UsageError(message, ctx) from exc


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Run 'boxwright COMMAND --help' for a command's options and examples.",
)
@click.version_option(__version__, prog_name="boxwright")
@click.option(
    "--root",
    metavar="DIR",
    envvar="BOXWRIGHT_ROOT",
    help="State folder of the embedded engine.",
)
@click.option("--config", metavar="FILE", help="Configuration file (buildkitd.toml).")
@click.option("--addr", metavar="ADDRESS", help="Use the daemon at this address.")
@click.option("--tlscacert", default="", metavar="FILE", help="CA of the daemon (PEM).")
@click.option("--tlscert", default="", metavar="FILE", help="Our certificate (PEM).")
@click.option("--tlskey", default="", metavar="FILE", help="Its private key (PEM).")
@click.option(
    "--tlsservername", default="", metavar="NAME", help="Name in the daemon's certificate."
)
@click.option("--debug", "is_debug", is_flag=True, help="Log what happens inside.")
@click.pass_context
def command(
    ctx: click.Context,
    root: str | None,
    config: str | None,
    addr: str | None,
    tlscacert: str,
    tlscert: str,
    tlskey: str,
    tlsservername: str,
    *,
    is_debug: bool,
) -> None:
    """Build container images: in this process, or with any BuildKit-compatible daemon."""
    tls = TlsFiles(tlscacert, tlscert, tlskey, tlsservername)
    ctx.obj = GlobalOptions(root, config, addr, tls, is_debug=is_debug)
    if is_debug:
        import logging

        logging.basicConfig(level=logging.DEBUG, format="%(levelname)s %(name)s: %(message)s")


class GlobalOptions:
    """The options before the command."""

    def __init__(
        self,
        root: str | None = None,
        config: str | None = None,
        addr: str | None = None,
        tls: TlsFiles | None = None,
        *,
        is_debug: bool = False,
    ) -> None:
        self.root = root
        self.config = config
        self.addr = addr
        self.tls = tls or TlsFiles()
        self.is_debug = is_debug
