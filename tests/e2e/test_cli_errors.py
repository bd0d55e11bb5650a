"""Bad input at the command line: one clear error, what to do, and its own exit status."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from programs import PROGRAM, Cli, Context, Daemon, Run, run

from boxwright.errors import EXIT_CODES, Code
from boxwright.linux import apparmor
from boxwright.testing.certificates import CertificateAuthority

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]


def assert_fails(done: Run, code: Code) -> None:
    """It failed once and for this reason, and nothing of our insides is shown."""
    assert done.status == EXIT_CODES[code], done.text
    assert done.err.count("\nerror: ") + done.err.startswith("error: ") == 1, done.err
    assert done.err.endswith(f"code: {code}\n"), done.err
    assert "Traceback" not in done.text
    assert "site-packages" not in done.text


@pytest.mark.parametrize("mode", ["plain", "rawjson", "quiet"])
def test_a_syntax_error_names_line_and_column(cli: Cli, context: Context, mode: str) -> None:
    context.dockerfile("FROM scratch\n\nCOPY --frm=x a /b\n", base=False)
    done = cli("build", "--progress", mode, context.path)
    assert_fails(done, Code.DOCKERFILE_SYNTAX)
    shown = [
        "Dockerfile:3:6",
        "   3 | >>> COPY --frm=x a /b",
        "     |          ^^^^^",
        "unknown flag: --frm",
        "hint: write --from",
    ]
    assert [line for line in shown if line not in done.err] == []


def test_a_failing_step_shows_exit_code_and_last_lines(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM base\nRUN echo one && echo two >&2 && sh -c 'exit 37'\n")
    for mode in ("plain", "quiet"):
        done = cli("build", "--progress", mode, context.path)
        assert_fails(done, Code.EXEC_FAILED)
        assert "did not complete successfully: exit code: 37" in done.err
        assert ">>> RUN echo one" in done.err
        log = done.err.partition("------\n")[2].partition("------\n")[0]
        assert " one\n" in log
        assert " two\n" in log
        assert "hint: " in done.err
    done = cli("build", "--progress", "rawjson", context.path)
    assert_fails(done, Code.EXEC_FAILED)
    batches = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    failed = [v for b in batches for v in b.get("vertexes", ()) if "error" in v]
    assert failed
    assert "exit code: 37" in failed[0]["error"]


def test_a_command_that_is_not_there(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM base\nRUN nosuchcommand\n")
    done = cli.build(context.path)
    assert_fails(done, Code.EXEC_FAILED)
    assert "exit code: 127" in done.err
    assert "hint: the command was not found" in done.err
    context.dockerfile('FROM base\nRUN ["/nosuchprogram"]\n')
    done = cli.build(context.path)
    assert_fails(done, Code.EXEC_FAILED)
    assert "/nosuchprogram" in done.err


def test_an_unknown_stage_is_told_with_those_that_exist(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM scratch AS one\nFROM one AS two\n", base=False)
    done = cli.build("--target", "twoo", context.path)
    assert_fails(done, Code.UNKNOWN_STAGE)
    assert 'target stage "twoo" could not be found' in done.err
    assert "two" in done.err.partition("hint: ")[2]


def test_a_missing_copy_source(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM scratch\nCOPY present absent /\n", base=False)
    context.write("present", "")
    done = cli.build(context.path)
    assert_fails(done, Code.SOURCE_NOT_FOUND)
    assert '"/absent": not found' in done.err
    assert ">>> COPY present absent /" in done.err
    assert "hint: " in done.err


def test_a_missing_dockerfile(cli: Cli, context: Context) -> None:
    done = cli.build(context.path)
    assert_fails(done, Code.SOURCE_NOT_FOUND)
    assert "hint: " in done.err
    context.dockerfile("FROM scratch\n", base=False)
    done = cli.build("-f", "other", context.path)
    assert_fails(done, Code.SOURCE_NOT_FOUND)
    assert "open other" in done.err


@pytest.mark.parametrize(
    "argv",
    [
        ["build", "--nosuchflag", "."],
        ["build", "--progress", "nosuchmode", "."],
        ["build", "/nonexistent"],
        ["build", "/etc/passwd"],
        ["build", "--secret", "nonsense=1", "."],
        ["buidl"],
    ],
    ids=lambda argv: " ".join(argv[:3]),
)
def test_bad_flags(cli: Cli, context: Context, argv: list[str]) -> None:
    context.dockerfile("FROM scratch\nLABEL a=b\n", base=False)
    done = cli(*argv, cwd=context.path)
    assert done.status == EXIT_CODES[Code.USAGE], done.text
    assert "rror: " in done.err
    assert "Traceback" not in done.text


def test_an_unknown_output_is_told_with_those_that_exist(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM scratch\nLABEL a=b\n", base=False)
    done = cli.build("-o", "type=nosuchtype", context.path)
    assert_fails(done, Code.INVALID)
    assert "local" in done.err.partition("hint: ")[2]


def test_a_registry_that_does_not_answer(cli: Cli, context: Context) -> None:
    with socket.socket() as taken:  # bound, but nobody listens: refused at once
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        context.dockerfile(f"FROM {host}/app:v1\n", base=False)
        done = cli.build(context.path)
    assert_fails(done, Code.REGISTRY_UNREACHABLE)
    assert host in done.err
    assert f">>> FROM {host}/app:v1" in done.err
    assert "hint: " in done.err


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815 - the name is http.server's

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(
    handler: type[BaseHTTPRequestHandler] = _Handler, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """Serve on loopback and yield ``host:port``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # a handshake that fails is what we are here for
    if tls is not None:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_registry_that_speaks_http_only(cli: Cli, context: Context) -> None:
    with serving() as host:
        config = context.path.parent / "buildkitd.toml"
        config.write_text(f'[registry."{host}"]\n  http = false\n')
        context.dockerfile(f"FROM {host}/app:v1\n", base=False)
        done = cli("--config", config, "build", "--progress", "plain", context.path)
    assert_fails(done, Code.REGISTRY_PROTOCOL)
    assert host in done.err
    assert "http = true" in done.err.partition("hint: ")[2]


