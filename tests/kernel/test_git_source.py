"""Git sources against git's own server, into real snapshots."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from git_bench import Bench, run
from git_server import Repository

from boxwright.errors import Code
from boxwright.session.base import SshAgentNotFoundError
from boxwright.session.inprocess import InProcessSession
from boxwright.session.manager import SessionManager
from boxwright.session.services import SessionServices
from boxwright.sources.base import SourceContext
from boxwright.sources.git_access import GitAccess
from boxwright.sources.resolutions import Resolutions
from boxwright.testing.ports import kept_port

pytestmark = [pytest.mark.root, pytest.mark.peer("git")]

TOKEN = "a-token-of-some-length"
BASIC = "basic " + base64.b64encode(f"x-access-token:{TOKEN}".encode()).decode()


def test_default_branch(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        commit = bench.repository.git("rev-parse", "HEAD")
        source = bench.source()
        key = await source.cache_key(bench.context, 0)
        assert (key.key, key.pin) == (commit, commit)
        assert await bench.files(source) == {"file": "one\n", "sub/deep/x": "x\n"}
        assert f"{commit}\trefs/heads/trunk" in bench.log.text
        async with await source.snapshot(bench.context) as ref, ref.mounted() as root:
            assert not (root / ".git").exists()
            assert stat.S_IMODE((root / "file").stat().st_mode) == 0o644
            assert ref.record_type == "source.git.checkout"

    run(tmp_path, use)


def test_modes_do_not_depend_on_our_mask(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        script = bench.repository.path / "run.sh"
        script.write_text("#!/bin/sh\n")
        script.chmod(0o755)
        (bench.repository.path / "link").symlink_to("../../etc/passwd")
        bench.repository.commit({})
        before = os.umask(0o077)
        try:
            source = bench.source()
            async with await source.snapshot(bench.context) as ref, ref.mounted() as root:
                assert stat.S_IMODE((root / "run.sh").stat().st_mode) == 0o755
                assert stat.S_IMODE((root / "file").stat().st_mode) == 0o644
                assert stat.S_IMODE((root / "sub").stat().st_mode) == 0o755
                assert (root / "link").readlink() == Path("../../etc/passwd")
        finally:
            os.umask(before)

    run(tmp_path, use)


def test_a_moved_branch_is_seen_and_an_unmoved_one_not_fetched(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        first = await bench.key(bench.source("trunk"))
        await bench.files(bench.source("trunk"))
        fetches = bench.server.fetches
        await bench.files(bench.source("trunk"))
        assert bench.server.fetches == fetches
        bench.repository.commit({"file": "two\n"})
        moved = bench.source("trunk")
        assert await bench.key(moved) != first
        assert (await bench.files(moved))["file"] == "two\n"

    run(tmp_path, use)


def test_a_build_sees_the_tag_as_it_was_first(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        repository = bench.repository
        first = repository.git("rev-parse", "HEAD")
        repository.git("tag", "-a", "-m", "first", "v1")
        tag = repository.git("rev-parse", "v1")
        bench.context = replace(bench.context, resolutions=(Resolutions(),))
        told = await bench.source("v1").metadata(bench.context, return_object=False)
        assert (told.checksum, told.commit_checksum) == (tag, first)
        second = repository.commit({"file": "two\n"})
        repository.git("tag", "-f", "-a", "-m", "second", "v1")
        assert (await bench.source("v1").metadata(bench.context, return_object=False)) == told
        assert (await bench.files(bench.source("v1")))["file"] == "one\n"
        # Who knows better what it wants gets that.
        assert (await bench.files(bench.source("v1", checksum=second)))["file"] == "two\n"
        bench.context = replace(bench.context, resolutions=(Resolutions(),))
        assert (await bench.files(bench.source("v1")))["file"] == "two\n"

    run(tmp_path, use)


def test_tags_commits_and_pull_requests(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        repository = bench.repository
        first = repository.git("rev-parse", "HEAD")
        repository.git("tag", "-a", "v1", "-m", "v1")
        repository.commit({"file": "two\n"})
        pulled = repository.commit({"file": "pulled\n"})
        repository.git("update-ref", "refs/pull/3/head", pulled)
        repository.git("reset", "--hard", "--quiet", "HEAD^")
        tag = bench.source("v1")
        key = await tag.cache_key(bench.context, 0)
        assert (key.key, key.pin) == (first, repository.git("rev-parse", "v1"))
        assert (await bench.files(tag))["file"] == "one\n"
        assert (await bench.files(bench.source("pull/3/head")))["file"] == "pulled\n"
        assert (await bench.files(bench.source(first)))["file"] == "one\n"

    run(tmp_path, use)


def test_an_inner_commit_of_a_server_that_gives_only_refs(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.repository.git("config", "protocol.version", "0")
        first = bench.repository.git("rev-parse", "HEAD")
        bench.repository.commit({"file": "two\n"})
        assert (await bench.files(bench.source()))["file"] == "two\n"  # shallow from here on
        assert (await bench.files(bench.source(first)))["file"] == "one\n"
        gone = await bench.failure(bench.source("e" * 40))
        assert gone.code is Code.SOURCE_NOT_FOUND

    run(tmp_path, use)


def test_subdirectories(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        (bench.repository.path / "way").symlink_to("sub")
        (bench.repository.path / "out").symlink_to("/etc")
        bench.repository.commit({})
        source = bench.source(":sub")
        assert await bench.files(source) == {"deep/x": "x\n"}
        assert (await bench.key(source)).endswith(":sub")
        for bad in (":missing", ":file", ":way/deep", ":out"):
            error = await bench.failure(bench.source(bad))
            assert error.code is Code.SOURCE_NOT_FOUND
        assert bench.source(":../../etc")._wanted.subdir == "etc"

    run(tmp_path, use)


def test_git_folder_is_kept_whole(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.repository.git("tag", "-a", "v1", "-m", "v1")
        source = bench.source("v1", keepgitdir="true")
        tag = bench.repository.git("rev-parse", "v1")
        assert await bench.key(source) == f"{tag}.git#refs/tags/v1"
        async with await source.snapshot(bench.context) as ref, ref.mounted() as root:
            copy = Repository.__new__(Repository)
            copy.path = tmp_path / "copy"
            await asyncio.to_thread(shutil.copytree, root, copy.path, symlinks=True)
            safe = {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            }
            assert copy.git("status", "--porcelain", **safe) == ""
            assert copy.git("describe", "--tags", **safe) == "v1"
            assert copy.git("config", "remote.origin.url", **safe) == (
                f"{bench.server.url}/app/.git"
            )
            copy.git("fsck", "--connectivity-only", **safe)
            await asyncio.to_thread(copy.git, "fetch", "-q", "--depth=1", "origin", **safe)
            assert copy.git("rev-parse", "origin/trunk", **safe)
            assert str(bench.root) not in (root / ".git/config").read_text()
            assert not (root / ".git/logs").exists()
            assert copy.git("config", "core.logAllRefUpdates", **safe) == "true"
            made = Repository.__new__(Repository)
            made.path = tmp_path / "made"
            made.path.mkdir()
            made.git("init", "--quiet", GIT_CONFIG_NOSYSTEM="1")
            for name in ("branches", "description", "hooks", "info"):
                wanted, found = made.path / ".git" / name, root / ".git" / name
                assert found.exists() == wanted.exists()
                assert sorted(p.name for p in found.glob("*")) == sorted(
                    p.name for p in wanted.glob("*")
                )
            assert not (root / ".git/FETCH_HEAD").exists()

    run(tmp_path, use)


def test_submodules(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        library = Repository(bench.server.folder / "lib")
        library.commit({"lib.c": "int x;\n"})
        nested = Repository(bench.server.folder / "nested")
        nested.commit({"n": "n\n"})
        library.git("submodule", "--quiet", "add", f"{nested.path}/.git", "nested")
        library.git("config", "-f", ".gitmodules", "submodule.nested.url", "../../nested/.git")
        library.commit({})
        bench.repository.git(
            "submodule", "--quiet", "add", f"{bench.server.folder}/lib/.git", "third/lib"
        )
        bench.repository.git(
            "config", "-f", ".gitmodules", "submodule.third/lib.url", "../../lib/.git"
        )
        bench.repository.commit({})
        source = bench.source()
        files = await bench.files(source)
        assert files["third/lib/lib.c"] == "int x;\n"
        assert files["third/lib/nested/n"] == "n\n"
        assert "third/lib/.git" not in files
        without = bench.source(skipsubmodules="true")
        assert "third/lib/lib.c" not in await bench.files(without)
        assert (await bench.key(without)).endswith("(skip-submodules)")

    run(tmp_path, use)


def test_a_server_of_plain_files(tmp_path: Path) -> None:
    """Such a server can't leave history out, for the repository and its submodules alike."""

    async def use(bench: Bench) -> None:
        inner = Repository(bench.server.folder / "inner")
        inner.commit({"in": "inner\n"})
        app = web.Application()
        app.router.add_static("/", bench.server.folder)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        inner.git("update-server-info")
        repository = bench.repository
        modules = f'[submodule "m"]\n path = m\n url = {url}/inner/.git\n'
        repository.commit({".gitmodules": modules})
        entry = f"160000,{inner.git('rev-parse', 'HEAD')},m"
        repository.git("update-index", "--add", "--cacheinfo", entry)
        repository.git("commit", "--quiet", "-m", "with a submodule")
        repository.git("update-server-info")
        found = await bench.files(bench.source(fullurl=f"{url}/app/.git"))
        assert (found["file"], found["m/in"]) == ("one\n", "inner\n")
        await runner.cleanup()

    run(tmp_path, use)


