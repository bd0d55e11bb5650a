"""Corners of options, archives and verbs in which our daemon once differed; both must agree."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import tarfile
from pathlib import Path

import pytest
from peers import Client, Daemons
from programs import Context, Layout

pytestmark = [pytest.mark.reference, pytest.mark.root]

UPSTREAM = Client("upstream", os.environ.get("BUILDCTL", ""))
OUTPUT = "rewrite-timestamp=true,compression=uncompressed,force-compression=true"


def opt(*pairs: str) -> tuple[str, ...]:
    return tuple(word for pair in pairs for word in ("--opt", pair))


# The whole last line.
SAID = {
    "shm-size": opt("shm-size=abc"),
    "platform": opt("platform=foo/bar/baz/q"),
    "no Dockerfile": opt("filename=Nope"),
    "a folder as Dockerfile": opt("filename=data"),
    "exporter": ("--output", "type=nope"),
    "compression": ("--output", "type=image,compression=foo"),
    "cache exporter": ("--export-cache", "type=nope"),
}
# How it begins; the rest names what the program itself saw.
BEGUN = {
    "base that can't be reached": (
        opt("context:base=docker-image://127.0.0.1:1/x"),
        "failed to resolve source metadata for 127.0.0.1:1/x:latest: ",
    ),
    "push that can't reach": (
        ("--output", "type=image,name=127.0.0.1:1/x:1,push=true"),
        "failed to push 127.0.0.1:1/x:1: ",
    ),
    "compression level": (
        ("--output", "type=image,compression-level=foo"),
        "non-integer value foo specified for compression-level",
    ),
}


def project(context: Context) -> None:
    context.write("data/1.txt", "one")
    context.dockerfile("FROM base\nCOPY data /data\n")


def error_of(text: str) -> str:
    return text.strip().splitlines()[-1].removeprefix("error: failed to solve: ")


@pytest.mark.parametrize("name", list(SAID))
def test_errors_are_equal(name: str, daemons: Daemons, context: Context) -> None:
    project(context)
    said = []
    for address in (daemons.ours, daemons.upstream):
        done = UPSTREAM.build(address, context.path, *SAID[name])
        said.append((done.status, error_of(done.text)))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", list(BEGUN))
def test_errors_begin_alike(name: str, daemons: Daemons, context: Context) -> None:
    project(context)
    options, words = BEGUN[name]
    for address in (daemons.ours, daemons.upstream):
        done = UPSTREAM.build(address, context.path, *options)
        assert (done.status, error_of(done.text)[: len(words)]) == (1, words)


def test_a_failed_push_is_shown_on_its_step(daemons: Daemons, context: Context) -> None:
    project(context)
    for address in (daemons.ours, daemons.upstream):
        output = ("--output", "type=image,name=127.0.0.1:1/x:1,push=true")
        done = UPSTREAM.build(address, context.path, *output)
        assert re.search(r"(?m)^#\d+ ERROR: failed to push 127.0.0.1:1/x:1: ", done.err)
        assert re.search(r"(?m)^#\d+ pushing layers .*done$", done.err)


def test_hard_links_with_owners_of_their_own(
    daemons: Daemons, context: Context, tmp_path: Path
) -> None:
    with tarfile.open(context.path / "a.tar", "w") as tar:
        for name, kind, owner in (
            ("d", tarfile.DIRTYPE, 3),
            ("d/f", tarfile.REGTYPE, 9),
            ("d/h", tarfile.LNKTYPE, 0),
            ("d", tarfile.DIRTYPE, 0),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.uid, info.linkname, info.mode = kind, owner, "d/f", 0o755
            tar.addfile(info, io.BytesIO())
    context.dockerfile("FROM scratch\nADD a.tar /x/\n", base=False)
    digests = []
    for address in (daemons.ours, daemons.upstream):
        archive = tmp_path / f"{len(digests)}.tar"
        output = f"type=oci,dest={archive},{OUTPUT}"
        epoch = opt("build-arg:SOURCE_DATE_EPOCH=1700000000")
        UPSTREAM.build(address, context.path, *epoch, "--output", output).ok()
        digests.append(Layout.unpack(archive).manifest["layers"][0]["digest"])
    assert digests[0] == digests[1]


def warnings(
    address: str, context: Context, *options: str, status: int = 0
) -> list[dict[str, object]]:
    argv = ("build", "--progress", "rawjson", "--frontend", "dockerfile.v0")
    local = ("--local", f"context={context.path}", "--local", f"dockerfile={context.path}")
    done = UPSTREAM(address, *argv, *local, *options)
    assert done.status == status, done.text
    found = []
    for line in filter(lambda line: line.startswith("{"), done.err.splitlines()):
        for warning in json.loads(line).get("warnings") or ():
            source = warning.get("sourceInfo") or {}
            found.append(
                {
                    "short": base64.b64decode(warning["short"]),
                    "level": warning.get("level", 0),
                    "language": source.get("language"),
                    "definition": bool(source.get("definition")),
                }
            )
    return sorted(found, key=str)


@pytest.mark.parametrize("options", [(), opt("platform=linux/amd64,linux/amd64")])
def test_warnings_are_equal(daemons: Daemons, context: Context, options: tuple[str, ...]) -> None:
    context.write("data/1.txt", "one")
    context.dockerfile("FROM scratch\nWORKDIR rel\nCOPY data /\nENV A=$NOPE\n", base=False)
    options = (*options, "--output", "type=image")
    ours = warnings(daemons.ours, context, *options)
    assert ours
    assert ours == warnings(daemons.upstream, context, *options)


@pytest.mark.parametrize("text", ["type==", "type==x,id==", "=="])
def test_malformed_filters_are_refused(text: str, daemons: Daemons) -> None:
    for address in (daemons.ours, daemons.upstream):
        for verb in ("du", "prune"):
            assert UPSTREAM(address, verb, "--filter", text).status == 1


@pytest.mark.parametrize("verb", ["du", "prune"])
@pytest.mark.parametrize(
    "text", ["private==true", "type=x", "size>3", "a b", "a-b==c", "id~=(", "id~=|x", 'id=="\\q"']
)
def test_filters_are_read_alike(text: str, verb: str, daemons: Daemons) -> None:
    said = []
    for address in (daemons.ours, daemons.upstream):
        done = UPSTREAM(address, verb, "--filter", text)
        said.append((done.status, done.text.partition("filters: ")[2]))
    assert said[0] == said[1]


MOUNTS = {
    "ssh": "--mount=type=ssh,required",
    "cache": "--mount=type=cache,target=/c,source=nope",
    "cache of a stage": "--mount=type=cache,target=/c,from=base,source=/no/such",
}


@pytest.mark.parametrize("name", list(MOUNTS))
def test_mounts_that_fail(name: str, daemons: Daemons, context: Context) -> None:
    context.dockerfile(f"FROM base\nRUN {MOUNTS[name]} true\n")
    said = []
    for address in (daemons.ours, daemons.upstream):
        done = UPSTREAM.build(address, context.path)
        said.append((done.status, error_of(done.text)))
    assert said[0] == said[1]


def test_a_variable_that_must_be_set_is_reported(daemons: Daemons, context: Context) -> None:
    context.dockerfile("FROM scratch\nENV A=$FIRST B=${SECOND?}\n", base=False)
    ours = warnings(daemons.ours, context, status=1)
    assert len(ours) == 2
    assert ours == warnings(daemons.upstream, context, status=1)


@pytest.mark.parametrize("use", ["FROM foo", "FROM scratch\nCOPY --from=foo / /"])
def test_a_missing_folder_as_context_is_shown_where_it_is_used(
    use: str, daemons: Daemons, context: Context
) -> None:
    context.dockerfile(f"{use}\n", base=False)
    excerpts = []
    for address in (daemons.ours, daemons.upstream):
        done = UPSTREAM.build(address, context.path, *opt("context:foo=local:foo"))
        assert done.text.strip().endswith('no access allowed to dir "foo"')
        excerpts.append(re.findall(r">>> .*", done.err))
    assert excerpts[0] == excerpts[1]
    assert excerpts[0]


def test_each_platform_of_a_local_output_is_shown(
    daemons: Daemons, context: Context, tmp_path: Path
) -> None:
    project(context)
    shown = []
    for address in (daemons.ours, daemons.upstream):
        output = ("--output", f"type=local,dest={tmp_path}/{len(shown)}")
        done = UPSTREAM.build(
            address, context.path, *opt("platform=linux/amd64,linux/386"), *output
        )
        shown.append(set(re.findall(r"copying files linux/\w+", done.ok().err)))
    assert shown[0] == shown[1] == {"copying files linux/amd64", "copying files linux/386"}


def test_a_blob_that_is_not_there(daemons: Daemons) -> None:
    missing = f"content digest sha256:{'a' * 64}: not found"
    for address in (daemons.ours, daemons.upstream):
        done = UPSTREAM(address, "debug", "get", f"sha256:{'a' * 64}")
        assert (done.status, done.text.strip()[-len(missing) :]) == (1, missing)


@pytest.mark.parametrize(
    "checksum", ["sha256:abc", "sha256", f"md5:{'0' * 32}", "sha256:" + "x" * 64]
)
def test_checksums_that_are_no_digests(checksum: str, daemons: Daemons, context: Context) -> None:
    context.dockerfile(
        f"FROM scratch\nADD --checksum={checksum} http://127.0.0.1:1/a /\n", base=False
    )
    said = []
    for address in (daemons.ours, daemons.upstream):
        done = UPSTREAM.build(address, context.path)
        said.append((done.status, error_of(done.text)))
    assert said[0] == said[1]


def test_received_bytes_are_counted_alike(daemons: Daemons, context: Context) -> None:
    project(context)
    shown = []
    for address in (daemons.ours, daemons.upstream):
        done = UPSTREAM.build(address, context.path, "--no-cache").ok()
        shown.append(
            re.findall(r"load .dockerignore\n#\d+ transferring context: (\d+B)", done.err)
        )
    assert shown[0] == shown[1] == ["2B"]
