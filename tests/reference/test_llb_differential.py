"""Build graphs that no Dockerfile makes: both daemons must make the same trees and errors.

The graphs are built with our own builder and sent by upstream's ``buildctl``.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from peers import Daemons
from programs import Context, Layout

from boxwright import llb
from boxwright.llb.state import HostIP, State, Ulimit

pytestmark = [pytest.mark.reference, pytest.mark.root]

EPOCH_NS = 1_600_000_000_000_000_000
EPOCH = "1700000000"


# Upstream passes its tracing on to steps.
ENV = "env | grep -v '^OTEL_\\|^TRACEPARENT'"


def base() -> State:
    """A busybox, from the client's folder."""
    copied = llb.scratch().copy(llb.local("base"), "/", "/", llb.CopyOptions(contents_only=True))
    return copied.add_env("PATH", "/bin")


def sh(state: State, script: str, **options: object) -> State:
    return state.run(["/bin/sh", "-ec", script], **options).root  # type: ignore[arg-type]


def files(names: str) -> State:
    """A tree with one small file per name."""
    state = llb.scratch()
    for name in names.split():
        folder = os.path.dirname(name)
        if folder:
            state = state.file(llb.mkdir("/" + folder, parents=True, created_ns=EPOCH_NS))
        state = state.file(llb.mkfile("/" + name, name.encode(), created_ns=EPOCH_NS))
    return state


def removed(state: State, *names: str) -> State:
    for name in names:
        state = state.rm("/" + name)
    return state


def said(state: State, script: str, **options: object) -> State:
    """What ``script`` prints, as /out."""
    step = state.run(
        ["/bin/sh", "-c", f"({script}) >/o/out 2>&1; touch -d @0 /o/out /o; true"],
        mounts=[
            llb.bind("/o", llb.scratch(), readonly=False),
            *options.pop("mounts", ()),  # type: ignore[misc]
        ],
        **options,  # type: ignore[arg-type]
    )
    return step.mount("/o")


def definition(state: State, name: str = "/buildkit.llb.definition") -> State:
    """A tree with the definition of ``state`` as a file."""
    data = state.marshal().SerializeToString()
    holder = llb.scratch().file(llb.mkdir(os.path.dirname(name), parents=True))
    return holder.file(llb.mkfile(name, data))


@dataclass(frozen=True)
class Case:
    make: Callable[[], State]
    options: tuple[str, ...] = ()


