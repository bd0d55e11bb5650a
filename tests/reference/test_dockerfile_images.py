"""Every feature of the language on both daemons: equal images, to the digest of the manifest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from peers import Client, Daemons
from programs import Context, Layout

pytestmark = [pytest.mark.reference, pytest.mark.root]

SEVERAL = "FROM base AS a\nRUN mkdir -p /d/e && echo 1 > /d/1 && echo 2 > /d/e/2 && ln -s 1 /d/l\n"

DOCKERFILES = {
    "env-forms": "FROM base\nENV A=1 B='2 3' C=\"$A\"\nENV old $A and more\nENV A=\nENV D=${A:-x}${B:+y}\n",
    "label-forms": 'FROM base\nLABEL a=1 "b c"="d e" multi="x\\\ny"\nLABEL a=2\nLABEL z=$PATH\n',
    "expose": "FROM scratch\nEXPOSE 80 81/udp 90-92/TCP 127.0.0.1:53:53/udp\nCOPY data /d\n",
    "volume-forms": 'FROM base\nVOLUME /a /b\nVOLUME ["/c", "/d e"]\nRUN mkdir -p /a && touch /a/f\n',
    "user-forms": (
        "FROM base\nCOPY <<E /etc/passwd\napp:x:41:42::/h:/bin/sh\nE\nUSER app\nWORKDIR /made\n"
        "RUN id -u > /tmp-$USER 2>/dev/null || true\nUSER 7:8\nUSER app:9\n"
    ),
    "workdirs": "FROM base\nWORKDIR /a\nWORKDIR ./b/../c\nENV D=dir\nWORKDIR $D\nRUN touch here\n",
    "shells": 'FROM base\nSHELL ["/bin/sh", "-e", "-c"]\nRUN echo 1 > /1\nCMD a b\nENTRYPOINT c\n',
    "cmd-reset": 'FROM base AS a\nCMD ["x"]\nENTRYPOINT ["y"]\nFROM a\nENTRYPOINT ["z"]\n',
    "cmd-kept": 'FROM base AS a\nCMD ["x"]\nFROM a\nENTRYPOINT z\nCMD q\n',
    "healthcheck": (
        'FROM base\nHEALTHCHECK --timeout=1m30s --start-interval=1s --start-period=3s CMD ["a", "b"]\n'
    ),
    "healthcheck-none": "FROM base\nHEALTHCHECK CMD x y\nHEALTHCHECK NONE\n",
    "stopsignal": "FROM base\nSTOPSIGNAL 15\nSTOPSIGNAL SIGRTMIN+3\n",
    "maintainer": "FROM base\nMAINTAINER Some One <one@example.com>\n",
    "onbuild": 'FROM base\nONBUILD RUN a && b\nONBUILD ADD . /x\nONBUILD CMD ["x", "y"]\n',
    "scratch-config": 'FROM scratch\nENV A=1\nCMD ["/x"]\nCOPY data/1.txt /x\n',
    "arg-history": "FROM base\nARG A=1\nARG B\nENV C=$A\nRUN echo $A $B $C > /o\nARG A=2\nRUN echo $A > /p\n",
    "args-of-platform": (
        "FROM --platform=$BUILDPLATFORM base\nARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT\n"
        "ARG BUILDPLATFORM\nRUN echo $TARGETPLATFORM $TARGETOS $TARGETARCH $TARGETVARIANT > /o\n"
    ),
    "modifiers": (
        "FROM base\nARG P=/a/b.tar.gz\nENV A=${P#*/} B=${P##*/} C=${P%.*} D=${P%%.*} E=${P/a/x} F=${P//a/x}\n"
        "RUN echo $A $B $C $D $E $F > /o\n"
    ),
    "quotes": "FROM base\nENV A=\"a'b\" B='a\"b' C=a\\ b D=\\$A E=\"\\$A\" F='$A'\nRUN echo \"$A $B\" '$C' > /o\n",
    "continuations": "FROM base\nRUN echo a \\\n  # comment\n  && echo b \\\n\n  && echo c > /o\n",
    "heredoc-run": "FROM base\nRUN <<A cat > /a; cat <<B > /b\none\nA\ntwo\nB\nRUN <<E\n#!/bin/sh\necho $0 | wc -c > /c\nE\n",
    "heredoc-copy": (
        "FROM base\nARG X=1\nCOPY --chmod=751 --chown=3:4 <<a <<'b' <<-c /h/\n$X\na\n$X\nb\n\t\ttab\n\tc\n"
        "ADD <<E /single\n\nE\n"
    ),
    "escape": "# escape=`\nFROM base`\n AS x\nENV P=c:\\x\nRUN echo a `\n  b > /o\n",
    "copy-globs": "FROM base\nCOPY data/*.t?t /a/\nCOPY data/[12].txt /b/\nCOPY da*/sub /c\nCOPY data/*/ /d/\n",
    "copy-names": "FROM base\nCOPY data/1.txt /a\nCOPY data/1.txt /b/\nWORKDIR /w\nCOPY data/1.txt c\nCOPY data/. ./d\nCOPY . /all/\n",
    "copy-owner": "FROM base\nCOPY --chown=1:2 data /a\nCOPY --chown=3 data/1.txt /b\nCOPY --chown=:4 data/sub /c/\n",
    "copy-mode": (
        "FROM base\nCOPY --chmod=600 data /a\nCOPY --chmod=4755 data/1.txt /b\n"
        "COPY --chmod=u=rwX,go=rX data /c\nCOPY --chmod=a+x,o-r data/2.txt /d\n"
    ),
    "copy-over": SEVERAL
    + "FROM a\nCOPY data/1.txt /d/1\nCOPY --from=a /d /d\nCOPY --from=a /d/e /d\n",
    "copy-links": (
        "FROM base AS a\nRUN mkdir /s && echo x > /s/f && ln /s/f /s/h && ln -s f /s/l && ln -s nowhere /s/b\n"
        "FROM scratch\nCOPY --from=a /s /t\nCOPY --from=a /s/l /followed\nCOPY --from=a /s/h /alone\n"
    ),
    "copy-same-file": (
        "FROM scratch AS a\nCOPY data/1.txt /d/1\nCOPY data/1.txt /d/2\nCOPY data/1.txt /d/3\n"
        "FROM base\nCOPY --from=a /d /d\nCOPY --from=a /d /e\n"
    ),
    "copy-link": SEVERAL
    + "FROM base\nCOPY --link --from=a /d /x\nCOPY --link data /x/y\nCOPY --link --chown=5 data/1.txt /\n",
    "copy-link-scratch": SEVERAL
    + "FROM scratch\nCOPY --link --from=a /d /x\nCOPY --link data /y/\n",
    "copy-parents": "FROM base\nCOPY --parents data/sub/3.bin data/*.txt /p/\nCOPY --parents data/./sub /q/\nCOPY --parents d*/./*.txt /r/\n",
    "copy-exclude": "FROM base\nCOPY --exclude=*.txt data /a\nCOPY --exclude=sub --exclude=2* data /b\nADD --exclude=**/*.bin data /c\n",
    "copy-empty-folder": "FROM base AS a\nRUN mkdir -p /e/m/pty && chmod 700 /e/m && chown 3 /e/m/pty\nFROM scratch\nCOPY --from=a /e /e\n",
    "add-archives": "FROM base\nADD data.tar /a/\nADD --unpack=false data.tar /b/\nADD --chown=6:7 data.tar /c/\nADD data.tar data/1.txt /d/\n",
    "special-files": (
        "FROM base\nRUN mkdir /s && touch /s/setuid && chmod 4755 /s/setuid && mkdir -m 1777 /s/sticky && "
        "ln -s /etc /s/link && touch -d '2001-01-01 00:00:00' /s/old\n"
    ),
    "delete-folder": SEVERAL
    + "RUN rm -r /d/e && rm /d/l\nRUN rm -r /d\nRUN mkdir /d && touch /d/new\n",
    "rename": SEVERAL + "RUN mv /d /moved && mv /moved/1 /moved/one\n",
    "modes-only": SEVERAL + "RUN chmod 700 /d\nRUN chown -R 9:9 /d\n",
    "touch-nothing": "FROM base\nRUN true\nRUN cat /bin/sh > /dev/null\n",
    "mount-stubs": (
        "FROM base\nRUN --mount=type=tmpfs,target=/stub/a --mount=type=cache,target=/other/b true\n"
        "RUN --mount=type=bind,source=data,target=/bin/sub touch /o\n"
    ),
    "mount-stage": SEVERAL
    + "FROM base\nRUN --mount=from=a,source=/d,target=/m cp -a /m /copied\n",
    "mount-secret-absent": "FROM base\nRUN --mount=type=secret,id=none touch /o\n",
    "network-none": "FROM base\nRUN --network=none cat /proc/net/dev | wc -l > /o\n",
    "many-stages": SEVERAL
    + "".join(f"FROM a AS s{n}\nRUN echo {n} > /n{n}\n" for n in range(5))
    + "FROM base\n"
    + "".join(f"COPY --from=s{n} /n{n} /\n" for n in range(5)),
    "hosts-and-resolv": "FROM base\nRUN ls -la /etc > /dev/null; test -e /etc/hosts && echo yes > /o\n",
    "ignored": "FROM base\nCOPY . /c\n",
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
def test_images_are_equal(name: str, daemons: Daemons, context: Context, tmp_path: Path) -> None:
    import io
    import tarfile

    context.write("data/1.txt", "one")
    context.write("data/2.txt", "two", 0o600)
    context.write("data/sub/3.bin", b"\0\1\2")
    context.write(".dockerignore", "data/2.*\n!data/2.txt\n" if name == "ignored" else "")
    with tarfile.open(context.path / "data.tar", "w") as tar:
        for path, mode in (("in/tar", 0o644), ("in/run", 0o755)):
            info = tarfile.TarInfo(path)
            info.size, info.mode, info.uid = 3, mode, 11
            tar.addfile(info, io.BytesIO(b"abc"))
    context.dockerfile(DOCKERFILES[name])
    if DOCKERFILES[name].startswith("# escape"):
        head, _, rest = DOCKERFILES[name].partition("\n")
        context.dockerfile(rest)
        text = (context.path / "Dockerfile").read_text()
        context.write("Dockerfile", f"{head}\n{text}")
    client = Client("upstream", os.environ["BUILDCTL"])
    ours = build(client, daemons.ours, context, tmp_path / "ours.tar")
    theirs = build(client, daemons.upstream, context, tmp_path / "theirs.tar")
    assert ours.config == theirs.config
    assert ours.files() == theirs.files()
    assert ours.manifest == theirs.manifest


def test_there_are_enough() -> None:
    assert len(DOCKERFILES) >= 40
