"""Build options: contexts of each kind, platforms, arguments, labels, limits."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from dockerfile_builds import Builder, build, stock_build
from programs import Cli, Context, buildx, cli, context, daemon, state

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
__all__ = ["build", "buildx", "cli", "context", "daemon", "state", "stock_build"]

KINDS = ["build", pytest.param("stock_build", marks=pytest.mark.peer("docker-buildx"))]


@pytest.fixture(params=KINDS)
def any_build(request: pytest.FixtureRequest) -> Builder:
    """Our client with the embedded engine, then a stock client with our daemon."""
    return request.getfixturevalue(request.param)


def test_options_of_run_steps(any_build: Builder, context: Context) -> None:
    context.dockerfile(
        "FROM base\nRUN cat /etc/hosts > /hosts; ulimit -n > /files; ulimit -Hn > /hard; "
        "grep /dev/shm /proc/mounts > /shm; cat /proc/sys/kernel/hostname > /name\n"
    )
    image = any_build(
        "--add-host",
        "one.example:10.1.2.3",
        "--ulimit",
        "nofile=512:1024",
        "--shm-size",
        "32m",
        "--build-arg",
        "BUILDKIT_SANDBOX_HOSTNAME=custom",
        "--label",
        "from=flag",
        "--label",
        "empty=",
    )
    assert ["10.1.2.3", "one.example"] in [line.split() for line in image.lines("hosts")]
    assert (image.text("files"), image.text("hard")) == ("512\n", "1024\n")
    assert "size=32768k" in image.text("shm")
    assert image.text("name") == "custom\n"
    assert image.settings["Labels"] == {"from": "flag", "empty": ""}


def test_no_cache(build: Builder, context: Context) -> None:
    stamp = "cat /proc/sys/kernel/random/uuid"
    context.dockerfile(
        f"FROM base AS a\nRUN {stamp} > /a\nFROM base AS b\nRUN {stamp} > /b\n"
        "FROM base\nCOPY --from=a /a /a\nCOPY --from=b /b /b\n"
    )
    first, again = build(), build()
    assert (first.text("a"), first.text("b")) == (again.text("a"), again.text("b"))
    only_b = build("--no-cache-filter", "b")
    assert only_b.text("a") == first.text("a")
    assert only_b.text("b") != first.text("b")
    all_new = build("--no-cache")
    assert all_new.text("a") != first.text("a")
    assert all_new.text("b") != only_b.text("b")


def test_named_contexts(any_build: Builder, cli: Cli, context: Context, tmp_path: Path) -> None:
    """A folder, a layout, another stage; for one platform only; in place of a stage."""
    extra = tmp_path / "extra"
    extra.mkdir()
    (extra / "e").write_text("extra")
    context.dockerfile("FROM base\nRUN echo layout > /l\nENV FROM_LAYOUT=1\n")
    cli.build("-o", f"type=oci,tar=false,dest={tmp_path}/layout", context.path).ok()
    context.dockerfile(
        """
FROM base AS replaced
RUN false
FROM img AS user
RUN cat /l > /used
FROM scratch
COPY --from=files /e /e
COPY --from=img /l /l
COPY --from=user /used /used
COPY --from=replaced /e /instead
COPY --from=registry.example/never:1 /e /for-image
"""
    )
    layout = f"oci-layout://{tmp_path}/layout"
    image = any_build(
        "--build-context",
        f"files={extra}",
        "--build-context",
        f"img={layout}",
        "--build-context",
        f"replaced={extra}",
        "--build-context",
        f"registry.example/never:1={extra}",
    )
    assert image.names(".") == ["e", "for-image", "instead", "l", "used"]
    assert image.text("used") == "layout\n"


def test_named_contexts_for_one_platform(build: Builder, context: Context, tmp_path: Path) -> None:
    for name in ("amd64", "arm64"):
        context.write(f"../{name}/f", name)
    context.dockerfile("FROM scratch\nCOPY --from=files /f /f\n", base=False)
    image = build(
        "--build-context",
        f"files::linux/amd64={tmp_path}/amd64",
        "--build-context",
        f"files::linux/arm64={tmp_path}/arm64",
        "--platform",
        "linux/amd64,linux/arm64",
    )
    assert image.text("linux_amd64/f") == "amd64"
    assert image.text("linux_arm64/f") == "arm64"


def test_contexts_on_standard_input(any_build: Builder, context: Context) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        files = {
            "Dockerfile": b"FROM scratch\nCOPY data /data\n",
            "sub/Other": b"FROM scratch\nCOPY data /other\n",
            "data": b"d",
        }
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert any_build(where="-", stdin=buffer.getvalue()).text("data") == "d"
    other = any_build("-f", "sub/Other", where="-", stdin=buffer.getvalue())
    assert other.text("other") == "d"
    context.write("data", "from the folder")
    image = any_build("-f", "-", stdin=b"FROM scratch\nCOPY data /x\n")
    assert image.text("x") == "from the folder"
    alone = any_build(where="-", stdin=b"FROM scratch\nCOPY <<EOF /y\ny\nEOF\n")
    assert alone.text("y") == "y\n"


def test_several_platforms_are_one_index(
    any_build: Builder, context: Context, tmp_path: Path
) -> None:
    context.dockerfile(
        """
