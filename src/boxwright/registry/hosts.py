"""Which endpoints serve a registry host: mirrors first, then the host itself.

An :class:`Endpoint` is plain data; the TLS context is made once per endpoint by the
transport. Plain HTTP is spoken only where the configuration or the request says so, and to
this machine's own loopback names, as Docker does.
"""

from __future__ import annotations

import ipaddress
import logging
import ssl
from collections.abc import Mapping
from pathlib import Path

from boxwright.config.load import ConfigError
from boxwright.config.schema import RegistryConfig
from boxwright.core.dataclass import dataclass, replace
from boxwright.core.reference import DEFAULT_HOST
from boxwright.registry.trust import client_context

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One place to ask: ``scheme://host`` plus an optional path before the repository.

    Attributes:
        name: what users, logins and the configuration call it (``docker.io``).
        host: what is really connected to (``registry-1.docker.io``), with a port if one is given.
        scheme_is_a_guess: nobody said which it is, so the other one may be tried as well.
        config_file: where its settings belong, for hints.
        ignored_keys: tables of that file that were meant for this host and have no effect, as
            they name a path too.
    """

    name: str
    host: str
    scheme: str = "https"
    path_prefix: str = ""
    is_mirror: bool = False
    verify_tls: bool = True
    scheme_is_a_guess: bool = False
    ca_files: tuple[str, ...] = ()
    keypairs: tuple[tuple[str, str], ...] = ()
    config_file: str = "buildkitd.toml"
    ignored_keys: tuple[str, ...] = ()

    @property
    def base_url(self) -> str:
        """The address of the distribution API's root."""
        return f"{self.scheme}://{self.host}/v2"

    @property
    def config_key(self) -> str:
        """The table of the configuration that this host's settings belong in, and its file."""
        belongs = f'[registry."{self.name}"] in {self.config_file}'
        if not self.ignored_keys:
            return belongs
        ignored = ", ".join(f'[registry."{key}"]' for key in self.ignored_keys)
        return f"{belongs} ({ignored} there has no effect: configuration is per host)"

    def repository(self, path: str) -> str:
        """Return the repository path on this endpoint."""
        return f"{self.path_prefix}/{path}".strip("/")

    def ssl_context(self) -> ssl.SSLContext:
        """Make the TLS context: system trust, extra CAs, client certificates.

        Raises:
            ConfigError: a configured file is missing or is no PEM file.
        """
        context = client_context()
        for file in self.ca_files:
            try:
                context.load_verify_locations(cafile=file)
            except (OSError, ssl.SSLError) as exc:
                raise ConfigError(
                    f"can't use the CA file of registry {self.host}", detail=f"{file}: {exc}"
                ) from exc
        for cert, key in self.keypairs:
            try:
                context.load_cert_chain(cert, key)
            except (OSError, ssl.SSLError) as exc:
                raise ConfigError(
                    f"can't use the client certificate of registry {self.host}",
                    detail=f"{cert}, {key}: {exc}",
                ) from exc
        if not self.verify_tls:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context


def is_loopback(host: str) -> bool:
    """Return whether ``host[:port]`` names this machine by a loopback name or address."""
    name = host.rsplit(":", 1)[0] if not host.startswith("[") else host[1:].partition("]")[0]
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def wire_host(host: str) -> str:
    """Return the host that is really asked for a reference's host."""
    return "registry-1.docker.io" if host == DEFAULT_HOST else host


class Hosts:
    """The endpoints of every registry host, from ``[registry."host"]``.

    Args:
        config: the tables by host.
        config_file: where they were read from, for hints.
        pull_hosts: for a host that is pushed to, the one that pullers know it by.
    """

    def __init__(
        self,
        config: Mapping[str, RegistryConfig] | None = None,
        *,
        config_file: str = "buildkitd.toml",
        pull_hosts: Mapping[str, str] | None = None,
    ) -> None:
        self._config = dict(config or {})
        self._config_file = config_file
        self._pull_hosts = dict(pull_hosts or {})
        self._ignored: dict[str, tuple[str, ...]] = {}
        for key in self._config:
            host, slash, path = key.partition("/")
            if slash:
                self._ignored[host] = (*self._ignored.get(host, ()), key)
                _log.warning(
                    '[registry."%s"] in %s has no effect: configuration is per host; write '
                    '[registry."%s"] (the path %s is part of image names)',
                    key,
                    config_file,
                    host,
                    path,
                )

    def pull_host(self, host: str) -> str:
        """Return the host that what is pushed to ``host`` is pulled from."""
        return self._pull_hosts.get(host, host)

    def pull_endpoints(self, host: str, *, insecure: bool | None = None) -> list[Endpoint]:
        """Return where to pull from, in order; mirrors come first."""
        mirrors = []
        for mirror in self._config.get(host, RegistryConfig()).mirrors:
            scheme, separator, rest = mirror.partition("://")
            name, _, prefix = (rest if separator else mirror).partition("/")
            endpoint = self.endpoint(name)
            if separator and scheme in {"http", "https"}:
                endpoint = replace(endpoint, scheme=scheme, scheme_is_a_guess=False)
            mirrors.append(replace(endpoint, path_prefix=prefix.strip("/"), is_mirror=True))
        return [*mirrors, self.endpoint(host, insecure=insecure)]

    def endpoint(self, host: str, *, insecure: bool | None = None) -> Endpoint:
        """Return the host itself; mirrors are never pushed to.

        Args:
            host: the reference's host.
            insecure: the request's ``registry.insecure`` attribute; None if absent.
        """
        config = self._config.get(host, RegistryConfig())
        is_insecure = insecure if insecure is not None else bool(config.insecure)
        if config.http is not None:
            scheme, guess = ("http" if config.http else "https"), False
        elif is_loopback(host):
            scheme, guess = "http", True
        else:
            scheme, guess = "https", is_insecure
        ca_files, keypairs = _tls_folder_files(config)
        return Endpoint(
            name=host,
            host=wire_host(host),
            scheme=scheme,
            verify_tls=not is_insecure,
            scheme_is_a_guess=guess,
            ca_files=(*config.ca, *ca_files),
            keypairs=(*((k.cert, k.key_file) for k in config.keypair), *keypairs),
            config_file=self._config_file,
            ignored_keys=self._ignored.get(host, ()),
        )


def _tls_folder_files(
    config: RegistryConfig,
) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """Read Docker's ``certs.d`` form: ``*.crt`` are CAs, ``x.cert`` goes with ``x.key``."""
    ca_files: list[str] = []
    keypairs: list[tuple[str, str]] = []
    for folder in config.tls_config_dir:
        for path in sorted(Path(folder).glob("*")):
            if path.suffix == ".crt":
                ca_files.append(str(path))
            elif path.suffix == ".cert":
                keypairs.append((str(path), str(path.with_suffix(".key"))))
    return tuple(ca_files), tuple(keypairs)
