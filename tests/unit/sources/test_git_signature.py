"""What of a git object is signed, and which signature counts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from boxwright.sources.git_remote import SignatureRules
from boxwright.sources.git_signature import GitObject, verify_git
from boxwright.sources.openpgp import SignatureError

DATA = Path(__file__).parent / "sshsig"
KEY = (DATA / "ed25519.pub").read_bytes()
OTHER = (DATA / "rsa.pub").read_bytes()
SIGNATURE = (DATA / "ed25519.sig").read_bytes()
TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
HEAD = f"tree {TREE}\nauthor a <a@b> 1 +0000\ncommitter a <a@b> 1 +0000\n".encode()
TAG_HEAD = f"object {TREE}\ntype commit\ntag v1\ntagger a <a@b> 1 +0000\n\nmessage\n".encode()


def id_of(kind: str, raw: bytes, name: str = "sha1") -> str:
    return hashlib.new(name, b"%s %d\0" % (kind.encode(), len(raw)) + raw).hexdigest()


def indented(text: bytes) -> bytes:
    return text.strip().replace(b"\n", b"\n ")


def test_a_commit_without_its_signature_lines() -> None:
    raw = HEAD + b"gpgsig " + indented(SIGNATURE) + b"\nencoding x\n\nmessage\ngpgsig no\n"
    found = GitObject.parse(raw, id_of("commit", raw))
    assert found.signed == HEAD + b"encoding x\n\nmessage\ngpgsig no\n"
    assert found.signature == SIGNATURE.strip()


def test_the_signature_for_the_repositorys_hash_counts() -> None:
    raw = HEAD + b"gpgsig one\n two\ngpgsig-sha256 three\n\nmessage\n"
    assert GitObject.parse(raw, id_of("commit", raw)).signature == b"one\ntwo"
    found = GitObject.parse(raw, id_of("commit", raw, "sha256"))
    assert (found.signature, found.signed) == (b"three", HEAD + b"\nmessage\n")


def test_a_tag_up_to_its_signature() -> None:
    raw = TAG_HEAD + SIGNATURE
    found = GitObject.parse(raw, id_of("tag", raw))
    assert (found.kind, found.signed, found.signature) == ("tag", TAG_HEAD, SIGNATURE)
    assert GitObject.parse(TAG_HEAD, id_of("tag", TAG_HEAD)).signature == b""


@pytest.mark.parametrize(
    ("raw", "kind", "why"),
    [
        (HEAD.replace(b"tree", b"twig") + b"\n", "commit", "missing tree header"),
        (HEAD.partition(b"committer")[0] + b"\n", "commit", "missing committer header"),
        (TAG_HEAD.replace(b"tagger", b"dagger"), "tag", "missing tagger header"),
        (b"", "commit", "missing tree header"),
    ],
    ids="tree committer tagger empty".split(),
)
def test_objects_that_are_none(raw: bytes, kind: str, why: str) -> None:
    with pytest.raises(SignatureError, match=f"invalid {kind} object: {why}"):
        GitObject.parse(raw, id_of(kind, raw))


def test_an_object_must_have_its_id() -> None:
    with pytest.raises(SignatureError, match="git commit checksum mismatch"):
        GitObject.parse(HEAD + b"\n", id_of("commit", HEAD))
    with pytest.raises(SignatureError, match="git tag checksum mismatch"):
        GitObject.parse(TAG_HEAD, id_of("commit", TAG_HEAD))


def verify(rules: SignatureRules, *, tag: bytes = b"", commit: bytes = HEAD + b"\n") -> None:
    commit_id = id_of("commit", commit)
    verify_git(rules, id_of("tag", tag) if tag else commit_id, commit_id, tag, commit)


def test_nothing_signed_and_unknown_forms() -> None:
    with pytest.raises(SignatureError, match="git object is not signed"):
        verify(SignatureRules(KEY))
    with pytest.raises(SignatureError, match="invalid signature format"):
        verify(SignatureRules(KEY), commit=HEAD + b"gpgsig x\n\n")


def test_which_of_tag_and_commit_counts() -> None:
    tag = TAG_HEAD + SIGNATURE  # made for something else: a bad one
    with pytest.raises(SignatureError, match="does not fit the content"):
        verify(SignatureRules(KEY, require_tag=True), tag=tag)
    with pytest.raises(SignatureError, match="signed tag required but no signed tag found"):
        verify(SignatureRules(KEY, require_tag=True))
    with pytest.raises(SignatureError, match="signed tag required"):
        verify(SignatureRules(KEY, require_tag=True, ignore_tag=True), tag=tag)
    # A bad tag alone is no reason to refuse: the commit may be signed. What says more is told.
    with pytest.raises(SignatureError, match="does not fit the content"):
        verify(SignatureRules(KEY), tag=tag)
    with pytest.raises(SignatureError, match="not signed: it is a commit"):
        verify(SignatureRules(KEY), tag=TAG_HEAD)


def test_keys_of_the_other_kind() -> None:
    commit = HEAD + b"gpgsig " + indented(SIGNATURE) + b"\n\n"
    with pytest.raises(SignatureError, match="failed to parse ssh public key"):
        verify(SignatureRules(b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n"), commit=commit)
    with pytest.raises(SignatureError, match="public key does not match"):
        verify(SignatureRules(OTHER), commit=commit)
