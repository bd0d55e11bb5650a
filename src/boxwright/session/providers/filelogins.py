"""The daemon's own logins: a ``config.json`` as Docker's, for hosts that no client has one for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from boxwright.core.workers import to_worker
from boxwright.registry.auth import AnonymousAuth, Credentials
from boxwright.registry.hosts import wire_host
from boxwright.session.providers.dockerconfig import DockerConfig


class FileLogins(AnonymousAuth):
    """Logins of one file, which is read again when it was changed (AuthSource).

    Args:
        path: the file.
        environ: the environment for credential helpers.

    Raises:
        DockerConfigError: it can't be read or is not JSON.
    """

    def __init__(self, path: Path, environ: Mapping[str, str] = os.environ) -> None:
        self._path = path
        self._environ = environ
        self._seen = _version(path)  # first: what changes meanwhile is read again
        self._config = DockerConfig.read(path, environ)

    async def credentials(self, host: str) -> Credentials | None:
        """Return the login for ``host``, if the file has one.

        Raises:
            DockerConfigError: the file was changed and can't be read, or a helper failed.
        """
        config = await to_worker(self._current)
        login = await config.login(wire_host(host))
        return login.credentials if login is not None else None

    def _current(self) -> DockerConfig:
        found = _version(self._path)
        if found != self._seen:
            self._config = DockerConfig.read(self._path, self._environ)
            self._seen = found
        return self._config


def _version(path: Path) -> tuple[int, int, int]:
    """Return what tells two versions of a file apart; zeros if it is not there."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_ino, found.st_size
