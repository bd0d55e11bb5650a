"""The programs as a user starts them, as far as they need no engine."""

import json
import os
import subprocess
import sys

import pytest

from boxwright.cli import boxwright as program
from boxwright.errors import EXIT_CODES, Code


def run(*arguments, name="boxwright", stdin=b"", env=None):
    code = "import sys; from boxwright.cli.main import main; sys.argv[:] = sys.argv[1:]; main()"
    return subprocess.run(
        [sys.executable, "-c", code, name, *arguments],
        input=stdin,
        capture_output=True,
        check=False,
        env={**os.environ, **(env or {})},
        timeout=120,
    )


@pytest.mark.parametrize("command", [(), *((name,) for name in program._COMMANDS)])
def test_every_command_has_help(command):
    done = run(*command, "--help")
    assert done.returncode == 0
    assert b"Usage:" in done.stdout
    assert b"\\b" not in done.stdout


@pytest.mark.parametrize("name", ["buildctl", "buildkitd"])
def test_other_names_are_other_programs(name):
    done = run("--version", name=name)
    fields = done.stdout.split()
    assert fields[0] == name.encode()
    assert len(fields) == 4
    assert fields[2].startswith(b"v0.")


def test_a_misspelt_command_is_suggested():
    done = run("biuld")
    assert done.returncode == EXIT_CODES[Code.USAGE]
    assert b"Did you mean 'build'" in done.stderr


def test_an_error_is_one_clear_block():
    done = run("build", "--addr", "unix:///nonexistent/socket", ".")
    assert done.returncode == EXIT_CODES[Code.UNAVAILABLE]
    assert b"Traceback" not in done.stderr
    assert b"error: " in done.stderr
    assert b"code: unavailable" in done.stderr


def test_help_loads_neither_protobuf_nor_asyncio():
    code = (
        "import sys, time; from boxwright.cli import boxwright, build; "
        "print([m for m in ('asyncio', 'google.protobuf', 'rich', 'aiohttp') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"


def test_dump_llb_prints_every_op():
    from boxwright.wire.pb import ops_pb2

    op = ops_pb2.Op(source=ops_pb2.SourceOp(identifier="docker-image://a"))
    definition = ops_pb2.Definition()
    getattr(definition, "def").append(op.SerializeToString())
    done = run("debug", "dump-llb", name="buildctl", stdin=definition.SerializeToString())
    record = json.loads(done.stdout)
    assert record["Op"]["source"]["identifier"] == "docker-image://a"
    assert record["Digest"].startswith("sha256:")
    dot = run("debug", "dump-llb", "--dot", name="buildctl", stdin=definition.SerializeToString())
    assert b"docker-image://a" in dot.stdout


_ECHO_SERVER = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print("ready", flush=True)
connection, _ = server.accept()
data = b""
while more := connection.recv(100):
    data += more
connection.sendall(data.upper())
"""


def test_dial_stdio_connects_both_ways(tmp_path):
    path = str(tmp_path / "s")
    argv = [sys.executable, "-c", _ECHO_SERVER, path]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        server.stdout.readline()
        done = run(f"--addr=unix://{path}", "dial-stdio", name="buildctl", stdin=b"hello")
    assert done.stdout == b"HELLO"
    assert done.returncode == 0


def test_builder_use_and_ls(tmp_path):
    env = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path)}
    assert run("builder", "use", "embedded", env=env).returncode == 0
    listed = json.loads(run("builder", "ls", "--json", env=env).stdout)
    assert listed == [
        {
            "name": "embedded",
            "driver": "embedded",
            "address": "",
            "used": True,
            "reason": "boxwright builder use",
        }
    ]
