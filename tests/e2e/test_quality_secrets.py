"""A secret is in no layer, config, history, log, progress or state file."""

from __future__ import annotations

import contextlib
import secrets
import signal
import subprocess
from pathlib import Path

import pytest
from leftovers import Process, files_below
from programs import PROGRAM, Buildx, Cli, Context, Daemon, Layout

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

DOCKERFILE = """
FROM base
RUN --mount=type=secret,id=file cat /run/secrets/file | wc -c > /size
RUN --mount=type=secret,id=file,target=/etc/deep/in/it,mode=0400,uid=7 \
  stat -c %a:%u /etc/deep/in/it > /mode
RUN --mount=type=secret,id=variable,env=TOKEN echo "${#TOKEN}" > /length
RUN --mount=type=secret,id=file if cat /run/secrets/file | grep -q nothing; then false; fi
"""


def files_with(folder: Path, value: str) -> list[str]:
    """Return the files under a folder that hold the value, compressed ones looked into."""
    found = []
    for path in files_below(folder):
        if path.is_symlink() or not path.is_file():
            continue
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            continue
        for program in ([], ["gzip", "-dc"], ["zstd", "-dc"]):
            if program:
                done = subprocess.run(program, input=data, capture_output=True, check=False)
                data_now = done.stdout
            else:
                data_now = data
            if value.encode() in data_now:
                found.append(str(path))
                break
    return found


def mounts_with(value: str) -> list[str]:
    """Return the mount tables that hold the value."""
    found = []
    for table in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            if value in table.read_text():
                found.append(str(table))
    return found


def test_a_grep_for_the_value_finds_nothing(
    cli: Cli, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    value, variable = secrets.token_hex(20), secrets.token_hex(20)
    source = tmp_path / "outside"
    source.write_text(value)
    context.dockerfile(DOCKERFILE)
    archive = tmp_path / "out" / "out.tar"
    done = cli.build(
        *("--addr", daemon.address, "--no-cache"),
        *("--secret", f"id=file,src={source}", "--secret", "id=variable,env=GIVEN"),
        *("-o", f"type=oci,dest={archive}", "-t", "kept", context.path),
        env={"GIVEN": variable},
    ).ok()
    layout = Layout.unpack(archive)
    assert layout.files()["size"].split()[2] == "3"  # "40" and the line's end: it was there
    assert files_with(layout.path, "400:7") != []
    assert not any("deep" in name for name in layout.files())
    for hidden in (value, variable):
        assert hidden not in done.text
        assert files_with(daemon.root, hidden) == []
        assert files_with(archive.parent, hidden) == []
        assert hidden not in daemon.log.read_text()
        assert mounts_with(hidden) == []


def test_it_is_on_no_disk_while_the_step_runs_or_after_a_kill(
    daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    value = secrets.token_hex(20)
    source = tmp_path / "outside"
    source.write_text(value)
    context.dockerfile(
        "FROM base\n"
        "RUN --mount=type=secret,id=file grep -q . /run/secrets/file; echo begun-$((1+1)); "
        "sleep 3600\n"
    )
    argv = [PROGRAM, "build", "--progress", "plain", "--addr", daemon.address]
    argv += ["--secret", f"id=file,src={source}", str(context.path)]
    build = Process(argv, tmp_path / "build.log")
    try:
        build.wait_for_text("begun-2")
        assert files_with(daemon.root, value) == []
        assert mounts_with(value) == []
        daemon.stop(signal.SIGKILL)
        build.wait()
        assert files_with(daemon.root, value) == []
    finally:
        build.close()


def test_a_required_secret_that_nobody_has(cli: Cli, context: Context) -> None:
    context.dockerfile("FROM base\nRUN --mount=type=secret,id=absent,required=true true\n")
    done = cli.build(context.path)
    assert done.status != 0
    assert "absent" in done.err
    assert "hint: " in done.err
    assert "Traceback" not in done.text


def test_the_value_of_a_secret_is_not_in_the_cache_key(
    cli: Cli, context: Context, tmp_path: Path
) -> None:
    source = tmp_path / "outside"
    source.write_text("first")
    context.dockerfile("FROM base\nRUN --mount=type=secret,id=file cat /run/secrets/file > /x\n")
    flags = ("--secret", f"id=file,src={source}")
    cli.build(*flags, context.path).ok()
    source.write_text("second")
    assert "CACHED" in cli.build(*flags, context.path).ok().err


@pytest.mark.peer("docker-buildx")
def test_a_stock_client_s_secret(
    buildx: Buildx, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    value = secrets.token_hex(20)
    source = tmp_path / "outside"
    source.write_text(value)
    context.dockerfile(
        "FROM base\nRUN --mount=type=secret,id=file cat /run/secrets/file | wc -c > /size\n"
    )
    target = tmp_path / "out"
    buildx.build(
        "--secret", f"id=file,src={source}", "-o", f"type=local,dest={target}", context.path
    ).ok()
    assert (target / "size").read_text().strip() == "40"
    assert files_with(daemon.root, value) == []
