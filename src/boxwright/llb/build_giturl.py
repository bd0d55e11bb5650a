"""Git remotes as they are written in build contexts, ADD and ``llb.git``.

Accepted are URLs of the schemes http, https, ssh and git, and the scp form
``user@host:path``. A fragment ``#ref:subdir`` or a query (``?branch=…&subdir=…``) says what
to check out; neither is part of the remote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import parse_qs, unquote, urlsplit

from boxwright.core import gobool
from boxwright.core.dataclass import dataclass, replace
from boxwright.errors import InvalidInputError
from boxwright.llb import build_paths as paths

_SCHEME = re.compile(r"[a-zA-Z0-9]+://")
_SCP = re.compile(r"([a-zA-Z0-9-_]+)@([a-zA-Z0-9-.]+):(.*?)(?:\?(.*?))?(?:#(.*))?\Z", re.ASCII)
_SCHEMES = frozenset({"http", "https", "ssh", "git"})


@dataclass(frozen=True, slots=True)
class GitUrl:
    """A parsed remote.

    Attributes:
        path: On the host, percent-decoded.
        remote: What git is given: the text without query and fragment.
        query: Values by key, in order.
    """

    scheme: str
    host: str
    path: str
    remote: str
    user: str = ""
    query: Mapping[str, tuple[str, ...]] | None = None
    ref: str = ""
    subdir: str = ""

    @property
    def identifier(self) -> str:
        """Host and path: the same for https and ssh remotes of one repository."""
        return self.host + paths.join("/", self.path)


def split_fragment(fragment: str) -> tuple[str, str]:
    """Return ref and sub-directory of ``ref:subdir``; the latter never leaves the root."""
    ref, _, subdir = fragment.partition(":")
    return ref, paths.join("/", subdir).removeprefix("/")


def is_git_transport(text: str) -> bool:
    """Return whether ``text`` has a scheme git can fetch, or is in scp form."""
    if match := _SCHEME.match(text):
        return match.group()[:-3].lower() in _SCHEMES
    return _SCP.match(text) is not None


def parse_git_url(text: str) -> GitUrl | None:
    """Parse a remote; None when ``text`` has no scheme and is not in scp form.

    Raises:
        InvalidInputError: the scheme is not one of git's, or the URL is malformed.
    """
    if match := _SCHEME.match(text):
        scheme = match.group()[:-3].lower()
        if scheme not in _SCHEMES:
            raise InvalidInputError("invalid git remote", detail=f"scheme {scheme!r}")
        return _from_url(text)
    if match := _SCP.match(text):
        user, host, path, query, fragment = match.groups(default="")
        ref, subdir = split_fragment(fragment)
        remote = f"{user}@{host}:{path}"
        return GitUrl("ssh", host, path, remote, user, _query(query), ref, subdir)
    return None


def _from_url(text: str) -> GitUrl:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as exc:
        raise InvalidInputError("invalid git remote", detail=str(exc)) from exc
    user, at, host = parts.netloc.rpartition("@")
    ref, subdir = split_fragment(unquote(parts.fragment))
    remote = f"{parts.scheme}://{user}{at}{host}{parts.path}"
    query = _query(parts.query)
    return GitUrl(parts.scheme, host, unquote(parts.path), remote, user, query, ref, subdir)


def _query(text: str) -> Mapping[str, tuple[str, ...]]:
    try:
        values = parse_qs(text, keep_blank_values=True, max_num_fields=100)
    except ValueError as exc:
        raise InvalidInputError("invalid git remote", detail=f"query {text!r}") from exc
    return {key: tuple(value) for key, value in values.items()}


@dataclass(frozen=True, slots=True)
class GitRef:
    """A remote together with what to take from it, as a context or an ADD source names it.

    Attributes:
        looks_local: ``github.com/…`` without a scheme: a git remote as a build context,
            a path everywhere else.
        mtime: ``checkout``, ``commit`` or "".
    """

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    looks_local: bool = False
    keep_git_dir: bool | None = None
    submodules: bool | None = None
    mtime: str = ""
    fetch_by_commit: bool = False


def parse_git_ref(text: str) -> GitRef | None:
    """Parse a git context or ADD source; None when ``text`` is not git's.

    An http or https URL is git's only when its path ends in ``.git``.

    Raises:
        InvalidInputError: it is a git remote, but its query is wrong.
    """
    if text.startswith(("./", "../")):
        return None
    looks_local = text.startswith("github.com/")
    try:
        url = parse_git_url("https://" + text if looks_local else text)
    except InvalidInputError:
        return None
    if url is None:
        return None
    if not looks_local and url.scheme in {"http", "https"} and not url.path.endswith(".git"):
        return None
    remote = url.remote.partition("://")[2] if looks_local else url.remote
    ref = GitRef(remote, url.ref, url.subdir, looks_local=looks_local)
    return _apply_query(ref, url.query or {})


def _apply_query(ref: GitRef, query: Mapping[str, tuple[str, ...]]) -> GitRef:
    named: dict[str, str] = {}
    for key, values in query.items():
        if len(values) > 1:
            raise InvalidInputError(f"query {_quoted(key)} has multiple values")
        value = values[0]
        if not value and key not in {"submodules", "keep-git-dir", "fetch-by-commit"}:
            raise InvalidInputError(f"query {_quoted(key)} has no value")
        if key in {"tag", "branch"}:
            named[key] = value
        else:
            ref = _apply_one(ref, key, value)
    if len(named) == 2:
        raise InvalidInputError("branch conflicts with tag")
    for key, value in named.items():
        prefix = "refs/tags/" if key == "tag" else "refs/heads/"
        full = value if value.startswith(prefix) else prefix + value
        ref = replace(ref, ref=_agree("ref", ref.ref, full))
    return ref


def _apply_one(ref: GitRef, key: str, value: str) -> GitRef:
    match key:
        case "ref":
            return replace(ref, ref=_agree("ref", ref.ref, value))
        case "subdir":
            return replace(ref, subdir=_agree("subdir", ref.subdir, value))
        case "checksum" | "commit":
            return replace(ref, checksum=value)
        case "keep-git-dir":
            return replace(ref, keep_git_dir=_flag(key, value))
        case "submodules":
            return replace(ref, submodules=_flag(key, value))
        case "fetch-by-commit":
            return replace(ref, fetch_by_commit=_flag(key, value))
        case "mtime" if value in {"checkout", "commit"}:
            return replace(ref, mtime=value)
        case "mtime":
            raise InvalidInputError(
                f'invalid mtime value: {_quoted(value)} (must be "checkout" or "commit")'
            )
    raise InvalidInputError(f"unexpected query {_quoted(key)}")


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _agree(what: str, before: str, now: str) -> str:
    if before and before != now:
        raise InvalidInputError(f"{what} conflicts: {_quoted(before)} vs {_quoted(now)}")
    return now


def _flag(key: str, value: str) -> bool:
    if not value:
        return True
    parsed = gobool.parse(value)
    if parsed is None:
        raise InvalidInputError(f"invalid {key} value: {_quoted(value)}")
    return parsed
