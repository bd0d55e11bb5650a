"""Layers are made while later steps run: seen in the state folder during a build that is held."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from programs import PROGRAM, TIMEOUT_S, Cli, Context, Daemon, Layout, wait_until

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]


@contextlib.contextmanager
def held_build(
    cli: Cli,
    daemon: Daemon,
    context: Context,
    output: str,
    last: str = "",
    more: Sequence[str] = (),
) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    """Run a build whose second step waits until the connection is closed."""
    with socket.create_server(("127.0.0.1", 0)) as gate:
        gate.settimeout(TIMEOUT_S)
        port = gate.getsockname()[1]
        context.dockerfile(
            "FROM base\nRUN dd if=/dev/urandom of=/first bs=1M count=3\n"
            f"RUN /bin/busybox nc 127.0.0.1 {port} > /second{last}\n"
        )
        argv = [PROGRAM, "--addr", daemon.address, "build", "--progress", "plain"]
        argv += ["-o", output, *more, str(context.path)]
        env = {**os.environ, **cli.env}
        process = subprocess.Popen(
            argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        try:
            connection, _ = gate.accept()
            with connection:
                yield process, connection
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def layers_in(state: Path) -> set[str]:
    """Return the gzip blobs of the store that are as large as the first step's layer or larger."""
    found = set()
    for path in (state / "blobs/sha256").iterdir():
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b" and path.stat().st_size > 3 << 20:
                found.add(f"sha256:{path.name}")
    return found


def test_a_layer_is_there_before_the_last_step_is_done(
    cli: Cli, daemon: Daemon, context: Context, state: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "out.tar"
    with held_build(cli, daemon, context, f"type=oci,dest={archive}") as (process, gate):
        wait_until(lambda: layers_in(state), what="an early layer")
        early = layers_in(state)
        gate.close()
        assert process.wait(TIMEOUT_S) == 0
    layers = Layout.unpack(archive).manifest["layers"]
    assert early <= {layer["digest"] for layer in layers}
    assert len(layers) == 3


@pytest.mark.parametrize("mode", ["min", "max"])
def test_layers_of_a_cache_are_there_before_the_last_step_is_done(
    cli: Cli, daemon: Daemon, context: Context, state: Path, tmp_path: Path, mode: str
) -> None:
    """With the largest cache also those of a stage that is only copied from."""
    last = "\nFROM scratch\nCOPY --from=1 /first /\n" if mode == "max" else ""
    cache = ("--cache-to", f"type=local,dest={tmp_path}/cache,mode={mode}")
    with held_build(cli, daemon, context, "type=cacheonly", last, cache) as (process, gate):
        wait_until(lambda: layers_in(state), what="an early layer")
        early = layers_in(state)
        gate.close()
        assert process.wait(TIMEOUT_S) == 0
    written = {f"sha256:{path.name}" for path in (tmp_path / "cache/blobs/sha256").iterdir()}
    assert early <= written


def test_a_failed_build_leaves_nothing_running(
    cli: Cli, daemon: Daemon, context: Context, state: Path, tmp_path: Path
) -> None:
    output = f"type=oci,dest={tmp_path}/out.tar"
    with held_build(cli, daemon, context, output, last=" && false") as (process, gate):
        wait_until(lambda: layers_in(state), what="an early layer")
        gate.close()
        assert process.wait(TIMEOUT_S) == 8
    assert not (tmp_path / "out.tar").exists()
    assert daemon.stop() == 0


def test_files_are_exported_without_making_layers(
    cli: Cli, daemon: Daemon, context: Context, state: Path, tmp_path: Path
) -> None:
    output = f"type=local,dest={tmp_path}/out"
    with held_build(cli, daemon, context, output) as (process, gate):
        gate.close()
        assert process.wait(TIMEOUT_S) == 0
    assert (tmp_path / "out/first").stat().st_size == 3 << 20
    assert layers_in(state) == set()
