"""What stock clients ask for of a step reaches it: limits, groups, sockets, secrets, rights."""

from __future__ import annotations

import json
import os
import re
import socket
from pathlib import Path

import pytest
from programs import Buildx, Context, Daemon, Run, find_peer, run

from boxwright import llb
from boxwright.llb.state import State

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("crun"),
    pytest.mark.peer("docker-buildx"),
]


def seen(buildx: Buildx, context: Context, step: str, *options: str | Path) -> str:
    """Return what a step printed."""
    context.dockerfile(f"FROM base\nRUN {step}\n")
    return buildx.build("--no-cache", *options, context.path).ok().err


def test_group_and_limits(buildx: Buildx, context: Context) -> None:
    parent = f"/bw-test-{os.getpid()}"
    text = seen(
        buildx, context, "cat /proc/self/cgroup; ulimit -n; cat /etc/hosts",
        "--cgroup-parent", parent, "--ulimit", "nofile=321:654", "--add-host", "there:10.9.8.7",
    )  # fmt: skip
    assert f"{parent}/boxwright-" in text
    assert " 321\n" in text
    assert "10.9.8.7\tthere" in text


def test_a_step_over_its_memory_limit_is_named(buildx: Buildx, context: Context) -> None:
    context.dockerfile("FROM base\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1\n")
    done = buildx.build("--no-cache", "--resource", "memory=32m", context.path)
    if "unknown flag: --resource" in done.text:
        pytest.skip("this buildx knows no --resource")
    assert done.status != 0
    assert "out of memory: the kernel killed it at a limit of 33554432 bytes" in done.text
    assert "did not complete successfully: cannot allocate memory" in done.text


def test_the_network_that_is_asked_for(buildx: Buildx, context: Context) -> None:
    assert "eth0" not in seen(buildx, context, "ls /sys/class/net", "--network", "none")
    context.dockerfile("FROM base\nRUN --network=host true\n")
    refused = buildx.build("--allow", "network.host", context.path)
    assert refused.status != 0
    assert "granting entitlement network.host is not allowed by build daemon" in refused.text


class Buildctl:
    """Upstream's ``buildctl`` against our daemon, with graphs of our builder."""

    def __init__(self, daemon: Daemon, context: Context) -> None:
        context.dockerfile("", base=True)
        self.argv = [find_peer("buildctl"), "--addr", daemon.address, "build", "--progress"]
        self.argv += ["plain", "--no-cache", "--local", f"base={context.path}/.base"]
        copied = llb.CopyOptions(contents_only=True)
        self.base = llb.scratch().copy(llb.local("base"), "/", "/", copied).add_env("PATH", "/bin")

    def solve(self, state: State, *options: str) -> Run:
        return run([*self.argv, *options], stdin=state.marshal().SerializeToString())


@pytest.fixture
def buildctl(daemon: Daemon, context: Context) -> Buildctl:
    """A stock client for any graph."""
    return Buildctl(daemon, context)


@pytest.mark.peer("buildctl")
def test_any_socket_is_forwarded(buildctl: Buildctl, tmp_path: Path) -> None:
    step = buildctl.base.run(
        ["/bin/sh", "-c", "ls -ln /run/s"],
        mounts=[llb.ssh("raw", target="/run/s", mode=0o660, uid=5, gid=6)],
    )
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        done = buildctl.solve(step.root, "--ssh", f"raw={tmp_path}/s,raw=true").ok()
    assert re.search(r"srw-rw---- +1 +5 +6 ", done.err)
    refused = buildctl.solve(step.root)
    assert 'no SSH key "raw" forwarded from the client' in refused.err