TREES: dict[str, Case] = {
    # merge
    "merge of three": Case(lambda: llb.merge([files("a b"), files("b c/d"), files("c/e")])),
    "merge with an empty one": Case(lambda: llb.merge([files("a"), llb.scratch(), files("b")])),
    "merge: a file over a folder": Case(lambda: llb.merge([files("a/b a/c"), files("a")])),
    "merge: a folder over a file": Case(lambda: llb.merge([files("a"), files("a/b")])),
    "merge: a deletion of a diff": Case(
        lambda: llb.merge(
            [
                files("a b d/e d/f"),
                llb.diff(files("a b d/e d/f"), removed(files("a b d/e d/f"), "a", "d/e")),
            ]
        )
    ),
    "merge: a deletion of what is not there": Case(
        lambda: llb.merge([files("x"), llb.diff(files("a b"), removed(files("a b"), "a"))])
    ),
    "merge: folder replaced": Case(
        lambda: llb.merge(
            [
                files("d/1 d/2"),
                llb.diff(
                    files("d/1"),
                    removed(files("d/1"), "d")
                    .file(llb.mkdir("/d", created_ns=EPOCH_NS))
                    .file(llb.mkfile("/d/3", b"3", created_ns=EPOCH_NS)),
                ),
            ]
        )
    ),
    "merge: same twice": Case(lambda: llb.merge([files("a"), files("b"), files("a")])),
    "merge of merges": Case(
        lambda: llb.merge(
            [llb.merge([files("a"), files("b")]), llb.merge([files("b"), files("c")])]
        )
    ),
    "merge: hard links of a step": Case(
        lambda: llb.merge(
            [
                files("z"),
                llb.diff(
                    base(), sh(base(), "mkdir /h; echo x >/h/1; ln /h/1 /h/2; touch -d @5 /h/1 /h")
                ),
            ]
        )
    ),
    "merge: command on top": Case(
        lambda: sh(
            llb.merge([base(), files("data/a data/b")]),
            "rm /data/a; echo c >/data/c; touch -d @6 /data/c /data",
        )
    ),
    "merge: opaque folder of a step": Case(
        lambda: llb.merge(
            [
                files("d/old"),
                llb.diff(
                    llb.merge([base(), files("d/mine")]),
                    sh(
                        llb.merge([base(), files("d/mine")]),
                        "rm -r /d; mkdir /d; echo n >/d/new; touch -d @7 /d/new /d",
                    ),
                ),
            ]
        )
    ),
    # diff
    "diff of one level": Case(lambda: llb.diff(files("a"), files("a b"))),
    "diff of unrelated": Case(lambda: llb.diff(files("a b/c x"), files("b/d x"))),
    "diff: upper empty": Case(
        lambda: llb.merge([files("a b"), llb.diff(files("a"), llb.scratch())])
    ),
    "diff: lower empty": Case(lambda: llb.diff(llb.scratch(), files("a"))),
    "diff with itself": Case(lambda: llb.merge([files("x"), llb.diff(files("a"), files("a"))])),
    "diff alone exported": Case(lambda: llb.diff(files("a b"), removed(files("a b"), "a"))),
    "diff: metadata only": Case(
        lambda: llb.diff(base(), sh(base(), "chmod 700 /bin; touch -d @3 /bin"))
    ),
    "diff: link to file": Case(
        lambda: llb.diff(
            sh(base(), "mkdir /w; ln -s a /w/l; touch -d @3 /w"),
            sh(base(), "mkdir /w; echo a >/w/l; touch -d @3 /w/l /w"),
        )
    ),
    "diff of a merge": Case(
        lambda: llb.diff(
            files("a"), llb.merge([files("a"), files("b"), removed(files("c d"), "c")])
        )
    ),
    "diff: same content of two steps": Case(
        lambda: llb.diff(
            sh(base(), "echo a >/f; touch -d @3 /f"),
            sh(base(), "echo a >/f; touch -d @3 /f; echo g >/g; touch -d @3 /g"),
        )
    ),
    "diff: folder to file": Case(
        lambda: llb.diff(
            files("a/b a/c z"),
            removed(files("a/b a/c z"), "a").file(llb.mkfile("/a", b"f", created_ns=EPOCH_NS)),
        )
    ),
    "copy from a diff": Case(
        lambda: llb.scratch().copy(
            llb.diff(files("a b"), removed(files("a b c"), "a")),
            "/",
            "/x/",
            llb.CopyOptions(contents_only=True, create_parents=True),
        )
    ),
    # passthrough
    "passthrough": Case(lambda: llb.passthrough("p", [files("a")], [files("b")])),
    "passthrough below a step": Case(
        lambda: sh(base().requires("q", files("r")), "echo a >/f; touch -d @3 /f")
    ),
    # build
    "build: a definition in a file": Case(lambda: llb.build(definition(files("a b/c")))),
    "build: under another name": Case(
        lambda: llb.build(definition(files("a b/c"), "/x/y.llb"), "/x/y.llb")
    ),
    "build: a command in it": Case(
        lambda: llb.build(definition(sh(base(), "echo a >/f; touch -d @3 /f")))
    ),
    "build: a step on top": Case(
        lambda: llb.merge([llb.build(definition(files("a"))), files("b")])
    ),
    "build: two deep": Case(lambda: llb.build(definition(llb.build(definition(files("deep")))))),
    "build: with what the build may": Case(
        lambda: llb.build(definition(said(base(), "ls /sys/class/net", network="host"))),
        ("--allow", "network.host"),
    ),
    # exec
    "exec: output of a mount": Case(
        lambda: (
            base()
            .run(
                ["/bin/sh", "-c", "echo a >/m/f; touch -d @2 /m/f /m"],
                mounts=[llb.bind("/m", files("b"), readonly=False)],
            )
            .mount("/m")
        )
    ),
    "exec: selected part of a mount": Case(
        lambda: (
            base()
            .run(
                ["/bin/sh", "-c", "echo a >/m/f; touch -d @2 /m/f /m"],
                mounts=[llb.bind("/m", files("b/c d"), path="/b", readonly=False)],
            )
            .mount("/m")
        )
    ),
    "exec: selected file": Case(
        lambda: said(base(), "cat /m", mounts=[llb.bind("/m", files("b/c d"), path="/b/c")])
    ),
    "exec: mounts": Case(
        lambda: said(
            base(),
            "cut -d' ' -f5,6 /proc/self/mountinfo | grep -E '^/(c|o|ro|t|dev|sys|proc|etc/hosts) '",
            mounts=[llb.tmpfs("/t", 1 << 20), llb.bind("/ro", files("a")), llb.cache("/c", "cid")],
        )
    ),
    "exec: environment": Case(lambda: said(base().add_env("A", "1").add_env("A", "2"), ENV)),
    "exec: no path": Case(
        lambda: said(replace_env(base()), "/bin/" + ENV.replace("grep", "/bin/grep"))
    ),
    "exec: proxy": Case(
        lambda: said(base(), ENV, proxy=llb.ProxyEnv("http://h:1", "http://s:2", "f", "no", "all"))
    ),
    "exec: hostname": Case(
        lambda: said(
            base(),
            "hostname; cat /etc/hosts; cat /proc/sys/kernel/hostname",
            hostname="here.example",
        )
    ),
    "exec: hosts": Case(
        lambda: said(
            base(),
            "cat /etc/hosts; stat -c %a:%u /etc/hosts /etc/resolv.conf; cat /etc/resolv.conf",
            extra_hosts=[HostIP("a.example", "10.1.2.3"), HostIP("b", "::1")],
        )
    ),
    "exec: ulimits": Case(
        lambda: said(
            base(),
            "ulimit -a",
            ulimits=[
                Ulimit("nofile", 100, 200),
                Ulimit("core", 0, 0),
                Ulimit("nproc", 1000, 2000),
            ],
        )
    ),
    "exec: user": Case(lambda: said(base(), "id; echo $HOME; pwd", user="7:8")),
    "exec: user without home": Case(lambda: said(base(), ENV, user="1234")),
    "exec: working folder is made": Case(
        lambda: base().run(["/bin/true"], cwd="/work/er", user="9").root
    ),
    "exec: status": Case(
        lambda: said(
            base(),
            "grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Umask)' /proc/self/status; cat /proc/self/oom_score_adj",
        )
    ),
    "exec: limits file": Case(
        lambda: said(base(), "cat /proc/self/limits | grep -v -i 'pending\\|processes\\|locked'")
    ),
    "exec: devices": Case(
        lambda: said(
            base(), "stat -c '%n %a %F' /dev/* | grep -v '/core\\|otel'; stat -f -c %T /dev/shm"
        )
    ),
    "exec: secret": Case(
        lambda: said(
            base(),
            "cat /run/secrets/s; stat -c '%a %u %g' /run/secrets/s; echo $E",
            mounts=[
                llb.secret("/run/secrets/s", id="s", uid=3, gid=4, mode=0o440),
                llb.secret(id="s", env="E"),
            ],
        ),
        ("--secret", "id=s,env=LLB_SECRET"),
    ),
    "exec: secret not there": Case(
        lambda: said(
            base(),
            "ls /run; " + ENV,
            mounts=[
                llb.secret("/run/secrets/s", id="none", optional=True),
                llb.secret(id="none", env="E", optional=True),
            ],
        )
    ),
    "exec: secret in a new folder leaves it": Case(
        lambda: sh(base(), "true", mounts=[llb.secret("/new/folder/s", id="s")]),
        ("--secret", "id=s,env=LLB_SECRET"),
    ),
    "exec: valid exit codes": Case(
        lambda: (
            base()
            .run(
                ["/bin/sh", "-c", "echo a >/f; touch -d @3 /f; exit 42"], valid_exit_codes=[42, 43]
            )
            .root
        )
    ),
    "exec: read-only root": Case(
        lambda: said(
            base(),
            "touch /f; mkdir /bin/x; grep ' / ' /proc/self/mountinfo | cut -d' ' -f5,6",
            readonly_root=True,
        )
    ),
    "exec: network none": Case(
        lambda: said(base(), "ls /sys/class/net; cat /proc/net/dev | cut -d: -f1", network="none")
    ),
    "exec: network host": Case(
        lambda: said(base(), "ls /sys/class/net", network="host"), ("--allow", "network.host")
    ),
    "exec: insecure": Case(
        lambda: said(
            base(),
            "grep -E '^(Cap[PEB]|NoNewPrivs|Seccomp:)' /proc/self/status; test -e /dev/fuse; grep -c ' /sys ' /proc/self/mountinfo; mount -t tmpfs t /bin && echo mounted",
            security="insecure",
        ),
        ("--allow", "security.insecure"),
    ),
    "exec: cache mount from a tree": Case(
        lambda: said(
            base(),
            "ls -l /c | cut -c1-30; cat /c/a",
            mounts=[llb.cache("/c", "from-tree", source=files("a"))],
        )
    ),
    "exec: cache mount, later": Case(
        lambda: said(
            sh(base(), "echo 1 >/c/x", mounts=[llb.cache("/c", "twice")]),
            "cat /c/x; ls -ld /c | cut -c1-10",
            mounts=[llb.cache("/c", "twice", sharing="locked")],
        )
    ),
    "exec: masked and read-only": Case(
        lambda: said(
            base(),
            "touch /proc/sys/x; cat /proc/kcore | head -c1; ls /sys/firmware /proc/scsi; mount -t tmpfs t /mnt; mknod /x c 1 3 && echo made; cat /proc/keys; ls -ld /proc/acpi",
        )
    ),
    # file
    "file: copy with everything": Case(
        lambda: llb.scratch().copy(
            files("a/b a/c/d e"),
            "/a",
            "/x/y",
            llb.CopyOptions(mode=0o640, owner=(5, 6), create_parents=True, created_ns=EPOCH_NS),
        )
    ),
    "file: symbolic mode": Case(
        lambda: llb.scratch().copy(
            files("a/b a/c/d"), "/a", "/x", llb.CopyOptions(mode="u=rwX,go-w,g+X,o=")
        )
    ),
    "file: copy contents": Case(
        lambda: llb.scratch().copy(
            files("a/b a/c/d"),
            "/a",
            "/x",
            llb.CopyOptions(contents_only=True, create_parents=True),
        )
    ),
    "file: copy folder into folder": Case(lambda: files("x/y").copy(files("a/b"), "/a", "/x/")),
    "file: copy folder to existing": Case(lambda: files("x/y").copy(files("a/b"), "/a", "/x")),
    "file: patterns": Case(
        lambda: llb.scratch().copy(
            files("a/b.go a/c.txt a/d/e.go a/d/f.txt a/g/h"),
            "/a",
            "/x",
            llb.CopyOptions(
                contents_only=True,
                create_parents=True,
                include=("**/*.go", "g"),
                exclude=("d/e.go",),
            ),
        )
    ),
    "file: wildcard": Case(
        lambda: llb.scratch().copy(
            files("a1/x a2/y b"), "/a*", "/", llb.CopyOptions(wildcard=True)
        )
    ),
    "file: wildcard and nothing": Case(
        lambda: files("k").copy(
            files("b"), "/a*", "/x/", llb.CopyOptions(wildcard=True, empty_wildcard=True)
        )
    ),
    "file: replace existing": Case(
        lambda: files("x/a/b").copy(
            files("a"), "/a", "/x/a", llb.CopyOptions(replace_existing=True)
        )
    ),
    "file: follow": Case(
        lambda: llb.scratch().copy(
            files("r/t").file(llb.symlink("r", "/l", created_ns=EPOCH_NS)),
            "/l",
            "/x",
            llb.CopyOptions(follow_symlinks=True),
        )
    ),
    "file: link is copied": Case(
        lambda: llb.scratch().copy(
            files("r/t").file(llb.symlink("r", "/l", created_ns=EPOCH_NS)), "/l", "/x"
        )
    ),
    "file: owner by name": Case(
        lambda: (
            files("etc/passwd")
            .file(llb.mkfile("/etc/passwd", b"joe:x:77:78::/:/bin/sh\n", created_ns=EPOCH_NS))
            .file(llb.mkfile("/etc/group", b"g:x:99:\n", created_ns=EPOCH_NS))
            .file(llb.mkfile("/f", b"", owner="joe:g", created_ns=EPOCH_NS))
            .file(llb.mkdir("/d", owner="joe", created_ns=EPOCH_NS))
        )
    ),
    "file: chain": Case(
        lambda: llb.scratch().file(
            llb.mkdir("/a", created_ns=EPOCH_NS)
            .then(llb.mkfile("/a/f", b"1", 0o4755, created_ns=EPOCH_NS))
            .then(llb.symlink("f", "/a/l", owner=(1, 2), created_ns=EPOCH_NS))
            .then(llb.rm("/a/f"))
            .then(llb.mkdir("/p/q/r", 0o700, parents=True, owner=(3, 4), created_ns=EPOCH_NS))
        )
    ),
    "file: copy from a chain": Case(
        lambda: llb.scratch().file(
            llb.copy(
                llb.mkfile("/t", b"t", created_ns=EPOCH_NS)
                .then(llb.mkdir("/u", created_ns=EPOCH_NS))
                .on(files("s")),
                "/",
                "/x",
                llb.CopyOptions(contents_only=True, create_parents=True, created_ns=EPOCH_NS),
            )
        )
    ),
    "file: rm wildcard": Case(lambda: files("a1 a2 b/a3").rm("/a*", wildcard=True)),
    "file: rm of nothing": Case(lambda: files("a").rm("/x/y", allow_not_found=True)),
    "file: rm of a link": Case(
        lambda: files("d/e").file(llb.symlink("d", "/l", created_ns=EPOCH_NS)).rm("/l")
    ),
    "file: rm through a link": Case(
        lambda: files("d/e d/f").file(llb.symlink("d", "/l", created_ns=EPOCH_NS)).rm("/l/e")
    ),
    "file: mkdir through a link": Case(
        lambda: (
            files("d/e")
            .file(llb.symlink("d", "/l", created_ns=EPOCH_NS))
            .file(llb.mkdir("/l/n", created_ns=EPOCH_NS))
        )
    ),
    "file: mkfile over a link": Case(
        lambda: (
            files("d/e")
            .file(llb.symlink("d/e", "/l", created_ns=EPOCH_NS))
            .file(llb.mkfile("/l", b"new", created_ns=EPOCH_NS))
        )
    ),
    "file: mkfile over a file": Case(
        lambda: files("d/e").file(llb.mkfile("/d/e", b"n", 0o600, created_ns=EPOCH_NS))
    ),
    "file: mkdir over a folder": Case(
        lambda: files("d/e").file(llb.mkdir("/d", 0o700, parents=True, created_ns=EPOCH_NS))
    ),
    "file: symlink over nothing": Case(
        lambda: llb.scratch().file(llb.symlink("/nowhere", "/l", created_ns=EPOCH_NS))
    ),
    "file: out of the root": Case(
        lambda: files("a/b").copy(
            files("s"), "/../../s", "/../../x/../t", llb.CopyOptions(create_parents=True)
        )
    ),
    # local
    "local: include": Case(lambda: llb.local("data", include=("sub/*", "!sub/3.bin"))),
    "local: exclude": Case(lambda: llb.local("data", exclude=("sub", "!sub/3.bin"))),
    "local: follow": Case(lambda: llb.local("data", follow=("link", "a/*"))),
    "local: metadata": Case(lambda: llb.local("data", metadata_only=True)),
    "local: metadata with exceptions": Case(
        lambda: llb.local("data", metadata_only=True, metadata_exceptions=("1.txt", "sub/**"))
    ),
    "local: differ none": Case(lambda: llb.local("data", differ="none")),
    "local: shared key": Case(lambda: llb.local("data", shared_key="k")),
}


