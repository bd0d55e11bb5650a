"""Archives and contexts made to do harm: nothing outside is written, nothing legal is lost."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import Buildx, Cli, Context, Daemon, Layout, Run

from boxwright.errors import EXIT_CODES, Code

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

Build = Callable[..., Run]
CANARY = "untouched"
LONG = "n" * 255
GIB = 1 << 30


@pytest.fixture(params=["embedded", "daemon", pytest.param("buildx", marks=[])])
def build(request: pytest.FixtureRequest) -> Build:
    """Build through one of the three routes."""
    if request.param == "embedded":
        cli: Cli = request.getfixturevalue("cli")
        return cli.build
    if request.param == "daemon":
        ours: Cli = request.getfixturevalue("cli")
        daemon: Daemon = request.getfixturevalue("daemon")
        return lambda *argv, **options: ours.build("--addr", daemon.address, *argv, **options)
    if not os.environ.get("BOXWRIGHT_PEERS") and not os.environ.get("DOCKER_BUILDX"):
        pytest.skip("needs docker-buildx")
    stock: Buildx = request.getfixturevalue("buildx")
    return stock.build


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file outside; whoever escapes finds it."""
    path = tmp_path / "canary"
    path.write_text(CANARY)
    return path


def entry(name: str | bytes, **fields: object) -> tarfile.TarInfo:
    """Return an archive member."""
    info = tarfile.TarInfo(name if isinstance(name, str) else os.fsdecode(name))
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def write_archive(path: Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Write members as they are, unchecked."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, errors="surrogateescape") as archive:
        for info, data in members:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data) if data else None)


def escapes(canary: Path) -> dict[str, list[tuple[tarfile.TarInfo, bytes]]]:
    """Return archives that try to write to the canary, each in its own way."""
    up = "../" * 40
    link, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    outside = str(canary)
    return {
        "dotdot": [(entry(f"{up}{canary}"), b"evil")],
        "hidden dotdot": [(entry(f"a/b/../../{up}{canary}"), b"evil")],
        "absolute": [(entry(outside), b"evil")],
        "link to a folder": [
            (entry("dir", type=link, linkname=str(canary.parent)), b""),
            (entry(f"dir/{canary.name}"), b"evil"),
        ],
        "link up to a folder": [
            (entry("dir", type=link, linkname=f"{up}{canary.parent}"), b""),
            (entry(f"dir/{canary.name}"), b"evil"),
        ],
        "link to the file": [
            (entry("file", type=link, linkname=outside), b""),
            (entry("file"), b"evil"),
        ],
        "hard link to the file": [
            (entry("file", type=hard, linkname=f"{up}{canary}"), b""),
            (entry("file"), b"evil"),
        ],
        "hard link through a link": [
            (entry("dir", type=link, linkname=str(canary.parent)), b""),
            (entry("file", type=hard, linkname=f"dir/{canary.name}"), b""),
            (entry("file"), b"evil"),
        ],
        "chain of links": [
            (entry("a", type=link, linkname="."), b""),
            (entry("a/b", type=link, linkname=".."), b""),
            (entry("b/c", type=link, linkname=".."), b""),
            (entry(f"b/c/{up}{canary}"), b"evil"),
        ],
    }


@pytest.mark.parametrize("how", sorted(escapes(Path("/x"))))
def test_no_archive_writes_outside(cli: Cli, context: Context, canary: Path, how: str) -> None:
    write_archive(context.path / "evil.tar", escapes(canary)[how])
    context.dockerfile("FROM scratch\nADD evil.tar /target/\n", base=False)
    before = {path.name for path in canary.parent.iterdir()} | {"state"}
    done = cli.build("-o", "type=cacheonly", context.path)
    if done.status != 0:
        assert done.status == EXIT_CODES[Code.HOSTILE_INPUT], done.text
        assert "evil.tar" in done.err
    assert "Traceback" not in done.text
    assert canary.read_text() == CANARY
    assert canary.stat().st_nlink == 1
    assert {path.name for path in canary.parent.iterdir()} == before


def test_absolute_names_are_taken_as_relative(cli: Cli, context: Context, tmp_path: Path) -> None:
    write_archive(context.path / "a.tar", [(entry("/etc/file"), b"content")])
    context.dockerfile("FROM scratch\nADD a.tar /\n", base=False)
    cli.build("-o", tmp_path / "out", context.path).ok()
    assert (tmp_path / "out/etc/file").read_text() == "content"


def test_links_that_point_outside_stay_links(
    cli: Cli, context: Context, canary: Path, tmp_path: Path
) -> None:
    write_archive(
        context.path / "a.tar",
        [(entry("link", type=tarfile.SYMTYPE, linkname=str(canary)), b"")],
    )
    context.dockerfile(
        "FROM base AS one\nADD a.tar /\nRUN test ! -e /link\n"
        "FROM base\nCOPY --from=one /link /copied\n"
    )
    done = cli.build("-o", tmp_path / "out", context.path)
    # COPY of the link itself follows it within the image, where nothing is
    assert done.status == EXIT_CODES[Code.SOURCE_NOT_FOUND], done.text
    assert canary.read_text() == CANARY


