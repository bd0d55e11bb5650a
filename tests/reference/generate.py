"""Random but meaningful build contexts and Dockerfiles, the same for the same seed."""

from __future__ import annotations

import gzip
import io
import os
import random
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

NAMES: tuple[bytes, ...] = (
    b"a",
    b"b",
    b"c.txt",
    b"d.go",
    b"lib",
    b"src",
    b"README.md",
    b".hidden",
    b"with space",
    "größe".encode(),
    "日本".encode(),
    b"-dash",
    b"x" * 200,
    b"plus+eq=",
    b"q'uote",
    b"UPPER",
    b"dot.",
    b"..dots",
    b"tilde~",
    b"hash#x",
    b"com,ma",
    b"co:lon",
    b"a.b.c",
    b"e",
)
ODD_NAMES: tuple[bytes, ...] = (
    b"br[a]ck",
    b"st*r",
    b"back\\slash",
    b"qu?st",
    b"new\nline",
    b"$dollar",
)
TIMES_NS = (0, 1, 1_600_000_000_000_000_000, 1_700_000_000_123_456_789, 1_650_000_000_500_000_000)


@dataclass(frozen=True)
class Node:
    """One entry of a context; ``data`` is content or a link's target."""

    path: bytes
    kind: str
    mode: int = 0o644
    data: bytes = b""
    mtime_ns: int = 0
    owner: tuple[int, int] = (0, 0)


@dataclass
class Case:
    """One build: context, Dockerfile and options of ``buildctl build``."""

    seed: int
    nodes: list[Node]
    dockerfile: str
    options: dict[str, str] = field(default_factory=dict)

    def write(self, root: Path) -> None:
        """Write the context to an empty or absent folder."""
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        (root / "Dockerfile").write_text(self.dockerfile)
        for node in self.nodes:
            write_node(root, node)
        for node in reversed(self.nodes):
            target = os.path.join(os.fsencode(root), node.path)
            if os.path.lexists(target):
                # equal size and time mean equal content to every client
                mtime_ns = node.mtime_ns + zlib.crc32(node.data) * (node.kind == "file")
                os.utime(target, ns=(mtime_ns, mtime_ns), follow_symlinks=False)
        os.utime(root, ns=(TIMES_NS[2], TIMES_NS[2]))


def write_node(root: Path, node: Node) -> None:
    """Create one entry below ``root``; its parents exist."""
    target = os.path.join(os.fsencode(root), node.path)
    if node.kind == "dir":
        os.mkdir(target)
    elif node.kind == "link":
        os.symlink(node.data, target)
    elif node.kind == "hard":
        os.link(os.path.join(os.fsencode(root), node.data), target)
        return
    elif node.kind == "fifo":
        os.mkfifo(target)
    elif node.kind == "char":
        os.mknod(target, stat.S_IFCHR | 0o600, os.makedev(1, 3))
    else:
        with open(target, "wb") as file:
            file.write(node.data)
    os.chown(target, *node.owner, follow_symlinks=False)
    if node.kind != "link":
        os.chmod(target, node.mode)