def replace_env(state: State) -> State:
    return State.new(state.output)


ERRORS: dict[str, Case] = {
    "build: what fails in it": Case(
        lambda: llb.build(definition(base().run(["/bin/sh", "-c", "exit 9"]).root))
    ),
    "exec: exit code": Case(lambda: base().run(["/bin/sh", "-c", "exit 7"]).root),
    "exec: exit code 0 not valid": Case(
        lambda: base().run(["/bin/true"], valid_exit_codes=[3]).root
    ),
    "exec: no such program": Case(lambda: base().run(["/nothing/here", "x y"]).root),
    "exec: not executable": Case(lambda: files("prog").run(["/prog"]).root),
    "exec: killed": Case(lambda: base().run(["/bin/sh", "-c", "kill -9 $$"]).root),
    "exec: unknown user": Case(lambda: base().run(["/bin/true"], user="nobody-here").root),
    "exec: secret": Case(lambda: sh(base(), "true", mounts=[llb.secret("/s", id="none")])),
    "exec: secret env": Case(lambda: sh(base(), "true", mounts=[llb.secret(id="none", env="E")])),
    "exec: ssh": Case(lambda: sh(base(), "true", mounts=[llb.ssh("none")])),
    "exec: selector": Case(
        lambda: sh(base(), "true", mounts=[llb.bind("/m", files("a"), path="/b")])
    ),
    "exec: device": Case(
        lambda: base().run(["/bin/true"], devices=[llb.CdiDevice("vendor.example/dev=x")]).root,
        ("--allow", "device"),
    ),
    "unknown entitlement": Case(lambda: files("a"), ("--allow", "everything")),
    "file: copy of nothing": Case(lambda: llb.scratch().copy(files("a"), "/b", "/")),
    "file: copy of nothing through parents": Case(
        lambda: llb.scratch().copy(files("a"), "/b/c/d", "/")
    ),
    "file: copy below a file": Case(lambda: llb.scratch().copy(files("a"), "/a/b", "/")),
    "file: wildcard of nothing": Case(
        lambda: llb.scratch().copy(files("a"), "/b*", "/", llb.CopyOptions(wildcard=True))
    ),
    "file: required": Case(
        lambda: llb.scratch().copy(
            files("a"), "/", "/", llb.CopyOptions(include=("a", "b"), required=("b",))
        )
    ),
    "file: mkdir without parent": Case(lambda: llb.scratch().file(llb.mkdir("/a/b"))),
    "file: mkdir exists": Case(lambda: files("a/b").file(llb.mkdir("/a"))),
    "file: mkfile without parent": Case(lambda: llb.scratch().file(llb.mkfile("/a/b", b""))),
    "file: mkfile over a folder": Case(lambda: files("a/b").file(llb.mkfile("/a", b""))),
    "file: rm of nothing": Case(lambda: files("a").rm("/b")),
    "file: rm below nothing": Case(lambda: files("a").rm("/b/c")),
    "file: unknown owner": Case(lambda: files("a").file(llb.mkfile("/f", b"", owner="joe"))),
    "file: unknown group": Case(lambda: files("a").file(llb.mkfile("/f", b"", owner="1:joes"))),
    "file: folder over file": Case(lambda: files("x").copy(files("a/b"), "/a", "/x")),
    "source: bad attribute": Case(lambda: llb.source("local://data", {"local.unknown": "1"})),
    "source: differ": Case(lambda: llb.source("local://data", {"local.differ": "wrong"})),
    "source: image resolve mode": Case(
        lambda: llb.source("docker-image://127.0.0.1:1/x:1", {"image.resolvemode": "wrong"})
    ),
    "source: image layer limit": Case(
        lambda: llb.source("docker-image://127.0.0.1:1/x:1", {"image.layerlimit": "0"})
    ),
    "source: layout without digest": Case(lambda: llb.source("oci-layout://x/y:1")),
    "source: git checksum": Case(
        lambda: llb.source("git://127.0.0.1:1/x", {"git.checksum": "zz"})
    ),
    "unknown capability": Case(lambda: llb.source("local://data", caps=["source.from.tomorrow"])),
}

