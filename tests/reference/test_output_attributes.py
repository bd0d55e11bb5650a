"""Every attribute of the outputs, on both daemons: the same bytes, answers and refusals.

Layers are uncompressed and times are cut, so that whole archives can be compared.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from peers import Client, Daemons
from programs import Context, Registry, Run, running_registry

pytestmark = [pytest.mark.reference, pytest.mark.root]

STEADY = "compression=uncompressed,force-compression=true,rewrite-timestamp=true"
EPOCH = ("--opt", "build-arg:SOURCE_DATE_EPOCH=1700000000")
TWO = ("--opt", "platform=linux/amd64,linux/arm64")
DOCKERFILE = (
    "FROM scratch\nARG TARGETARCH\nCOPY f /f\nCOPY $TARGETARCH /arch\nENV A=1\nLABEL l=m\n"
)


@dataclass(frozen=True)
class Case:
    """One output; ``more`` are further arguments of buildctl."""

    output: str
    more: tuple[str, ...] = EPOCH


ARCHIVES = {
    "oci": Case(f"type=oci,{STEADY}"),
    "oci-names": Case(f'type=oci,{STEADY},"name=a,b/c:2,r.example/x:v1"'),
    "oci-annotations-other-platform": Case(f"type=oci,{STEADY},annotation[linux/s390x].a=1"),
    "oci-docker-types": Case(f"type=oci,{STEADY},oci-mediatypes=false,name=a:1"),
    "oci-annotations": Case(
        f"type=oci,{STEADY},annotation.a=1,annotation-manifest.b=2,"
        "annotation-manifest-descriptor.c=3"
    ),
    "oci-annotations-platform": Case(f"type=oci,{STEADY},annotation[linux/amd64].a=1"),
    "oci-two-platforms": Case(f"type=oci,{STEADY},name=a:1", (*EPOCH, *TWO)),
    "oci-two-platforms-docker-types": Case(
        f"type=oci,{STEADY},oci-mediatypes=false", (*EPOCH, *TWO)
    ),
    "oci-two-platforms-annotations": Case(
        f"type=oci,{STEADY},annotation.a=1,annotation[linux/arm64].b=2,annotation-index.c=3,"
        "annotation-index-descriptor.d=4,annotation-manifest-descriptor[linux/amd64].e=5",
        (*EPOCH, *TWO),
    ),
    "oci-epoch-attribute": Case(f"type=oci,{STEADY},source-date-epoch=1600000000"),
    "oci-epoch-attribute-alone": Case(f"type=oci,{STEADY},source-date-epoch=1600000000", ()),
    "oci-unknown-attribute": Case(f"type=oci,{STEADY},something=else"),
    "oci-prefer-nondist": Case(f"type=oci,{STEADY},prefer-nondist-layers=true"),
    "oci-artifact": Case(f"type=oci,{STEADY},oci-artifact=true"),
    "oci-inline-attestation-flag": Case(f"type=oci,{STEADY},attestation-inline=true"),
    "docker": Case(f"type=docker,{STEADY}"),
    "docker-names": Case(f'type=docker,{STEADY},"name=a,b/c:2"'),
    "docker-docker-types": Case(f"type=docker,{STEADY},oci-mediatypes=false,name=a:1"),
    "tar": Case("type=tar"),
    "tar-epoch": Case("type=tar,source-date-epoch=1600000000"),
    "tar-two-platforms": Case("type=tar,platform-split=true", (*EPOCH, *TWO)),
}

FOLDERS = {
    "local": Case("type=local"),
    "local-epoch": Case("type=local,source-date-epoch=1600000000"),
    "local-split-one": Case("type=local,platform-split=true"),
    "local-two-platforms": Case("type=local", (*EPOCH, *TWO)),
    "local-delete": Case("type=local,mode=delete"),
    "local-copy": Case("type=local,mode=copy"),
    "oci-layout": Case(f"type=oci,{STEADY},tar=false"),
    "oci-layout-names": Case(f'type=oci,{STEADY},tar=false,"name=a:1,b:2"'),
    "docker-layout": Case(f"type=docker,{STEADY},tar=false"),
}

IMAGES = {
    "image": Case(f"type=image,{STEADY}"),
    "image-name": Case(f'type=image,{STEADY},"name=a,b/c:2"'),
    "image-canonical": Case(f"type=image,{STEADY},name=a:1,name-canonical=true"),
    "image-dangling": Case(f"type=image,{STEADY},dangling-name-prefix=d"),
    "image-dangling-and-name": Case(f"type=image,{STEADY},name=a:1,dangling-name-prefix=d"),
    "image-dangling-empty-only": Case(
        f"type=image,{STEADY},name=a:1,dangling-name-prefix=d,danging-name-empty-only=true"
    ),
    "image-unpack": Case("type=image,compression=uncompressed,name=a:1,unpack=true"),
    "image-unpack-rewrite": Case(f"type=image,{STEADY},unpack=true"),
    "image-name-of-frontend": Case(f"type=image,{STEADY},name=*"),
    "image-push-without-name": Case(f"type=image,{STEADY},push=true"),
    "image-not-stored": Case(f"type=image,{STEADY},name=a:1,store=false"),
    "image-two-platforms": Case(f"type=image,{STEADY},name=a:1", (*EPOCH, *TWO)),
    "image-annotations": Case(f"type=image,{STEADY},annotation.a=1,annotation-manifest.b=2"),
}

PUSHES = {
    "tag": Case(f"type=image,{STEADY},push=true"),
    "by-digest": Case(f"type=image,{STEADY},push=true,push-by-digest=true"),
    "canonical": Case(f"type=image,{STEADY},push=true,name-canonical=true"),
    "two-platforms": Case(f"type=image,{STEADY},push=true", (*EPOCH, *TWO)),
    "docker-types": Case(f"type=image,{STEADY},push=true,oci-mediatypes=false"),
    "annotations": Case(
        f"type=image,{STEADY},push=true,annotation.a=1,annotation-index.b=2", (*EPOCH, *TWO)
    ),
    "not-stored": Case(f"type=image,{STEADY},push=true,store=false"),
}

# What both say, in their own words around it.
SAID = {
    "oci-types-word": "non-bool value specified for oci-mediatypes",
    "compression-word": "unsupported compression",
    "level-word": "non-integer value",
    "force-word": "specified for force-compression",
    "tar-word": "non-bool value specified for tar",
    "epoch-word": "invalid source-date-epoch",
    "rewrite-word": "non-bool value specified for rewrite-timestamp",
    "name": "invalid reference format",
    "name-of-frontend": "invalid reference format",
    "local-split-word": "non-bool value",
    "local-unsplit-collision": "when split option is disabled",
    "tar-epoch-word": "invalid source-date-epoch",
    "push-word": "non-bool value specified for push",
}

REFUSED = {
    "oci-types-word": Case("type=oci,oci-mediatypes=banana"),
    "compression-word": Case("type=oci,compression=lzma"),
    "level-word": Case("type=oci,compression-level=high"),
    "force-word": Case("type=oci,force-compression=perhaps"),
    "tar-word": Case("type=oci,tar=perhaps"),
    "epoch-word": Case("type=oci,source-date-epoch=yesterday"),
    "rewrite-word": Case("type=oci,rewrite-timestamp=perhaps"),
    "annotation-type": Case("type=oci,annotation-layer.a=1"),
    "annotation-platform": Case("type=oci,annotation[linux/s390x].a=1", (*EPOCH, *TWO)),
    "annotation-index-of-one": Case("type=oci,annotation-index.a=1"),
    "annotation-docker-types": Case(
        "type=oci,annotation-manifest-descriptor.a=1,oci-mediatypes=false"
    ),
    "artifact-docker-types": Case("type=oci,oci-artifact=true,oci-mediatypes=false"),
    "estargz-docker-types": Case("type=oci,compression=estargz,oci-mediatypes=false"),
    "name": Case("type=oci,name=UPPER"),
    "docker-two-platforms": Case("type=docker,name=a", (*EPOCH, *TWO)),
    "local-split-word": Case("type=local,platform-split=perhaps"),
    "local-mode": Case("type=local,mode=mirror"),
    "local-unsplit-collision": Case("type=local,platform-split=false", (*EPOCH, *TWO)),
    "tar-epoch-word": Case("type=tar,source-date-epoch=yesterday"),
    "push-word": Case("type=image,push=perhaps"),
    "name-of-frontend": Case("type=oci,name=*"),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One registry for all pushes."""
    with running_registry(tmp_path_factory.mktemp("registry")) as made:
        yield made


