"""Frontends in images, containers of clients, source policies: with stock clients."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from gatewayfrontend import write_image_context
from programs import (
    TIMEOUT_S,
    Buildx,
    Cli,
    Context,
    Daemon,
    Layout,
    Registry,
    running_registry,
    wait_until,
)

pytestmark = [pytest.mark.root, pytest.mark.peer("docker-buildx"), pytest.mark.peer("crun")]


@pytest.fixture(scope="module")
def frontend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a frontend's image in a registry of this module."""
    folder = tmp_path_factory.mktemp("frontend")
    context = folder / "context"
    context.mkdir()
    write_image_context(context)
    with running_registry(folder) as registry:
        name = f"{registry.host}/team/frontend:v1"
        cli = Cli(folder / "state", {"HOME": str(folder), "DOCKER_CONFIG": str(folder)})
        cli.build("-t", name, "--push", context).ok()
        yield name


def recipe(context: Context, frontend: str) -> None:
    """Write a context for the frontend: it never sees a Dockerfile's instructions."""
    context.write("Dockerfile", f"# syntax={frontend}\nthis is no Dockerfile\n")
    context.write("recipe", "flour, water, salt")


@pytest.mark.peer("docker-registry")
def test_a_frontend_image_builds(
    buildx: Buildx, context: Context, frontend: str, tmp_path: Path
) -> None:
    recipe(context, frontend)
    archive = tmp_path / "out.tar"
    buildx.build("-o", f"type=oci,dest={archive}", context.path).ok()
    layout = Layout.unpack(archive)
    assert layout.config["config"]["Labels"] == {"by": "frontend"}
    buildx.build("-o", f"type=local,dest={tmp_path}/out", context.path).ok()
    told = json.loads((tmp_path / "out/made").read_text())
    assert told == {
        "recipe": "flour, water, salt",
        "workers": 1,
        "product": "buildkit",
        "caps": True,
        "metadata": True,
        "inputs": [],
    }


@pytest.mark.peer("docker-registry")
@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("error", "the frontend does not like this"),
        ("crash", "frontend says crash"),
        ("silent", "ended without a result"),
    ],
)
def test_a_frontend_that_fails_is_quoted(
    buildx: Buildx, context: Context, frontend: str, mode: str, said: str
) -> None:
    recipe(context, frontend)
    done = buildx.build("--build-arg", f"MODE={mode}", context.path)
    assert done.status != 0
    assert said in done.err


class _Counting(http.server.BaseHTTPRequestHandler):
    """Has another content for each request."""

    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        body = f"content {self.requests}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.mark.peer("docker-registry")
