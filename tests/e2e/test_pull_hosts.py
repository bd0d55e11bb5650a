"""A push is confirmed at the host that pullers use, which the configuration names."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from programs import Cli, Context, Registry, running_registry

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("crun"),
    pytest.mark.peer("docker-registry"),
]


def push(cli: Cli, context: Context, registry: Registry, pulled_from: str, folder: Path):
    config = folder / "buildkitd.toml"
    config.write_text(f'[boxwright.pullHosts]\n"{registry.host}" = "{pulled_from}"\n')
    context.dockerfile("FROM base\nRUN echo 1 > /file\n")
    return cli(
        "--config",
        config,
        "build",
        "--progress",
        "plain",
        "-t",
        f"{registry.host}/team/app:v1",
        "--push",
        context.path,
    )


def test_another_name_of_the_same_registry(
    cli: Cli, context: Context, registry: Registry, tmp_path: Path
) -> None:
    port = registry.host.rpartition(":")[2]
    push(cli, context, registry, f"localhost:{port}", tmp_path).ok()


def test_another_registry_is_red(
    cli: Cli, context: Context, registry: Registry, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    with running_registry(folder) as other:
        done = push(cli, context, registry, other.host, tmp_path)
    assert done.status == 15
    assert f"{other.host} does not have a" in done.err
    assert f"pushed to {registry.host}" in done.err


def test_a_host_that_does_not_answer_is_red(
    cli: Cli, context: Context, registry: Registry, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        done = push(cli, context, registry, host, tmp_path)
    assert done.status == 11
    assert host in done.err
