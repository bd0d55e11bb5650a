"""``boxwright daemon``, and ``buildkitd`` with its own flags and paths."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from boxwright._version import BUILDKIT_VERSION, __version__

if TYPE_CHECKING:
    import logging
    from collections.abc import AsyncIterator, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from boxwright.config.schema import Config, RegistryServeConfig
    from boxwright.engine.engine import Engine

# The third field is read by clients as BuildKit's version.
_BUILDKIT_VERSION_LINE = f"buildkitd boxwright {BUILDKIT_VERSION} {__version__}"
_BUILDKITD_ROOT = "/var/lib/buildkit"
_HELP = {"help_option_names": ["-h", "--help"]}
_CONTAINERD_SWITCHES = ("worker-selinux", "worker-rootless", "worker-gc")
_CONTAINERD_VALUES = (
    "worker-addr",
    "worker-labels",
    "worker-net",
    "worker-snapshotter",
    "worker-apparmor-profile",
    "worker-gc-keepstorage",
    "cni-config-path",
    "cni-binary-dir",
    "cni-pool-size",
    "max-parallelism",
)
_MB = 1000 * 1000
F = TypeVar("F", bound="Callable[..., Any]")


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


def _switch(name: str, key: str, text: str, *, hidden: bool = False) -> Callable[[F], F]:
    """Declare a flag in the forms of Go: ``--name``, ``--name=true`` and ``--name=false``."""
    return click.option(
        name, key, type=click.BOOL, is_flag=False, flag_value="true", help=text, hidden=hidden
    )


def _containerd_options(function: F) -> F:
    """Declare the flags of the worker that is not here: they change nothing for ours."""
    for name in _CONTAINERD_SWITCHES:
        function = _switch(
            f"--containerd-{name}", f"containerd_{name.replace('-', '_')}", "", hidden=True
        )(function)
    for name in _CONTAINERD_VALUES:
        function = click.option(f"--containerd-{name}", multiple=True, hidden=True)(function)
    return click.option("--containerd-worker", default="auto", help="auto or false.")(function)


@click.command(context_settings=_HELP)
@click.version_option(message=_BUILDKIT_VERSION_LINE, version=__version__)
@click.option("--config", metavar="FILE", help="Path to the configuration file.")
@click.option("--root", metavar="DIR", help="Path to the state directory.")
@click.option("--addr", "addresses", multiple=True, metavar="ADDRESS", help="Listening address.")
@click.option("--group", metavar="GROUP", help="Group that owns the unix socket.")
@_switch("--debug", "is_debug", "Debug output in the log.")
@_switch("--trace", "trace", "", hidden=True)
@click.option(
    "--debugaddr", envvar="BUILDKITD_DEBUGADDR", help="Accepted; there is no such server."
)
@click.option("--log-format", default="", help="json or text.")
@click.option("--log-level", default="", envvar="BUILDKITD_LOG_LEVEL", help="info, debug, …")
@click.option(
    "--allow-insecure-entitlement",
    "entitlements",
    multiple=True,
    help="Allow network.host, security.insecure or device.",
)
@_switch("--rootless", "rootless", "Accepted: found out.")
@_switch("--proxy-network", "proxy_network", "Not supported.")
@_switch("--cdi-disabled", "cdi_disabled", "No devices of the Container Device Interface.")
@click.option("--cdi-spec-dir", "cdi_folders", multiple=True, help="Folder of CDI specifications.")
@click.option("--otel-socket-path", help="Accepted; clients send their traces over Control.")
@_switch("--save-cache-debug", "save_cache_debug", "Accepted: `boxwright why` needs no switch.")
@click.option("--oci-worker", default="auto", help="auto or true: there is no other.")
@click.option("--oci-worker-labels", "labels", multiple=True, help="KEY=VALUE for the worker.")
@click.option("--oci-worker-platform", "platforms", multiple=True, help="Platform that runs here.")
@click.option("--oci-worker-binary", "runtime", help="Name of the OCI runtime.")
@click.option("--oci-worker-snapshotter", "snapshotter", default="", help="auto, overlayfs, …")
@click.option("--oci-worker-proxy-snapshotter-path", "proxy_snapshotter", help="Not supported.")
@click.option("--oci-worker-net", "network", default="", help="auto, host, cni, bridge or none.")
@click.option("--oci-cni-config-path", "cni_config", default="", help="CNI configuration.")
@click.option("--oci-cni-binary-dir", "cni_binaries", default="", help="Folder of CNI plugins.")
@click.option(
    "--oci-cni-pool-size",
    "cni_pool_size",
    type=int,
    default=None,
    help="Connected networks kept for the next steps.",
)
@click.option("--oci-worker-apparmor-profile", "apparmor", default="", help="AppArmor profile.")
@_switch("--oci-worker-selinux", "selinux", "Not supported.")
@_switch("--oci-worker-gc", "gc", "Collect garbage by itself.")
@click.option("--oci-worker-gc-keepstorage", "keep_storage", default="", help="MB[,free[,most]].")
@_switch("--oci-worker-no-process-sandbox", "no_process_sandbox", "Use the daemon's /proc.")
@_switch("--oci-worker-rootless", "worker_rootless", "Accepted: found out.")
@click.option("--oci-max-parallelism", "max_parallelism", default="", help="Steps at a time.")
@_containerd_options
@_tls_options
def buildkitd(**options: Any) -> None:  # noqa: ANN401
    """Serve BuildKit's API, with buildkitd's flags, paths and configuration."""
    _refuse_unsupported(options)
    run_daemon("buildkitd", **options)


def _refuse_unsupported(options: dict[str, Any]) -> None:
    """Refuse flags that ask for what is not here, rather than to build without it.

    Raises:
        UsageError: there is one.
    """
    from boxwright.cli.errors import UsageError

    if options["containerd_worker"] not in {"auto", "false"}:
        raise UsageError("there is no containerd worker", hint="leave out --containerd-worker")
    if options["oci_worker"] not in {"auto", "true"}:
        raise UsageError("no worker found", hint="leave out --oci-worker: there is no other")
    for key, flag in (
        ("proxy_network", "--proxy-network"),
        ("selinux", "--oci-worker-selinux"),
        ("proxy_snapshotter", "--oci-worker-proxy-snapshotter-path"),
    ):
        if options[key]:
            raise UsageError(f"{flag} is not supported", hint="leave it out")


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
    level = options.get("log_level") or config.log.level
    if options.get("is_debug") or config.debug:
        level = "debug"
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
        root=root,
        config=config,
        rootless=entered.rootless,
        config_path=loaded.path,
        keeps_provenance=True,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(
            serve(
                settings,
                wanted,
                grace_s=options.get("grace_s", 10.0),
                beside=_registry_of(config.boxwright.registry, log),
            )
        )


def _registry_of(
    wanted: RegistryServeConfig, log: logging.Logger
) -> Callable[[Engine], AbstractAsyncContextManager[object]] | None:
    """Return what serves the engine's images as ``wanted`` says; nothing without an address.

    Raises:
        InvalidInputError: the address, the certificate or the users can't be used.
    """
    if not wanted.address:
        return None
    from contextlib import asynccontextmanager

    from boxwright.registryserver.app import ServerOptions
    from boxwright.registryserver.serve import (
        ListenOptions,
        parse_address,
        read_users,
        serving,
    )

    host, port = parse_address(wanted.address)
    options = ListenOptions(
        host,
        port,
        tls_cert=wanted.tls_cert,
        tls_key=wanted.tls_key,
        server=ServerOptions(read_only=wanted.read_only, users=read_users(wanted.users)),
    )
    options.ssl_context()  # before anything is started

    @asynccontextmanager
    async def serve_images(engine: Engine) -> AsyncIterator[None]:
        async with serving(engine.parts.store, options) as bound:
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
        labels=worker.labels | _labels(options.get("labels") or ()),
        apparmor_profile=options.get("apparmor") or worker.apparmor_profile,
        cni_config_path=options.get("cni_config") or worker.cni_config_path,
        cni_binary_path=options.get("cni_binaries") or worker.cni_binary_path,
        cni_pool_size=(
            worker.cni_pool_size
            if options.get("cni_pool_size") is None
            else options["cni_pool_size"]
        ),
        **_kept_space(options.get("keep_storage") or ""),
    )
    cdi = dataclasses.replace(
        config.cdi,
        disabled=options.get("cdi_disabled") or config.cdi.disabled,
        spec_dirs=tuple(options.get("cdi_folders") or ()) or config.cdi.spec_dirs,
    )
    return dataclasses.replace(
        config,
        cdi=cdi,
        root=options.get("root") or config.root,
        grpc=grpc,
        worker=dataclasses.replace(config.worker, oci=worker),
        insecure_entitlements=(
            tuple(options.get("entitlements") or ()) or config.insecure_entitlements
        ),
    )


def _labels(items: Iterable[str]) -> dict[str, str]:
    from boxwright.cli.errors import UsageError

    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise UsageError(f"invalid label {item!r}", hint="write KEY=VALUE")
        found[name] = value
    return found


def _kept_space(text: str) -> dict[str, Any]:
    """Parse ``--oci-worker-gc-keepstorage``: reserved, free, most; plain numbers are MB."""
    names = ("reserved_space", "min_free_space", "max_used_space")
    values = text.split(",") if text else []
    return {
        name: int(value) * _MB if value.isdigit() else value
        for name, value in zip(names, values, strict=False)
        if value
    }


def _group_id(name: str) -> int:
    import grp

    from boxwright.cli.errors import UsageError

    if name.isdigit():
        return int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"no such group: {name}") from None