def test_a_step_gets_what_its_frontend_was_told(
    buildx: Buildx, context: Context, frontend: str, tmp_path: Path
) -> None:
    recipe(context, frontend)
    handler = type("Counting", (_Counting,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/file"
        options = ("--build-arg", "MODE=resolve", "--build-arg", f"URL={url}")
        for number in (1, 2):  # another build asks again
            output = tmp_path / str(number)
            buildx.build(*options, "-o", f"type=local,dest={output}", context.path).ok()
            content = f"content {number}\n".encode()
            assert (output / "file").read_bytes() == content
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            assert (output / "digests").read_text() == f"{digest}\n{digest}"
        server.shutdown()
        thread.join()


def processes(text: str) -> list[str]:
    """Return the ids of processes that have ``text`` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if text in line:
                found.append(entry.name)
    return found


@pytest.mark.peer("docker-registry")
def test_a_frontend_ends_with_its_client(
    buildx: Buildx, context: Context, frontend: str, daemon: Daemon
) -> None:
    recipe(context, frontend)
    argv = [buildx.program, "build", "--build-arg", "MODE=hang", str(context.path)]
    env = {
        **os.environ,
        "BUILDX_CONFIG": str(buildx.config),
        "BUILDX_BUILDER": "remote",
        "HOME": str(buildx.config),
    }
    client = subprocess.Popen(argv, env=env, stderr=subprocess.DEVNULL)
    wait_until(lambda: processes("-sB /frontend.py"), what="the frontend runs")
    client.send_signal(signal.SIGKILL)
    client.wait(TIMEOUT_S)
    wait_until(lambda: not processes("-sB /frontend.py"), "the frontend is killed")
    wait_until(lambda: not mounts_in(daemon, "snapshots"), "its root file system is unmounted")


def mounts_in(daemon: Daemon, word: str) -> list[str]:
    """Return the mounts of the daemon below its state folder."""
    assert daemon.process is not None
    lines = Path(f"/proc/{daemon.process.pid}/mountinfo").read_text().splitlines()
    return [line for line in lines if f"{daemon.root}/run/mnt" in line and word in line]


# --- source policy ---------------------------------------------------------------------------


def policy(tmp_path: Path, *rules: dict[str, object]) -> dict[str, str]:
    """Write a policy file and return the environment in which buildx reads it."""
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"version": 1, "rules": list(rules)}))
    return {"EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": str(path)}


@pytest.mark.peer("docker-registry")
def test_a_policy_denies_and_converts(
    buildx: Buildx, context: Context, registry: Registry, tmp_path: Path
) -> None:
    names = {}
    for word in ("one", "two"):
        context.dockerfile(f"FROM base\nRUN echo {word} > /word\n")
        names[word] = f"{registry.host}/team/{word}:v1"
        buildx.build("-t", names[word], "--push", context.path).ok()
    user = tmp_path / "user"
    user.mkdir()
    (user / "Dockerfile").write_text(f"FROM {names['one']}\nRUN cp /word /seen\n")
    output = ("-o", f"type=local,dest={tmp_path}/out", str(user))

    every = {"identifier": f"docker-image://{registry.host}/*"}
    env = policy(tmp_path, {"action": "DENY", "selector": every})
    done = buildx.build(*output, env=env)
    assert done.status != 0
    assert f'source "docker-image://{names["one"]}" denied by policy' in done.err

    env = policy(
        tmp_path,
        {
            "action": "CONVERT",
            "selector": {"identifier": f"docker-image://{registry.host}/team/*ne:v1"},
            "updates": {"identifier": f"docker-image://{registry.host}/team/two:v1"},
        },
    )
    buildx.build(*output, env=env).ok()
    assert (tmp_path / "out/seen").read_text() == "two\n"


def test_a_policy_puts_a_folder_in_place_of_a_named_image(
    buildx: Buildx, context: Context, tmp_path: Path
) -> None:
    context.dockerfile("FROM scratch AS replace\nFROM base\nCOPY --from=replace /word /\n")
    context.write("word", "from the folder\n")
    env = policy(
        tmp_path,
        {
            "action": "CONVERT",
            "selector": {"identifier": "docker-image://docker.io/library/alpine:latest"},
            "updates": {"identifier": "local://context"},
        },
    )
    named = ("--build-context", "replace=docker-image://alpine")
    buildx.build(*named, "-o", f"type=local,dest={tmp_path}/out", context.path, env=env).ok()
    assert (tmp_path / "out/word").read_text() == "from the folder\n"


def test_a_policy_denies_the_context(buildx: Buildx, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM base\nCOPY .base/bin/busybox /b\n")
    rule = {"action": "DENY", "selector": {"identifier": "local://context"}}
    done = buildx.build(context.path, env=policy(tmp_path, rule))
    assert done.status != 0
    assert 'source "local://context" denied by policy' in done.err


def test_a_context_on_standard_input(buildx: Buildx, context: Context, tmp_path: Path) -> None:
    """For these stock clients serve a policy of their own, which is asked."""
    context.dockerfile("FROM base\nRUN echo yes > /word\n")
    archive = subprocess.run(
        ["tar", "-C", str(context.path), "-c", "."], capture_output=True, check=True
    ).stdout
    buildx.build("-o", f"type=local,dest={tmp_path}/out", "-", stdin=archive).ok()
    assert (tmp_path / "out/word").read_text() == "yes\n"