@pytest.mark.peer("buildctl")
def test_secrets_as_files_and_variables(
    buildctl: Buildctl, tmp_path: Path, daemon: Daemon
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("very hidden")
    step = buildctl.base.run(
        ["/bin/sh", "-c", 'echo "$V" | sha256sum; sha256sum /s; echo [$NONE]; ls /none'],
        mounts=[
            llb.secret("/s", id="key", mode=0o400),
            llb.secret(id="key", env="V"),
            llb.secret(id="absent", env="NONE", optional=True),
            llb.secret("/none", id="absent", optional=True),
        ],
        valid_exit_codes=[1],
    )
    done = buildctl.solve(step.root, "--secret", f"id=key,src={secret}").ok()
    assert "[]" in done.err
    assert "very hidden" not in done.err
    assert "very hidden" not in daemon.log.read_text()
    refused = buildctl.solve(
        buildctl.base.run(["/bin/true"], mounts=[llb.secret(id="absent", env="X")]).root
    )
    assert refused.status != 0
    assert "secret absent: not found" in refused.err


@pytest.mark.peer("buildctl")
def test_outputs_have_the_inputs_of_frontends(buildx: Buildx, context: Context) -> None:
    """bake's linked targets hand graphs to the frontend (``FrontendInputs``)."""
    context.dockerfile("FROM base\nRUN echo first > /first\n")
    context.write("second/Dockerfile", "FROM scratch\nCOPY --from=one /first /second\n")
    plan = {
        "group": {"default": {"targets": ["two"]}},
        "target": {
            "one": {"context": str(context.path)},
            "two": {
                "context": str(context.path / "second"),
                "contexts": {"one": "target:one"},
                "output": [f"type=local,dest={context.path}/out"],
            },
        },
    }
    context.write("bake.json", json.dumps(plan))
    buildx("bake", "--progress", "plain", "--allow", "fs=*", "-f", context.path / "bake.json").ok()
    assert (context.path / "out/second").read_text() == "first\n"


def test_history_of_stock_clients(buildx: Buildx, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM base\nARG WHO=nobody\nRUN echo from $WHO\n")
    buildx.build("--build-arg", "WHO=history", context.path).ok()
    context.dockerfile("FROM base\nRUN echo half; exit 4\n")
    assert buildx.build(context.path).status != 0
    rows = [
        json.loads(line)
        for line in buildx("history", "ls", "--format", "json").ok().out.splitlines()
    ]
    assert sorted(row["status"] for row in rows) == ["Completed", "Error"]
    refs = {row["status"]: row["ref"].rpartition("/")[2] for row in rows}
    shown = buildx("history", "inspect", refs["Completed"]).ok().out
    assert "WHO" in shown
    assert "history" in shown
    failed = buildx("history", "inspect", refs["Error"]).ok().out
    assert "exit code: 4" in failed
    assert "half" in failed
    buildx("history", "rm", refs["Error"]).ok()
    assert len(buildx("history", "ls", "--format", "json").ok().out.splitlines()) == 1
    assert (
        "from history"
        in buildx("history", "logs", "--progress", "plain", refs["Completed"]).ok().text
    )


def test_use_and_pruning_with_filters(buildx: Buildx, context: Context) -> None:
    context.dockerfile("FROM base\nRUN --mount=type=cache,target=/c echo kept > /c/x\n")
    buildx.build(context.path).ok()
    shown = buildx("du", "--filter", "type=exec.cachemount", "--verbose").ok().out
    assert "exec.cachemount" in shown
    assert "source.local" not in shown
    buildx("prune", "--force", "--filter", "type=source.local").ok()
    left = buildx("du", "--verbose").ok().out
    assert "source.local" not in left
    assert "exec.cachemount" in left
    buildx("prune", "--force", "--all", "--filter", "until=100h").ok()
    assert "exec.cachemount" in buildx("du", "--verbose").ok().out
    limits = ("--max-used-space", "10gb", "--min-free-space", "1kb")
    buildx("prune", "--force", "--all", *limits).ok()
    assert "exec.cachemount" in buildx("du", "--verbose").ok().out
    buildx("prune", "--force", "--all").ok()
    assert "exec.cachemount" not in buildx("du", "--verbose").ok().out