# Upstream's words name folders of its machine, its own runtime or its parser there.
REFUSED: dict[str, Case] = {
    "build: no such file": Case(lambda: llb.build(files("a"), "/a/b")),
    "build: a missing file": Case(lambda: llb.build(files("x"))),
    "build: no definition": Case(lambda: llb.build(files("a"), "/a")),
    "build: a folder": Case(lambda: llb.build(files("a/b"), "/a")),
    "build: what only the outer build could allow": Case(
        lambda: llb.build(definition(said(base(), "ls /sys/class/net", network="host")))
    ),
    "exec: bad ulimit": Case(
        lambda: base().run(["/bin/true"], ulimits=[Ulimit("nofile", 20, 10)]).root
    ),
    "exec: unknown ulimit": Case(
        lambda: base().run(["/bin/true"], ulimits=[Ulimit("wrong", 20, 10)]).root
    ),
    "exec: insecure": Case(lambda: sh(base(), "true", security="insecure")),
    "exec: host": Case(lambda: sh(base(), "true", network="host")),
    "exec: device not allowed": Case(
        lambda: base().run(["/bin/true"], devices=[llb.CdiDevice("vendor.example/dev=x")]).root
    ),
    "file: no parent": Case(lambda: llb.scratch().copy(files("a"), "/a", "/x/y/z")),
    "file: symlink exists": Case(lambda: files("a").file(llb.symlink("x", "/a"))),
    "file: bad mode": Case(
        lambda: llb.scratch().copy(files("a"), "/a", "/", llb.CopyOptions(mode="u+q"))
    ),
    "file: bad pattern": Case(
        lambda: llb.scratch().copy(files("a"), "/", "/", llb.CopyOptions(include=("[",)))
    ),
    "source: unknown scheme": Case(lambda: llb.source("ftp://x")),
    "source: no scheme": Case(lambda: llb.source("x")),
    "source: bad includes": Case(
        lambda: llb.source("local://data", {"local.includepattern": "x"})
    ),
    "source: missing local": Case(lambda: llb.local("nothing")),
    "source: image that can't be": Case(lambda: llb.source("docker-image://UPPER/x")),
    "source: http checksum": Case(
        lambda: llb.source("http://127.0.0.1:1/x", {"http.checksum": "nonsense"})
    ),
    "source: http perm": Case(lambda: llb.source("http://127.0.0.1:1/x", {"http.perm": "9"})),
    "source: http uid": Case(lambda: llb.source("http://127.0.0.1:1/x", {"http.uid": "-"})),
    "source: git mtime": Case(lambda: llb.source("git://127.0.0.1:1/x", {"git.mtime": "zz"})),
}


