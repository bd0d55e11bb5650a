"""COPY and ADD: sources, owners, modes, filters, archives; and the files of the context."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from dockerfile_builds import Builder, Image, build, stock_build
from programs import Context, buildx, cli, context, daemon, state

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
__all__ = ["build", "buildx", "cli", "context", "daemon", "state", "stock_build"]

FLAGS = r"""
FROM base AS made
RUN mkdir -p /src/sub && echo 1 > /src/sub/f && ln -s sub/f /src/link && chmod 711 /src/sub
FROM base AS names
COPY <<EOF /etc/passwd
app:x:41:42::/:/bin/sh
EOF
COPY <<EOF /etc/group
app:x:42:
grp:x:77:
EOF
COPY --chown=app tree/a.txt /own/name
COPY --chown=app:grp tree/a.txt /own/names
COPY --chown=5 tree/a.txt /own/number
COPY --chown=5:6 tree /own/tree
ADD --chown=:grp tree/a.txt /own/group
FROM scratch
COPY --from=names /own /own
COPY --chmod=640 tree/a.txt /mode/octal
COPY --chmod=u=rwX,go=rX tree /mode/symbolic
COPY --chmod=+x tree/a.txt /mode/plus
COPY --chmod=g+s,o-r tree/a.txt /mode/special
COPY --from=made /src /from
COPY --from=made --link /src/sub/f /linked/file
COPY --link --chown=8:9 --chmod=600 tree /linked/tree
COPY --parents tree/./deep/x.md tree/deep/*.txt /parents/
COPY --parents ./tree/*/*.md /wild/
COPY --exclude=*.md --exclude=deep/y* tree /excluded
COPY tree/*.txt tree/b?.bin /globbed/
COPY ["tree/with space", "tree/a.txt", "/json dir/"]
COPY tree/a.txt tree/deep /several/
COPY tree/a.txt /renamed
COPY tree/a.txt /into/
WORKDIR /work
COPY tree/a.txt .
COPY tree/a.txt rel/name
ADD --exclude=*.txt tree /add
"""


def fill(context: Context) -> None:
    context.write("tree/a.txt", "a")
    context.write("tree/b1.bin", "b", 0o755)
    context.write("tree/with space", "s")
    context.write("tree/deep/x.md", "x")
    context.write("tree/deep/y.txt", "y")
    context.write("tree/deep/z.txt", "z")


def check_flags(image: Image) -> None:
    files = image.layout.files()

    def owner_and_mode(path: str) -> list[str]:
        return files[path].split()[:2]

    assert owner_and_mode("own/name") == ["-rw-r--r--", "41/42"]
    assert owner_and_mode("own/names") == ["-rw-r--r--", "41/77"]
    assert owner_and_mode("own/number") == ["-rw-r--r--", "5/5"]
    assert owner_and_mode("own/tree/deep/x.md") == ["-rw-r--r--", "5/6"]
    assert owner_and_mode("own/tree") == ["drwxr-xr-x", "5/6"]
    assert owner_and_mode("own/group") == ["-rw-r--r--", "0/77"]
    assert owner_and_mode("mode/octal") == ["-rw-r-----", "0/0"]
    assert owner_and_mode("mode/symbolic/deep") == ["drwxr-xr-x", "0/0"]
    assert owner_and_mode("mode/symbolic/a.txt") == ["-rw-r--r--", "0/0"]
    assert owner_and_mode("mode/symbolic/b1.bin") == ["-rwxr-xr-x", "0/0"]
    assert owner_and_mode("mode/plus") == ["-rwxr-xr-x", "0/0"]
    assert owner_and_mode("mode/special") == ["-rw-r-S---", "0/0"]
    assert owner_and_mode("from/sub") == ["drwx--x--x", "0/0"]
    assert files["from/link"].endswith("sub/f")
    assert image.text("linked/file") == "1\n"
    assert owner_and_mode("linked/tree/deep/x.md") == ["-rw-------", "8/9"]
    assert image.names("parents") == ["deep/x.md", "tree/deep/y.txt", "tree/deep/z.txt"]
    assert image.names("wild") == ["tree/deep/x.md"]
    assert image.names("excluded") == ["a.txt", "b1.bin", "deep/x.md", "deep/z.txt", "with space"]
    assert image.names("globbed") == ["a.txt", "b1.bin"]
    assert image.names("json dir") == ["a.txt", "with space"]
    assert image.names("several") == ["a.txt", "x.md", "y.txt", "z.txt"]
    assert image.text("renamed") == image.text("into/a.txt") == "a"
    assert image.names("work") == ["a.txt", "rel/name"]
    assert image.names("add") == ["b1.bin", "deep/x.md", "deep/y.txt", "deep/z.txt", "with space"]


def test_flags_of_copy(build: Builder, context: Context) -> None:
    fill(context)
    context.dockerfile(FLAGS)
    check_flags(build())


@pytest.mark.peer("docker-buildx")
def test_flags_of_copy_with_a_stock_client(stock_build: Builder, context: Context) -> None:
    fill(context)
    context.dockerfile(FLAGS)
    check_flags(stock_build())


def archive(compression: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=f"w:{compression}") as tar:
        info = tarfile.TarInfo("in/tar")
        info.size, info.uid, info.gid, info.mode = 3, 12, 13, 0o604
        tar.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


def test_add_unpacks_archives(build: Builder, context: Context) -> None:
    for compression in ("", "gz", "bz2", "xz"):
        context.write(f"archives/t{compression}.tar", archive(compression))
    context.write("broken.tar", "not really")
    lines = "".join(f"ADD archives/t{c}.tar /x{c}/\n" for c in ("", "gz", "bz2", "xz"))
    context.dockerfile(
        f"FROM scratch\n{lines}ADD --unpack=false archives/tgz.tar /kept/\n"
        "ADD --chown=3:4 archives/t.tar /owned/\nADD broken.tar /plain/\n"
        "COPY archives/t.tar /copied/\n"
    )
    image = build()
    for compression in ("", "gz", "bz2", "xz"):
        assert image.text(f"x{compression}/in/tar") == "abc"
    assert image.mode("x/in/tar").split()[:2] == ["-rw----r--", "12/13"]
    assert image.names("kept") == ["tgz.tar"]
    assert image.mode("owned/in/tar").split()[1] == "3/4"
    assert image.text("plain/broken.tar") == "not really"
    assert image.names("copied") == ["t.tar"]


def test_links_of_the_context_stay_inside(build: Builder, context: Context) -> None:
    context.write("real/file", "inside")
    (context.path / "absolute").symlink_to("/real/file")
    (context.path / "outside").symlink_to("/etc/hostname")
    (context.path / "folder").symlink_to("real")
    context.dockerfile(
        "FROM scratch\nCOPY absolute /followed\nCOPY folder/file /through\nCOPY folder /taken\n"
        "COPY real /links/real\n"
    )
    image = build()
    assert image.text("followed") == image.text("through") == "inside"
    assert image.names("taken") == ["file"]
    context.dockerfile("FROM scratch\nCOPY outside /x\n")
    assert "not found" in build.fails().err


def test_ignore_files(build: Builder, context: Context) -> None:
    for name in (
        "a.log",
        "keep.log",
        "b.txt",
        "node_modules/m",
        "sub/node_modules/m",
        "sub/c.txt",
    ):
        context.write(f"ctx/{name}", name)
    context.write("ctx/.dockerignore", "# comment\n**/node_modules\n*.log\n!keep.log\n.base\n")
    context.write("ctx/Dockerfile", "FROM scratch\nCOPY . /all\n")
    context.write("ctx/other.Dockerfile", "FROM scratch\nCOPY . /all\n")
    context.write("ctx/other.Dockerfile.dockerignore", "*\n!sub\nsub/c.txt\n")
    image = build(where=context.path / "ctx")
    assert image.names("all") == [
        ".dockerignore",
        "Dockerfile",
        "b.txt",
        "keep.log",
        "other.Dockerfile",
        "other.Dockerfile.dockerignore",
        "sub/c.txt",
    ]
    other = build("-f", context.path / "ctx/other.Dockerfile", where=context.path / "ctx")
    assert other.names("all") == ["sub/node_modules/m"]
    context.write("ctx/Dockerfile", "FROM scratch\nCOPY a.log /x\n")
    done = build.client.build(context.path / "ctx")
    assert ".dockerignore" in done.err
    assert "not found" in done.err