def test_a_registry_with_an_unknown_ca(cli: Cli, context: Context, tmp_path: Path) -> None:
    (tmp_path / "tls").mkdir()
    authority = CertificateAuthority(tmp_path / "tls")
    tls = authority.server_context(authority.issue("server", "127.0.0.1"))
    with serving(tls=tls) as host:
        context.dockerfile(f"FROM {host}/app:v1\n", base=False)
        config = tmp_path / "buildkitd.toml"
        config.write_text(f'[registry."{host}"]\n  http = false\n')
        done = cli("--config", config, "build", "--progress", "plain", context.path)
    assert_fails(done, Code.REGISTRY_TLS)
    assert host in done.err
    assert "ca" in done.err.partition("hint: ")[2].lower()


def test_push_to_a_registry_that_does_not_answer(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM scratch\nCOPY a /\n", base=False)
    context.write("a", "a")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli.build("-t", f"{host}/app", "--push", context.path)
    assert_fails(done, Code.REGISTRY_UNREACHABLE)
    assert host in done.err


def test_a_second_owner_of_a_state_folder(daemon: Daemon, tmp_path: Path) -> None:
    address = f"unix://{tmp_path}/second.sock"
    done = run([PROGRAM, "daemon", "--root", str(daemon.root), "--addr", address])
    assert_fails(done, Code.STORE_LOCKED)
    assert daemon.process is not None
    assert str(daemon.process.pid) in done.err
    assert "hint: " in done.err


def test_a_daemon_that_is_not_there(cli: Cli, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM scratch\nLABEL a=b\n", base=False)
    done = cli.build("--addr", f"unix://{tmp_path}/nobody.sock", context.path)
    assert_fails(done, Code.UNAVAILABLE)
    assert "nobody.sock" in done.err
    assert "hint: " in done.err


@pytest.fixture
def build_with(cli: Cli, daemon: Daemon) -> Callable[..., Run]:
    """Our client with our daemon."""
    return lambda *argv: cli.build("--addr", daemon.address, *argv)


def test_errors_come_through_the_daemon_as_they_are(
    build_with: Callable[..., Run], context: Context
) -> None:
    context.dockerfile("FROM scratch\n\nCOPY --frm=x a /b\n", base=False)
    done = build_with(context.path)
    assert_fails(done, Code.DOCKERFILE_SYNTAX)
    assert "Dockerfile:3:6" in done.err
    assert "     |          ^^^^^" in done.err
    context.dockerfile("FROM base\nRUN sh -c 'exit 37'\n")
    done = build_with(context.path)
    assert_fails(done, Code.EXEC_FAILED)
    assert "exit code: 37" in done.err
    context.dockerfile("FROM scratch\nCOPY absent /\n", base=False)
    assert_fails(build_with(context.path), Code.SOURCE_NOT_FOUND)
    context.dockerfile("FROM scratch AS a\n", base=False)
    assert_fails(build_with("--target", "x", context.path), Code.UNKNOWN_STAGE)


_CHROOT = """
cd "$1"
for each in /*; do
  if [ -L "$each" ]; then cp -P "$each" ".$each"
  elif [ -d "$each" ]; then mkdir ".$each" && mount --rbind "$each" ".$each"
  fi
done
exec chroot . "$2" build "$3"
"""


def test_a_chroot_whose_root_is_no_mount_is_named(tmp_path: Path, context: Context) -> None:
    context.dockerfile("FROM scratch\n", base=False)
    root = tmp_path / "chroot"
    root.mkdir()
    isolated = ["unshare", "--mount", "--propagation", "private"]
    done = run([*isolated, "sh", "-ec", _CHROOT, "sh", root, PROGRAM, context.path])
    assert_fails(done, Code.ENVIRONMENT)
    assert "hint: outside of it: mount --bind DIR DIR" in done.err


@pytest.mark.skipif(apparmor.is_enabled(), reason="profiles can be applied here")
def test_a_profile_that_nothing_applies_is_refused(
    cli: Cli, context: Context, tmp_path: Path
) -> None:
    context.dockerfile("FROM base\nRUN true\n")
    config = tmp_path / "buildkitd.toml"
    config.write_text('[worker.oci]\napparmor-profile = "steps"\n')
    done = cli("--config", config, "build", context.path)
    assert_fails(done, Code.CONFIG)
    assert "the AppArmor profile steps can't confine steps" in done.err


def test_a_registry_that_is_not_there(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM 127.0.0.1:1/x\n", base=False)
    done = cli.build(context.path)
    assert_fails(done, Code.REGISTRY_UNREACHABLE)
    found = (
        "127.0.0.1:1/x: failed to resolve source metadata for 127.0.0.1:1/x:latest: can't reach"
    )
    assert found in done.err
    context.write("f", "")
    context.dockerfile("FROM scratch\nCOPY f /\n", base=False)
    done = cli.build("-o", "type=image,name=127.0.0.1:1/x:1,push=true", context.path)
    assert_fails(done, Code.REGISTRY_UNREACHABLE)
    assert "failed to push 127.0.0.1:1/x:1: can't reach registry" in done.err
