"""The git program, run so that nothing of this machine and nothing of a repository steers it.

No system or user configuration, hooks, credential helpers, prompts or background work; only
the protocols named in the call. Secrets travel in the environment of the process
(``GIT_CONFIG_VALUE_n``), never in its arguments, and are cut out of what it prints.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from boxwright.core.dataclass import dataclass, field, replace
from boxwright.sources.git_errors import GitNotFoundError, git_error

_OUTPUT_LIMIT_BYTES = 16 << 20
_STDERR_TAIL_BYTES = 64 << 10
_TERM_GRACE_S = 0.5
_HELPER_CHECKS = 100
_HELPER_CHECK_S = 0.01
NETWORK = "http:https:ssh:git"
LOCAL = "file"
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.attributesFile": os.devnull,
    "core.excludesFile": os.devnull,
    "core.logAllRefUpdates": "false",
    "core.symlinks": "true",
    "credential.helper": "",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "init.defaultBranch": "master",
    "advice.detachedHead": "false",
    "submodule.recurse": "false",
    "http.lowSpeedLimit": "1",
    "http.lowSpeedTime": "120",
}
# The engine is threaded: the mask is set in a child of its own. If the engine dies, so does git.
_LAUNCH = ("setpriv", "--pdeathsig", "KILL", "sh", "-c", 'umask 022; exec "$@"', "git")
_PROGRESS_LINE = re.compile(
    rb"^(?:remote: )?(Counting|Compressing|Receiving|Enumerating|Resolving|Updating)[\w ]*: +\d+%"
)


@runtime_checkable
class LogSink(Protocol):
    """Shows lines of a source's work; the solver's and the engine's progress are such."""

    def log(self, stream: int, data: bytes) -> None:
        """Add bytes; ``stream`` is 1 for stdout, 2 for stderr."""


