"""RUN: mounts with all their options, network and security modes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerfile_builds import Builder, build, stock_build
from programs import Cli, Context, Run, buildx, cli, context, daemon, state

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
__all__ = ["build", "buildx", "cli", "context", "daemon", "state", "stock_build"]


def test_bind_mounts(build: Builder, context: Context) -> None:
    context.write("data/one", "1")
    context.write("data/two", "2")
    context.dockerfile(
        """
FROM base AS made
RUN mkdir -p /deep/er && echo made > /deep/er/file && echo sel > /top
FROM base
RUN --mount=target=/ctx find /ctx -name one > /default
RUN --mount=type=bind,source=data,target=/b cat /b/one > /source
RUN --mount=type=bind,src=data/two,dst=/two cat /two > /single
RUN --mount=type=bind,source=data,target=/b sh -c 'touch /b/x 2> /refused || true'
RUN --mount=type=bind,source=data,target=/b,rw sh -c 'echo w > /b/w && cat /b/w > /written'
RUN --mount=type=bind,source=data,target=/b,readonly=false touch /b/again
RUN --mount=type=bind,source=data,target=/b ls /b > /afterwards
RUN --mount=from=made,source=/deep,target=/d cat /d/er/file > /other-stage
RUN --mount=from=made,source=/deep/er/file,target=/f cat /f > /selected-file
WORKDIR /w
RUN --mount=from=made,target=rel cat /w/rel/top > /relative
ARG FROM=made
RUN --mount=from=made,target=/mnt/$FROM ls /mnt > /expanded
"""
    )
    image = build()
    assert "/ctx/data/one" in image.lines("default")
    assert image.text("source") == "1"
    assert image.text("single") == "2"
    assert "Read-only file system" in image.text("refused")
    assert image.text("written") == "w\n"
    assert image.lines("afterwards") == ["one", "two"]
    assert image.text("other-stage") == "made\n"
    assert image.text("selected-file") == "made\n"
    assert image.text("relative") == "sel\n"
    assert image.lines("expanded") == ["made"]
    assert (context.path / "data/w").exists() is False
    for stub in ("ctx", "b", "two", "d", "f", "mnt"):
        assert not (image.root / stub).exists(), stub


def test_cache_mounts(build: Builder, context: Context) -> None:
    context.dockerfile(
        """
FROM base AS seed
RUN mkdir -p /seed/sub && echo seeded > /seed/sub/f
FROM base
ARG ROUND
RUN --mount=type=cache,target=/c echo $ROUND >> /c/log; cp /c/log /log
RUN --mount=type=cache,id=log,target=/other,sharing=locked echo $ROUND >> /other/x; cp /other/x /id
RUN --mount=type=cache,target=/p,sharing=private echo $ROUND >> /p/x; cp /p/x /private
RUN --mount=type=cache,id=own,target=/o,uid=12,gid=34,mode=0750 stat -c '%u %g %a' /o > /owned
RUN --mount=type=cache,id=seeded,target=/s,from=seed,source=/seed/sub cat /s/f > /seeded
RUN --mount=type=cache,id=seeded,target=/s,from=seed,source=/seed/sub,readonly \\
  sh -c 'touch /s/x 2> /ro || true'
RUN --mount=type=cache,id=log,target=/other --mount=type=cache,target=/c \\
  cat /other/x /c/log | wc -l > /two
"""
    )
    first = build("--build-arg", "ROUND=1")
    assert first.lines("log") == first.lines("id") == ["1"]
    assert first.text("owned") == "12 34 750\n"
    assert first.text("seeded") == "seeded\n"
    assert "Read-only" in first.text("ro")
    second = build("--build-arg", "ROUND=2")
    assert second.lines("log") == second.lines("id") == second.lines("private") == ["1", "2"]
    assert second.text("two").strip() == "4"
    assert not (second.root / "c").exists()
    third = build("--build-arg", "ROUND=3", "--build-arg", "BUILDKIT_CACHE_MOUNT_NS=else")
    assert third.lines("log") == ["3"]
    fresh = build("--build-arg", "ROUND=4", "--no-cache")
    assert fresh.lines("log") == fresh.lines("id") == fresh.lines("private") == ["4"]


def test_tmpfs_mounts(build: Builder, context: Context) -> None:
    context.dockerfile(
        """
