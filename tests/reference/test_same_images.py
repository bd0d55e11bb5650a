"""The same Dockerfile on both daemons: equal configs, equal layers, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from peers import Client, Daemons
from programs import Context, Layout

pytestmark = [pytest.mark.reference, pytest.mark.root]

DOCKERFILES = {
    "run": "FROM base\nRUN echo one > /one\nRUN rm /one && mkdir -p /a/b && echo two > /a/b/two\n",
    "config": (
        "FROM base\nENV A=1 B='two words'\nLABEL x=y\nWORKDIR /w\nUSER 1000:1000\nEXPOSE 80 53/udp\n"
        'VOLUME /v\nSTOPSIGNAL SIGINT\nSHELL ["/bin/sh", "-ec"]\nENTRYPOINT ["a"]\nCMD b c\n'
        "HEALTHCHECK --interval=5s --retries=2 CMD true\nONBUILD RUN true\n"
    ),
    "copy": (
        "FROM base AS a\nRUN mkdir -p /src/x && echo 1 > /src/x/1 && ln -s 1 /src/x/l\n"
        "FROM scratch\nCOPY --from=a /src /dst\nCOPY --from=a --chown=7:8 /src/x/1 /owned\n"
        "COPY --from=a --chmod=640 /src/x/1 /mode\nCOPY data/*.txt /t/\nCOPY --link data /linked/\n"
    ),
    "add": "FROM scratch\nADD data.tar /x/\nADD data /y/\n",
    "mounts": (
        "FROM base\nRUN --mount=type=cache,target=/c touch /c/1\n"
        "RUN --mount=type=tmpfs,target=/t touch /t/1\n"
        "RUN --mount=type=bind,source=data,target=/b cat /b/1.txt > /out\n"
    ),
    "heredoc": "FROM base\nCOPY <<a <<b /h/\none\na\ntwo\nb\nRUN <<E\nset -e\necho x > /x\nE\n",
    "args": "FROM base\nARG N=${UNSET:-7}\nENV M=${N}x\nRUN echo $N-$M > /n\n",
    "delete": "FROM base\nRUN mkdir /d && touch /d/1 /d/2\nRUN rm -r /d && mkdir /d && touch /d/3\n",
    "workdir": "FROM scratch\nWORKDIR /a/b\nWORKDIR c\nCOPY data/1.txt .\n",
    "owner": "FROM base\nRUN chown 5:6 /bin && touch /f && chown 1:2 /f && chmod 4711 /f\n",
}


def build(client: Client, address: str, context: Context, archive: Path) -> Layout:
    client.build(
        address,
        context.path,
        "--opt",
        "build-arg:SOURCE_DATE_EPOCH=1700000000",
        "--no-cache",
        "--output",
        f"type=oci,dest={archive},rewrite-timestamp=true,compression=uncompressed,"
        "force-compression=true",
    ).ok()
    return Layout.unpack(archive)


@pytest.mark.parametrize("name", list(DOCKERFILES))
def test_manifests_are_equal(
    name: str, daemons: Daemons, context: Context, tmp_path: Path
) -> None:
    import io
    import tarfile

    context.write("data/1.txt", "one")
    context.write("data/2.txt", "two", 0o600)
    context.write("data/sub/3.bin", b"\0\1\2")
    with tarfile.open(context.path / "data.tar", "w") as tar:
        info = tarfile.TarInfo("in/tar")
        info.size = 3
        tar.addfile(info, io.BytesIO(b"abc"))
    context.dockerfile(DOCKERFILES[name])
    client = Client("upstream", os.environ["BUILDCTL"])
    ours = build(client, daemons.ours, context, tmp_path / "ours.tar")
    theirs = build(client, daemons.upstream, context, tmp_path / "theirs.tar")
    assert ours.config == theirs.config
    assert ours.files() == theirs.files()
    assert ours.manifest == theirs.manifest
    assert ours.descriptor["digest"] == theirs.descriptor["digest"]
