"""``boxwright daemon``, and ``buildkitd`` with its own flags and paths."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from boxwright._version import __version__

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from boxwright.config.schema import Config
    from boxwright.engine.engine import Engine

# The third field is read by clients as BuildKit's version.
_BUILDKIT_VERSION_LINE = f"buildkitd boxwright v0.32.2 {__version__}"
_BUILDKITD_ROOT = "/var/lib/buildkit"
_HELP = {"help_option_names": ["-h", "--help"]}


def _tls_options(function: Any) -> Any:  # noqa: ANN401 - click decorators keep the type
    for name, text in (
        ("--tlscert", "Certificate of the tcp listener (PEM)."),
        ("--tlskey", "Its private key (PEM)."),
        ("--tlscacert", "Clients must have a certificate from this CA (PEM)."),
    ):
        function = click.option(name, metavar="FILE", help=text)(function)
    return function


@click.command(context_settings=_HELP)
@click.option("--root", metavar="DIR", envvar="BOXWRIGHT_ROOT", help="State folder.")
@click.option(
    "--addr",
    "addresses",
    multiple=True,
    metavar="ADDRESS",
    help="Listen here: unix:///path or tcp://host:port. Repeatable.",
)
@click.option("--config", metavar="FILE", help="Configuration file (buildkitd.toml).")
@click.option("--group", metavar="GROUP", help="Group that may use the unix socket.")
@click.option(
    "--allow-insecure-entitlement",
    "entitlements",
    multiple=True,
    help="Allow network.host, security.insecure or device.",
)
@click.option("--oci-worker-binary", "runtime", metavar="PROGRAM", help="OCI runtime.")
@click.option(
    "--grace",
    "grace_s",
    type=float,
    default=10.0,
    show_default=True,
    help="Seconds that running builds may take after a stop signal.",
)
@click.option("--debug", "is_debug", is_flag=True, help="Log what happens inside.")
@_tls_options
def daemon(**options: Any) -> None:  # noqa: ANN401
    """Serve BuildKit's API for buildctl, docker buildx and boxwright itself.

    \b
    Examples:
      boxwright daemon
      boxwright daemon --addr tcp://0.0.0.0:1234 --tlscert s.pem --tlskey s.key --tlscacert ca.pem
    """  # noqa: D301 - click reads the backspace
    run_daemon("boxwright", **options)


@click.command(context_settings=_HELP)
@click.version_option(message=_BUILDKIT_VERSION_LINE, version=__version__)
@click.option("--config", metavar="FILE", help="Path to the configuration file.")
@click.option("--root", metavar="DIR", help="Path to the state directory.")
@click.option("--addr", "addresses", multiple=True, metavar="ADDRESS", help="Listening address.")
@click.option("--group", metavar="GROUP", help="Group that owns the unix socket.")
@click.option("--debug", "is_debug", is_flag=True, help="Debug output in the log.")
@click.option("--trace", is_flag=True, hidden=True)
@click.option("--debugaddr", hidden=True)
@click.option("--log-format", default="", help="json or text.")
@click.option("--allow-insecure-entitlement", "entitlements", multiple=True)
@click.option("--oci-worker", default="auto", hidden=True)
@click.option("--oci-worker-labels", multiple=True, hidden=True)
@click.option("--oci-worker-platform", "platforms", multiple=True)
@click.option("--oci-worker-binary", "runtime", help="Name of the OCI runtime.")
@click.option("--oci-worker-snapshotter", "snapshotter", default="")
@click.option("--oci-worker-net", "network", default="")
@click.option("--oci-worker-gc/--no-oci-worker-gc", "gc", default=None)
@click.option("--oci-worker-gc-keepstorage", "keep_storage", default="")
@click.option("--oci-worker-no-process-sandbox", "no_process_sandbox", is_flag=True)
@click.option("--oci-worker-rootless", "rootless", is_flag=True, hidden=True)
@click.option("--rootless", is_flag=True, hidden=True)
@click.option("--oci-max-parallelism", "max_parallelism", default="")
@click.option("--containerd-worker", hidden=True)
@click.option("--otel-socket-path", hidden=True)
@click.option("--save-cache-debug", is_flag=True, hidden=True)
@click.option("--cdi-disabled", is_flag=True, hidden=True)
@_tls_options
def buildkitd(**options: Any) -> None:  # noqa: ANN401
    """Serve BuildKit's API, with buildkitd's flags, paths and configuration."""
    run_daemon("buildkitd", **options)


def run_daemon(name: str, **options: Any) -> None:  # noqa: ANN401
    """Enter the namespaces, read the configuration, serve until a signal.

    Raises:
        BoxwrightError: the configuration, the state folder or an address can't be used.
    """
    from boxwright.engine.process import enter

    # Before anything that could start a thread.
    entered = enter()
    from boxwright.cli.logs import configure
    from boxwright.config.load import default_path, load

    is_root = not entered.rootless
    path = Path(options["config"]) if options.get("config") else None
    loaded = load(path, default=default_path(os.environ, is_root=is_root))
    config = with_flags(loaded.config, options)
    level = "debug" if options.get("is_debug") or config.debug else config.log.level
    log = configure(level, options.get("log_format") or config.log.format)
    for warning in (*loaded.warnings, *entered.warnings):
        log.warning("%s", warning)

    import asyncio

    import uvloop

    from boxwright.daemon.service import default_address, listeners, serve
    from boxwright.engine.settings import EngineSettings, default_root

    if name == "buildkitd":
        # Upstream's folder may hold upstream's own files: ours lie beside them.
        root = Path(config.root or _BUILDKITD_ROOT) / "boxwright"
    else:
        root = Path(config.root) if config.root else default_root(os.environ, is_root=is_root)
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    address = default_address(name, is_root=is_root, runtime_dir=os.environ.get("XDG_RUNTIME_DIR"))
    wanted = listeners(config.grpc, default=address)
    settings = EngineSettings(
        root=root, config=config, rootless=entered.rootless, config_path=loaded.path
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            serve(
                settings,
                wanted,
                grace_s=options.get("grace_s", 10.0),
                beside=_registry_of(config.boxwright.registry.address, log),
            )
        )


def _registry_of(
    address: str, log: logging.Logger
) -> Callable[[Engine], AbstractAsyncContextManager[object]] | None:
    """Return what serves the engine's images at ``address``; nothing if it is empty."""
    if not address:
        return None
    from contextlib import asynccontextmanager

    from boxwright.registryserver.serve import ListenOptions, parse_address, serving

    host, port = parse_address(address)

    @asynccontextmanager
    async def serve_images(engine: Engine) -> AsyncIterator[None]:
        async with serving(engine.parts.store, ListenOptions(host, port)) as bound:
            log.info("registry listening on %s", bound)
            yield

    return serve_images


