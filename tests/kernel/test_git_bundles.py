"""Git sources out of bundles, and bundles and signatures of what git sources find."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from git_bench import Bench, run
from git_server import Repository

from boxwright.errors import BoxwrightError, Code
from boxwright.sources.git import GitSource
from boxwright.testing.registry import FakeRegistry

pytestmark = [pytest.mark.root, pytest.mark.peer("git")]


async def bundle_of(bench: Bench, ref: str, **attrs: str) -> bytes:
    """Return the bundle that is made of a ref."""
    source = bench.source(ref, checkoutbundle="true", **attrs)
    async with await source.snapshot(bench.context) as ref_, ref_.mounted() as root:
        assert [path.name for path in root.iterdir()] == ["bundle"]
        return (root / "bundle").read_bytes()


def heads(tmp_path: Path, data: bytes) -> dict[str, str]:
    """Return the refs of a bundle by what a fresh repository gets from it."""
    digest = hashlib.sha256(data).hexdigest()
    target = tmp_path / digest
    if not target.exists():
        (tmp_path / f"{digest}.bundle").write_bytes(data)
        made = Repository(target)
        made.git("fetch", "--quiet", "--update-head-ok", f"{target}.bundle", "+refs/*:refs/*")
        made.git("fsck", "--strict")
    lines = Repository.git_at(target, "for-each-ref", "--format=%(refname) %(objectname)")
    return dict(line.split() for line in lines.splitlines())


def offered(bench: Bench, data: bytes) -> dict[str, str]:
    """Put a bundle into the client's layout; return the attributes that name it."""
    digest = hashlib.sha256(data).hexdigest()
    (bench.layout / "blobs/sha256" / digest).write_bytes(data)
    return {"bundle": f"oci-layout+blob://store@sha256:{digest}"}


def from_bundle(bench: Bench, ref: str, data: bytes, **attrs: str) -> GitSource:
    return bench.source(ref, name="nowhere", **offered(bench, data), **attrs)


