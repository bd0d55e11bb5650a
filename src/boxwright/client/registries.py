"""A registry client with the logins of this machine's user, for commands that need no engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from boxwright.config.load import parse_timeout_s
from boxwright.registry.auth import Credentials, Token
from boxwright.registry.client import RegistryClient
from boxwright.registry.hosts import Hosts, wire_host
from boxwright.session.providers.auth import AuthProvider
from boxwright.session.providers.dockerconfig import DockerConfig

if TYPE_CHECKING:
    from pathlib import Path

    from boxwright.config.schema import Config


class UserAuth:
    """Docker's ``config.json`` and credential helpers as a registry client's logins."""

    def __init__(self, provider: AuthProvider) -> None:
        self._provider = provider

    async def credentials(self, host: str) -> Credentials | None:
        """Return the login for ``host``, if the user has one."""
        found = await self._provider.credentials(wire_host(host))
        return Credentials(found.username, found.secret) if found is not None else None

    async def fetch_token(
        self, host: str, realm: str, service: str, scopes: Sequence[str]
    ) -> Token | None:
        """Return None: the client fetches tokens itself."""
        del host, realm, service, scopes
        return None


def user_client(
    environ: Mapping[str, str], config: Config, config_file: Path | None
) -> RegistryClient:
    """Return a client for any registry; the caller closes it.

    Args:
        environ: where Docker's configuration is.
        config: its ``[registry."host"]`` tables say how hosts are reached.
        config_file: where ``config`` came from, for hints.

    Raises:
        BoxwrightError: Docker's configuration, or a timeout in ours, can't be read.
    """
    provider = AuthProvider(DockerConfig.load(environ), environ)
    hosts = Hosts(config.registry, config_file=str(config_file or "buildkitd.toml"))
    stall_s = parse_timeout_s(config.boxwright.stall_timeout)
    return RegistryClient(hosts, UserAuth(provider), stall_timeout_s=stall_s)