def build(context: Context, address: str, case: Case, dest: Path | None, meta: Path) -> Run:
    context.write("f", "text")
    context.write("amd64", "a")
    context.write("arm64", "b")
    context.dockerfile(DOCKERFILE, base=False)
    for path in (context.path, *context.path.iterdir()):
        os.utime(path, (1_650_000_000, 1_650_000_000))
    client = Client("upstream", os.environ["BUILDCTL"])
    target = f",dest={dest}" if dest is not None else ""
    argv = ["--output", f"{case.output}{target}", "--metadata-file", meta, *case.more]
    return client.build(address, context.path, *argv)


def answers(path: Path) -> dict[str, Any]:
    """What the client was told, without what names the build."""
    if not path.exists():  # there was nothing to tell
        return {}
    told = json.loads(path.read_text())
    told.pop("buildx.build.ref", None)
    return told


def members(archive: Path) -> list[tuple[str, bytes]]:
    import tarfile

    with tarfile.open(archive) as tar:
        return [
            (repr(sorted(m.get_info().items(), key=str)), (tar.extractfile(m) or _Nothing).read())
            for m in tar
        ]


class _Nothing:
    @staticmethod
    def read() -> bytes:
        return b""


def tree(root: Path) -> list[str]:
    """What lies in a folder: names, modes, times, contents."""
    found = []
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        dated = not path.is_dir() and path.name not in {"index.json", "oci-layout"}
        when = int(info.st_mtime) if dated and "blobs" not in path.parts else ""
        found.append(f"{path.relative_to(root)} {info.st_mode:o} {when} {content!r}")
    return found


