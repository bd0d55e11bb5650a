"""Real applications through every front: the embedded engine, our daemon, a stock client."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from leftovers import steps_that_ran
from programs import PROGRAM, Buildx, Cli, Context, Daemon, Layout, find_peer, run

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("crun"),
    pytest.mark.peer("docker-buildx"),
]

STATIC = """
FROM base AS build
COPY source /source
RUN mkdir -p /out/bin && cp /bin/busybox /out/bin/app && sha256sum /source/* > /out/sums \
  && ln -s app /out/bin/alias && chmod 0555 /out/bin/app && chown 10:20 /out/sums
FROM scratch
COPY --from=build /out /
COPY --from=build --chown=65532:65532 /source/data /data
USER 65532:65532
EXPOSE 8080/tcp
LABEL org.opencontainers.image.title=app
ENTRYPOINT ["/bin/app"]
CMD ["echo", "it", "runs"]
"""
EPOCH = "1700000000"


def output(archive: Path) -> str:
    """Return an output whose bytes depend on nothing but the sources."""
    return f"type=oci,dest={archive},rewrite-timestamp=true"


def start_daemon(tmp_path: Path, name: str) -> Daemon:
    """Return a running daemon with an empty state folder of its own."""
    root, address = tmp_path / name, f"unix://{tmp_path}/{name}.sock"
    argv = [PROGRAM, "daemon", "--root", str(root), "--addr", address]
    return Daemon(root, address, argv, tmp_path / f"{name}.log").start()


def make_buildx(tmp_path: Path, daemon: Daemon) -> Buildx:
    """Return a stock client with a builder for this daemon."""
    buildx = Buildx(find_peer("docker-buildx"), tmp_path / "buildx", daemon.address)
    buildx.config.mkdir()
    buildx("create", "--name", "remote", "--driver", "remote", daemon.address).ok()
    return buildx


def test_a_static_program_is_the_same_to_the_byte(
    cli: Cli, context: Context, tmp_path: Path
) -> None:
    """Three routes with three empty state folders make one manifest."""
    context.dockerfile(STATIC)
    for number in range(20):
        context.write(f"source/file{number}", f"content {number}\n" * number)
    context.write("source/data", b"\0\1\2" * 100_000)
    env = {"SOURCE_DATE_EPOCH": EPOCH}
    made: dict[str, Layout] = {}

    archive = tmp_path / "embedded.tar"
    cli.build("--provenance=false", "-o", output(archive), context.path, env=env).ok()
    made["embedded"] = Layout.unpack(archive)

    ours = start_daemon(tmp_path, "ours")
    try:
        archive = tmp_path / "daemon.tar"
        flags = ("--addr", ours.address, "--provenance=false", "-o", output(archive))
        cli.build(*flags, context.path, env=env).ok()
        made["daemon"] = Layout.unpack(archive)
    finally:
        ours.stop()

    stock = start_daemon(tmp_path, "stock")
    try:
        archive = tmp_path / "stock.tar"
        make_buildx(tmp_path, stock).build(
            "--provenance=false", "-o", output(archive), context.path, env=env
        ).ok()
        made["stock"] = Layout.unpack(archive)
    finally:
        stock.stop()

    digests = {name: layout.descriptor["digest"] for name, layout in made.items()}
    assert len(set(digests.values())) == 1, json.dumps(
        {name: [layout.manifest, layout.config] for name, layout in made.items()}, indent=1
    )
    files = made["embedded"].files()
    assert files["bin/alias"].endswith(" app")
    assert files["sums"].split()[1] == "10/20"
    assert files["data"].split()[1:3] == ["65532/65532", "300000"]
    assert made["embedded"].config["created"] == "2023-11-14T22:13:20Z"


PYTHON = """
FROM debian
RUN apt-get --version && python3 --version
WORKDIR /srv/app
COPY requirements.txt wheels* ./
RUN pip3 install --no-index --find-links . --break-system-packages -r requirements.txt
COPY service.py .
RUN useradd --system service && python3 -m compileall -q /srv/app \
  && rm -rf /srv/app/__pycache__
USER service
EXPOSE 8000
HEALTHCHECK CMD ["python3", "-c", "import service"]
CMD ["python3", "service.py"]
"""
SERVICE = "import greeting\n\nprint(greeting.hello())\n"


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Debian with pip, as a root file system archive, made once."""
    folder = tmp_path_factory.mktemp("debian")
    root = folder / "root"
    mirror = ""
    for source in (Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")):
        words = source.read_text().split() if source.is_file() else []
        mirror = mirror or next((w for w in words if w.rstrip("/").endswith("/debian")), "")
    include = "python3-minimal,python3-pip,passwd"
    argv = ["debootstrap", "--variant=minbase", f"--include={include}", "bookworm", str(root)]
    done = run([*argv, mirror] if mirror else argv, timeout_s=900)
    if done.status != 0:
        pytest.skip(f"no Debian mirror: {done.text[-300:]}")
    archive = folder / "rootfs.tar"
    subprocess.run(
        ["tar", "-C", str(root), "--numeric-owner", "--one-file-system", "-cf", archive, "."],
        check=True,
    )
    shutil.rmtree(root)
    yield archive
    archive.unlink()


def write_wheel(path: Path) -> None:
    """Write a package that needs nothing, as pip wants it."""
    import zipfile

    with zipfile.ZipFile(path / "greeting-1.0-py3-none-any.whl", "w") as wheel:
        info = "greeting-1.0.dist-info"
        wheel.writestr("greeting.py", "def hello():\n    return 'hello'\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def comparable(layout: Layout) -> tuple[dict[str, str], dict[str, Any]]:
    """Return file list and config without what time puts into them."""
    config = layout.config
    config.pop("created", None)
    config.pop("rootfs", None)
    for item in config.get("history", ()):
        item.pop("created", None)
    logs = ("var/log/", "var/cache/", "var/lib/apt/")
    files = {k: v for k, v in layout.files().items() if not k.startswith(logs)}
    return files, config


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.peer("debootstrap")
def test_a_python_service_on_debian(
    cli: Cli, context: Context, debian: Path, tmp_path: Path
) -> None:
    """Three routes make the same files and configs; one warm folder makes one manifest."""
    base = Context(tmp_path / "base")
    base.path.mkdir()
    shutil.copy(debian, base.path / "rootfs.tar")
    base.dockerfile("FROM scratch\nADD rootfs.tar /\nENV LANG=C.UTF-8\n", base=False)
    layout = tmp_path / "debian.tar"
    cli.build("-o", f"type=oci,dest={layout},compression=uncompressed", base.path).ok()
    unpacked = Layout.unpack(layout).path

    context.dockerfile(PYTHON, base=False)
    context.write("requirements.txt", "greeting==1.0\n")
    context.write("service.py", SERVICE)
    (context.path / "wheels-here").mkdir()
    write_wheel(context.path / "wheels-here")
    flags = ("--build-context", f"debian=oci-layout://{unpacked}", "--provenance=false")

    def archive(name: str) -> Path:
        return tmp_path / f"{name}.tar"

    def build(tool: Cli | Buildx, name: str, *more: str) -> str:
        done = tool.build(
            *more, *flags, "-o", f"type=oci,dest={archive(name)}", context.path, timeout_s=600
        )
        return done.ok().err

    build(cli, "embedded")
    daemon = start_daemon(tmp_path, "ours")
    try:
        build(cli, "daemon", "--addr", daemon.address)
        buildx = make_buildx(tmp_path, daemon)
        # "[context debian] …" is no work: the layout is the client's, so it is asked every time
        warm = steps_that_ran(build(buildx, "stock"))
        assert {name for name in warm if not name.startswith("[context ")} == set()
        cold = steps_that_ran(build(buildx, "cold", "--no-cache"))
        assert any("RUN pip3 install" in name for name in cold)
    finally:
        daemon.stop()
    made = {name: Layout.unpack(archive(name)) for name in ("embedded", "daemon", "stock", "cold")}
    first = comparable(made["embedded"])
    assert "srv/app/service.py" in first[0]
    assert any(name.endswith("packages/greeting.py") for name in first[0])
    for name in ("daemon", "stock", "cold"):
        assert comparable(made[name]) == first, name
    assert made["daemon"].descriptor["digest"] == made["stock"].descriptor["digest"]