class Generator:
    """Draws cases; every choice comes from one seeded source."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.seed = seed
        self.nodes: dict[bytes, Node] = {}
        self.stages: list[str] = []

    def chance(self, probability: float) -> bool:
        """Return true that often."""
        return self.random.random() < probability

    def case(self) -> Case:
        """Draw one case."""
        self.tree()
        dockerfile = self.dockerfile()
        options = {}
        if self.chance(0.2):
            options["build-arg:WORD"] = self.random.choice(("one", "two words", "", "$x", "a'b"))
        if self.chance(0.15) and self.stages:
            options["target"] = self.random.choice(self.stages)
        if self.chance(0.05):
            options["platform"] = self.random.choice(("linux/arm64", "linux/amd64", "linux/386"))
        if self.chance(0.05):
            options["label:x.y"] = "opt"
        if self.chance(0.05):
            options["build-arg:BUILDKIT_MULTI_PLATFORM"] = "1"
        return Case(self.seed, list(self.nodes.values()), dockerfile, options)

    # -- contexts

    def tree(self) -> None:
        """Draw the files."""
        folders = [b""]
        for _ in range(self.random.randint(4, 22)):
            parent = self.random.choice(folders)
            name = self.random.choice(ODD_NAMES if self.chance(0.06) else NAMES)
            path = parent + b"/" + name if parent else name
            if path in self.nodes:
                continue
            node = self.node(path)
            self.nodes[path] = node
            if node.kind == "dir":
                folders.append(path)
        if self.chance(0.35):
            self.ignore_file()
        for path in (b"in.tar", b"in.tgz"):
            if self.chance(0.25):
                self.nodes[path] = Node(path, "file", data=self.archive(path), mtime_ns=1)

    def node(self, path: bytes) -> Node:
        """Draw one entry."""
        roll = self.random.random()
        when = self.random.choice(TIMES_NS)
        owner = self.random.choice(((0, 0), (0, 0), (1000, 1001), (70000, 5)))
        if roll < 0.33:
            mode = self.random.choice((0o755, 0o755, 0o700, 0o1777, 0o2775, 0o555))
            return Node(path, "dir", mode, b"", when, owner)
        if roll < 0.45:
            return Node(path, "link", 0o777, self.link_target(), when, owner)
        files = [n.path for n in self.nodes.values() if n.kind == "file"]
        if roll < 0.52 and files:
            source = self.nodes[self.random.choice(files)]
            return Node(path, "hard", data=source.path, mtime_ns=source.mtime_ns)
        if roll < 0.54:
            return Node(path, "fifo", 0o640, mtime_ns=when)
        if roll < 0.55:
            return Node(path, "char", 0o600, mtime_ns=when)
        size = self.random.choice((0, 1, 5, 100, 4096, 32768, 70000, 200000))
        mode = self.random.choice((0o644, 0o644, 0o755, 0o600, 0o4755, 0o000, 0o2711))
        return Node(path, "file", mode, self.random.randbytes(size), when, owner)

    def link_target(self) -> bytes:
        """Draw a symbolic link's target: inside, outside, dangling, to itself."""
        if self.nodes and self.chance(0.7):
            target = self.random.choice(list(self.nodes))
            return self.random.choice((b"", b"/", b"../", b"./")) + target
        return self.random.choice(
            (b"nowhere", b"/etc/passwd", b"..", b".", b"../../../x", b"a/b/c")
        )

    def ignore_file(self) -> None:
        """Draw a .dockerignore."""
        lines = []
        for _ in range(self.random.randint(1, 4)):
            name = self.some_path()
            form = self.random.choice(
                (
                    "{}",
                    "{}",
                    "/{}",
                    "!{}",
                    "**/{}",
                    "{}/*",
                    "*.txt",
                    "*",
                    "!**/c.txt",
                    "# {}",
                    " {} ",
                    "./{}/",
                )
            )
            lines.append(form.format(name))
        data = "\n".join(lines).encode()
        self.nodes[b".dockerignore"] = Node(b".dockerignore", "file", data=data, mtime_ns=1)

    def archive(self, name: bytes) -> bytes:
        """Draw a tar archive, some compressed."""
        sink = io.BytesIO()
        with tarfile.open(fileobj=sink, mode="w", format=self.random.choice((0, 1, 2))) as tar:
            for number in range(self.random.randint(1, 6)):
                info = tarfile.TarInfo(
                    self.random.choice(("f", "d/f", "./e/g", "d", "deep/er/x")) + str(number)
                )
                info.mode = self.random.choice((0o644, 0o755, 0o4711))
                info.mtime = self.random.choice((0, 1_500_000_000))
                info.uid, info.gid = self.random.choice(((0, 0), (12, 34)))
                roll = self.random.random()
                if roll < 0.15:
                    info.type, info.linkname = tarfile.SYMTYPE, "f0"
                elif roll < 0.25:
                    info.type = tarfile.DIRTYPE
                else:
                    info.size = number * 700
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        data = sink.getvalue()
        return gzip.compress(data, mtime=0) if name.endswith(b"gz") else data

    # -- Dockerfiles

    def some_path(self) -> str:
        """Return a path of the context, or one that is not there."""
        if not self.nodes or self.chance(0.04):
            return "missing"
        return self.random.choice(list(self.nodes)).decode()

    def dockerfile(self) -> str:
        """Draw the whole text."""
        lines = []
        if self.chance(0.15):
            lines.append("ARG WORD=global")
        for number in range(self.random.randint(1, 4)):
            lines += self.stage(number)
        return "\n".join(lines) + "\n"

    def stage(self, number: int) -> list[str]:
        """Draw one stage."""
        bases = ["base"] * 6 + ["scratch"] * 3 + ["onbuild"] + self.stages * 2
        base = self.random.choice(bases)
        self.runs = base != "scratch" and base not in {s for s in self.stages if s.startswith("n")}
        name = f"{'s' if self.runs else 'n'}{number}"
        lines = [f"FROM {base} AS {name}"]
        for _ in range(self.random.randint(1, 6)):
            lines.append(self.instruction())
        self.stages.append(name)
        return lines

    def instruction(self) -> str:
        """Draw one instruction."""
        kinds: list[Callable[[], str]] = [
            self.copy,
            self.copy,
            self.copy,
            self.add,
            self.metadata,
            self.heredoc,
        ]
        if self.runs:
            kinds += [self.run, self.run, self.run, self.mounted_run]
        if self.stages:
            kinds += [self.copy_from, self.copy_from]
        return self.random.choice(kinds)()

    def destination(self) -> str:
        """Draw a destination."""
        return self.random.choice(
            (
                "/",
                "/dst/",
                "/dst",
                ".",
                "./",
                "sub/",
                "/a/b/c/",
                "x",
                "/dst/../up/",
                "/etc/",
                "/tmp/",
                "//dd//",
                "$WORD/",
                "/dst/lib",
            )
        )

    def copy_flags(self) -> str:
        """Draw flags of COPY and ADD."""
        flags = []
        if self.chance(0.2):
            flags.append(
                "--chown="
                + self.random.choice(("1:2", "5", "root", "user:web", "user", "0:0", "70000:3"))
            )
        if self.chance(0.2):
            flags.append(
                "--chmod="
                + self.random.choice(
                    ("644", "0755", "u+x", "go-rwx", "4755", "u=rwX,go=rX", "a-w")
                )
            )
        if self.chance(0.2):
            flags.append("--link")
        if self.chance(0.12):
            flags.append(
                "--exclude="
                + self.random.choice(("*.txt", "**/a", "lib", "!b", "**", ".hidden", "src/*"))
            )
        return "".join(f + " " for f in flags)

    def quoted(self, paths: list[str], destination: str) -> str:
        """Write sources and a destination in one of two forms."""
        import json

        if self.chance(0.3) or any(c in p for p in paths for c in " \n'\\$#"):
            return json.dumps([*paths, destination], ensure_ascii=self.chance(0.5))
        return " ".join([*paths, destination])

    def sources(self, draw: Callable[[], str]) -> list[str]:
        """Draw one or more sources."""
        count = self.random.choice((1, 1, 1, 2, 3))
        form = self.random.choice(
            ("{}", "{}", "{}", "{}/", "./{}", "/{}", "{}*", "{}/*", "{}/.", "{}/..")
        )
        return [form.format(draw()) for _ in range(count)]

    def copy(self) -> str:
        """COPY from the context."""
        flags = self.copy_flags()
        if self.chance(0.15):
            flags += "--parents "
        if self.chance(0.15):
            paths = [self.random.choice((".", "*", "**/*.txt", "*/*", "[a-c]*", "?", "/", "**"))]
        else:
            paths = self.sources(self.some_path)
        return f"COPY {flags}{self.quoted(paths, self.destination())}"

    def add(self) -> str:
        """ADD from the context."""
        archives = [p.decode() for p in (b"in.tar", b"in.tgz") if p in self.nodes]
        paths = (
            [self.random.choice(archives)]
            if archives and self.chance(0.7)
            else self.sources(self.some_path)
        )
        unpack = self.random.choice(("", "", "", "--unpack=false ", "--unpack=true "))
        return f"ADD {self.copy_flags()}{unpack}{self.quoted(paths, self.destination())}"

    def copy_from(self) -> str:
        """COPY from an earlier stage or a base."""
        source = self.random.choice(
            [*self.stages, "base", str(self.random.randrange(len(self.stages)))]
        )

        def place() -> str:
            return self.random.choice(
                (
                    "/etc",
                    "/dst",
                    "/etc/passwd",
                    "/a",
                    "/work",
                    "/bin/busybox",
                    "/dst/*",
                    "/tmp",
                    "/w*",
                    "/",
                )
            )

        parents = "--parents " if self.chance(0.1) else ""
        paths = [place() for _ in range(self.random.choice((1, 1, 2)))]
        return f"COPY --from={source} {self.copy_flags()}{parents}{self.quoted(paths, self.destination())}"

    def run(self) -> str:
        """RUN that changes files in ways that layers must tell."""
        commands = (
            "mkdir -p /work/d && echo 1 > /work/d/f",
            "rm -rf /work/d",
            "rm -rf /work && mkdir /work && echo n > /work/new",
            "echo more >> /work/f || true",
            "mkdir -p /work; touch /work/f; chmod 640 /work/f",
            "rm -f /etc/passwd",
            "mv /etc /etc2",
            "mv /dst /moved || true",
            "ln -s /etc/passwd /work-link",
            "rm -rf /dst/* || true",
            "mkdir -p /work; ln -f /bin/busybox /work/hard",
            "chown -R 12:34 /tmp",
            "rm -rf /tmp; echo file > /tmp",
            "rm -rf /etc; ln -s /bin /etc",
            "mkfifo /pipe || true",
            "mkdir -p /w2; chmod 1777 /w2",
            "id; pwd; env | sort",
            "echo out; echo err >&2",
            "mknod /null c 1 3 || true",
            "echo $WORD > /word",
            "ls -ln / | grep -v total | sed 's/ [A-Z][a-z][a-z] .*[0-9] / /'",
            "touch -d '2001-02-03 04:05:06' /old",
            "rm /bin/sort || true",
            "truncate -s 1000000 /big",
            "exit 3",
            "cat /proc/1/mounts >/dev/null; test -w /",
            "rm -rf /a && mkdir -p /a/b && touch /a/b/.wh-like",
            "umask 027; mkdir -p /um/x; touch /um/x/y",
            "cp -a /etc /copy-of-etc",
            "true",
            "stat -c '%n %a %u %g' /dst /work /etc 2>/dev/null || true",
        )
        command = self.random.choice(commands)
        form = self.random.randrange(4)
        if form == 0:
            import json

            return "RUN " + json.dumps(["/bin/sh", "-c", command])
        if form == 1:
            return f"RUN <<EOF\n{command}\necho second\nEOF"
        return f"RUN {command}"

    def mounted_run(self) -> str:
        """RUN with a mount."""
        source = (
            f"from={self.random.choice(self.stages)}," if self.stages and self.chance(0.5) else ""
        )
        mounts = (
            f"--mount=type=bind,{source}target=/m ls /m | sort > /listing",
            f"--mount=type=bind,{source}target=/m,rw touch /m/x",
            "--mount=type=cache,target=/cache touch /cache/x && ls /cache",
            "--mount=type=cache,target=/cache,id=other,uid=5,mode=700 stat -c %a:%u /cache > /s",
            "--mount=type=tmpfs,target=/t touch /t/x",
            "--mount=type=secret,id=absent cat /run/secrets/absent || echo none",
            "--mount=type=secret,id=absent,required cat /run/secrets/absent",
            "--mount=type=secret,id=key,mode=444,uid=7 stat -c %a:%u:%g /run/secrets/key > /s; cat /run/secrets/key | wc -c",
            "--mount=type=secret,id=key,env=KEY sh -c 'echo ${#KEY}'",
            "--network=none true",
            f"--mount={source}target=/deep/er/m true",
        )
        return "RUN " + self.random.choice(mounts)

    def metadata(self) -> str:
        """An instruction that changes the configuration."""
        return self.random.choice(
            (
                "ENV A=1 B=$A C='x y'",
                "ENV OLD style value",
                "ENV PATH=/bin:$PATH",
                "ARG WORD",
                "ARG WORD=local",
                "ARG X=1 Y=${X}2",
                "WORKDIR /w",
                "WORKDIR rel/$WORD",
                "WORKDIR /tmp",
                "USER user",
                "USER 1000:1001",
                "USER web:extra",
                "USER nobody-there",
                'LABEL l=1 m="two words"',
                "EXPOSE 80",
                "EXPOSE 53/udp 100-102",
                "VOLUME /v /w",
                'VOLUME ["/json"]',
                "CMD echo x",
                'CMD ["echo", "x"]',
                'ENTRYPOINT ["/bin/e"]',
                "ENTRYPOINT e $WORD",
                "STOPSIGNAL 9",
                "STOPSIGNAL SIGTERM",
                'SHELL ["/bin/sh", "-ec"]',
                "HEALTHCHECK NONE",
                "HEALTHCHECK --interval=3s --timeout=1m --start-interval=2s CMD test -f /x",
                "ONBUILD RUN true",
                "MAINTAINER me",
                "ONBUILD COPY . /ob",
                "SHELL /bin/sh",
                "CMD []",
                "STOPSIGNAL nonsense",
                "EXPOSE x",
                "USER",
                "env lower=case",
                "FOO bar",
                "COPY onlyone",
                "LABEL a",
                "HEALTHCHECK CMD",
                "ENV E=${U:-d}${A:+s}${A#1}",
                'ENV Q="a\\"b" R=\'$A\' S=\\$A',
                "WORKDIR",
                "CMD",
                "WORKDIR /w/../z",
            )
            if self.chance(0.9)
            else (f"LABEL p={self.some_path()!r}",)
        )

    def heredoc(self) -> str:
        """COPY of text in the Dockerfile."""
        return self.random.choice(
            (
                "COPY <<one /h/\n$WORD text\none",
                "COPY <<'one' <<two /h/\n$WORD\none\nb\ntwo",
                "COPY --chmod=755 --chown=3:4 <<-one /script\n\ttabs\n\tone",
                "ADD <<x /added\n${WORD:-none}\nx",
                "COPY --link <<x /l/\nx\nx",
            )
        )


