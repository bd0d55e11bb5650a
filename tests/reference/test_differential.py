"""Minimal cases in which our daemon once differed from upstream's; both must agree."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
from peers import Client, Daemons
from programs import Context, Layout

pytestmark = [pytest.mark.reference, pytest.mark.root]

EPOCH = "1700000000"


@dataclass(frozen=True)
class Case:
    """A Dockerfile over a small context."""

    dockerfile: str
    base: bool = False
    options: tuple[str, ...] = ()


EQUAL = {
    "times of folders that patterns make": Case(
        "FROM scratch\nCOPY --parents data/sub/3.bin /x/\n",
    ),
    "time of a folder with mount stubs": Case("FROM base\nRUN cp -a /etc /copy\n", base=True),
    "time of a copied folder with mount stubs": Case(
        "FROM base AS a\nRUN true\nFROM scratch\nCOPY --from=a /etc /etc\n", base=True
    ),
    "matches of one name": Case("FROM scratch\nCOPY data/*/same /x/\n"),
    "matches over one name": Case("FROM scratch\nCOPY data/?.txt /x\n"),
    "folders merged by a wildcard": Case("FROM scratch\nCOPY data/* /x/\n"),
    "two platforms": Case(
        "FROM scratch\nARG TARGETARCH\nCOPY data/1.txt /$TARGETARCH\n",
        options=("--opt", "platform=linux/amd64,linux/arm64"),
    ),
}

TREES = {
    "times of a local output": Case("FROM scratch\nCOPY data /data\n"),
    "copies of one file": Case("FROM scratch\nCOPY data/1.txt /a\nCOPY data/1.txt /b\n"),
    "absolute links below platforms": Case(
        "FROM base\nRUN ln -s /etc/passwd /link\n",
        base=True,
        options=("--opt", "build-arg:BUILDKIT_MULTI_PLATFORM=1"),
    ),
}

ERRORS = {
    "missing source": "FROM scratch\nCOPY missing /x\n",
    "missing folder before a wildcard": "FROM scratch\nCOPY missing/sub/* /x/\n",
    "file over folder": "FROM scratch\nWORKDIR /x/1.txt\nCOPY data/1.txt /x/\n",
    "folder over file": "FROM scratch\nCOPY data/1.txt /x\nCOPY data /x\n",
    "unknown user": "FROM base\nUSER nobody-there\nRUN true\n",
    "missing secret": "FROM base\nRUN --mount=type=secret,id=absent,required true\n",
    "failing command": "FROM base\nRUN exit 3\n",
    "unknown instruction": "FROM scratch\nFOO bar\n",
}


def upstream_client() -> Client:
    return Client("upstream", os.environ["BUILDCTL"])


def prepare(context: Context, dockerfile: str, *, base: bool) -> None:
    for name in ("data/1.txt", "data/2.txt", "data/a/same", "data/b/same", "data/sub/3.bin"):
        path = context.write(name, name)
        os.utime(path, (1_600_000_000, 1_600_000_000))
    for name in ("data/sub", "data/a", "data/b", "data"):
        os.utime(context.path / name, (1_500_000_000, 1_500_000_000))
    if base:
        passwd = context.write(".base/etc/passwd", "root:x:0:0:root:/:/bin/sh\n")
        os.utime(passwd.parent, (1_500_000_000, 1_500_000_000))
    context.dockerfile(dockerfile, base=base)


@pytest.mark.parametrize("name", list(EQUAL))
def test_images_are_equal(name: str, daemons: Daemons, context: Context, tmp_path: Path) -> None:
    case = EQUAL[name]
    prepare(context, case.dockerfile, base=case.base)
    layouts = []
    for address in (daemons.ours, daemons.upstream):
        archive = tmp_path / f"{len(layouts)}.tar"
        upstream_client().build(
            address,
            context.path,
            "--opt",
            f"build-arg:SOURCE_DATE_EPOCH={EPOCH}",
            *case.options,
            "--output",
            f"type=oci,dest={archive},rewrite-timestamp=true,compression=uncompressed,"
            "force-compression=true",
        ).ok()
        layouts.append(Layout.unpack(archive))
    assert layouts[0].descriptor == layouts[1].descriptor


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = os.readlink(path) if path.is_symlink() else ""
        links = 0 if path.is_dir() else info.st_nlink
        found[str(path.relative_to(root))] = (
            oct(info.st_mode),
            info.st_uid,
            info.st_gid,
            int(info.st_mtime),
            links,
            content,
        )
    return found


@pytest.mark.parametrize("name", list(TREES))
def test_local_outputs_are_equal(
    name: str, daemons: Daemons, context: Context, tmp_path: Path
) -> None:
    case = TREES[name]
    prepare(context, case.dockerfile, base=case.base)
    trees = []
    for address in (daemons.ours, daemons.upstream):
        folder = tmp_path / f"out{len(trees)}"
        upstream_client().build(
            address,
            context.path,
            "--opt",
            f"build-arg:SOURCE_DATE_EPOCH={EPOCH}",
            *case.options,
            "--output",
            f"type=local,dest={folder}",
        ).ok()
        trees.append(tree(folder))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_are_equal(name: str, daemons: Daemons, context: Context) -> None:
    import re

    dockerfile = ERRORS[name]
    prepare(context, dockerfile, base="FROM base" in dockerfile)
    said = []
    for address in (daemons.ours, daemons.upstream):
        done = upstream_client().build(address, context.path)
        lines = done.text.strip().splitlines()
        error = re.sub(r"of ref \S+ ", "of ref R ", lines[-1])
        # upstream names the folder of its own machine here
        error = re.sub(r" /\S*(/x(/1.txt)?)\b", r" \1", error)
        excerpt = [line for line in lines if " | " in line and not line.startswith("#")]
        said.append((done.status, error, excerpt))
    assert said[0] == said[1]
