"""What is run again, and what is not: across processes, edits, touches and fronts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from leftovers import steps_that_ran
from programs import Buildx, Cli, Context, Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

DOCKERFILE = """
FROM base AS a
COPY one /one
RUN cat /one > /a
FROM base AS b
COPY folder /folder
RUN ls /folder > /b
FROM base
COPY --from=a /a /a
COPY --from=b /b /b
RUN --mount=type=bind,source=bound,target=/bound cat /bound > /c
"""
ALL = {
    "[base 1/1] COPY .base/ /",
    "[a 1/2] COPY one /one",
    "[a 2/2] RUN cat /one > /a",
    "[b 1/2] COPY folder /folder",
    "[b 2/2] RUN ls /folder > /b",
    "[stage-3 1/3] COPY --from=a /a /a",
    "[stage-3 2/3] COPY --from=b /b /b",
    "[stage-3 3/3] RUN --mount=type=bind,source=bound,target=/bound cat /bound > /c",
}


@pytest.fixture
def project(context: Context) -> Context:
    """A context of which every file is read by one step."""
    context.dockerfile(DOCKERFILE)
    context.write("one", "1")
    context.write("folder/x", "x")
    context.write("bound", "bound")
    context.write("unused", "unused")
    return context


def test_each_edit_reruns_exactly_the_steps_that_read_it(cli: Cli, project: Context) -> None:
    def ran() -> set[str]:
        return steps_that_ran(cli.build(project.path).ok().err)

    assert ran() == ALL
    assert ran() == set()
    project.write("unused", "changed")
    assert ran() == set()
    for path in project.path.rglob("*"):
        if not path.is_symlink():
            os.utime(path, (1, 1))
    assert ran() == set()
    project.write("one", "one")
    assert ran() == {
        "[a 1/2] COPY one /one",
        "[a 2/2] RUN cat /one > /a",
        "[stage-3 1/3] COPY --from=a /a /a",
        "[stage-3 2/3] COPY --from=b /b /b",
        "[stage-3 3/3] RUN --mount=type=bind,source=bound,target=/bound cat /bound > /c",
    }
    # what ls prints stays the same: the step runs, but what follows need not
    project.write("folder/x", "other content of the same name")
    assert ran() == {"[b 1/2] COPY folder /folder", "[b 2/2] RUN ls /folder > /b"}
    project.write("bound", "bound to change")
    assert ran() == {
        "[stage-3 3/3] RUN --mount=type=bind,source=bound,target=/bound cat /bound > /c"
    }
    project.write("folder/x", "x", 0o755)
    project.write("one", "1")
    project.write("bound", "bound")
    changed = ran()
    assert "[b 1/2] COPY folder /folder" in changed
    assert not any("[a " in name for name in changed)


def test_order_and_inode_of_files_do_not_matter(cli: Cli, project: Context) -> None:
    assert steps_that_ran(cli.build(project.path).ok().err) == ALL
    other = Context(project.path.with_name("moved"))
    project.path.rename(other.path)
    for name in ("unused", "bound", "one"):
        content = (other.path / name).read_bytes()
        (other.path / name).unlink()
        other.write(name, content)
    assert steps_that_ran(cli.build(other.path).ok().err) == set()


def test_embedded_and_daemon_share_a_state_folder(
    cli: Cli, daemon: Daemon, project: Context
) -> None:
    daemon.stop()
    assert steps_that_ran(cli.build(project.path).ok().err) == ALL
    daemon.start()
    through_daemon = cli.build("--addr", daemon.address, project.path)
    assert steps_that_ran(through_daemon.ok().err) == set()
    # the owner of the folder serves whoever would embed an engine on it
    assert steps_that_ran(cli.build(project.path).ok().err) == set()
    daemon.stop()
    assert steps_that_ran(cli.build(project.path).ok().err) == set()


@pytest.mark.peer("docker-buildx")
def test_stock_client_and_ours_share_the_cache(
    cli: Cli, buildx: Buildx, daemon: Daemon, project: Context
) -> None:
    assert steps_that_ran(buildx.build(project.path).ok().err) == ALL
    done = cli.build("--addr", daemon.address, project.path)
    assert steps_that_ran(done.ok().err) == set()


def test_no_cache_runs_everything(cli: Cli, project: Context) -> None:
    cli.build(project.path).ok()
    assert steps_that_ran(cli.build("--no-cache", project.path).ok().err) == ALL
    ran = steps_that_ran(cli.build("--no-cache-filter", "b", project.path).ok().err)
    assert {name for name in ran if name.startswith("[b ")} == {
        "[b 1/2] COPY folder /folder",
        "[b 2/2] RUN ls /folder > /b",
    }


def test_pruned_steps_run_again(cli: Cli, project: Context, tmp_path: Path) -> None:
    cli.build(project.path).ok()
    cli("prune", "--all").ok()
    assert steps_that_ran(cli.build(project.path).ok().err) == ALL
