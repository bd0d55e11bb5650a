"""``build --debug-shell`` with both daemons, and upstream's debugger with both."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from programs import PROGRAM, Context, run
from terminal import Terminal

pytestmark = [pytest.mark.reference, pytest.mark.root]

FAILING = "FROM base\nWORKDIR /w\nENV GREETING=hello\nRUN echo half > half; exit 9\n"
LOOK = b"cat half\necho $GREETING from $PWD\nexit 3\n"


def test_commands_from_a_pipe(daemon_address: str, context: Context) -> None:
    context.dockerfile(FAILING)
    argv = [PROGRAM, "--addr", daemon_address, "build", "--debug-shell", context.path]
    done = run([str(each) for each in argv], stdin=LOOK)
    assert done.out == "half\nhello from /w\n"
    assert done.status == 8
    assert "exit code: 9" in done.err


def test_a_terminal(daemon_address: str, context: Context) -> None:
    context.dockerfile(FAILING)
    argv = [PROGRAM, "--addr", daemon_address, "build", "--debug-shell", context.path]
    with Terminal(argv) as shell:
        shell.wait("/w #")
        shell.resize(33, 99)
        shell.type("busybox stty size\n")
        shell.wait("33 99")
        shell.wait("/w #")
        shell.type("exit\n")
        assert shell.end() == 8


def test_upstreams_debugger(daemon_address: str, context: Context, tmp_path: Path) -> None:
    program = os.environ.get("BUILDX", "")
    if not program:
        pytest.skip("BUILDX names no docker-buildx")
    context.dockerfile(FAILING)
    env = {"BUILDX_EXPERIMENTAL": "1", "HOME": str(tmp_path)}
    env |= {"BUILDX_CONFIG": f"{tmp_path}/x", "DOCKER_CONFIG": f"{tmp_path}/d"}
    run([program, "create", "--name", "it", "--driver", "remote", daemon_address], env=env).ok()
    argv = [program, "debug", "--invoke", "/bin/sh", "--on", "error", "build", "--builder", "it"]
    with Terminal([*argv, "--progress", "plain", context.path], env=env) as shell:
        shell.wait("/ #")
        shell.type("cat /w/half\n")
        shell.wait("\nhalf")
        shell.wait("/ #")
        shell.type("exit\n")
        shell.wait("(buildx)")
        shell.type("exit\n")
        assert shell.end() == 1
