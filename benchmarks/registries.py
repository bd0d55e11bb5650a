"""Images on their way: pushes, pulls and our registry, ours / theirs, interleaved.

    python benchmarks/registries.py --buildctl /path/buildctl --buildkitd /path/buildkitd

Needs docker-registry; with nginx on PATH (or --nginx) our registry's blobs are compared with the
same file from there. Wall time is the client's, from start to exit; medians.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from daemons import Daemon, free_address, listening, registry, start_both
from figures import Figures, build
from run import filesystem, run

PUSH_BYTES = 120_000_000
PULL_FILES = 9_000
SHORT_RUNS = 5


def half_compressible(size: int) -> bytes:
    """Return bytes that nobody has seen: half of them random, half words."""
    words = [os.urandom(8).hex().encode() for _ in range(400)]
    text = b" ".join(random.choices(words, k=size // 34))
    parts = []
    for at in range(0, size // 2, 15_000):
        parts += [os.urandom(15_000), text[at : at + 15_000]]
    return b"".join(parts)[:size]


def pushes(options: argparse.Namespace, daemons: list[Daemon], host: str, work: Path) -> None:
    """Push a layer of 120 MB that the registry lacks, then the same image again."""
    new, again = Figures(), Figures()
    context = work / "push"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")
    for number in range(options.runs):
        for daemon in daemons if number % 2 == 0 else daemons[::-1]:
            (context / "data").write_bytes(half_compressible(PUSH_BYTES))
            build(options, daemon, context)  # the context is there, its layer is not made
            name = f"{host}/push-{daemon.name}:{uuid.uuid4().hex}"
            output = f"type=image,name={name},push=true,registry.insecure=true"
            push = partial(build, options, daemon, context, "--output", output)
            new.add(daemon, push)
            for _ in range(SHORT_RUNS):
                again.add(daemon, push)
    new.report("push of a new 120 MB layer", 0.4)
    again.report("the same image again", 1.0)


def pulls(options: argparse.Namespace, daemons: list[Daemon], host: str, work: Path) -> None:
    """Pull and unpack an image of 300 MB in 9,000 files."""
    source = random.Random(1)
    context = work / "pull"
    for index in range(PULL_FILES):
        folder = context / "data" / f"d{index // 200:03}"
        folder.mkdir(parents=True, exist_ok=True)
        text = b" ".join(source.choices([b"alpha", b"beta", b"gamma", b"delta"], k=3_000))
        (folder / f"f{index:05}").write_bytes(source.randbytes(17_000) + text[:16_000])
    (context / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")
    name = f"{host}/pulled:{uuid.uuid4().hex}"
    output = f"type=image,name={name},push=true,registry.insecure=true"
    build(options, daemons[-1], context, "--output", output)
    user = work / "use"
    user.mkdir()
    (user / "f").write_text("1")
    (user / "Dockerfile").write_text(f"FROM {name}\nCOPY f /data/f\n")
    figures = Figures()
    for number in range(options.runs):
        for daemon in daemons if number % 2 == 0 else daemons[::-1]:
            run([options.buildctl, "--addr", daemon.address, "prune", "--all"])
            figures.add(daemon, partial(build, options, daemon, user))
    figures.report("pull and unpack of 300 MB", 0.6)


@contextlib.contextmanager
def our_registry(root: Path) -> Iterator[str]:
    """Run ``boxwright registry serve`` while the block runs; yield its address."""
    address = free_address()
    program = str(Path(sys.executable).with_name("boxwright"))
    argv = [program, "--root", str(root), "registry", "serve", "--listen", address]
    with listening(argv, address):
        yield address


@contextlib.contextmanager
def nginx(program: str, files: Path, work: Path) -> Iterator[str]:
    """Run nginx over a folder while the block runs; yield its address."""
    address = free_address()
    config = work / "nginx.conf"
    paths = "".join(
        f"{name}_temp_path {work};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config.write_text(
        f"daemon off; worker_processes 1; error_log {work}/ng.log; pid {work}/ng.pid; user root;"
        f" events {{}} http {{ access_log off; sendfile on; {paths}"
        f" server {{ listen {address}; location / {{ root {files}; }} }} }}\n"
    )
    with listening([program, "-c", str(config)], address):
        yield address


def serving(options: argparse.Namespace, work: Path) -> None:
    """Fetch one blob of 300 MB from our registry and from nginx."""
    program = options.nginx or shutil.which("nginx") or ""
    if not program:
        print("no nginx: our registry's blobs are compared with nothing")
        return
    root = work / "serve"
    context = work / "serve-context"
    context.mkdir()
    (context / "data").write_bytes(os.urandom(300_000_000))
    (context / "Dockerfile").write_text("FROM scratch\nCOPY data /data\n")
    boxwright = str(Path(sys.executable).with_name("boxwright"))
    argv = [boxwright, "--root", str(root), "build", "-t", "big", "--progress", "plain"]
    run([*argv, "-o", "type=image,compression=uncompressed", str(context)])
    blobs = root / "blobs/sha256"
    blob = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
    with our_registry(root) as ours, nginx(program, blobs, work) as theirs:
        addresses = {
            "ours": f"http://{ours}/v2/big/blobs/sha256:{blob.name}",
            "theirs": f"http://{theirs}/{blob.name}",
        }
        figures = Figures(wall={name: [] for name in addresses})
        for number in range(options.runs * 3):
            order = list(addresses) if number % 2 == 0 else list(addresses)[::-1]
            for name in order:
                argv = ["curl", "-sf", "-o", "/dev/null", addresses[name]]
                figures.wall[name].append(run(argv))
        figures.report("a blob of 300 MB (theirs: nginx)", 1.25)


def main() -> None:
    """Parse the command line, start what must run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--buildctl", default=shutil.which("buildctl"), help="stock client")
    parser.add_argument("--buildkitd", required=True, help="stock daemon to compare with")
    parser.add_argument("--nginx", default="", help="nginx to compare our registry with")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="pushes, pulls or serving")
    parser.add_argument("--work", default=None, help="where contexts and state go")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="boxwright-bench-", dir=options.work))
    kinds: dict[str, Callable[..., None]] = {"pushes": pushes, "pulls": pulls}
    try:
        print(f"# state on {filesystem(str(work))}; {options.runs} runs; {os.cpu_count()} cores")
        print(f"{'seconds':<38}{'ours':>9}{'theirs':>9}{'ratio':>8}")
        with contextlib.ExitStack() as stack:
            daemons = start_both(stack, work, options.buildctl, options.buildkitd)
            host = stack.enter_context(registry(work))
            for name, measure in kinds.items():
                if options.only in {"", name}:
                    measure(options, daemons, host, work)
        if options.only in {"", "serving"}:
            serving(options, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