@pytest.mark.parametrize("name", list(ARCHIVES))
def test_archives(name: str, daemons: Daemons, context: Context, tmp_path: Path) -> None:
    for place, address in (("ours", daemons.ours), ("theirs", daemons.upstream)):
        build(
            context, address, ARCHIVES[name], tmp_path / f"{place}.tar", tmp_path / f"{place}.json"
        ).ok()
    assert members(tmp_path / "ours.tar") == members(tmp_path / "theirs.tar")
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "theirs.tar").read_bytes()
    assert answers(tmp_path / "ours.json") == answers(tmp_path / "theirs.json")


@pytest.mark.parametrize("name", list(FOLDERS))
def test_folders(name: str, daemons: Daemons, context: Context, tmp_path: Path) -> None:
    for place, address in (("ours", daemons.ours), ("theirs", daemons.upstream)):
        target = tmp_path / place
        if name.startswith("local-") and name != "local-delete":
            (target / "there").mkdir(parents=True)
            (target / "there/before").write_text("kept")
            os.utime(target / "there/before", (1, 1))
        build(context, address, FOLDERS[name], target, tmp_path / f"{place}.json").ok()
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "theirs")
    assert [x for x in ours if "ingest" not in x] == [x for x in theirs if "ingest" not in x]
    assert answers(tmp_path / "ours.json") == answers(tmp_path / "theirs.json")


@pytest.mark.parametrize("name", list(IMAGES))
def test_images(name: str, daemons: Daemons, context: Context, tmp_path: Path) -> None:
    for place, address in (("ours", daemons.ours), ("theirs", daemons.upstream)):
        build(context, address, IMAGES[name], None, tmp_path / f"{place}.json").ok()
    assert answers(tmp_path / "ours.json") == answers(tmp_path / "theirs.json")


@pytest.mark.peer("skopeo")
@pytest.mark.parametrize("name", list(PUSHES))
def test_pushes(
    name: str, daemons: Daemons, registry: Registry, context: Context, tmp_path: Path
) -> None:
    told, shown = {}, {}
    for place, address in (("ours", daemons.ours), ("theirs", daemons.upstream)):
        ref = f"{registry.host}/{place}/{name}"
        tag = "" if "by-digest" in name else ":v1"
        case = Case(f"{PUSHES[name].output},name={ref}{tag}", PUSHES[name].more)
        meta = tmp_path / f"{place}.json"
        build(context, address, case, None, meta).ok()
        told[place] = json.loads(meta.read_text().replace(f"/{place}/", "/x/"))
        found = f"{ref}{tag}" if tag else f"{ref}@{told[place]['containerimage.digest']}"
        argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{found}"]
        shown[place] = subprocess.run(argv, capture_output=True, check=True).stdout
        argv = ["skopeo", "list-tags", "--tls-verify=false", f"docker://{ref}"]
        tags = subprocess.run(argv, capture_output=True, check=False).stdout
        shown[place] += tags.replace(f"/{place}/".encode(), b"/x/")
    assert told["ours"] == told["theirs"]
    assert shown["ours"] == shown["theirs"]


@pytest.mark.parametrize("name", list(REFUSED))
def test_refusals(name: str, daemons: Daemons, context: Context, tmp_path: Path) -> None:
    errors = []
    for place, address in (("ours", daemons.ours), ("theirs", daemons.upstream)):
        case = REFUSED[name]
        dest = None if case.output.startswith("type=image") else tmp_path / place
        done = build(context, address, case, dest, tmp_path / f"{place}.json")
        assert done.status != 0, done.text
        (line,) = [x for x in done.err.splitlines() if x.startswith("error: ")]
        errors.append(line)
    if name in SAID:
        assert all(SAID[name] in line for line in errors), errors
    else:
        assert errors[0] == errors[1]