def with_flags(config: Config, options: dict[str, Any]) -> Config:
    """Return the configuration with the command line's values over the file's.

    Raises:
        UsageError: there is no such group.
    """
    grpc, worker = config.grpc, config.worker.oci
    tls = dataclasses.replace(
        grpc.tls,
        cert=options.get("tlscert") or grpc.tls.cert,
        key_file=options.get("tlskey") or grpc.tls.key_file,
        ca=options.get("tlscacert") or grpc.tls.ca,
    )
    grpc = dataclasses.replace(
        grpc,
        tls=tls,
        address=tuple(options.get("addresses") or ()) or grpc.address,
        gid=_group_id(options["group"]) if options.get("group") else grpc.gid,
    )
    worker = dataclasses.replace(
        worker,
        binary=options.get("runtime") or worker.binary,
        snapshotter=options.get("snapshotter") or worker.snapshotter,
        network_mode=options.get("network") or worker.network_mode,
        platforms=tuple(options.get("platforms") or ()) or worker.platforms,
        max_parallelism=int(options.get("max_parallelism") or worker.max_parallelism),
        gc=worker.gc if options.get("gc") is None else options["gc"],
        no_process_sandbox=options.get("no_process_sandbox") or worker.no_process_sandbox,
    )
    return dataclasses.replace(
        config,
        root=options.get("root") or config.root,
        grpc=grpc,
        worker=dataclasses.replace(config.worker, oci=worker),
        insecure_entitlements=(
            tuple(options.get("entitlements") or ()) or config.insecure_entitlements
        ),
    )


def _group_id(name: str) -> int:
    import grp

    from boxwright.cli.errors import UsageError

    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"no such group: {name}") from None
