"""Signatures of git's commits and tags, checked against keys that come with the source.

The objects are parsed here, from their bytes, after these have been hashed again: git only
delivers them.
"""

from __future__ import annotations

import hashlib

from boxwright.core.dataclass import dataclass
from boxwright.sources import ssh_signature
from boxwright.sources.git_remote import SignatureRules
from boxwright.sources.openpgp import SignatureError, verify_detached

_PGP_BEGIN = b"-----BEGIN PGP SIGNATURE-----"
_COMMIT_SIGNATURES = (b"gpgsig ", b"gpgsig-sha256 ")
_REQUIRED = {
    "commit": (b"tree ", b"author ", b"committer "),
    "tag": (b"object ", b"type ", b"tag ", b"tagger "),
}
_SHA1_HEX_LENGTH = 40


class UnsignedError(SignatureError):
    """A commit or tag without any signature."""

    def __init__(self, kind: str) -> None:
        super().__init__("git object is not signed", detail=f"it is a {kind}")


@dataclass(frozen=True, slots=True)
class GitObject:
    """A commit or tag: its kind, its bytes, and which of them are signed by what."""

    kind: str
    raw: bytes
    signed: bytes
    signature: bytes

    @classmethod
    def parse(cls, raw: bytes, object_id: str) -> GitObject:
        """Read an object without its header.

        Raises:
            SignatureError: it is not the one with this id, or lacks what each of its kind has.
        """
        if raw.startswith(b"object "):
            found = cls("tag", raw, *_split_tag(raw))
        else:
            found = cls("commit", raw, *_split_commit(raw, object_id))
        found._check_id(object_id)
        lines = found.signed.partition(b"\n\n")[0].split(b"\n")
        for name in _REQUIRED[found.kind]:
            if not any(line.startswith(name) for line in lines):
                shown = name.decode().strip()
                raise SignatureError(f"invalid {found.kind} object: missing {shown} header")
        return found

    def _check_id(self, object_id: str) -> None:
        name = "sha1" if len(object_id) == _SHA1_HEX_LENGTH else "sha256"
        hasher = hashlib.new(name, b"%s %d\0" % (self.kind.encode(), len(self.raw)))
        hasher.update(self.raw)
        if hasher.hexdigest() != object_id:
            raise SignatureError(
                f"git {self.kind} checksum mismatch",
                detail=f"expected {object_id}, got {hasher.hexdigest()}",
            )

    def verify(self, rules: SignatureRules) -> None:
        """Check the signature.

        Raises:
            SignatureError: there is none, or it is not a good one of the keys.
        """
        if not self.signature:
            raise UnsignedError(self.kind)
        if self.signature.startswith(_PGP_BEGIN):
            verify_detached(
                self.signed,
                self.signature,
                rules.public_keys,
                reject_expired=rules.reject_expired,
            )
        elif self.signature.startswith(ssh_signature.BEGIN):
            ssh_signature.verify_ssh(self.signed, self.signature, rules.public_keys)
        else:
            raise SignatureError("invalid signature format", detail=f"of a git {self.kind}")


def _split_commit(raw: bytes, object_id: str) -> tuple[bytes, bytes]:
    """Return a commit without its signatures, and the one of its hash algorithm.

    They are in the header, their lines indented.
    """
    head, separator, message = raw.partition(b"\n\n")
    wanted = _COMMIT_SIGNATURES[len(object_id) != _SHA1_HEX_LENGTH]
    kept: list[bytes] = []
    signatures: dict[bytes, list[bytes]] = {}
    lines: list[bytes] | None = None
    for line in head.split(b"\n"):
        begin = next((name for name in _COMMIT_SIGNATURES if line.startswith(name)), None)
        if begin is not None:
            lines = signatures.setdefault(begin, [])
            lines.append(line.removeprefix(begin))
        elif lines is not None and line.startswith(b" "):
            lines.append(line[1:])
        else:
            lines = None
            kept.append(line)
    signature = signatures.get(wanted) or next(iter(signatures.values()), [])
    return b"\n".join(kept) + separator + message, b"\n".join(signature)


def _split_tag(raw: bytes) -> tuple[bytes, bytes]:
    """Return a tag without its signature, which ends the message, and the signature."""
    begins = [
        position + 1
        for mark in (_PGP_BEGIN, ssh_signature.BEGIN)
        if (position := raw.find(b"\n" + mark)) >= 0
    ]
    start = min(begins, default=len(raw))
    return raw[:start], raw[start:]


def verify_git(
    rules: SignatureRules, object_id: str, commit_id: str, tag: bytes, commit: bytes
) -> None:
    """Check the signature of what a ref leads to: of its tag, else of its commit.

    Args:
        rules: What is wanted.
        object_id: What the ref points at.
        commit_id: The commit, the same unless the ref is an annotated tag.
        tag: The raw tag; empty if there is none.
        commit: The raw commit.

    Raises:
        SignatureError: nothing that counts is signed well.
    """
    failure: SignatureError | None = None
    if tag and not rules.ignore_tag:
        try:
            GitObject.parse(tag, object_id).verify(rules)
        except SignatureError as exc:
            failure = exc
        else:
            return
    if rules.require_tag:
        raise failure or SignatureError("signed tag required but no signed tag found")
    found = GitObject.parse(commit, commit_id)
    if not found.signature and failure is not None and not isinstance(failure, UnsignedError):
        raise failure  # it says more than that the commit is not signed
    found.verify(rules)