FROM --platform=$BUILDPLATFORM base AS cross
ARG TARGETPLATFORM BUILDPLATFORM TARGETVARIANT
RUN echo "$BUILDPLATFORM>$TARGETPLATFORM>$TARGETVARIANT" > /how
FROM scratch
ARG TARGETARCH
LABEL arch=$TARGETARCH
COPY --from=cross /how /how
"""
    )
    platforms = "linux/amd64,linux/arm64,linux/arm/v7"
    image = any_build("--platform", platforms)
    index = json.loads(image.layout.blob(image.layout.descriptor["digest"]))
    images = [m for m in index["manifests"] if m["platform"]["os"] != "unknown"]
    assert [
        "/".join(filter(None, (p["os"], p["architecture"], p.get("variant"))))
        for p in (m["platform"] for m in images)
    ] == platforms.split(",")
    for entry, arch in zip(images, ("amd64", "arm64", "arm"), strict=True):
        manifest = json.loads(image.layout.blob(entry["digest"]))
        config = json.loads(image.layout.blob(manifest["config"]["digest"]))
        assert config["architecture"] == arch
        assert config["config"]["Labels"] == {"arch": arch}
    assert image.text("linux_amd64/how") == "linux/amd64>linux/amd64>\n"
    assert image.text("linux_arm_v7/how") == "linux/amd64>linux/arm/v7>v7\n"
    assert "[linux/arm64 stage-2 1/1] COPY" in image.run.err
    single = any_build("--platform", "linux/arm64", "--build-arg", "BUILDKIT_MULTI_PLATFORM=1")
    assert single.text("linux_arm64/how") == "linux/amd64>linux/arm64>\n"


def test_dates_are_clamped(any_build: Builder, context: Context, tmp_path: Path) -> None:
    context.dockerfile("FROM base\nARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /seen\n")
    digests = set()
    for number in range(2):
        out = tmp_path / f"epoch{number}.tar"
        any_build.client.build(
            "--no-cache",
            "--build-arg",
            "SOURCE_DATE_EPOCH=1700000000",
            "-o",
            f"type=oci,dest={out},rewrite-timestamp=true",
            "--provenance=false",
            context.path,
        ).ok()
        with tarfile.open(out) as tar:
            index = json.load(tar.extractfile("index.json") or io.BytesIO())
            digests.add(index["manifests"][0]["digest"])
    assert len(digests) == 1
    image = any_build("--build-arg", "SOURCE_DATE_EPOCH=1700000000")
    assert image.layout.config["created"] == "2023-11-14T22:13:20Z"
    assert image.text("seen") == "1700000000\n"


def test_targets_and_files(any_build: Builder, context: Context) -> None:
    context.dockerfile("FROM base AS one\nRUN echo 1 > /1\nFROM base AS two\nRUN false\n")
    assert any_build("--target", "one").text("1") == "1\n"
    done = any_build.fails("--target", "oen")
    assert "target stage" in done.err
    assert "oen" in done.err
    context.write("sub/my.Dockerfile", "FROM scratch\nCOPY sub/f /f\n")
    context.write("sub/f", "f")
    assert any_build("-f", context.path / "sub/my.Dockerfile").text("f") == "f"


def test_syntax_directive_is_served_here(any_build: Builder, context: Context) -> None:
    context.dockerfile("FROM base\nRUN echo x > /x\n")
    text = (context.path / "Dockerfile").read_text()
    for name in (
        "docker/dockerfile:1",
        "docker/dockerfile:1.7-labs",
        "docker.io/docker/dockerfile",
    ):
        context.write("Dockerfile", f"# syntax={name}\n{text}")
        image = any_build()
        assert image.text("x") == "x\n"
        assert f"{name} is built in" in image.run.err
    context.write("Dockerfile", text)
    assert any_build("--build-arg", "BUILDKIT_SYNTAX=docker/dockerfile:1").text("x") == "x\n"


def test_keep_what_old_arguments_ask_for(build: Builder, context: Context) -> None:
    context.dockerfile("FROM scratch\nCOPY Dockerfile /d\n")
    image = build("--build-arg", "BUILDKIT_INLINE_CACHE=1", "--build-arg", "UNUSED=1")
    assert "d" in image.names(".")


def test_definitions_are_printed(cli: Cli, context: Context) -> None:
    """``debug dump-llb`` prints what a Dockerfile becomes, and any marshalled definition."""
    from boxwright import llb

    definition = llb.scratch().file(llb.mkfile("/x", b"x")).marshal()
    data = definition.SerializeToString()
    shown = cli("debug", "dump-llb", stdin=data).ok().out.splitlines()
    ops = [json.loads(line) for line in shown]
    assert ops[0]["Op"]["file"]["actions"][0]["mkfile"]["path"] == "/x"
    assert all(op["Digest"].startswith("sha256:") for op in ops)
    assert "digraph" in cli("debug", "dump-llb", "--dot", stdin=data).ok().out
