"""Git over ssh: OpenSSH's server, the client's agent, and both clients."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from programs import Buildx, Cli, Context, Daemon, Run
from served import Repository
from sshserver import SshServer

from boxwright import llb
from boxwright.client import BuildRequest, Export, connect
from boxwright.errors import BoxwrightError
from boxwright.session.providers.ssh import AgentSource

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("crun"),
    pytest.mark.peer("git"),
    pytest.mark.peer("sshd"),
    pytest.mark.peer("ssh-agent"),
]

Build = Callable[..., Run]


@pytest.fixture(params=["cli", pytest.param("buildx", marks=pytest.mark.peer("docker-buildx"))])
def build(request: pytest.FixtureRequest) -> Build:
    """``build`` of our command line, and of a stock docker-buildx with our daemon."""
    client: Cli | Buildx = request.getfixturevalue(request.param)
    return client.build


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SshServer]:
    """A running server."""
    with SshServer(tmp_path / "sshd") as made:
        yield made


def test_add_and_context_over_ssh(
    build: Build, server: SshServer, context: Context, tmp_path: Path
) -> None:
    repository = Repository(tmp_path / "served/app")
    repository.commit({"file": "one\n", "Dockerfile": "FROM scratch\nCOPY file /\n"})
    remote = server.url(repository.path / ".git")
    context.dockerfile(f"FROM scratch\nADD {remote} /app\n", base=False)
    agent = server.agent("user")
    output = tmp_path / "out"

    build("--ssh", "default", "-o", f"type=local,dest={output}", context.path, env=agent).ok()
    assert (output / "app/file").read_text() == "one\n"
    assert "Accepted publickey for root" in server.log

    # A moved branch is seen, through the agent again.
    repository.commit({"file": "two\n"})
    build("--ssh", "default", "-o", f"type=local,dest={output}", context.path, env=agent).ok()
    assert (output / "app/file").read_text() == "two\n"


def test_host_keys_and_agents_by_name(daemon: Daemon, server: SshServer, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "served/app")
    repository.commit({"file": "one\n"})
    remote = server.url(repository.path / ".git")
    agents = (
        AgentSource("mine", server.agent("user")["SSH_AUTH_SOCK"]),
        AgentSource("other", server.agent("stranger")["SSH_AUTH_SOCK"]),
    )

    def known(name: str) -> str:
        key = (server.folder / f"{name}.pub").read_text()
        return f"[127.0.0.1]:{server.port} {key}"

    async def take(agent: str, host_key: str) -> bytes:
        state = llb.git(remote, "trunk", ssh_id=agent, known_ssh_hosts=known(host_key))
        archive = io.BytesIO()
        request = BuildRequest(
            definition=state.marshal(), ssh=agents, exports=(Export("tar", stream=archive),)
        )
        async with connect(daemon.address) as client:
            await client.build(request)
        return archive.getvalue()

    for agent, host_key, why in (
        ("mine", "stranger", "Host key verification failed"),
        ("other", "host", "Permission denied (publickey)"),
    ):
        with pytest.raises(BoxwrightError) as caught:
            asyncio.run(take(agent, host_key))
        assert why in str(caught.value)
    assert b"one\n" in asyncio.run(take("mine", "host"))


def test_without_the_right_key(
    build: Build, server: SshServer, context: Context, tmp_path: Path
) -> None:
    repository = Repository(tmp_path / "served/app")
    repository.commit({"file": "one\n"})
    remote = server.url(repository.path / ".git")
    context.dockerfile(f"FROM scratch\nADD {remote} /app\n", base=False)
    output = ("-o", f"type=local,dest={tmp_path}/out")

    denied = build("--ssh", "default", *output, context.path, env=server.agent("stranger"))
    assert denied.status != 0
    assert "Permission denied (publickey)" in denied.text
    assert "Traceback" not in denied.text

    unnamed = build(*output, context.path, env=server.agent("user"))
    assert unnamed.status != 0
    assert "default" in unnamed.text
    assert "ssh" in unnamed.text
    assert not (tmp_path / "out/app").exists()
