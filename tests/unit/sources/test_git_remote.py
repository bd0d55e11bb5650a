"""Git identifiers, keys, and what is read from ls-remote."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.errors import BoxwrightError, Code, InvalidInputError
from boxwright.sources.git_errors import (
    GitChecksumError,
    GitDeniedError,
    GitError,
    GitRefNotFoundError,
    GitRemoteNotFoundError,
    GitUnreachableError,
    git_error,
)
from boxwright.sources.git_remote import (
    GitAttributes,
    GitResolution,
    SignatureRules,
    bundle_ref,
    parse_default_branch,
    parse_refs,
)

ONE, TWO, THREE = ("1" * 40, "2" * 40, "3" * 40)


def parse(rest: str = "example.com/team/app.git", **attrs: str) -> GitAttributes:
    return GitAttributes.parse(rest, {f"git.{name}": value for name, value in attrs.items()})


def test_identifier_and_full_url() -> None:
    found = parse("example.com/app.git#main:sub/dir", fullurl="ssh://git@example.com/app.git")
    assert (found.remote, found.ref, found.subdir) == (
        "ssh://git@example.com/app.git",
        "main",
        "sub/dir",
    )
    assert parse("example.com/app.git").remote == "https://example.com/app.git"
    assert parse(fullurl="git@example.com:app.git").host == ""


def test_a_password_in_the_url_goes_no_further() -> None:
    found = parse(fullurl="https://joe:p%40ss@example.com:8443/app.git")
    assert found.remote == "https://example.com:8443/app.git"
    assert found.login == ("joe", "p@ss")
    assert found.host == "example.com:8443"
    assert "p@ss" not in repr(found)


@pytest.mark.parametrize(
    ("attrs", "key"),
    [
        ({}, ONE),
        ({"keepgitdir": "true"}, f"{ONE}.git#refs/heads/main"),
        ({"skipsubmodules": "true"}, f"{ONE}(skip-submodules)"),
        ({"mtime": "commit"}, f"{ONE}(mtime=commit)"),
        ({"mtime": "checkout"}, ONE),
        (
            {"checkoutbundle": "true", "mtime": "commit"},
            f"{ONE}(mtime=commit)(bundle refs/heads/main)",
        ),
        ({"sig.pubkey": "key"}, ONE),
    ],
)
def test_keys_are_buildkits(attrs: dict[str, str], key: str) -> None:
    assert parse(**attrs).cache_key(ONE, "refs/heads/main") == key


def test_key_of_everything() -> None:
    found = parse("h/a.git#:d", keepgitdir="true", skipsubmodules="true", mtime="commit")
    assert found.cache_key(ONE, "r") == f"{ONE}.git#r:d(skip-submodules)(mtime=commit)"


@pytest.mark.parametrize(
    "attrs",
    [
        {"checksum": "nothex"},
        {"mtime": "yesterday"},
        {"fullurl": "https://h/a\nb.git"},
        {"fetchbycommit": "true"},
        {"fetchbycommit": "true", "checksum": "abcd"},
        {"fullurl": "ext::sh -c id"},
        {"fullurl": "file:///etc"},
    ],
)
def test_refused(attrs: dict[str, str]) -> None:
    try:
        found = parse(**attrs)
    except InvalidInputError:
        return
    assert found.remote.startswith("https://")  # no scheme of git's: taken as a host


def test_an_option_is_no_ref() -> None:
    with pytest.raises(InvalidInputError):
        parse("h/a.git#--upload-pack=id")


BLOB = f"example.com/team/bundles@sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("attrs", "why"),
    [
        ({"bundle": f"docker-image+blob://{BLOB}"}, "requires git.checksum"),
        ({"bundle": f"docker-image+blob://{BLOB}", "checksum": "abc"}, "a full commit"),
        ({"bundle": f"docker-image://{BLOB}", "checksum": ONE}, "scheme 'docker-image' is not"),
        ({"bundle": BLOB, "checksum": ONE}, "is not supported"),
        ({"bundle": "oci-layout+blob://a/b:tag", "checksum": ONE}, "SHA-256 digest"),
        ({"checkoutbundle": "true", "keepgitdir": "true"}, "incompatible with git.keepgitdir"),
        ({"sig.pubkey": "key", "sig.other": "x"}, "unknown attribute git.sig.other"),
    ],
)
def test_bundles_and_signatures_that_contradict_themselves(
    attrs: dict[str, str], why: str
) -> None:
    with pytest.raises(InvalidInputError, match=why):
        parse(**attrs)


def test_a_bundle_has_no_part_of_a_tree() -> None:
    with pytest.raises(InvalidInputError, match=r"incompatible with git\.subdir"):
        parse("h/a.git#main:sub", checkoutbundle="true")


def test_a_bundles_store_is_its_name_unless_one_is_given() -> None:
    body = f"not/real@sha256:{'0' * 64}"
    attrs = {"git.bundle": f"oci-layout+blob://{body}", "git.checksum": ONE}
    for more, store, session in (
        ({}, "not/real", ""),
        ({"oci.store": "mine", "oci.session": "s"}, "mine", "s"),
    ):
        bundle = GitAttributes.parse("h/a.git", attrs | more).bundle
        assert bundle is not None
        assert (bundle.store_id, bundle.session_id) == (store, session)


def test_a_bundle_is_looked_into_for_refs_alone() -> None:
    bundle = f"docker-image+blob://{BLOB}"
    found = parse("h/a.git", bundle=bundle, checksum=ONE).fixed()
    assert found == GitResolution(ONE, ONE)
    assert parse("h/a.git#main", bundle=bundle, checksum=ONE).fixed() is None
    with pytest.raises(GitChecksumError):
        parse(f"h/a.git#{TWO}", bundle=bundle, checksum=ONE).fixed()


def test_what_has_to_be_signed() -> None:
    rules = parse(**{"sig.pubkey": "key", "sig.rejectexpired": "true"}).signature
    assert rules == SignatureRules(b"key", reject_expired=True)
    rules = parse(**{"sig.requiresignedtag": "true", "sig.ignoresignedtag": "false"}).signature
    assert rules == SignatureRules(b"", require_tag=True)
    assert parse().signature is None


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        (ONE, "refs/heads/main"),
        ("refs/heads/a/b", "refs/heads/a/b"),
        ("refs/tags/v1", "refs/tags/v1"),
        ("refs/pull/1/head", "refs/heads/pull/1/head"),
    ],
)
def test_names_in_bundles(ref: str, name: str) -> None:
    assert bundle_ref(ref) == name


def test_commits_need_no_remote() -> None:
    assert parse(f"h/a.git#{ONE}").fixed() == GitResolution(ONE, ONE)
    assert parse("h/a.git#main").fixed() is None
    by_commit = parse("h/a.git#main", fetchbycommit="true", checksum=TWO).fixed()
    assert by_commit == GitResolution("refs/heads/main", TWO)
    with pytest.raises(GitChecksumError):
        parse(f"h/a.git#{ONE}", checksum="22").fixed()
    assert parse(f"h/a.git#{ONE}", checksum="111").fixed() is not None


LISTING = (
    f"{ONE}\trefs/heads/both\n{TWO}\trefs/tags/both\n{THREE}\trefs/tags/both^{{}}\n"
    f"{TWO}\trefs/tags/v1\n{THREE}\trefs/tags/v1^{{}}\n{ONE}\trefs/pull/7/head\n"
)


@pytest.mark.parametrize(
    ("ref", "found"),
    [
        ("both", GitResolution("refs/heads/both", ONE)),
        ("v1", GitResolution("refs/tags/v1", TWO, THREE)),
        ("refs/tags/v1", GitResolution("refs/tags/v1", TWO, THREE)),
        ("tags/v1", GitResolution("refs/tags/v1", TWO)),
        ("refs/tags/both", GitResolution("refs/tags/both", TWO, THREE)),
        ("refs/heads/both", GitResolution("refs/heads/both", ONE)),
        ("pull/7/head", GitResolution("refs/pull/7/head", ONE)),
        ("refs/pull/7/head", GitResolution("refs/pull/7/head", ONE)),
    ],
)
def test_refs_are_chosen_as_buildkit_does(ref: str, found: GitResolution) -> None:
    assert parse_refs(parse(f"h/a.git#{ref}"), LISTING) == found


def test_missing_ref_and_wrong_checksum() -> None:
    with pytest.raises(GitRefNotFoundError) as missing:
        parse_refs(parse("h/a.git#gone"), LISTING)
    assert missing.value.code is Code.SOURCE_NOT_FOUND
    with pytest.raises(GitChecksumError) as wrong:
        parse_refs(parse("h/a.git#v1", checksum="4444"), LISTING)
    assert wrong.value.got == (TWO, THREE)
    assert parse_refs(parse("h/a.git#v1", checksum="3333"), LISTING).commit == THREE


def test_default_branch() -> None:
    listing = f"ref: refs/heads/trunk\tHEAD\n{ONE}\tHEAD\n"
    assert parse_default_branch(listing) == GitResolution("refs/heads/trunk", ONE)
    assert parse_default_branch(f"{ONE}\tHEAD\n") is None
    assert parse_default_branch("") is None


@given(st.text(max_size=60), st.dictionaries(st.sampled_from(["fullurl", "checksum"]), st.text()))
def test_any_identifier_is_parsed_or_refused(rest: str, attrs: dict[str, str]) -> None:
    try:
        found = parse(rest, **attrs)
    except BoxwrightError:
        return
    assert not found.remote.startswith("-")
    assert "\n" not in found.remote + found.ref


@pytest.mark.parametrize(
    ("stderr", "kind"),
    [
        (
            "fatal: could not read Username for 'https://h': terminal prompts disabled",
            GitDeniedError,
        ),
        ("fatal: unable to access 'https://h/': Could not resolve host: h", GitUnreachableError),
        ("remote: Repository not found.", GitRemoteNotFoundError),
        ("fatal: something else", GitError),
    ],
)
def test_causes_are_told_apart(stderr: str, kind: type[GitError]) -> None:
    error = git_error("failed", stderr, 128)
    assert type(error) is kind
    assert stderr in str(error)


@pytest.mark.parametrize(
    ("stderr", "advice"),
    [
        ("root@h: Permission denied (publickey).", "--ssh default"),
        ("Host key verification failed.", "host key"),
        ("fatal: Authentication failed for 'https://h'", "GIT_AUTH_TOKEN"),
    ],
)
def test_what_to_do_when_denied(stderr: str, advice: str) -> None:
    assert advice in git_error("failed", stderr, 128).hint
