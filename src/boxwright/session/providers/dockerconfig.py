"""Registry logins from Docker's ``config.json`` and its credential helpers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code
from boxwright.registry.auth import Credentials

HUB_HOSTS = frozenset(("docker.io", "index.docker.io", "registry-1.docker.io"))
HUB_KEY = "https://index.docker.io/v1/"
_HELPER_TIMEOUT_S = 60.0
_IDENTITY_USER = "<token>"


class DockerConfigError(BoxwrightError):
    """A config file or credential helper that can't be used."""

    code = Code.REGISTRY_AUTH


@dataclass(frozen=True, slots=True)
class Login:
    """A login as stored; ``registry_token`` is a ready bearer token."""

    credentials: Credentials
    registry_token: str = ""


class DockerConfig:
    """A ``config.json``; read once, helpers are asked each time.

    Args:
        data: The parsed file.
        environ: The environment for helpers.
    """

    def __init__(self, data: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> None:
        self._auths: dict[str, Any] = data.get("auths") or {}
        self._helpers: dict[str, str] = data.get("credHelpers") or {}
        self._store = str(data.get("credsStore") or "")
        self._environ = environ

    @classmethod
    def load(cls, environ: Mapping[str, str] = os.environ) -> DockerConfig:
        """Read the file of ``DOCKER_CONFIG`` or of the home folder; none is an empty one.

        Raises:
            DockerConfigError: it can't be read or is not JSON.
        """
        path = config_dir(environ) / "config.json"
        try:
            return cls.read(path, environ)
        except DockerConfigError as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                return cls({}, environ)
            raise

    @classmethod
    def read(cls, path: Path, environ: Mapping[str, str] = os.environ) -> DockerConfig:
        """Read a file.

        Raises:
            DockerConfigError: it can't be read or is not JSON.
        """
        try:
            data = json.loads(path.read_bytes())
        except (OSError, ValueError) as exc:
            raise DockerConfigError(f"cannot use {path}", detail=str(exc)) from exc
        return cls(data if isinstance(data, dict) else {}, environ)

    async def login(self, host: str) -> Login | None:
        """Return the login for a registry host; None if there is none.

        Raises:
            DockerConfigError: a helper failed.
        """
        key = HUB_KEY if host in HUB_HOSTS else host
        helper = self._helpers.get(key) or self._helpers.get(host) or self._store
        if helper:
            found = await self._ask_helper(helper, key)
            if found is not None:
                return found
        return self._stored(key)

    def _stored(self, key: str) -> Login | None:
        entry = self._auths.get(key)
        if entry is None:
            wanted = _host_of(key)
            entry = next((e for k, e in self._auths.items() if _host_of(k) == wanted), None)
        return _read_entry(entry) if isinstance(entry, dict) else None

    async def _ask_helper(self, helper: str, key: str) -> Login | None:
        program = f"docker-credential-{helper}"
        try:
            process = await asyncio.create_subprocess_exec(
                program,
                "get",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=dict(self._environ),
            )
        except OSError as exc:
            raise DockerConfigError(
                f"cannot run {program}",
                detail=exc.strerror or str(exc),
                hint="install it, or remove it from Docker's config.json",
            ) from exc
        try:
            async with asyncio.timeout(_HELPER_TIMEOUT_S):
                out, err = await process.communicate(key.encode())
        except TimeoutError:
            raise DockerConfigError(f"{program} does not answer") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            text = (out + err).decode("utf-8", "replace").strip()
            if "credentials not found" in text:
                return None
            raise DockerConfigError(f"{program} failed", detail=text[:500])
        return _read_helper_answer(program, out)


def config_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return Docker's configuration folder (``DOCKER_CONFIG`` or ``~/.docker``)."""
    given = environ.get("DOCKER_CONFIG")
    if given:
        return Path(given)
    return Path(environ.get("HOME") or os.path.expanduser("~")) / ".docker"


def _read_helper_answer(program: str, out: bytes) -> Login | None:
    try:
        data = json.loads(out)
        username, secret = str(data["Username"]), str(data["Secret"])
    except (ValueError, KeyError, TypeError):
        raise DockerConfigError(f"{program} gave an answer that is not understood") from None
    if not secret:
        return None
    return Login(Credentials("" if username == _IDENTITY_USER else username, secret))


def _read_entry(entry: Mapping[str, Any]) -> Login | None:
    username, password = str(entry.get("username") or ""), str(entry.get("password") or "")
    if encoded := entry.get("auth"):
        try:
            pair = base64.b64decode(str(encoded)).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError):
            raise DockerConfigError("an auth entry of Docker's config.json is malformed") from None
        username, _, password = pair.partition(":")
        password = password.rstrip("\0")
    if token := entry.get("identitytoken"):
        username, password = "", str(token)
    registry_token = str(entry.get("registrytoken") or "")
    if not password and not registry_token:
        return None
    return Login(Credentials(username, password), registry_token)


def _host_of(key: str) -> str:
    """Return the host of a key, which may be a host or a URL."""
    return key.removeprefix("https://").removeprefix("http://").partition("/")[0]
