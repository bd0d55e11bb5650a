"""What a git source asks for, and what ``ls-remote`` says it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from boxwright.core.dataclass import dataclass, field
from boxwright.errors import InvalidInputError
from boxwright.llb.build_giturl import is_git_transport, parse_git_url
from boxwright.sources.bloblocator import BlobLocator
from boxwright.sources.git_errors import GitChecksumError, GitRefNotFoundError

_COMMIT = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_HEX = re.compile(r"[0-9a-fA-F]+\Z")
_MTIMES = frozenset({"", "checkout", "commit"})


@dataclass(frozen=True, slots=True)
class SignatureRules:
    """What a source wants verified (attributes ``git.sig.*``).

    Attributes:
        public_keys: Armored OpenPGP keys, or lines of SSH keys.
        reject_expired: Whether the key must not have expired by today.
        require_tag: Only the signature of an annotated tag counts.
        ignore_tag: Only the signature of the commit counts.
    """

    public_keys: bytes
    reject_expired: bool = False
    require_tag: bool = False
    ignore_tag: bool = False


@dataclass(frozen=True, slots=True)
class GitAttributes:
    """The identifier and attributes of a git source op (solver/pb attr.go).

    Attributes:
        remote: What git is given; no password in it.
        ref: Branch, tag or commit; empty for the remote's default branch.
        login: User and password that were part of the remote's URL.
        mtime: ``commit`` gives all files the commit's time.
        bundle: The blob to take the commit from, in place of the remote.
        checkout_bundle: Make a bundle of the commit and its history in place of its files.
        signature: What has to be signed, and by whom.
    """

    remote: str
    ref: str = ""
    subdir: str = ""
    checksum: str = ""
    keep_git_dir: bool = False
    skip_submodules: bool = False
    fetch_by_commit: bool = False
    mtime: str = ""
    token_secret: str = ""
    header_secret: str = ""
    ssh_id: str = ""
    known_hosts: str = ""
    login: tuple[str, str] | None = field(default=None, repr=False)
    bundle: BlobLocator | None = None
    checkout_bundle: bool = False
    signature: SignatureRules | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, rest: str, attrs: Mapping[str, str]) -> GitAttributes:
        """Read ``git://<rest>`` and the attributes.

        Raises:
            InvalidInputError: the remote, the ref or an attribute is malformed, or two of them
                contradict each other.
        """
        named = parse_git_url(rest if is_git_transport(rest) else "https://" + rest)
        assert named is not None
        full = attrs.get("git.fullurl", "")
        if full and not is_git_transport(full):
            full = "https://" + full
        remote, login = _without_password(full or named.remote)
        found = cls(
            remote,
            named.ref,
            named.subdir,
            attrs.get("git.checksum", ""),
            attrs.get("git.keepgitdir") == "true",
            attrs.get("git.skipsubmodules") == "true",
            attrs.get("git.fetchbycommit") == "true",
            attrs.get("git.mtime", ""),
            attrs.get("git.authtokensecret", ""),
            attrs.get("git.authheadersecret", ""),
            attrs.get("git.mountsshsock", ""),
            attrs.get("git.knownsshhosts", ""),
            login,
            BlobLocator.parse_bundle(attrs["git.bundle"], attrs)
            if attrs.get("git.bundle")
            else None,
            attrs.get("git.checkoutbundle") == "true",
            _signature(attrs),
        )
        found._check()
        found._check_bundles()
        return found

    def _check(self) -> None:
        if self.remote.startswith("-") or not is_git_transport(self.remote):
            raise InvalidInputError("invalid git remote", detail=repr(self.remote[:200]))
        if any(ord(char) < 0x20 or char == "\x7f" for char in self.remote + self.ref):
            raise InvalidInputError("a git remote or ref has control characters")
        if self.ref.startswith("-"):
            raise InvalidInputError(f"invalid git ref {self.ref!r}")
        if self.checksum and not _HEX.match(self.checksum):
            raise InvalidInputError(
                f"invalid checksum {self.checksum} for Git URL, expected hex commit hash"
            )
        if self.mtime not in _MTIMES:
            raise InvalidInputError(f"invalid git mtime {self.mtime!r}")
        if self.fetch_by_commit and not is_commit(self.ref) and not is_commit(self.checksum):
            raise InvalidInputError(
                "fetch-by-commit requires a full commit SHA as checksum or ref",
                detail=f"checksum {self.checksum!r}",
            )

    def _check_bundles(self) -> None:
        if self.bundle is not None and not self.checksum:
            raise InvalidInputError("git.bundle requires git.checksum to be set")
        if self.bundle is not None and not self.ref and not is_commit(self.checksum):
            raise InvalidInputError(
                "git.bundle without a ref requires a full commit as git.checksum",
                detail=f"checksum {self.checksum!r}",
            )
        if self.checkout_bundle and self.keep_git_dir:
            raise InvalidInputError("git.checkoutbundle is incompatible with git.keepgitdir")
        if self.checkout_bundle and self.subdir:
            raise InvalidInputError("git.checkoutbundle is incompatible with git.subdir")

    @property
    def shown(self) -> str:
        """The remote with its ref, for messages."""
        return f"{self.remote}#{self.ref}" if self.ref else self.remote

    @property
    def host(self) -> str:
        """Host and port, as secrets are named after it."""
        return urlsplit(self.remote).netloc.rpartition("@")[2] if "://" in self.remote else ""

    def cache_key(self, commit: str, ref: str) -> str:
        """Return BuildKit's key: the commit, and what else shapes the tree.

        Args:
            commit: The commit; of an annotated tag the tag itself, if the tree shows it.
            ref: What was asked for, in full.
        """
        key = commit
        if self.keep_git_dir:
            key += ".git" + (f"#{ref}" if ref else "")
        if self.subdir:
            key += f":{self.subdir}"
        if self.skip_submodules:
            key += "(skip-submodules)"
        if self.mtime not in {"", "checkout"}:
            key += f"(mtime={self.mtime})"
        if self.checkout_bundle:
            # BuildKit leaves the name out, and takes a bundle for the same one under another name.
            key += f"(bundle {bundle_ref(ref)})"
        return key

    def fixed(self) -> GitResolution | None:
        """Return what the source is if that can be told without asking the remote.

        Raises:
            GitChecksumError: ref and checksum contradict each other.
        """
        if is_commit(self.ref):
            if self.checksum and not self.ref.startswith(self.checksum.lower()):
                raise GitChecksumError(self.remote, self.checksum, [self.ref])
            return GitResolution(self.ref, self.ref)
        if self.bundle is not None:
            return None if self.ref else GitResolution(self.checksum, self.checksum)
        if not self.fetch_by_commit:
            return None
        commit, ref = self.checksum, self.ref
        if ref and not ref.startswith("refs/"):
            ref = f"refs/heads/{ref}"
        return GitResolution(ref or commit, commit)

    def is_at(self, found: GitResolution) -> bool:
        """Return whether a ref is at the commit that is asked for, if one is."""
        checksum = self.checksum.lower()
        return any(object_id.startswith(checksum) for object_id in found.object_ids)


@dataclass(frozen=True, slots=True)
class GitResolution:
    """What a ref stands for.

    Attributes:
        ref: Its full name, or the commit where none has a name.
        object_id: What the ref points at: a commit, or an annotated tag.
        peeled: The commit of an annotated tag, else empty.
    """

    ref: str
    object_id: str
    peeled: str = ""

    @property
    def commit(self) -> str:
        """The commit."""
        return self.peeled or self.object_id

    @property
    def object_ids(self) -> list[str]:
        """What the ref points at and, if that is a tag, its commit."""
        return [self.object_id, self.peeled] if self.peeled else [self.object_id]


def is_commit(text: str) -> bool:
    """Return whether ``text`` is a full object id (SHA-1 or SHA-256)."""
    return _COMMIT.match(text) is not None


def parse_default_branch(output: str) -> GitResolution | None:
    """Read ``ls-remote --symref REMOTE HEAD``."""
    branch = ""
    for line in output.splitlines():
        value, _, name = line.partition("\t")
        if name == "HEAD" and value.startswith("ref: refs/heads/"):
            branch = value.removeprefix("ref: ")
        elif name == "HEAD" and branch and is_commit(value):
            return GitResolution(branch, value)
    return None


def parse_refs(wanted: GitAttributes, output: str) -> GitResolution:
    """Choose among the lines of ``ls-remote REMOTE REF REF^{}``; branches win over tags.

    Raises:
        GitRefNotFoundError: none matches.
        GitChecksumError: it is at another commit than the wanted checksum.
    """
    listed: dict[str, str] = {}
    for line in output.splitlines():
        object_id, tab, name = line.partition("\t")
        if tab and is_commit(object_id):
            listed[name] = object_id
    ref = wanted.ref
    tag = "refs/tags/" + ref.removeprefix("refs/tags/")
    for name in (
        "refs/" + ref.removeprefix("refs/"),
        "refs/heads/" + ref.removeprefix("refs/heads/"),
        tag,
    ):
        if name in listed:
            # Under its short name alone is a tag peeled: keys are BuildKit's.
            peeled = listed.get(f"{tag}^{{}}", "") if name == tag else ""
            return check(wanted, GitResolution(name, listed[name], peeled))
    raise GitRefNotFoundError(
        wanted.remote, ref, detail=f"matching: {', '.join(listed) or 'none'}"
    )


def check(wanted: GitAttributes, found: GitResolution) -> GitResolution:
    """Return ``found`` if it has the checksum that is wanted.

    Raises:
        GitChecksumError: it has not.
    """
    if not wanted.is_at(found):
        raise GitChecksumError(wanted.remote, wanted.checksum, found.object_ids)
    return found


def bundle_ref(ref: str) -> str:
    """Return the name that a commit has in a bundle: its tag, or else a branch."""
    if not ref.startswith("refs/"):
        return "refs/heads/main"
    if ref.startswith("refs/tags/"):
        return ref
    return "refs/heads/" + ref.removeprefix("refs/").removeprefix("heads/")


def _signature(attrs: Mapping[str, str]) -> SignatureRules | None:
    named = {
        name.removeprefix("git.sig."): value
        for name, value in attrs.items()
        if name.startswith("git.sig.")
    }
    if not named:
        return None
    public_keys = named.pop("pubkey", "").encode("utf-8", "surrogateescape")
    known = ("rejectexpired", "requiresignedtag", "ignoresignedtag")
    if unknown := named.keys() - set(known):
        raise InvalidInputError(f"unknown attribute git.sig.{min(unknown)}")
    return SignatureRules(public_keys, *(named.get(name) == "true" for name in known))


def _without_password(remote: str) -> tuple[str, tuple[str, str] | None]:
    """Take user and password out of an http remote."""
    scheme, separator, rest = remote.partition("://")
    if not separator or scheme.lower() not in {"http", "https"}:
        return remote, None
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    if not at:
        return remote, None
    user, _, password = login.partition(":")
    return f"{scheme}://{host}{slash}{path}", (unquote(user), unquote(password))
