"""Contexts and ADD sources from the web, from git and from standard input, through real clients."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import (
    PROGRAM,
    Buildx,
    Cli,
    Context,
    Daemon,
    Layout,
    Registry,
    Run,
    assert_no_process_uses,
)
from served import Site

from boxwright import llb
from boxwright.client import BuildRequest, connect

pytestmark = [pytest.mark.root, pytest.mark.peer("crun"), pytest.mark.peer("git")]

Build = Callable[..., Run]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A running site."""
    with Site(tmp_path / "site") as made:
        yield made


@pytest.fixture(params=["cli", pytest.param("buildx", marks=pytest.mark.peer("docker-buildx"))])
def build(request: pytest.FixtureRequest) -> Build:
    """``build`` of our command line, and of a stock docker-buildx with our daemon."""
    client: Cli | Buildx = request.getfixturevalue(request.param)
    return client.build


def local(folder: Path) -> list[str]:
    return ["-o", f"type=local,dest={folder}"]


def archive(files: dict[str, str], mode: str = "w:gz") -> bytes:
    """Return a tar archive of text files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.mode = 0o644
            info.mtime = 1_700_000_000
            tar.addfile(info, io.BytesIO(content.encode()))
    return buffer.getvalue()


COPY_ALL = "FROM scratch\nCOPY . /\n"


def test_add_from_the_web(build: Build, site: Site, context: Context, tmp_path: Path) -> None:
    content = b"downloaded\n"
    url = site.file("tool", content)
    packed = site.file("packed.tar.gz", archive({"inner": "unpacked\n"}))
    digest = hashlib.sha256(content).hexdigest()
    context.dockerfile(
        f"FROM scratch\nADD --checksum=sha256:{digest} --chmod=755 {url} /bin/tool\n"
        f"ADD {url} /dir/\nADD --unpack {packed} /packed\nADD {packed} /whole/\n",
        base=False,
    )
    build(*local(tmp_path / "out"), context.path).ok()
    assert (tmp_path / "out/bin/tool").read_bytes() == content
    assert (tmp_path / "out/bin/tool").stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "out/dir/tool").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "out/packed/inner").read_text() == "unpacked\n"
    assert (tmp_path / "out/whole/packed.tar.gz").exists()

    site.asked.clear()
    again = build(*local(tmp_path / "again"), context.path).ok()
    assert "DONE" in again.err
    assert [a for a in site.asked if a[0] == "GET" and a[2] == 200] == []


def test_a_wrong_checksum_and_a_missing_file(
    build: Build, site: Site, context: Context, tmp_path: Path
) -> None:
    url = site.file("tool", b"changed\n")
    context.dockerfile(f"FROM scratch\nADD --checksum=sha256:{'0' * 64} {url} /\n", base=False)
    failed = build(*local(tmp_path / "out"), context.path)
    assert failed.status != 0
    assert "digest mismatch sha256:" in failed.text
    context.dockerfile(f"FROM scratch\nADD {url}-gone /\n", base=False)
    failed = build(*local(tmp_path / "out"), context.path)
    assert failed.status != 0
    assert "404" in failed.text
    assert "Traceback" not in failed.text


def test_add_from_git(build: Build, site: Site, context: Context, tmp_path: Path) -> None:
    repository, remote = site.repository("app")
    first = repository.commit({"file": "one\n", "sub/x": "x\n"})
    repository.git("tag", "v1")
    repository.commit({"file": "two\n"})
    context.dockerfile(
        f"FROM scratch\nADD {remote}#v1 /tag\nADD {remote} /default\n"
        f"ADD {remote}#v1:sub /sub\nADD --keep-git-dir=true {remote} /kept\n"
        f"ADD --checksum={first} {remote}#v1 /checked\n",
        base=False,
    )
    build(*local(tmp_path / "out"), context.path).ok()
    assert (tmp_path / "out/tag/file").read_text() == "one\n"
    assert (tmp_path / "out/default/file").read_text() == "two\n"
    assert (tmp_path / "out/sub/x").read_text() == "x\n"
    assert (tmp_path / "out/kept/.git/HEAD").exists()
    assert not (tmp_path / "out/default/.git").exists()


def test_context_from_git(build: Build, site: Site, tmp_path: Path) -> None:
    repository, remote = site.repository("app")
    repository.commit({"Dockerfile": COPY_ALL, "file": "one\n", "sub/Dockerfile": COPY_ALL})
    repository.commit({"sub/file": "below\n"})
    build(*local(tmp_path / "whole"), remote).ok()
    assert (tmp_path / "whole/file").read_text() == "one\n"
    build(*local(tmp_path / "sub"), f"{remote}#trunk:sub").ok()
    assert (tmp_path / "sub/file").read_text() == "below\n"
    fetches = site.git.fetches
    build(*local(tmp_path / "again"), remote).ok()
    assert site.git.fetches == fetches
    repository.commit({"file": "two\n"})
    build(*local(tmp_path / "moved"), remote).ok()
    assert (tmp_path / "moved/file").read_text() == "two\n"
    failed = build(*local(tmp_path / "none"), f"{remote}#missing")
    assert failed.status != 0
    assert "repository does not contain ref missing" in failed.text


def test_context_from_the_web(build: Build, site: Site, tmp_path: Path) -> None:
    url = site.file("context.tar.gz", archive({"Dockerfile": COPY_ALL, "file": "packed\n"}))
    build(*local(tmp_path / "out"), url).ok()
    assert (tmp_path / "out/file").read_text() == "packed\n"
    plain = site.file("Dockerfile", b"FROM scratch\nADD Dockerfile /it\n")
    failed = build(*local(tmp_path / "none"), plain)
    assert failed.status != 0  # the context of a lone Dockerfile is itself, named "context"
    alone = site.file("alone", b"FROM scratch\nCOPY <<EOF /made\nhere\nEOF\n")
    build(*local(tmp_path / "alone"), alone).ok()
    assert (tmp_path / "alone/made").read_text() == "here\n"


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_context_on_standard_input(cli: Cli, tmp_path: Path, mode: str) -> None:
    data = archive({"Dockerfile": COPY_ALL, "file": "x" * 100_000}, mode)
    cli.build(*local(tmp_path / "out"), "-", stdin=data).ok()
    assert (tmp_path / "out/file").stat().st_size == 100_000


@pytest.mark.peer("docker-buildx")
def test_context_on_standard_input_of_a_stock_client(buildx: Buildx, tmp_path: Path) -> None:
    data = archive({"Dockerfile": COPY_ALL, "file": "x" * 100_000})
    buildx.build(*local(tmp_path / "out"), "-", stdin=data).ok()
    assert (tmp_path / "out/file").stat().st_size == 100_000


def test_dockerfile_on_standard_input(
    build: Build, site: Site, context: Context, tmp_path: Path
) -> None:
    context.write("file", "local\n")
    dockerfile = b"FROM scratch\nCOPY file /\n"
    build(*local(tmp_path / "a"), "-f", "-", context.path, stdin=dockerfile).ok()
    assert (tmp_path / "a/file").read_text() == "local\n"
    repository, remote = site.repository("app")
    repository.commit({"file": "from git\n"})
    build(*local(tmp_path / "b"), "-f", "-", remote, stdin=dockerfile).ok()
    assert (tmp_path / "b/file").read_text() == "from git\n"
    build(*local(tmp_path / "c"), "-", stdin=b"FROM scratch\nCOPY <<EOF /m\nx\nEOF\n").ok()
    assert (tmp_path / "c/m").read_text() == "x\n"


def test_named_contexts(build: Build, site: Site, context: Context, tmp_path: Path) -> None:
    repository, remote = site.repository("lib")
    repository.commit({"lib.h": "int x;\n", "src/a": "a\n"})
    url = site.file("data.bin", b"data")
    context.dockerfile(
        "FROM scratch\nCOPY --from=lib /lib.h /\nCOPY --from=src /a /\nCOPY --from=web / /web/\n",
        base=False,
    )
    build(
        *local(tmp_path / "out"),
        *("--build-context", f"lib={remote}", "--build-context", f"src={remote}#trunk:src"),
        *("--build-context", f"web={url}"),
        context.path,
    ).ok()
    assert (tmp_path / "out/lib.h").read_text() == "int x;\n"
    assert (tmp_path / "out/a").read_text() == "a\n"
    assert (tmp_path / "out/web/context").read_bytes() == b"data"


@pytest.mark.peer("ssh-keygen")
def test_only_what_is_signed(build: Build, site: Site, context: Context, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    repository, remote = site.repository("app")
    repository.commit({"file": "one\n"})
    signing = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={key}")
    repository.git(*signing, "tag", "-s", "-m", "release", "v1")
    identifier = "git://" + remote.partition("://")[2]
    rule = {
        "action": "CONVERT",
        "selector": {"identifier": f"{identifier}*", "matchType": "WILDCARD"},
        "updates": {
            "identifier": identifier + "${1}",
            "attrs": {"git.sig.pubkey": Path(f"{key}.pub").read_text()},
        },
    }
    (tmp_path / "policy.json").write_text(json.dumps({"version": 1, "rules": [rule]}))
    env = {"EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": str(tmp_path / "policy.json")}
    context.dockerfile(f"FROM scratch\nADD {remote}#v1 /\n", base=False)
    build(*local(tmp_path / "out"), context.path, env=env).ok()
    assert (tmp_path / "out/file").read_text() == "one\n"

    context.dockerfile(f"FROM scratch\nADD {remote}#trunk /\n", base=False)
    failed = build(*local(tmp_path / "no"), context.path, env=env)
    assert failed.status != 0
    assert "git object is not signed" in failed.text
    build(*local(tmp_path / "without"), context.path).ok()  # nobody asked for a signature


def test_a_token_reaches_the_remote_and_nothing_else(
    build: Build, site: Site, context: Context, state: Path, tmp_path: Path
) -> None:
    token = "git-token-of-some-length"
    encoded = subprocess.run(
        ["base64", "-w0"],
        input=f"x-access-token:{token}".encode(),
        capture_output=True,
        check=True,
    ).stdout.decode()
    site.git.login = f"basic {encoded}"
    repository, remote = site.repository("private")
    repository.commit({"file": "private\n"})
    context.dockerfile(f"FROM scratch\nADD --keep-git-dir {remote} /\n", base=False)
    denied = build(*local(tmp_path / "no"), context.path)
    assert denied.status != 0
    assert "fatal: Authentication failed" in denied.text
    (tmp_path / "token").write_text(token + "\n")
    secret = ["--secret", f"id=GIT_AUTH_TOKEN,src={tmp_path}/token"]
    done = build(*secret, *local(tmp_path / "out"), context.path).ok()
    assert (tmp_path / "out/file").read_text() == "private\n"
    for text in (token, encoded):
        assert text not in done.text
        found = subprocess.run(
            ["grep", "-rlF", text, str(state), str(tmp_path / "out")],
            capture_output=True,
            check=False,
        )
        assert found.stdout == b""


def test_epoch_of_the_context(build: Build, site: Site, tmp_path: Path) -> None:
    repository, remote = site.repository("app")
    repository.commit({"Dockerfile": COPY_ALL, "file": "one\n"})
    output = tmp_path / "out.tar"
    build(
        *("--build-arg", "SOURCE_DATE_EPOCH=context", "-o", f"type=oci,dest={output}"),
        remote,
    ).ok()
    assert Layout.unpack(output).config["created"] == "2023-11-14T22:13:20Z"


def test_git_does_not_outlive_a_killed_engine(cli: Cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        remote = f"http://127.0.0.1:{silent.getsockname()[1]}/app.git"
        process = subprocess.Popen(
            [PROGRAM, "build", *local(tmp_path / "out"), remote],
            env={**os.environ, **cli.env, "BOXWRIGHT_ROOT": str(cli.root)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        connection, _ = silent.accept()
        process.kill()
        process.wait(120)
        # git itself dies with the engine; its helper when the remote ends or answers.
        connection.close()
        assert_no_process_uses(remote)


@pytest.mark.peer("docker-registry")
def test_images_of_a_builder_itself_are_listed_as_such(
    cli: Cli, daemon: Daemon, registry: Registry, context: Context
) -> None:
    name = f"{registry.host}/team/base:1"
    context.dockerfile("FROM base\n")
    cli.build("-t", name, "--push", context.path).ok()

    async def used() -> set[str]:
        state = llb.scratch().copy(llb.image(name, internal=True), "/bin/busybox", "/b")
        async with connect(daemon.address) as client:
            await client.build(BuildRequest(definition=state.marshal()))
            return {record.RecordType for record in await client.disk_usage()}

    assert "internal" in asyncio.run(used())
