"""A shell where a RUN failed: our own command, and the stock client's debugger."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import PROGRAM, Buildx, Cli, Context, Daemon
from terminal import Terminal

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

FAILING = """FROM base
WORKDIR /w
ENV GREETING=hello
RUN --mount=type=tmpfs,target=/t echo half > half; exit 9
"""
LOOK = b"cat half\necho $GREETING from $PWD\nls -d /t\nexit 3\n"
SEEN = "half\nhello from /w\n/t\n"


@pytest.fixture
def failing(context: Context) -> Context:
    """A build whose last step fails."""
    context.dockerfile(FAILING)
    return context


def test_commands_from_a_pipe_with_the_embedded_engine(cli: Cli, failing: Context) -> None:
    done = cli.build("--debug-shell", failing.path, stdin=LOOK)
    assert done.out == SEEN
    assert "The command was: echo half > half; exit 9" in done.err
    assert done.err.index("exit code: 9") < done.err.index("A shell (/bin/sh)")
    assert done.status == 8  # the failed RUN's, not the shell's


def test_commands_from_a_file_with_a_daemon(cli: Cli, daemon: Daemon, failing: Context) -> None:
    script = failing.write("script", LOOK)
    argv = ["sh", "-c", f'exec "$@" < {script}', "sh", PROGRAM, "--addr", daemon.address, "build"]
    with Terminal([*argv, "--debug-shell", failing.path], env=cli.env) as shown:
        assert shown.end() == 8
    assert SEEN in shown.text.replace("\r\n", "\n")


def test_a_terminal(cli: Cli, failing: Context) -> None:
    argv = [PROGRAM, "build", "--root", cli.root, "--debug-shell", failing.path]
    with Terminal(argv, env=cli.env) as shell:
        shell.wait("/w #")
        assert not shell.has_echo
        shell.type("cat half\n")
        shell.wait("\nhalf")
        shell.wait("/w #")
        shell.resize(33, 99)
        shell.type("busybox stty size\n")
        shell.wait("33 99")
        shell.wait("/w #")
        # What is shown comes from the command itself: a key pressed while the shell still
        # starts one is lost on any terminal (a signal is caught, and forgotten by the exec).
        shell.type("busybox tail -f half\n")
        shell.wait("\nhalf")
        shell.type("\x03")  # reaches the command, not us
        shell.wait("/w #")
        shell.type("exit\n")
        assert shell.end() == 8
        assert shell.has_echo
    assert "exit code: 9" in shell.text


def test_without_input_nothing_waits(cli: Cli, failing: Context) -> None:
    assert cli.build("--debug-shell", failing.path).status == 8


def test_a_build_that_succeeds_opens_none(cli: Cli, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM base\nRUN echo fine > /made\n")
    done = cli.build("--debug-shell", "-o", tmp_path / "out", context.path, stdin=LOOK).ok()
    assert "A shell" not in done.text
    assert (tmp_path / "out/made").read_text() == "fine\n"


def test_a_failure_without_a_command_is_told(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM base\nCOPY nothing /\n")
    done = cli.build("--debug-shell", context.path, stdin=LOOK)
    assert done.status != 0
    assert "no shell was opened: what failed is no RUN" in done.err


def test_an_image_without_a_shell(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM base AS a\nFROM scratch\nCOPY --from=a /bin/busybox /bin/false\n"
                       'RUN ["/bin/false", "--no"]\n')  # fmt: skip
    done = cli.build("--debug-shell", context.path, stdin=LOOK)
    assert done.status == 8
    assert "The command was: /bin/false --no" in done.err
    assert "/bin/sh" in done.err.partition("A shell")[2].partition("\n")[2]


@pytest.mark.parametrize("argv", [("-",), ("-f", "-", "."), ("--check", ".")], ids=" ".join)
def test_where_there_can_be_none(cli: Cli, argv: tuple[str, ...]) -> None:
    done = cli.build("--debug-shell", *argv)
    assert done.status == 2
    assert "--debug-shell" in done.err


@pytest.mark.peer("docker-buildx")
def test_the_stock_debugger(buildx: Buildx, failing: Context) -> None:
    env = {
        "BUILDX_CONFIG": str(buildx.config),
        "DOCKER_CONFIG": str(buildx.config / "docker"),
        "HOME": str(buildx.config),
        "BUILDX_BUILDER": "remote",
        "BUILDX_EXPERIMENTAL": "1",
    }
    argv = [buildx.program, "debug", "--invoke", "/bin/sh", "--on", "error", "build"]
    with Terminal([*argv, "--progress", "plain", failing.path], env=env) as shell:
        shell.wait("/ #")
        shell.type("cat /w/half\n")
        shell.wait("\nhalf")
        shell.wait("/ #")
        shell.type("exit\n")
        shell.wait("(buildx)")
        shell.type("exit\n")
        assert shell.end() == 1
    assert "exit code: 9" in shell.text
