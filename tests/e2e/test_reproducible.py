"""Two builds of the same input: the same image, or told what differs. And twenty of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import Cli, Context, Daemon, Layout

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

EPOCH = {"SOURCE_DATE_EPOCH": "1700000000"}
STEADY = "FROM base\nCOPY file /file\nRUN mkdir /d && cat /file /file > /d/twice\n"


def test_a_reproducible_build_makes_its_output(cli: Cli, context: Context, tmp_path: Path) -> None:
    context.write("file", "text\n")
    context.dockerfile(STEADY)
    archive = tmp_path / "out.tar"
    output = f"type=oci,dest={archive},rewrite-timestamp=true"
    done = cli.build("--verify-reproducible", "-o", output, context.path, env=EPOCH).ok()
    assert "both builds gave the same image" in done.err
    plain = tmp_path / "plain.tar"
    cli.build("-o", f"type=oci,dest={plain},rewrite-timestamp=true", context.path, env=EPOCH).ok()
    assert Layout.unpack(plain).descriptor == Layout.unpack(archive).descriptor


def test_files_that_differ_are_named_and_nothing_is_put_out(
    cli: Cli, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(
        "FROM base\nRUN dd if=/dev/urandom of=/noise count=1 && echo same > /same\n"
        "RUN mkdir /d && cat /proc/sys/kernel/random/uuid > /d/id\n"
    )
    output = f"type=oci,dest={tmp_path}/out.tar,rewrite-timestamp=true"
    done = cli(
        "--addr",
        daemon.address,
        "build",
        "--progress",
        "plain",
        "--verify-reproducible",
        "-o",
        output,
        context.path,
        env=EPOCH,
    )
    assert done.status == 30
    assert "/noise: content" in done.err
    assert "/d/id: content" in done.err
    assert "/same" not in done.err.partition("two builds")[2]
    assert "layer 2 (RUN" in done.err
    assert not (tmp_path / "out.tar").exists()


def test_times_alone_are_told_apart(cli: Cli, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM base\nRUN touch /file\n")
    done = cli.build(
        "--verify-reproducible", "-o", f"type=oci,dest={tmp_path}/o.tar", context.path
    )
    assert done.status == 30
    assert "config: created: value" in done.err
    assert "SOURCE_DATE_EPOCH" in done.err


def test_a_context_on_standard_input_cannot_be_read_twice(cli: Cli) -> None:
    tar = b"file" + bytes(253) + b"ustar" + bytes(250) + bytes(1024)
    done = cli.build("--verify-reproducible", "-", stdin=tar)
    assert done.status == 2
    assert "standard input twice" in done.err


def test_twenty_builds_have_one_digest(
    cli: Cli, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    context.write("file", bytes(range(256)) * 9000)
    context.dockerfile(STEADY)
    digests = set()
    for number in range(20):
        metadata = tmp_path / f"{number}.json"
        cli(
            "--addr",
            daemon.address,
            "build",
            "--progress",
            "plain",
            "--no-cache",
            "-o",
            f"type=oci,dest={tmp_path}/{number}.tar,rewrite-timestamp=true",
            "--metadata-file",
            metadata,
            context.path,
            env=EPOCH,
        ).ok()
        digests.add(json.loads(metadata.read_text())["containerimage.digest"])
    assert len(digests) == 1
