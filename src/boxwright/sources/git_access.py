"""How a git source reaches its remote: tokens, ssh agents and host keys of the clients.

Secrets stay in the memory of the engine and in the environment of git; the one file that is
written holds public host keys, for as long as git runs.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, InvalidInputError, NotFoundError, UnimplementedError
from boxwright.linux import unixpath
from boxwright.session.base import Session, SshAgentNotFoundError
from boxwright.session.manager import SessionGroup
from boxwright.sources.base import SourceContext
from boxwright.sources.git_remote import GitAttributes
from boxwright.sources.git_run import Git, LogSink

_GITHUB = ("https://github.com/", "https://www.github.com/")
_SSH = (
    *("ssh", "-F", os.devnull, "-o", "BatchMode=yes", "-o", "IdentityFile=none"),
    *("-o", f"GlobalKnownHostsFile={os.devnull}", "-o", "ConnectTimeout=30"),
)


class ForwardSocket(Protocol):
    """Gives a unix socket whose connections reach a client's ssh agent."""

    def __call__(
        self, run_dir: Path, session: Session, agent_id: str, *, mode: int, owner: tuple[int, int]
    ) -> AbstractAsyncContextManager[Path]:
        """Serve the socket for the length of the block."""
        ...


class GitAccess:
    """Prepares git for a remote.

    Args:
        run_dir: where sockets and files of running commands lie.
        forward: forwards ssh agents.
    """

    def __init__(self, run_dir: Path, forward: ForwardSocket) -> None:
        self._run_dir = run_dir
        self._forward = forward

    @contextlib.asynccontextmanager
    async def prepared(self, wanted: GitAttributes, context: SourceContext) -> AsyncIterator[Git]:
        """Give a git that may talk to the remote, for the length of the block.

        Raises:
            SshAgentNotFoundError: no client offers the ssh agent that is asked for.
            InvalidInputError: a secret can't be a header.
        """
        progress: object = context.progress
        log = progress if isinstance(progress, LogSink) else None
        header, hidden = await _authorization(wanted, context.sessions)
        settings = {}
        if header:
            settings[f"http.{_scope(wanted.remote)}.extraheader"] = f"Authorization: {header}"
        async with contextlib.AsyncExitStack() as stack:
            environment = {}
            ssh = [*_SSH]
            if wanted.ssh_id:
                session = await context.sessions.any(_with_agent(wanted.ssh_id))
                socket = await stack.enter_async_context(
                    self._forward(
                        self._run_dir,
                        session,
                        wanted.ssh_id,
                        mode=0o600,
                        owner=(os.geteuid(), os.getegid()),
                    )
                )
                # ssh has no way around a path that is too long: it would find no agent.
                environment["SSH_AUTH_SOCK"] = stack.enter_context(
                    unixpath.usable(socket, by_others=True)
                )
            if wanted.known_hosts:
                path = await stack.enter_async_context(self._known_hosts(wanted.known_hosts))
                ssh += ["-o", f"UserKnownHostsFile={path}", "-o", "StrictHostKeyChecking=yes"]
            else:
                ssh += ["-o", f"UserKnownHostsFile={os.devnull}", "-o", "StrictHostKeyChecking=no"]
            environment["GIT_SSH_COMMAND"] = shlex.join(ssh)
            yield Git(settings=settings, environment=environment, secrets=hidden, log=log)

    @contextlib.asynccontextmanager
    async def _known_hosts(self, text: str) -> AsyncIterator[Path]:
        path = self._run_dir / f"known-hosts-{secrets.token_hex(8)}"
        data = text if text.endswith("\n") else text + "\n"
        await to_worker(path.write_text, data, "utf-8")
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def _with_agent(agent_id: str) -> Callable[[Session], Awaitable[Session]]:
    async def check(session: Session) -> Session:
        try:
            await session.ssh_check(agent_id)
        except UnimplementedError as exc:
            raise SshAgentNotFoundError(agent_id) from exc
        return session

    return check


async def _authorization(
    wanted: GitAttributes, sessions: SessionGroup
) -> tuple[str, tuple[str, ...]]:
    """Return the value of the header for the remote, and what must never be shown."""
    if not wanted.remote.startswith(("http://", "https://")):
        return "", ()
    names = [
        (name + suffix, is_token)
        for suffix in (f".{wanted.host}", "")
        for name, is_token in ((wanted.header_secret, False), (wanted.token_secret, True))
        if name
    ]
    for name, is_token in names:
        secret = await _secret(sessions, name)
        if secret is None:
            continue
        if any(char in secret for char in "\r\n\0"):
            raise InvalidInputError(f"secret {name} is more than one line")
        if not is_token:
            return secret, (secret, secret.rpartition(" ")[2])
        return _basic("x-access-token", secret)
    return _basic(*wanted.login) if wanted.login else ("", ())


def _basic(user: str, password: str) -> tuple[str, tuple[str, ...]]:
    pair = f"{user}:{password}".encode("utf-8", "surrogateescape")
    encoded = base64.b64encode(pair).decode("ascii")
    return f"basic {encoded}", tuple(text for text in (encoded, password) if text)


async def _secret(sessions: SessionGroup, name: str) -> str | None:
    try:
        found = await sessions.secret(name)
    except (NotFoundError, UnimplementedError):
        return None
    except BoxwrightError:
        return None  # nobody to ask: a public remote needs no secret
    return found.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _scope(remote: str) -> str:
    """Return the URLs that a token is for: the remote's, but all of GitHub for a GitHub one."""
    return next((prefix for prefix in _GITHUB if remote.startswith(prefix)), remote)
