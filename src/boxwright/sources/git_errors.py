"""Failures of git sources; remotes and git's own words come without credentials."""

from __future__ import annotations

from collections.abc import Sequence

from boxwright.errors import BoxwrightError, Code, InvalidInputError, NotFoundError

_SHOWN_LINES = 12


class GitNotFoundError(BoxwrightError):
    """The git program is not installed where the builder runs."""

    code = Code.ENVIRONMENT

    def __init__(self, program: str) -> None:
        super().__init__(
            "git sources need the git program",
            detail=f"{program} was not found in PATH",
            hint="install git on the machine of the builder",
        )


class GitError(BoxwrightError):
    """A git command failed.

    Args:
        what: what was tried.
        stderr: git's own words, without secrets.
        status: its exit status.
        hint: what to do.
    """

    code = Code.UNAVAILABLE

    def __init__(self, what: str, stderr: str = "", status: int = 0, hint: str = "") -> None:
        lines = [line for line in stderr.splitlines() if line.strip()]
        super().__init__(what, detail="; ".join(lines[-_SHOWN_LINES:])[-2000:], hint=hint)
        self.stderr = stderr
        self.status = status


class GitUnreachableError(GitError):
    """The remote did not answer."""

    retryable = True


class GitDeniedError(GitError):
    """The remote wants a login, or another one."""

    code = Code.PERMISSION


class GitRemoteNotFoundError(GitError):
    """There is no repository at this remote, or it is hidden from this login."""

    code = Code.SOURCE_NOT_FOUND


class GitRefNotFoundError(NotFoundError):
    """The repository has no such branch, tag or commit."""

    code = Code.SOURCE_NOT_FOUND

    def __init__(self, remote: str, ref: str, *, detail: str = "") -> None:
        super().__init__(
            f"repository does not contain ref {ref}",
            detail=f"{remote}: {detail}" if detail else remote,
        )
        self.remote = remote
        self.ref = ref


class GitSubdirError(NotFoundError):
    """The sub-directory is not in the commit, or it or a parent is no directory."""

    code = Code.SOURCE_NOT_FOUND

    def __init__(self, remote: str, subdir: str, reason: str) -> None:
        super().__init__(f"invalid subdir {subdir} in {remote}", detail=reason)
        self.subdir = subdir


class GitChecksumError(InvalidInputError):
    """The ref is at another commit than the one that was asked for."""

    code = Code.DIGEST_MISMATCH

    def __init__(self, remote: str, want: str, got: Sequence[str]) -> None:
        super().__init__(
            f"expected checksum to match {want}, got {' or '.join(got)}", detail=f"remote {remote}"
        )
        self.want = want
        self.got = tuple(got)


_DENIED = (
    "could not read Username",
    "could not read Password",
    "Authentication failed",
    "Permission denied",
    "Host key verification failed",
    "returned error: 401",
    "returned error: 403",
    "terminal prompts disabled",
)
_NOT_FOUND = ("not found", "does not exist", "does not appear to be a git repository")
_UNREACHABLE = (
    "Could not resolve host",
    "Failed to connect",
    "Connection refused",
    "Connection timed out",
    "unable to connect",
    "Couldn't connect",
    "Operation timed out",
    "early EOF",
    "hung up unexpectedly",
    "returned error: 50",
)


def _login_hint(stderr: str) -> str:
    if "Host key verification failed" in stderr:
        return "the server's host key is not among those that were given for it"
    if "(publickey" in stderr:
        return "forward an agent that holds a key which the server lets in: --ssh default"
    return "give a token with --secret id=GIT_AUTH_TOKEN,env=…, or for ssh an agent with --ssh"


def git_error(what: str, stderr: str, status: int) -> GitError:
    """Return the error for a failed command, by what git said (its locale is C)."""
    if any(text in stderr for text in _DENIED):
        return GitDeniedError(what, stderr, status, _login_hint(stderr))
    if any(text in stderr for text in _UNREACHABLE):
        hint = "check the remote and the network from where the builder runs"
        return GitUnreachableError(what, stderr, status, hint)
    if any(text in stderr for text in _NOT_FOUND):
        return GitRemoteNotFoundError(what, stderr, status)
    return GitError(what, stderr, status)
