"""How often a step runs: counted inside the steps, over concurrent builds and several clients.

Every counted step adds a line to a file in a cache mount, which is no part of any result.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from leftovers import steps_that_ran
from programs import Buildx, Cli, Context, Daemon, Run

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

MOUNT = "--mount=type=cache,id=counts,target=/counts"


def counted(name: str, rest: str = "true") -> str:
    """Return an instruction that counts its runs and takes a moment."""
    return f"RUN {MOUNT} echo run >> /counts/{name} && sleep 0.5 && {rest}\n"


@pytest.fixture
def client(daemon: Daemon, cli: Cli) -> Cli:
    """Our command line, with the daemon as its builder."""
    return Cli(cli.root.parent / "unused", {**cli.env, "BUILDKIT_HOST": daemon.address})


@pytest.fixture
def runs(client: Cli, tmp_path: Path) -> Callable[[str], int]:
    """Return a function that says how often a step ran."""
    reader = Context(tmp_path / "reader")
    reader.dockerfile(
        f"ARG ROUND\nRUN {MOUNT} mkdir /out && cp -r /counts /out/ && touch /out/counts\n"
        "FROM scratch\nCOPY --from=base /out /\n"
    )
    rounds = itertools.count()

    def count(name: str) -> int:
        out = tmp_path / "counts"
        shutil.rmtree(out, ignore_errors=True)
        # not --no-cache-filter: that would empty the cache mount, too
        client.build("--build-arg", f"ROUND={next(rounds)}", "-o", out, reader.path).ok()
        file = out / "counts" / name
        return len(file.read_text().splitlines()) if file.exists() else 0

    return count


def at_once(*builds: Callable[[], Run]) -> list[Run]:
    """Run builds in parallel; all must succeed."""
    with ThreadPoolExecutor(len(builds)) as pool:
        return [done.result().ok() for done in [pool.submit(build) for build in builds]]


def test_builds_at_once_run_a_step_once(
    client: Cli, context: Context, runs: Callable[[str], int]
) -> None:
    context.dockerfile("FROM base\n" + counted("same"))
    at_once(*[lambda: client.build(context.path)] * 6)
    assert runs("same") == 1


def test_other_folders_with_equal_content_run_a_step_once(
    client: Cli, context: Context, runs: Callable[[str], int], tmp_path: Path
) -> None:
    context.dockerfile("FROM base\nCOPY file /file\n" + counted("content"))
    context.write("file", "equal")
    others = [tmp_path / f"copy{number}" for number in range(3)]
    for other in others:
        shutil.copytree(context.path, other, symlinks=True)
    at_once(*[lambda path=path: client.build(path) for path in others])
    assert runs("content") == 1


def test_different_builds_share_their_common_steps(
    client: Cli, context: Context, runs: Callable[[str], int], tmp_path: Path
) -> None:
    builds = []
    for number in range(3):
        made = Context(tmp_path / f"project{number}")
        made.dockerfile("FROM base\n" + counted("common") + counted(f"own{number}"))
        builds.append(lambda path=made.path: client.build(path))
    at_once(*builds)
    assert [runs(name) for name in ("common", "own0", "own1", "own2")] == [1, 1, 1, 1]


@pytest.mark.peer("docker-buildx")
def test_different_clients_share_steps(
    client: Cli, buildx: Buildx, context: Context, runs: Callable[[str], int]
) -> None:
    context.dockerfile("FROM base\nCOPY file /file\n" + counted("clients"))
    context.write("file", "equal")
    at_once(
        lambda: client.build(context.path),
        lambda: buildx.build(context.path),
        lambda: client.build(context.path),
        lambda: buildx.build(context.path),
    )
    assert runs("clients") == 1


def test_stages_that_nothing_needs_never_run(
    client: Cli, context: Context, runs: Callable[[str], int]
) -> None:
    context.dockerfile(
        "FROM base AS unused\n"
        + counted("unused")
        + "FROM base AS needed\n"
        + counted("needed", "echo x > /x")
        + "FROM base AS app\nCOPY --from=needed /x /x\n"
        + "FROM app AS beyond\n"
        + counted("beyond")
    )
    client.build("--target", "app", context.path).ok()
    assert [runs(name) for name in ("unused", "needed", "beyond")] == [0, 1, 0]


def test_no_cache_runs_all_and_a_stage_alone(client: Cli, context: Context) -> None:
    # not counted in a cache mount: to run a step without cache empties its cache mounts, too
    context.dockerfile(
        "FROM base AS one\nRUN echo x > /x\n"
        "FROM base AS two\nRUN echo y > /y\n"
        "FROM base\nCOPY --from=one /x /\nCOPY --from=two /y /\nRUN echo last\n"
    )

    def ran(*flags: str) -> set[str]:
        done = client.build("--progress", "plain", *flags, context.path).ok()
        return {name.partition(" RUN ")[2] for name in steps_that_ran(done.err) if " RUN " in name}

    every = {"echo x > /x", "echo y > /y", "echo last"}
    assert ran() == every
    assert ran() == set()
    # what stage one makes is the same again: what reads it need not run
    assert ran("--no-cache-filter", "one") == {"echo x > /x"}
    assert ran("--no-cache") == every
    assert ran() == set()


def test_a_forced_build_beside_one_that_is_not(client: Cli, context: Context) -> None:
    context.dockerfile("FROM base\nRUN sleep 0.5 && cat /proc/sys/kernel/random/uuid\n")
    client.build(context.path).ok()
    forced, other = at_once(
        lambda: client.build("--progress", "plain", "--no-cache", context.path),
        lambda: client.build("--progress", "plain", context.path),
    )
    ids = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$", re.MULTILINE)
    (made,) = set(ids.findall(forced.err))
    # the other one is cached, or it came while the forced one ran and shares that
    assert set(ids.findall(other.err)) <= {made}


def test_a_failed_step_runs_again_and_its_inputs_do_not(
    client: Cli, context: Context, runs: Callable[[str], int]
) -> None:
    context.dockerfile(
        "FROM base\n" + counted("before") + counted("fails", "test -e /counts/now && true")
    )
    assert client.build(context.path).status != 0
    assert client.build(context.path).status != 0
    assert [runs("before"), runs("fails")] == [1, 2]


def test_counts_are_told(client: Cli, context: Context) -> None:
    context.dockerfile("FROM base\n" + counted("a") + counted("b"))
    client.build(context.path).ok()
    client.build(context.path).ok()
    counts = json.loads(client("why", "--json").ok().out)["counts"]
    assert counts == {"total": 3, "ran": 0, "local": 1, "imported": 0, "skipped": 2}