def draw(seed: int) -> Case:
    """Return the case of a seed."""
    return Generator(seed).case()


def mutate(case: Case, seed: int) -> tuple[Case, str]:
    """Return a changed case and a word on what changed."""
    rng = random.Random(seed)
    nodes, dockerfile, options = list(case.nodes), case.dockerfile, dict(case.options)
    files = [
        i for i, n in enumerate(nodes) if n.kind == "file" and not n.path.startswith(b".docker")
    ]
    kind = rng.choice(
        (
            "nothing",
            "touch",
            "chmod",
            "content",
            "add",
            "remove",
            "arg",
            "target",
            "env",
            "rename",
            "owner",
            "instruction",
        )
    )
    if kind in {"touch", "chmod", "content", "rename", "owner", "remove"} and files:
        index = rng.choice(files)
        node = nodes[index]
        if kind in {"rename", "remove"} and any(
            n.data == node.path for n in nodes if n.kind == "hard"
        ):
            kind = "touch"
        change: dict[str, Node] = {
            "touch": Node(node.path, "file", node.mode, node.data, 5_000_000_000, node.owner),
            "chmod": Node(
                node.path, "file", node.mode ^ 0o111, node.data, node.mtime_ns, node.owner
            ),
            "content": Node(
                node.path, "file", node.mode, node.data + b"!", node.mtime_ns, node.owner
            ),
            "owner": Node(node.path, "file", node.mode, node.data, node.mtime_ns, (9, 9)),
            "rename": Node(
                node.path + b"2", "file", node.mode, node.data, node.mtime_ns, node.owner
            ),
        }
        if kind == "remove":
            del nodes[index]
        else:
            nodes[index] = change[kind]
        kind += f" {node.path!r}"
    elif kind == "add":
        nodes.append(Node(b"added-file", "file", data=b"new", mtime_ns=7))
    elif kind == "arg":
        options["build-arg:WORD"] = "changed"
    elif kind == "env":
        dockerfile = dockerfile.replace("ENV A=1 B=$A", "ENV B=$A A=1")
    elif kind == "instruction":
        lines = dockerfile.splitlines()
        firsts = [i for i, line in enumerate(lines) if line.startswith("FROM ")]
        lines.insert(rng.choice(firsts) + 1, "LABEL inserted=1")
        dockerfile = "\n".join(lines) + "\n"
    return Case(case.seed, nodes, dockerfile, options), kind