def test_a_folder_is_no_ignore_file(build: Builder, context: Context) -> None:
    context.write("ctx/Dockerfile", "FROM scratch\nCOPY . /all\n")
    context.write("ctx/.dockerignore/a", "b.txt")
    context.write("ctx/Dockerfile.dockerignore/a", "b.txt")
    context.write("ctx/b.txt", "b")
    image = build(where=context.path / "ctx")
    assert {".dockerignore/a", "b.txt"} <= set(image.names("all"))


def test_hard_links_and_copies_of_one_file(build: Builder, context: Context) -> None:
    """Two copies of one file are two files, also when the folder is copied once more."""
    context.write("f", "same")
    context.dockerfile(
        "FROM scratch AS a\nCOPY f /d/1\nCOPY f /d/2\nCOPY f /d/3\n"
        "FROM base AS b\nRUN mkdir /l && echo x > /l/1 && ln /l/1 /l/2\n"
        "FROM scratch\nCOPY --from=a /d /d\nCOPY --from=b /l /l\n"
    )
    image = build()
    files = image.layout.files()
    assert [files[f"d/{n}"][0] for n in "123"] == ["-", "-", "-"]
    assert [name for name in files if name.startswith("l/")] == ["l/1", "l/2 link to l/1"]


def test_files_of_one_origin_are_separate_for_steps(build: Builder, context: Context) -> None:
    """What a step copies, archives or changes is one file, wherever else its content came to."""
    context.write("f", "same")
    context.write("tree/g", "other")
    context.dockerfile(
        "FROM base AS made\nRUN echo made > /made\n"
        "FROM base\nCOPY f /a/f\nCOPY tree /a/tree\nCOPY f tree /b/\nADD . /c\n"
        "COPY --from=made / /d\nCOPY --from=made /made /e/\n"
        "COPY --link f /l/f\nCOPY --link tree /l/\nCOPY --link f /m/f\n"
        "RUN mkdir /copies && cp -a /a /b /c /d /e /l /m /copies && cd /copies && echo more >> a/f"
        " m/f && cat b/f c/f l/f > /seen && busybox find . -type f -links +1 > /links;"
        " busybox tar cf - -C / a b c d e l m bin | busybox tar tvf - | grep ' -> .*[^x]$' > /tar;"
        " busybox stat -c %i /a/f /b/f /c/f /b/g /a/tree/g /c/tree/g /bin/busybox /d/bin/busybox"
        " /d/made /e/made /l/f /l/g /m/f | sort | uniq -d > /twins\n"
    )
    image = build()
    told = {name: image.text(name) for name in ("seen", "links", "tar", "twins")}
    assert told == {"seen": "samesamesame", "links": "", "tar": "", "twins": ""}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("COPY nothing /", '"/nothing": not found'),
        ("COPY --from=nowhere.invalid/x:1 /a /b", "nowhere.invalid"),
        ("COPY --chmod=9z ctx /", "9z"),
        ("COPY --chwon=1 ctx /", "did you mean chown?"),
        ("COPY onlyone", "requires at least two arguments"),
        ("ADD --checksum=sha256:00 Dockerfile /", "checksum"),
        ("COPY https://example.com/x /", "source can't be a URL for COPY"),
    ],
)
def test_mistakes_are_named(line: str, said: str, build: Builder, context: Context) -> None:
    context.write("a", "")
    context.write("b", "")
    context.dockerfile(f"FROM base\n{line}\n")
    done = build.fails()
    assert said in done.err
    assert f">>> {line}" in done.err


def test_sources_of_other_kinds(build: Builder, context: Context, tmp_path: Path) -> None:
    """A file of the web and its checksum."""
    import hashlib
    import http.server
    import threading

    body = archive("gz")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815 - the base class's names

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/t.tar.gz"
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        context.dockerfile(
            f"FROM scratch\nADD {url} /plain/\nADD --checksum={digest} --chmod=600 {url} /checked/\n"
            f"ADD --unpack=true {url} /unpacked/\nADD --chown=4:5 {url} /renamed\n"
        )
        image = build()
        assert image.names("plain") == ["t.tar.gz"]
        assert image.mode("checked/t.tar.gz").split()[0] == "-rw-------"
        assert image.text("unpacked/in/tar") == "abc"
        assert image.mode("renamed").split()[1] == "4/5"
        wrong = "sha256:" + "0" * 64
        context.dockerfile(f"FROM scratch\nADD --checksum={wrong} {url} /x\n")
        assert digest in build.fails().err
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