@pytest.fixture
def folders(context: Context) -> list[str]:
    """The client's folders: a busybox, and data."""
    context.dockerfile("", base=True)
    for name in ("data/1.txt", "data/2.txt", "data/a/same", "data/b/same", "data/sub/3.bin"):
        os.utime(context.write(name, name), (1_600_000_000, 1_600_000_000))
    (context.path / "data/link").symlink_to("sub/3.bin")
    os.utime(context.path / "data/link", (1_400_000_000,) * 2, follow_symlinks=False)
    for name in ("data/sub", "data/a", "data/b", "data"):
        os.utime(context.path / name, (1_500_000_000, 1_500_000_000))
    for folder, _, names in os.walk(context.path / ".base", topdown=False):
        for name in names:
            os.utime(f"{folder}/{name}", (1_500_000_000,) * 2, follow_symlinks=False)
        os.utime(folder, (1_500_000_000,) * 2)
    return ["--local", f"base={context.path}/.base", "--local", f"data={context.path}/data"]


def solve(address: str, case: Case, *options: str) -> subprocess.CompletedProcess[bytes]:
    argv = [os.environ["BUILDCTL"], "--addr", address, "build", "--progress", "plain"]
    return subprocess.run(
        [*argv, *case.options, *options],
        input=case.make().marshal().SerializeToString(),
        env={**os.environ, "LLB_SECRET": "hidden"},
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", list(TREES))
def test_trees_are_equal(name: str, daemons: Daemons, folders: list[str], tmp_path: Path) -> None:
    listings = []
    for address in (daemons.ours, daemons.upstream):
        archive = tmp_path / f"{len(listings)}.tar"
        output = f"type=oci,dest={archive},compression=uncompressed,source-date-epoch={EPOCH}"
        done = solve(
            address, TREES[name], *folders, "--output", output + ",rewrite-timestamp=true"
        )
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        layout = Layout.unpack(archive)
        layers = [
            subprocess.run(
                ["tar", "--numeric-owner", "--full-time", "-tvf", "-"],
                input=layout.blob(layer["digest"]),
                capture_output=True,
                check=True,
            )
            .stdout.decode()
            .splitlines()
            for layer in layout.manifest["layers"]
        ]
        texts = [
            subprocess.run(
                ["tar", "-xOf", "-", "out"],
                input=layout.blob(layer["digest"]),
                capture_output=True,
            ).stdout.decode()
            for layer in layout.manifest["layers"]
        ]
        digests = [layer["digest"] for layer in layout.manifest["layers"]]
        shown = [line for layer in layers for line in layer] + "".join(texts).splitlines()
        listings.append((shown, digests))
    (ours, _), (upstream, _) = listings
    changes = list(difflib.unified_diff(ours, upstream, "ours", "upstream", lineterm=""))
    if changes:
        pytest.fail("\n".join(changes), pytrace=False)
    assert listings[0] == listings[1]


def error_of(done: subprocess.CompletedProcess[bytes]) -> str:
    error = done.stderr.decode().strip().splitlines()[-1]
    error = re.sub(r"of ref \S+ ", "of ref R ", error)
    error = re.sub(r"DONE \d+\.\d+s$", "DONE", error)  # what both let pass
    return re.sub(r"sha256:[0-9a-f]{64}|\b[0-9a-z]{25}\b", "ID", error)


@pytest.mark.parametrize("name", list(ERRORS))
def test_errors_are_equal(name: str, daemons: Daemons, folders: list[str]) -> None:
    said = []
    for address in (daemons.ours, daemons.upstream):
        done = solve(address, ERRORS[name], *folders)
        said.append((done.returncode, error_of(done)))
    assert said[0] == said[1]


@pytest.mark.parametrize("name", list(REFUSED))
def test_both_refuse(name: str, daemons: Daemons, folders: list[str]) -> None:
    for address in (daemons.ours, daemons.upstream):
        done = solve(address, REFUSED[name], *folders)
        assert done.returncode == 1
        assert b"failed to solve" in done.stderr