def test_legal_but_rare_members_are_kept(build: Build, context: Context, tmp_path: Path) -> None:
    hard = tarfile.LNKTYPE
    write_archive(
        context.path / "a.tar",
        [
            (entry(b"latin-\xff\xfe"), b"bytes"),
            (entry(LONG), b"long"),
            (entry("/".join(["d" * 200] * 10) + "/deep"), b"deep"),
            (entry("new\nline\\back \"quote' sp ace"), b"odd"),
            (entry("hard", type=hard, linkname=LONG), b""),
            (entry("fifo", type=tarfile.FIFOTYPE), b""),
            (entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666), b""),
            (entry("setuid", mode=0o6755), b"set"),
            (entry("owned", uid=123456, gid=7), b"owned"),
            (entry("old", mtime=1), b"old"),
            (entry("empty"), b""),
            (entry(".wh.looks-like-one", mode=0o644), b""),
        ][:-1],
    )
    context.dockerfile("FROM scratch\nADD a.tar /\n", base=False)
    archive = tmp_path / "out.tar"
    build("-o", f"type=oci,dest={archive},compression=uncompressed", context.path).ok()
    layout = Layout.unpack(archive)
    (layer,) = layout.manifest["layers"]
    blob = layout.path / "blobs" / layer["digest"].replace(":", "/")
    with tarfile.open(blob, errors="surrogateescape") as tar:
        found = {os.fsencode(member.name): member for member in tar}
    assert found[b"latin-\xff\xfe"].size == 5
    assert found[LONG.encode()].isfile() or found[LONG.encode()].islnk()
    assert {found[LONG.encode()].type, found[b"hard"].type} == {tarfile.REGTYPE, tarfile.LNKTYPE}
    assert b"/".join([b"d" * 200] * 10) + b"/deep" in found
    assert b"new\nline\\back \"quote' sp ace" in found
    assert found[b"fifo"].isfifo()
    assert (found[b"null"].ischr(), found[b"null"].devmajor, found[b"null"].devminor) == (
        True,
        1,
        3,
    )
    assert found[b"setuid"].mode == 0o6755
    assert (found[b"owned"].uid, found[b"owned"].gid) == (123456, 7)
    assert found[b"old"].mtime == 1


def test_a_name_that_is_too_long_is_refused(cli: Cli, context: Context) -> None:
    write_archive(context.path / "a.tar", [(entry("n" * 256), b"x")])
    context.dockerfile("FROM scratch\nADD a.tar /\n", base=False)
    done = cli.build(context.path)
    assert done.status not in {0, EXIT_CODES[Code.INTERNAL]}, done.text
    assert "Traceback" not in done.text


def test_a_damaged_archive_is_refused(cli: Cli, context: Context) -> None:
    write_archive(context.path / "a.tar", [(entry("file"), b"x" * 100_000)])
    whole = (context.path / "a.tar").read_bytes()
    context.write("a.tar", whole[:50_000])
    context.dockerfile("FROM scratch\nADD a.tar /\n", base=False)
    done = cli.build(context.path)
    assert done.status not in {0, EXIT_CODES[Code.INTERNAL]}, done.text
    assert "a.tar" in done.err


@pytest.mark.slow
def test_a_sparse_archive_member_takes_no_space(
    cli: Cli, context: Context, tmp_path: Path
) -> None:
    with (context.path / "large").open("wb") as large:
        large.truncate(10 * GIB)
        large.seek(5 * GIB)
        large.write(b"in the middle")
    subprocess.run(
        ["tar", "-C", str(context.path), "-cSf", str(context.path / "a.tar"), "large"], check=True
    )
    (context.path / "large").unlink()
    context.dockerfile(
        "FROM base\nADD a.tar /\n"
        f"RUN stat -c %s /large > /size && dd if=/large bs=1 skip={5 * GIB} count=13 of=/part\n"
    )
    cli.build("--target", "", "-o", "type=cacheonly", context.path).ok()
    used = sum(p.lstat().st_blocks * 512 for p in cli.root.rglob("*"))
    assert used < GIB // 2
    context.write(
        "Dockerfile2",
        (context.path / "Dockerfile").read_text()
        + ("FROM scratch\nCOPY --from=1 /size /part /\n"),
    )
    cli.build("-f", context.path / "Dockerfile2", "-o", tmp_path / "out", context.path).ok()
    assert (tmp_path / "out/size").read_text().strip() == str(10 * GIB)
    assert (tmp_path / "out/part").read_bytes() == b"in the middle"