@dataclass(frozen=True, slots=True)
class Git:
    """How to run git: immutable, so calls with other settings are made from it.

    Attributes:
        git_dir: The repository, if there is one.
        work_tree: Where files are checked out.
        settings: Configuration for these calls; values may be secret.
        environment: Further variables; None leaves one out that is set otherwise.
        protocols: What may be spoken, colon-separated.
        secrets: Texts that must not be shown.
        log: Where git's messages go.
    """

    git_dir: Path | None = None
    work_tree: Path | None = None
    settings: Mapping[str, str] = field(default_factory=dict, repr=False)
    environment: Mapping[str, str | None] = field(default_factory=dict, repr=False)
    protocols: str = NETWORK
    secrets: tuple[str, ...] = field(default=(), repr=False)
    log: LogSink | None = field(default=None, repr=False)

    def at(self, git_dir: Path, work_tree: Path | None = None) -> Git:
        """Return the same for a repository."""
        return replace(self, git_dir=git_dir, work_tree=work_tree)

    def anywhere(self) -> Git:
        """Return the same without a repository."""
        return replace(self, git_dir=None, work_tree=None)

    def with_templates(self) -> Git:
        """Return the same that gives new repositories what git's own templates hold."""
        return replace(self, environment={**self.environment, "GIT_TEMPLATE_DIR": None})

    def locally(self) -> Git:
        """Return the same for calls that only talk to repositories of this machine."""
        return replace(self, protocols=LOCAL)

    def quietly(self) -> Git:
        """Return the same without showing messages."""
        return replace(self, log=None)

    async def run(self, *args: str, what: str = "", extra: Mapping[str, str] | None = None) -> str:
        """Run one command to its end and return what it printed.

        Args:
            args: The command and its arguments; never secrets.
            what: For the error: what is being done.
            extra: Further variables of the environment.

        Raises:
            GitError: it failed.
            GitNotFoundError: there is no git.
        """
        status, out, err = await self.outcome(*args, extra=extra)
        if status:
            raise git_error(what or f"git {args[0]} failed", err, status)
        return out

    async def succeeds(self, *args: str) -> bool:
        """Return whether a command succeeds; its messages are not shown."""
        status, _, _ = await self.quietly().outcome(*args)
        return status == 0

    async def outcome(
        self, *args: str, extra: Mapping[str, str] | None = None
    ) -> tuple[int, str, str]:
        """Run one command; return exit status, output and messages."""
        argv = [*_LAUNCH, "git", *self._location(), *args]
        for program in ("git", "setpriv"):
            if shutil.which(program) is None:
                raise GitNotFoundError(program)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=str(self.work_tree or self.git_dir or "/"),
            env={**self._environment(), **(extra or {})},
            start_new_session=True,
        )
        try:
            out, err = await self._talk(process)
            status = await process.wait()
        except BaseException:
            await _end(process)
            raise
        return status, out.decode("utf-8", "surrogateescape"), self.clean(err)

    def clean(self, data: bytes) -> str:
        """Return git's words without secrets."""
        text = data.decode("utf-8", "replace")
        for secret in self.secrets:
            text = text.replace(secret, "xxxxx")
        return text

    def _location(self) -> list[str]:
        found = []
        if self.git_dir is not None:
            found += ["--git-dir", str(self.git_dir)]
        if self.work_tree is not None:
            found += ["--work-tree", str(self.work_tree)]
        return found

    def _environment(self) -> dict[str, str]:
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "HOME": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "true",
            "SSH_ASKPASS": "true",
            "GIT_ALLOW_PROTOCOL": self.protocols,
            "GIT_TEMPLATE_DIR": "",
            "GIT_NO_REPLACE_OBJECTS": "1",
        }
        for name in _PROXY_VARIABLES:
            for spelling in (name, name.upper()):
                if spelling in os.environ:
                    environment[spelling] = os.environ[spelling]
        settings = {**_SETTINGS, **self.settings}
        environment["GIT_CONFIG_COUNT"] = str(len(settings))
        for number, (key, value) in enumerate(settings.items()):
            environment[f"GIT_CONFIG_KEY_{number}"] = key
            environment[f"GIT_CONFIG_VALUE_{number}"] = value
        changed = environment | dict(self.environment)
        return {name: value for name, value in changed.items() if value is not None}

    async def _talk(self, process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
        assert process.stdout is not None
        assert process.stderr is not None
        tasks: Sequence[asyncio.Task[bytes]] = (
            asyncio.ensure_future(_read_all(process.stdout)),
            asyncio.ensure_future(self._read_messages(process.stderr)),
        )
        try:
            out, err = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return out, err

    async def _read_messages(self, reader: asyncio.StreamReader) -> bytes:
        """Show whole lines as they come, without the counters that git redraws."""
        tail, pending = bytearray(), bytearray()
        while data := await reader.read(1 << 16):
            pending += data
            *lines, rest = pending.replace(b"\r", b"\n").split(b"\n")
            pending = bytearray(rest[-_STDERR_TAIL_BYTES:])
            for line in lines:
                if line and not _PROGRESS_LINE.match(line):
                    tail += line + b"\n"
                    self._show(line)
            del tail[:-_STDERR_TAIL_BYTES]
        if pending:
            tail += pending
            self._show(pending)
        return bytes(tail)

    def _show(self, line: bytes | bytearray) -> None:
        if self.log is not None:
            self.log.log(2, f"{self.clean(bytes(line))}\n".encode())


async def _read_all(reader: asyncio.StreamReader) -> bytes:
    found = bytearray()
    while data := await reader.read(1 << 16):
        found += data
        if len(found) > _OUTPUT_LIMIT_BYTES:
            raise git_error("git printed too much", f"over {_OUTPUT_LIMIT_BYTES} bytes", 0)
    return bytes(found)


async def _end(process: asyncio.subprocess.Process) -> None:
    """End git and everything that it started, and wait for it through any cancellation."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        waiting = asyncio.ensure_future(process.wait())
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([waiting], timeout=_TERM_GRACE_S)
        if waiting.done():
            break
        waiting.cancel()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        for _ in range(_HELPER_CHECKS):  # helpers that outlived it; they are no children of ours
            os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(_HELPER_CHECK_S)
