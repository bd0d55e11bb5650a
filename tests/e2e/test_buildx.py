"""A stock docker-buildx drives our daemon through its remote driver."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from leftovers import steps_that_ran
from programs import Buildx, Context, Daemon, Layout, Registry, run

pytestmark = [pytest.mark.root, pytest.mark.peer("docker-buildx"), pytest.mark.peer("crun")]

EXAMPLE = """
FROM base AS one
ARG WORD=default
RUN echo "$WORD" > /word
FROM base AS two
RUN --mount=type=secret,id=key cat /run/secrets/key | sha256sum > /hash
FROM base AS final
COPY --from=one /word /word
COPY --from=two /hash /hash
RUN cat /word /hash
LABEL shape=round
CMD ["cat", "/word"]
"""


def test_example_to_an_oci_archive(buildx: Buildx, context: Context, tmp_path: Path) -> None:
    context.dockerfile(EXAMPLE)
    secret = tmp_path / "key"
    secret.write_text("a-secret-of-sixteen")
    archive = tmp_path / "out.tar"
    done = buildx.build(
        "--build-arg",
        "WORD=given",
        "--secret",
        f"id=key,src={secret}",
        "-o",
        f"type=oci,dest={archive}",
        "--metadata-file",
        tmp_path / "meta.json",
        context.path,
    ).ok()
    assert "[one 1/1] RUN echo" in done.err
    layout = Layout.unpack(archive)
    assert layout.config["config"]["Labels"] == {"shape": "round"}
    assert layout.config["config"]["Cmd"] == ["cat", "/word"]
    files = layout.files()
    assert files["word"].split()[2] == "6"
    assert "hash" in files
    metadata = json.loads((tmp_path / "meta.json").read_text())
    assert metadata["containerimage.digest"] == layout.descriptor["digest"]


def test_target_builds_only_what_it_needs(
    buildx: Buildx, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(EXAMPLE)
    done = buildx.build(
        "--target", "one", "-o", f"type=local,dest={tmp_path}/out", context.path
    ).ok()
    assert (tmp_path / "out/word").read_text() == "default\n"
    assert "[two" not in done.err


def test_push_and_pull_with_a_foreign_registry(
    buildx: Buildx, context: Context, registry: Registry, tmp_path: Path
) -> None:
    context.dockerfile("FROM base\nRUN echo pushed > /file\n")
    name = f"{registry.host}/team/app:v1"
    buildx.build("-t", name, "--push", context.path).ok()
    other = tmp_path / "other"
    other.mkdir()
    (other / "Dockerfile").write_text(f"FROM {name}\nRUN cat /file > /copy\n")
    buildx.build("-o", f"type=local,dest={tmp_path}/out", other).ok()
    assert (tmp_path / "out/copy").read_text() == "pushed\n"


def test_cache_survives_a_restart(
    buildx: Buildx, context: Context, daemon: Daemon, tmp_path: Path
) -> None:
    context.dockerfile(
        "FROM base AS a\nCOPY one /one\nRUN cat /one > /a\n"
        "FROM base AS b\nCOPY two /two\nRUN cat /two > /b\n"
        "FROM base\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n"
    )
    context.write("one", "1")
    two = context.write("two", "2")
    assert len(steps_that_ran(buildx.build(context.path).ok().err)) == 7
    assert steps_that_ran(buildx.build(context.path).ok().err) == set()
    daemon.stop()
    daemon.start()
    assert steps_that_ran(buildx.build(context.path).ok().err) == set()
    two.touch()
    assert steps_that_ran(buildx.build(context.path).ok().err) == set()
    two.write_text("changed")
    ran = steps_that_ran(buildx.build(context.path).ok().err)
    assert ran == {
        "[b 1/2] COPY two /two",
        "[b 2/2] RUN cat /two > /b",
        "[stage-3 2/2] COPY --from=b /b /b",
    }


def test_cache_survives_a_kill(buildx: Buildx, context: Context, daemon: Daemon) -> None:
    context.dockerfile("FROM base\nRUN echo 1 > /1\nRUN echo 2 > /2\n")
    buildx.build(context.path).ok()
    daemon.stop(signal.SIGKILL)
    daemon.start()
    assert steps_that_ran(buildx.build(context.path).ok().err) == set()


def test_a_failing_run_shows_its_log_and_place(buildx: Buildx, context: Context) -> None:
    context.dockerfile("FROM base\nRUN echo before && sh -c 'exit 7'\n")
    done = buildx.build(context.path)
    assert done.status != 0
    assert "before" in done.err
    assert ">>> RUN echo before" in done.err
    assert "did not complete successfully: exit code: 7" in done.err


def test_a_missing_copy_source_is_named(buildx: Buildx, context: Context) -> None:
    context.dockerfile("FROM base\nCOPY nothing /\n")
    done = buildx.build(context.path)
    assert done.status != 0
    assert '"/nothing": not found' in done.err
    assert ">>> COPY nothing /" in done.err


def test_syntax_error_points_at_the_line(buildx: Buildx, context: Context) -> None:
    context.dockerfile("FROM base\nRUNN true\n")
    done = buildx.build(context.path)
    assert done.status != 0
    assert "unknown instruction: RUNN (did you mean RUN?)" in done.err
    assert ">>> RUNN true" in done.err


def test_subrequests(buildx: Buildx, context: Context) -> None:
    context.dockerfile("FROM base AS build\nFROM base AS ship\n")
    targets = buildx("build", "--call", "targets", context.path).ok()
    assert "ship (default)" in targets.out
    context.dockerfile("from base AS build\n")
    checked = buildx("build", "--check", context.path)
    assert "ConsistentInstructionCasing" in checked.text or "FromAsCasing" in checked.text


def test_management_commands(buildx: Buildx, context: Context) -> None:
    context.dockerfile("FROM base\nRUN echo something\n")
    buildx.build(context.path).ok()
    assert "running" in buildx("inspect").ok().out
    listed = buildx("history", "ls", "--format", "json").ok().out.splitlines()
    assert len(listed) == 1
    ref = json.loads(listed[0])["ref"].rpartition("/")[2]
    assert "something" in buildx("history", "logs", "--progress", "plain", ref).ok().text
    assert "Reclaimable" in buildx("du").ok().out
    pruned = buildx("prune", "--force", "--all").ok().out
    assert "Total:" in pruned
    assert len(steps_that_ran(buildx.build(context.path).ok().err)) == 2


def test_many_clients_at_once(buildx: Buildx, context: Context, tmp_path: Path) -> None:
    """Each of several builds at the same time gets its own result."""
    import concurrent.futures

    context.dockerfile("FROM base\nARG N\nRUN echo $N > /n\n")

    def one(number: int) -> str:
        target = tmp_path / f"out{number}"
        buildx.build(
            "--build-arg", f"N={number}", "-o", f"type=local,dest={target}", context.path
        ).ok()
        return (target / "n").read_text().strip()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == [str(n) for n in range(8)]


def test_version_of_the_peer_is_stock(buildx: Buildx) -> None:
    assert "buildx" in run([buildx.program, "version"]).ok().out


def test_a_base_nobody_read_is_fetched_from_the_next_client(
    buildx: Buildx, context: Context, tmp_path: Path
) -> None:
    """An image of one client's layout stays lazy; that client's session ends with its build."""
    context.dockerfile("FROM base\n")
    base = tmp_path / "base"
    buildx.build("-o", f"type=oci,tar=false,dest={base}", context.path).ok()
    buildx("prune", "--all", "--force").ok()
    flags = ("--build-context", f"start=oci-layout://{base}")
    context.dockerfile("FROM start\nLABEL nobody=reads\n", base=False)
    buildx.build(*flags, "-o", "type=cacheonly", context.path).ok()
    context.dockerfile("FROM start\nRUN echo read > /file\n", base=False)
    done = buildx.build(*flags, "-o", f"type=local,dest={tmp_path}/out", context.path).ok()
    assert (tmp_path / "out/file").read_text() == "read\n"
    assert "Traceback" not in done.text