def test_gits_own_server(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        with kept_port() as port:
            await git_daemon(bench, port)

    async def git_daemon(bench: Bench, port: int) -> None:
        argv = ["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}"]
        folder = bench.server.folder
        daemon = await asyncio.create_subprocess_exec(
            *("git", *argv, f"--base-path={folder}", str(folder)),
            start_new_session=True,
        )
        try:
            await reachable(port)
            remote = f"git://127.0.0.1:{port}/app/.git"
            commit = bench.repository.git("rev-parse", "HEAD")
            for ref in ("", "trunk", commit):
                source = bench.source(ref, fullurl=remote)
                assert (await source.cache_key(bench.context, 0)).pin == commit
            assert (await bench.files(bench.source("trunk", fullurl=remote)))["file"] == "one\n"
            missing = await bench.failure(bench.source(fullurl=f"{remote}-none"))
            assert missing.code in {Code.SOURCE_NOT_FOUND, Code.PERMISSION, Code.UNAVAILABLE}
        finally:
            os.killpg(daemon.pid, signal.SIGKILL)
            await daemon.wait()

    run(tmp_path, use)


async def reachable(port: int) -> None:
    """Wait until somebody listens."""
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


def test_a_submodule_can_not_be_a_folder_of_this_machine(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        secret = Repository(tmp_path / "private")
        secret.commit({"key": "secret\n"})
        bench.repository.git("submodule", "--quiet", "add", str(secret.path), "stolen")
        bench.repository.commit({})
        error = await bench.failure(bench.source())
        assert "file' not allowed" in str(error)

    run(tmp_path, use)


def test_hooks_and_filters_of_a_repository_do_not_run(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        marker = tmp_path / "ran"
        bench.repository.commit(
            {
                ".gitattributes": "* filter=evil\n",
                ".gitconfig": f'[filter "evil"]\n smudge = touch {marker}\n',
                "hooks/post-checkout": f"#!/bin/sh\ntouch {marker}\n",
            }
        )
        await bench.files(bench.source())
        await bench.files(bench.source(keepgitdir="true"))
        assert not marker.exists()

    run(tmp_path, use)


def test_times_of_the_commit(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        source = bench.source(mtime="commit")
        async with await source.snapshot(bench.context) as ref, ref.mounted() as root:
            paths = [root, *root.rglob("*")]
            assert {path.lstat().st_mtime for path in paths} == {1700000000.0}

    run(tmp_path, use)


def test_checksums(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        commit = bench.repository.git("rev-parse", "HEAD")
        assert await bench.files(bench.source("trunk", checksum=commit[:12]))
        error = await bench.failure(bench.source("trunk", checksum="0123"))
        assert error.code is Code.DIGEST_MISMATCH
        assert commit in str(error)
        bench.repository.commit({"file": "two\n"})
        fixed = bench.source("trunk", checksum=commit, fetchbycommit="true")
        asked = len(bench.server.services)
        assert await bench.key(fixed) == commit
        assert len(bench.server.services) == asked
        assert (await bench.files(fixed))["file"] == "one\n"

    run(tmp_path, use)


def test_sha256_repositories(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        source = bench.source()
        assert len(await bench.key(source)) == 64
        assert (await bench.files(source))["file"] == "one\n"
        kept = bench.source(keepgitdir="true")
        async with await kept.snapshot(bench.context) as ref, ref.mounted() as root:
            assert "sha256" in (root / ".git/config").read_text()

    run(tmp_path, use, "--object-format=sha256")


def test_tokens_are_used_and_stay_secret(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.server.login = BASIC
        secrets = {"authtokensecret": "GIT_AUTH_TOKEN", "authheadersecret": "GIT_AUTH_HEADER"}
        denied = await bench.failure(bench.source(**secrets))
        assert denied.code is Code.PERMISSION
        assert "GIT_AUTH_TOKEN" in denied.hint

        bench.secrets["GIT_AUTH_TOKEN"] = b"wrong-token-of-some-length"
        bench.secrets[f"GIT_AUTH_TOKEN.{bench.server.host}"] = TOKEN.encode() + b"\n"
        source = bench.source("trunk", keepgitdir="true", **secrets)
        await bench.files(source)
        assert bench.server.logins[-1] == BASIC
        bench.secrets.clear()
        bench.secrets["GIT_AUTH_HEADER"] = BASIC.encode()
        await bench.files(bench.source("trunk", **secrets))
        shown = bench.log.text + str(denied)
        for secret in (TOKEN, BASIC.split()[1], "wrong-token-of-some-length"):
            assert secret not in shown
            assert find_in_files(bench.root, secret) == []

    run(tmp_path, use)


def test_a_password_in_the_url_stays_secret(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        password = "pass-word-of-some-length"
        pair = base64.b64encode(f"joe:{password}".encode()).decode()
        bench.server.login = f"basic {pair}"
        remote = f"http://joe:{password}@{bench.server.host}/app/.git"
        await bench.files(bench.source(fullurl=remote, keepgitdir="true"))
        bench.server.login = "other"
        error = await bench.failure(bench.source(fullurl=remote + "x"))
        assert password not in str(error) + bench.log.text
        assert find_in_files(bench.root, password) == []
        assert find_in_files(bench.root, pair) == []

    run(tmp_path, use)


def find_in_files(root: Path, text: str) -> list[Path]:
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if text.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("name", "code"), [("missing", Code.SOURCE_NOT_FOUND), ("app", Code.SOURCE_NOT_FOUND)]
)
def test_missing_repository_and_ref(tmp_path: Path, name: str, code: Code) -> None:
    async def use(bench: Bench) -> None:
        error = await bench.failure(bench.source("no-such-branch", name=name))
        assert error.code is code
        assert f"/{name}/.git" in str(error)
        assert [record.description for record in bench.snapshots.records()] == []

    run(tmp_path, use)


def test_nobody_listens(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        error = await bench.failure(bench.source(fullurl="http://127.0.0.1:1/app.git"))
        assert error.code is Code.UNAVAILABLE
        assert error.retryable

    run(tmp_path, use)


def test_metadata_with_objects(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.repository.git("tag", "-a", "v1", "-m", "the tag")
        commit, tag = bench.repository.git("rev-parse", "HEAD", "v1").split()
        found = await bench.source("v1").metadata(bench.context, return_object=True)
        assert (found.ref, found.checksum, found.commit_checksum) == ("refs/tags/v1", tag, commit)
        assert b"committer a <a@example.com> 1700000000 +0000" in found.commit_object
        assert found.tag_object.endswith(b"the tag\n")
        plain = await bench.source().metadata(bench.context, return_object=False)
        assert (plain.checksum, plain.commit_object) == (commit, b"")

    run(tmp_path, use)


def test_a_damaged_shared_repository_is_made_again(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        await bench.files(bench.source())
        [bare] = (bench.root / "cachemounts").glob("*/fs/bare")
        (bare / "shallow.lock").write_text("")
        bench.repository.commit({"file": "two\n"})
        assert (await bench.files(bench.source()))["file"] == "two\n"
        (bare / "config").write_text("[core\n")
        bench.repository.commit({"file": "three\n"})
        assert (await bench.files(bench.source()))["file"] == "three\n"

    run(tmp_path, use)


def test_a_branch_that_becomes_a_folder(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.repository.git("branch", "feature")
        await bench.files(bench.source("feature"))
        bench.repository.git("branch", "-D", "feature")
        bench.repository.commit({"file": "two\n"})
        bench.repository.git("branch", "feature/one")
        assert (await bench.files(bench.source("feature/one")))["file"] == "two\n"

    run(tmp_path, use)


def test_many_at_once_fetch_once(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        results = await asyncio.gather(*(bench.files(bench.source()) for _ in range(4)))
        assert all(result == results[0] for result in results)
        assert bench.server.fetches == 1

    run(tmp_path, use)


def test_cancelling_ends_git(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        arrived = asyncio.Event()

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.set()
            await reader.read()
            writer.close()

        listener = await asyncio.start_server(silent, "127.0.0.1", 0)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            source = bench.source(fullurl=f"http://127.0.0.1:{port}/app.git")
            task = asyncio.ensure_future(source.snapshot(bench.context))
            await arrived.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert processes_with(f":{port}/app.git") == []

    run(tmp_path, use)


def processes_with(text: str) -> list[str]:
    """Return the processes that have ``text`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            line = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if text.encode() in line:
                found.append(f"{entry.name} {line!r}")
    return found


FAKE_SSH = """#!/bin/sh
# Notes how it was called, then serves the repository from this machine.
printf '%s\\n' "$@" > {notes}
printf 'agent=%s\\n' "$SSH_AUTH_SOCK" >> {notes}
while [ $# -gt 1 ]; do
  case "$1" in -o) case "$2" in UserKnownHostsFile=*) cat "${{2#*=}}" >> {notes};; esac;; esac
  shift
done
exec sh -c "$1"
"""


class Agent:
    """Stands for the forwarding of an agent: a socket path, and whose agent was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    @asynccontextmanager
    async def forward(
        self, run_dir: Path, session: object, agent_id: str, *, mode: int, owner: tuple[int, int]
    ) -> AsyncIterator[Path]:
        self.asked.append(agent_id)
        assert (mode, owner) == (0o600, (os.geteuid(), os.getegid()))
        yield run_dir / "agent.sock"


class AgentSession(InProcessSession):
    """A client that offers one agent."""

    async def ssh_check(self, agent_id: str) -> None:
        if agent_id != "default":
            raise SshAgentNotFoundError(agent_id)


def test_ssh_uses_the_clients_agent_and_host_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    notes = tmp_path / "notes"
    (programs / "ssh").write_text(FAKE_SSH.format(notes=notes))
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    async def use(bench: Bench) -> None:
        agent = Agent()
        bench.sources.access = GitAccess(bench.root / "run", agent.forward)
        sessions = SessionManager()
        session = AgentSession(SessionServices())
        sessions.attach(session)
        bench.context = SourceContext(sessions.group([session.id]))
        remote = f"ssh://git@example.com{bench.repository.path}/.git"
        known = "example.com ssh-ed25519 AAAAC3Nz"
        source = bench.source(fullurl=remote, mountsshsock="default", knownsshhosts=known)
        assert (await bench.files(source))["file"] == "one\n"
        text = notes.read_text()
        assert f"agent={bench.root}/run/agent.sock" in text
        assert known in text
        assert "StrictHostKeyChecking=yes" in text
        assert "IdentityFile=none" in text
        assert agent.asked == ["default", "default"]  # to look up, and to fetch
        assert not list((bench.root / "run").glob("known-hosts-*"))

        other = bench.source(fullurl=remote, mountsshsock="work")
        error = await bench.failure(other)
        assert error.code is Code.NOT_FOUND
        assert "--ssh work" in error.hint

    run(tmp_path, use)