FROM base
RUN --mount=type=tmpfs,target=/t,size=1048576 \\
  echo x > /t/x; dd if=/dev/zero of=/t/big bs=1024 count=4096 2> /full; \\
  grep ' /t ' /proc/mounts > /line
RUN ls -a / > /list
"""
    )
    context.write("x", "")
    image = build()
    assert "No space left" in image.text("full")
    assert "tmpfs" in image.text("line")
    assert "size=1024k" in image.text("line")
    assert not (image.root / "t").exists()


SECRETS = """
FROM base
RUN --mount=type=secret,id=file cat /run/secrets/file > /default
RUN --mount=type=secret,id=file,target=/etc/key,mode=0440,uid=7,gid=8 \\
  cat /etc/key > /target; stat -c '%u %g %a' /etc/key > /owner
RUN --mount=type=secret,id=file,env=TOKEN echo "$TOKEN" > /env
RUN --mount=type=secret,id=var,env=VAR,target=/var-too sh -c 'echo $VAR; cat /var-too' > /both
RUN --mount=type=secret,id=absent ls /run/secrets > /optional 2>&1 || true
WORKDIR /w
RUN --mount=type=secret,id=file,dst=rel cat /w/rel > /relative
RUN ls -R / > /left
"""


def check_secrets(build: Builder, context: Context, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    context.dockerfile(SECRETS)
    image = build(
        "--secret",
        f"id=file,src={secret}",
        "--secret",
        "id=var,env=SECRET_VAR",
        env={"SECRET_VAR": "v4r"},
    )
    for name in ("default", "target", "relative"):
        assert image.text(name) == "s3cret", name
    assert image.text("env") == "s3cret\n"
    assert image.text("owner") == "7 8 440\n"
    assert image.text("both") == "v4r\nv4r"
    assert "absent" not in image.text("optional").split()
    assert "key" not in image.text("left").split()
    assert "s3cret" not in str(image.layout.config)
    context.dockerfile("FROM base\nRUN --mount=type=secret,id=gone,required=true true\n")
    done = build.fails()
    assert "gone" in done.err
    assert "not found" in done.err


def test_secrets(build: Builder, context: Context, tmp_path: Path) -> None:
    check_secrets(build, context, tmp_path)


@pytest.mark.peer("docker-buildx")
def test_secrets_of_a_stock_client(stock_build: Builder, context: Context, tmp_path: Path) -> None:
    check_secrets(stock_build, context, tmp_path)


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[str]:
    """A running ssh-agent with one key; its socket."""
    if shutil.which("ssh-agent") is None:
        pytest.skip("needs ssh-agent")
    socket, key = tmp_path / "agent.sock", tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    process = subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL)
    try:
        while not socket.exists():
            assert process.poll() is None
        env = {**os.environ, "SSH_AUTH_SOCK": str(socket)}
        subprocess.run(["ssh-add", "-q", key], env=env, check=True, capture_output=True)
        yield str(socket)
    finally:
        process.terminate()
        process.wait(120)


SSH = """
FROM base
RUN --mount=type=ssh echo "$SSH_AUTH_SOCK" > /path; stat -c '%F %a %u' $SSH_AUTH_SOCK > /kind
RUN --mount=type=ssh,id=other,target=/agent,mode=0666,uid=5,gid=6 \\
  stat -c '%F %a %u %g' /agent > /other