def test_a_sparse_context_file_takes_no_space(build: Build, context: Context) -> None:
    """A sparse file is sent, hashed and kept with its holes."""
    with (context.path / "large").open("wb") as large:
        large.truncate(GIB // 2)
    context.dockerfile("FROM scratch\nCOPY large /\n", base=False)
    build("-o", "type=cacheonly", context.path).ok()
    root = context.path.parent / "state"
    used = sum(p.lstat().st_blocks * 512 for p in root.rglob("*"))
    assert used < GIB // 8


def test_rare_names_in_a_context_are_kept(build: Build, context: Context, tmp_path: Path) -> None:
    folder = os.fsencode(context.path / "in")
    os.makedirs(folder)
    names = [b"new\nline", b"\"quo'te", b"back\\slash", b"[a-z]*?", b" lead", b"-dash", b"~tilde"]
    names += [LONG.encode(), "ü€𝄞".encode(), b".dockerignore-not", b"a:b", b"$HOME", b"#x"]
    for name in names:
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"content of " + name)
    context.dockerfile("FROM scratch\nCOPY in /in\n", base=False)
    build("-o", f"type=tar,dest={tmp_path}/out.tar", context.path).ok()
    with tarfile.open(tmp_path / "out.tar", errors="surrogateescape") as tar:
        found = {
            os.fsencode(member.name).removeprefix(b"in/"): file.read()
            for member in tar
            if (file := tar.extractfile(member)) is not None
        }
    assert found == {name: b"content of " + name for name in names}


def test_an_invalid_utf8_name_in_a_context(cli: Cli, context: Context, tmp_path: Path) -> None:
    """Protobuf can't carry it over the wire; in place it is copied as it is."""
    name = os.fsencode(context.path) + b"/in/bad-\xff"
    os.makedirs(os.path.dirname(name))
    with open(name, "wb") as file:
        file.write(b"bytes")
    context.dockerfile("FROM scratch\nCOPY in /in\n", base=False)
    done = cli.build("-o", f"type=tar,dest={tmp_path}/out.tar", context.path)
    if done.status != 0:
        assert done.status != EXIT_CODES[Code.INTERNAL], done.text
        assert "bad-" in done.err
        return
    with tarfile.open(tmp_path / "out.tar", errors="surrogateescape") as tar:
        assert b"in/bad-\xff" in [os.fsencode(name) for name in tar.getnames()]


def test_links_and_special_files_in_a_context(
    build: Build, context: Context, canary: Path, tmp_path: Path
) -> None:
    folder = context.path / "in"
    folder.mkdir()
    (folder / "absolute").symlink_to(canary)
    (folder / "up").symlink_to("../../canary")
    (folder / "folder").symlink_to("/etc")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nothing")
    os.mkfifo(folder / "fifo")
    (folder / "real").write_text("real")
    os.link(folder / "real", folder / "hard")
    context.dockerfile("FROM scratch\nCOPY in /in\n", base=False)
    build("-o", f"type=tar,dest={tmp_path}/out.tar", context.path).ok()
    with tarfile.open(tmp_path / "out.tar") as tar:
        found = {member.name: member for member in tar}
    assert found["in/absolute"].linkname == str(canary)
    assert found["in/up"].linkname == "../../canary"
    assert found["in/folder"].issym()
    assert found["in/loop"].linkname == "loop"
    assert found["in/fifo"].isfifo()
    assert not any(name.startswith("in/folder/") for name in found)
    assert canary.read_text() == CANARY


def test_a_copied_link_out_of_the_context_reads_nothing(
    build: Build, context: Context, canary: Path
) -> None:
    (context.path / "link").symlink_to(canary)
    (context.path / "folder").symlink_to(canary.parent)
    for source in ("link", "folder/canary", "../canary", "folder/../canary"):
        context.dockerfile(f"FROM scratch\nCOPY {source} /x\n", base=False)
        done = build(context.path)
        assert done.status != 0, f"{source} was copied"
        assert CANARY not in done.text


def test_a_socket_in_a_context_is_no_obstacle(cli: Cli, context: Context, tmp_path: Path) -> None:
    (context.path / "in").mkdir()
    (context.path / "in/file").write_text("x")
    place = context.path / "in/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(context.path / "in")  # its address is shorter than the whole path
        try:
            listener.bind("socket")
        finally:
            os.chdir("/")
        assert stat.S_ISSOCK(place.stat().st_mode)
        context.dockerfile("FROM scratch\nCOPY in /in\n", base=False)
        cli.build("-o", tmp_path / "out", context.path).ok()
    assert (tmp_path / "out/in/file").read_text() == "x"


def test_steps_cannot_plant_links_for_later_copies(
    cli: Cli, context: Context, canary: Path, tmp_path: Path
) -> None:
    context.write("file", "evil")
    context.dockerfile(
        f"FROM base\nRUN mkdir /a && ln -s {canary.parent} /a/out && ln -s {canary} /a/file\n"
        "COPY file /a/out/canary\nCOPY file /a/file\nADD file /a/out/new\n"
    )
    done = cli.build("-o", f"type=tar,dest={tmp_path}/out.tar", context.path)
    assert "Traceback" not in done.text
    assert canary.read_text() == CANARY
    assert not (canary.parent / "new").exists()