def test_a_bundle_holds_the_whole_history(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        repository = bench.repository
        first = repository.git("rev-parse", "HEAD")
        second = repository.commit({"file": "two\n"})
        await bench.files(bench.source("trunk"))  # without history: the bundle needs more
        data = await bundle_of(bench, "trunk")
        assert heads(tmp_path, data) == {"refs/heads/trunk": second}
        assert heads(tmp_path, await bundle_of(bench, first)) == {"refs/heads/main": first}
        repository.git("tag", "-a", "-m", "one", "v1", first)
        tag = repository.git("rev-parse", "v1")
        assert heads(tmp_path, await bundle_of(bench, "v1")) == {"refs/tags/v1": tag}

    run(tmp_path, use)


def test_a_bundle_takes_the_place_of_the_remote(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        repository = bench.repository
        first = repository.git("rev-parse", "HEAD")
        repository.git("tag", "-a", "-m", "one", "v1")
        second = repository.commit({"file": "two\n"})
        branch, tag = await bundle_of(bench, "trunk"), await bundle_of(bench, "v1")
        asked = len(bench.server.services)

        def source(ref: str, checksum: str, data: bytes, **attrs: str) -> GitSource:
            return from_bundle(bench, ref, data, checksum=checksum, **attrs)

        for ref in ("", second, "trunk", "refs/heads/trunk"):
            assert (await bench.files(source(ref, second, branch)))["file"] == "two\n"
        assert (await bench.files(source(first, first, branch)))["file"] == "one\n"
        assert (await bench.files(source("v1", first, tag)))["file"] == "one\n"
        by_name = await bench.key(source("trunk", second, branch))
        assert by_name == await bench.key(bench.source("trunk"))
        told = await source("v1", first, tag).metadata(bench.context, return_object=True)
        assert (told.ref, told.commit_checksum) == ("refs/tags/v1", first)

        kept = source("trunk", second, branch, keepgitdir="true")
        async with await kept.snapshot(bench.context) as ref_, ref_.mounted() as root:
            assert Repository.git_at(root, "rev-parse", "HEAD", "refs/heads/trunk") == (
                f"{second}\n{second}"
            )
        assert len(bench.server.services) == asked + 1  # for the one key of the remote

    run(tmp_path, use)


def test_a_bundle_from_a_registry(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        data = await bundle_of(bench, "trunk")
        commit = bench.repository.git("rev-parse", "HEAD")
        async with FakeRegistry() as registry:
            digest = registry.put_blob("team/bundles", data)
            attrs = {
                "bundle": f"docker-image+blob://{registry.host}/team/bundles@{digest}",
                "checksum": commit,
            }
            assert await bench.files(bench.source("trunk", name="nowhere", **attrs))
            gets = registry.count("GET", "/blobs/")
            source = bench.source("trunk", name="nowhere", mtime="commit", **attrs)
            assert await bench.files(source)
            assert registry.count("GET", "/blobs/") == gets == 1

    run(tmp_path, use)


def test_a_sha256_bundle(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        commit = bench.repository.git("rev-parse", "HEAD")
        data = await bundle_of(bench, "trunk")
        source = from_bundle(bench, "trunk", data, checksum=commit)
        assert (await bench.files(source))["file"] == "one\n"

    run(tmp_path, use, "--object-format=sha256")


def test_bundles_that_will_not_do(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        first = bench.repository.git("rev-parse", "HEAD")
        data = await bundle_of(bench, "trunk")
        second = bench.repository.commit({"file": "two\n"})
        cases = [
            (from_bundle(bench, "trunk", data, checksum=second), Code.DIGEST_MISMATCH),
            (from_bundle(bench, "", data, checksum=second), Code.SOURCE_NOT_FOUND),
            (from_bundle(bench, "other", data, checksum=first), Code.SOURCE_NOT_FOUND),
            (from_bundle(bench, "", b"no bundle", checksum=second), Code.UNAVAILABLE),
            (from_bundle(bench, "", data[:-20], checksum=second), Code.UNAVAILABLE),
        ]
        for source, code in cases:
            error = await bench.failure(source)
            assert error.code is code, error
        missing = bench.source(
            "",
            name="nowhere",
            checksum=second,
            bundle=f"oci-layout+blob://store@sha256:{'0' * 64}",
        )
        assert (await bench.failure(missing)).code in {Code.NOT_FOUND, Code.SOURCE_NOT_FOUND}
        thin = tmp_path / "thin.bundle"
        bench.repository.git("bundle", "create", "-q", str(thin), f"{first}..trunk")
        named = offered(bench, thin.read_bytes())
        error = await bench.failure(bench.source("", name="else", checksum=second, **named))
        assert "prerequisite" in str(error)

    run(tmp_path, use)


# --- signatures -----------------------------------------------------------------------------


class Signer:
    """Signs with keys that exist for one test."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "gnupg"
        self.home.mkdir(mode=0o700)
        self.key = folder / "ssh"
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)]
        subprocess.run(keygen, check=True)
        self.ssh_public = Path(f"{self.key}.pub").read_text()
        user = "Signer <signer@example.com>"
        self.gpg("--quick-gen-key", user, "ed25519", "sign", "never")
        self.gpg_public = self.gpg("--armor", "--export").decode()

    def gpg(self, *args: str) -> bytes:
        argv = ["gpg", "--batch", "--quiet", "--passphrase", "", "--pinentry-mode", "loopback"]
        environment = {**os.environ, "GNUPGHOME": str(self.home)}
        return subprocess.run(
            [*argv, *args], env=environment, check=True, capture_output=True
        ).stdout

    def settings(self, how: str) -> list[str]:
        """Return options by which git signs."""
        key = str(self.key) if how == "ssh" else "signer@example.com"
        named = {"gpg.format": "ssh" if how == "ssh" else "openpgp", "user.signingkey": key}
        return [word for name, value in named.items() for word in ("-c", f"{name}={value}")]

    def public(self, how: str) -> str:
        return self.ssh_public if how == "ssh" else self.gpg_public

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False)


@pytest.fixture(scope="module")
def signer() -> Iterator[Signer]:
    # Not below tmp_path: the agent's socket needs a short path.
    with tempfile.TemporaryDirectory(prefix="bx-", ignore_cleanup_errors=True) as folder:
        made = Signer(Path(folder))
        yield made
        made.close()


async def refusal(bench: Bench, ref: str, **attrs: str) -> str:
    """Return why a ref is refused, by key and by metadata alike."""
    with pytest.raises(BoxwrightError) as caught:
        await bench.key(bench.source(ref, **attrs))
    assert caught.value.code is Code.SIGNATURE
    with pytest.raises(BoxwrightError) as again:
        await bench.source(ref, **attrs).metadata(bench.context, return_object=False)
    assert str(again.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.peer("gpg")
@pytest.mark.peer("ssh-keygen")
@pytest.mark.parametrize("how", ["gpg", "ssh"])
def test_signed_commits_and_tags(tmp_path: Path, signer: Signer, how: str) -> None:
    key = {"sig.pubkey": signer.public(how)}
    other = {"sig.pubkey": signer.public("ssh" if how == "gpg" else "gpg")}
    home = {"GNUPGHOME": str(signer.home)}

    async def use(bench: Bench) -> None:
        git = bench.repository.git
        options = signer.settings(how)
        git("tag", "-a", "-m", "plain", "plain")
        assert "git object is not signed" in await refusal(bench, "trunk", **key)
        git(*options, "tag", "-s", "-m", "of an unsigned commit", "signed", **home)
        assert await bench.key(bench.source("signed", **key))
        assert "not signed" in await refusal(
            bench, "signed", **key, **{"sig.ignoresignedtag": "true"}
        )
        git(*options, "commit", "--allow-empty", "-S", "-m", "signed", **home)
        git("tag", "-a", "-m", "plain", "late")
        head = git("rev-parse", "HEAD")
        for ref in ("trunk", head, "late"):
            source = bench.source(ref, **key)
            assert await bench.key(source) == head
            assert (await bench.files(source))["file"] == "one\n"
        only_tags = {"sig.requiresignedtag": "true"}
        assert await bench.key(bench.source("signed", **key, **only_tags))
        assert "not signed: it is a tag" in await refusal(bench, "late", **key, **only_tags)
        assert "signed tag required" in await refusal(bench, "trunk", **key, **only_tags)
        for ref in ("trunk", "signed"):
            assert "public key" in await refusal(bench, ref, **other)

    run(tmp_path, use)


def test_a_remote_can_not_pass_a_commit_off_as_that_of_a_signed_tag(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        first = bench.repository.git("rev-parse", "HEAD")
        second = bench.repository.commit({"file": "two\n"})
        bench.repository.git("tag", "-a", "-m", "one", "v1", first)
        bench.server.peeled = {first: second}
        assert (await bench.failure(bench.source("v1"))).code is Code.DIGEST_MISMATCH
        with pytest.raises(BoxwrightError, match="expected checksum"):
            await bench.source("v1").metadata(bench.context, return_object=True)

    run(tmp_path, use)