RUN env > /afterwards
"""


def check_ssh(build: Builder, context: Context, agent: str) -> None:
    context.dockerfile(SSH)
    image = build("--ssh", f"default={agent}", "--ssh", f"other={agent}")
    assert image.text("path") == "/run/buildkit/ssh_agent.0\n"
    assert image.text("kind") == "socket 600 0\n"
    assert image.text("other") == "socket 666 5 6\n"
    assert "SSH_AUTH_SOCK" not in image.text("afterwards")
    context.dockerfile("FROM base\nRUN --mount=type=ssh,id=gone,required=true true\n")
    assert "gone" in build.fails("--ssh", f"default={agent}").err


def test_ssh(build: Builder, context: Context, agent: str) -> None:
    check_ssh(build, context, agent)


@pytest.mark.peer("docker-buildx")
def test_ssh_of_a_stock_client(stock_build: Builder, context: Context, agent: str) -> None:
    check_ssh(stock_build, context, agent)


class ConfiguredCli(Cli):
    """Our command line with a configuration file."""

    def __call__(self, *argv: str | Path, **options: Any) -> Run:
        return super().__call__("--config", self.root.with_name("config.toml"), *argv, **options)


@pytest.fixture
def allowing(build: Builder, cli: Cli, tmp_path: Path) -> Builder:
    """A builder whose engine may grant every entitlement."""
    text = 'insecure-entitlements = ["network.host", "security.insecure"]\n'
    (tmp_path / "config.toml").write_text(text)
    return Builder(ConfiguredCli(cli.root, cli.env), build.context, tmp_path)


def test_network_modes(allowing: Builder, build: Builder, context: Context) -> None:
    context.dockerfile(
        """
FROM base
RUN --network=none ls /sys/class/net > /none; cat /proc/net/dev | wc -l > /lines
RUN --network=default true
"""
    )
    image = build()
    assert image.text("lines").strip() == "3"
    context.dockerfile("FROM base\nRUN --network=host cat /proc/net/dev > /host\n")
    assert "network.host is not allowed" in allowing.fails().err
    host = Path("/proc/net/dev").read_text()
    assert "network.host is not allowed" in build.fails("--allow", "network.host").err
    found = allowing("--allow", "network.host").text("host")
    assert {line.split(":")[0].strip() for line in found.splitlines()[2:]} == {
        line.split(":")[0].strip() for line in host.splitlines()[2:]
    }
    context.dockerfile("FROM base\nRUN cat /proc/net/dev | wc -l > /lines\n")
    assert build("--network", "none").text("lines").strip() == "3"
    context.dockerfile("FROM base\nRUN --network=sideways true\n")
    assert "sideways" in build.fails().err


def test_security_modes(allowing: Builder, build: Builder, context: Context) -> None:
    context.dockerfile(
        "FROM base\nRUN grep CapEff /proc/self/status > /sandbox\n"
        "RUN --security=insecure grep CapEff /proc/self/status > /insecure\n"
    )
    assert "security.insecure is not allowed" in allowing.fails().err
    assert "security.insecure is not allowed" in build.fails("--allow", "security.insecure").err
    image = allowing("--allow", "security.insecure")
    sandbox, insecure = (int(image.text(n).split()[1], 16) for n in ("sandbox", "insecure"))
    assert sandbox < insecure
    assert insecure & (1 << 21), "CAP_SYS_ADMIN"
    assert not sandbox & (1 << 21)
    context.dockerfile("FROM base\nRUN --security=sandbox true\n")
    build()


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--mount=type=cache", "target"),
        ("--mount=type=nosuch,target=/x", "nosuch"),
        ("--mount=type=cache,target=/x,sharing=often", "often"),
        ("--mount=type=bind,target=/x,nokey=1", "nokey"),
        ("--mount=type=tmpfs,target=/x,size=lots", "lots"),
        ("--mount=type=secret,id=x,mode=rwx", "rwx"),
        ("--mont=type=cache,target=/x", "did you mean mount?"),
    ],
)
def test_mistakes_in_flags_are_named(
    flag: str, said: str, build: Builder, context: Context
) -> None:
    context.dockerfile(f"FROM base\nRUN {flag} true\n")
    done = build.fails()
    assert said in done.err
    assert "RUN" in done.err
    assert "Dockerfile:5" in done.err
