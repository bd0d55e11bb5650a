"""Sources with every attribute, fetched by both daemons from one server: equal trees, equal errors.

Served are a web site, git repositories and a registry of the test's own; the graphs come from
our builder and are sent by upstream's ``buildctl``.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from peers import Daemons
from programs import Registry, find_peer, running_registry
from served import Repository, Site

from boxwright import llb
from boxwright.core.digest import Digest
from boxwright.llb.state import State

pytestmark = [
    pytest.mark.reference,
    pytest.mark.root,
    pytest.mark.peer("git"),
    pytest.mark.peer("docker-registry"),
    pytest.mark.peer("skopeo"),
]

SIGNED = Path(__file__).parent.parent / "unit/sources/openpgp"
CONTENT = b"the content of a file\n"
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Served:
    """What the sources are fetched from."""

    site: Site
    repository: Repository
    git_url: str
    commits: list[str]
    registry: Registry
    image_digest: str
    layout: Path
    folder: Path
    bundle: str
    signed: llb.GitSignature


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Everything, with content."""
    folder = tmp_path_factory.mktemp("served")
    with Site(folder / "site") as site, running_registry(folder) as registry:
        site.file("f.txt", CONTENT)
        os.utime(site.folder / "files/f.txt", (1_600_000_000, 1_600_000_000))
        repository, git_url = site.repository("app")
        commits = [repository.commit({"a.txt": "1", "dir/b.txt": "2", "dir/deep/c": "3"})]
        repository.git("tag", "v1")
        (repository.path / "link").symlink_to("dir/b.txt")
        (repository.path / "run.sh").write_text("#!/bin/sh\n")
        (repository.path / "run.sh").chmod(0o755)
        commits.append(repository.commit({"a.txt": "changed"}))
        repository.git("tag", "-a", "v2", "-m", "annotated")
        repository.git("checkout", "-q", "-b", "other")
        commits.append(repository.commit({"only-here": "x"}))
        repository.git("checkout", "-q", "trunk")
        layout = folder / "layout"
        digest = _image(folder, layout, registry)
        bundle, signed = _bundle(folder, repository, registry), _sign(folder, repository)
        site.file("signed", (SIGNED / "content").read_bytes())
        yield Served(
            site, repository, git_url, commits, registry, digest, layout, folder, bundle, signed
        )


def _bundle(folder: Path, repository: Repository, registry: Registry) -> str:
    """Put a bundle of the trunk into the registry; return its name there."""
    repository.git("bundle", "create", "-q", str(folder / "bundle"), "trunk")
    data = (folder / "bundle").read_bytes()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    base = f"http://{registry.host}/v2/bundles/blobs/uploads/"
    with urllib.request.urlopen(urllib.request.Request(base, method="POST")) as begun:
        place = begun.headers["Location"]
    joined = "&" if "?" in place else "?"
    put = urllib.request.Request(f"{place}{joined}digest={digest}", data, method="PUT")
    put.add_header("Content-Type", "application/octet-stream")
    urllib.request.urlopen(put).close()
    return f"bundles@{digest}"


def _sign(folder: Path, repository: Repository) -> llb.GitSignature:
    """Make a signed commit and a signed tag; return who signed them."""
    key = folder / "key"
    keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)]
    subprocess.run(keygen, check=True)
    options = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={key}")
    repository.git("checkout", "-q", "-b", "signed")
    repository.git(*options, "commit", "-q", "-S", "--allow-empty", "-m", "signed")
    repository.git("checkout", "-q", "trunk")
    repository.git(*options, "tag", "-s", "-m", "stamp", "stamp")
    return llb.GitSignature(Path(f"{key}.pub").read_text())


def _image(folder: Path, layout: Path, registry: Registry) -> str:
    """Put an image of three layers into a layout and the registry; return its digest."""
    umoci, skopeo = find_peer("umoci"), find_peer("skopeo")

    def run(*argv: str | Path) -> str:
        done = subprocess.run([str(a) for a in argv], capture_output=True, check=True, text=True)
        return done.stdout

    run(umoci, "init", "--layout", layout)
    run(umoci, "new", "--image", f"{layout}:img")
    for number in range(3):
        source = folder / f"layer{number}.txt"
        source.write_text(f"layer {number}")
        os.utime(source, (1_600_000_000, 1_600_000_000))
        run(umoci, "insert", "--image", f"{layout}:img", source, f"/file{number}")
    run(umoci, "gc", "--layout", layout)
    target = f"docker://{registry.host}/img:1"
    run(skopeo, "copy", "--dest-tls-verify=false", f"oci:{layout}:img", target)
    return run(skopeo, "inspect", "--tls-verify=false", "--format", "{{.Digest}}", target).strip()


Make = Callable[[Served], State]


@dataclass(frozen=True)
class Case:
    make: Make
    options: tuple[str, ...] = ()


def git(served: Served, ref: str = "", **options: object) -> State:
    return llb.git(served.git_url, ref, **options)  # type: ignore[arg-type]


def web(served: Served, name: str = "f.txt", **options: object) -> State:
    return llb.http(f"{served.site.url}/{name}", **options)  # type: ignore[arg-type]


def image(served: Served, name: str = "img:1", **options: object) -> State:
    return llb.image(f"{served.registry.host}/{name}", **options)  # type: ignore[arg-type]


def layout(served: Served, **options: object) -> State:
    ref = f"any/name@{served.image_digest}"
    return llb.oci_layout(ref, store_id="store", **options)  # type: ignore[arg-type]


def blob(served: Served, **options: object) -> State:
    return llb.image_blob(f"{served.registry.host}/{served.bundle}", **options)  # type: ignore[arg-type]


def bundled(served: Served, ref: str = "trunk", **options: object) -> State:
    where = f"docker-image+blob://{served.registry.host}/{served.bundle}"
    url = f"{served.site.url}/nowhere.git"
    return llb.git(url, ref, checksum=served.commits[1], bundle=where, **options)  # type: ignore[arg-type]


def signed_file(served: Served, key: str = "rsa.pub") -> State:
    return web(
        served,
        "signed",
        signature=(SIGNED / "rsa.asc").read_text(),
        public_keys=(SIGNED / key).read_text(),
    )


TREES: dict[str, Case] = {
    "http": Case(web),
    "http: name": Case(lambda s: web(s, filename="other.name")),
    "http: name in a folder": Case(lambda s: web(s, filename="x/y")),
    "http: name that leads out": Case(lambda s: web(s, filename="../x")),
    "http: mode and owner": Case(lambda s: web(s, mode=0o751, uid=5, gid=6)),
    "http: checksum": Case(lambda s: web(s, checksum=Digest(SHA))),
    "http: query": Case(lambda s: web(s, "f.txt?a=b&c=d")),
    "http: headers": Case(lambda s: web(s, headers={"accept": "x/y", "user-agent": "u"})),
    "http: login": Case(
        lambda s: web(s, auth_header_secret="token"), ("--secret", "id=token,env=LLB_SECRET")
    ),
    "git": Case(git),
    "git: branch": Case(lambda s: git(s, "other")),
    "git: tag": Case(lambda s: git(s, "v1")),
    "git: annotated tag": Case(lambda s: git(s, "v2")),
    "git: full ref": Case(lambda s: git(s, "refs/heads/other")),
    "git: commit": Case(lambda s: git(s, s.commits[0])),
    "git: folder": Case(lambda s: git(s, "v1", subdir="dir")),
    "git: folder in the ref": Case(lambda s: git(s, "v1:dir/deep")),
    "git: checksum": Case(lambda s: git(s, "v1", checksum=s.commits[0])),
    "git: short checksum": Case(lambda s: git(s, "v1", checksum=s.commits[0][:12])),
    "git: checksum of an annotated tag": Case(lambda s: git(s, "v2", checksum=s.commits[1])),
    "git: time of the commit": Case(lambda s: git(s, "v1", mtime="commit")),
    "git: fetched by its commit": Case(
        lambda s: git(s, "trunk", checksum=s.commits[0], fetch_by_commit=True)
    ),
    "git: without submodules": Case(lambda s: git(s, "other", skip_submodules=True)),
    "git: out of a bundle": Case(lambda s: bundled(s)),
    "git: out of a bundle, by commit": Case(lambda s: bundled(s, s.commits[1])),
    "git: out of a bundle, folder": Case(lambda s: bundled(s, "trunk", subdir="dir")),
    "git: signed commit": Case(lambda s: git(s, "signed", signed=s.signed)),
    "git: signed tag": Case(lambda s: git(s, "stamp", signed=replace(s.signed, require_tag=True))),
    "http: signed": Case(lambda s: signed_file(s)),
    "blob": Case(lambda s: blob(s)),
    "blob: name, mode and owner": Case(
        lambda s: blob(s, filename="x/bundle", mode=0o640, uid=5, gid=6)
    ),
    "blob: of a layout": Case(
        lambda s: llb.oci_layout_blob(f"any/name@{s.image_digest}", store_id="store")
    ),
    "image": Case(image),
    "image: digest": Case(lambda s: image(s, f"img:1@{s.image_digest}")),
    "image: checksum": Case(lambda s: image(s, checksum=Digest(s.image_digest))),
    "image: two layers": Case(lambda s: image(s, layer_limit=2)),
    "image: pull": Case(lambda s: image(s, resolve_mode="pull")),
    "image: local": Case(lambda s: image(s, resolve_mode="local")),
    "image: file": Case(lambda s: llb.scratch().copy(image(s), "/file1", "/")),
    "layout": Case(layout),
    "layout: one layer": Case(lambda s: layout(s, layer_limit=1)),
    "layout: file": Case(lambda s: llb.scratch().copy(layout(s), "/file2", "/")),
}

# What both say; ours says more of where.
ERRORS: dict[str, tuple[Case, str]] = {
    "http: wrong checksum": (
        Case(lambda s: web(s, checksum=Digest("sha256:" + "0" * 64))),
        "digest mismatch",
    ),
    "http: missing": (Case(lambda s: web(s, "missing")), "invalid response status 404"),
    "git: no such ref": (Case(lambda s: git(s, "missing")), "does not contain ref missing"),
    "git: no such folder": (
        Case(lambda s: git(s, "v1", subdir="missing")),
        "invalid subdir missing",
    ),
    "git: a file as folder": (
        Case(lambda s: git(s, "v1", subdir="a.txt")),
        "invalid subdir a.txt",
    ),
    "git: wrong checksum": (
        Case(lambda s: git(s, "v1", checksum="0" * 40)),
        "failed to load cache key: expected checksum to match " + "0" * 40,
    ),
    "git: checksum that is none": (
        Case(lambda s: git(s, "v1", checksum="zz")),
        "expected hex commit hash",
    ),
    "git: not signed": (
        Case(lambda s: git(s, "v2", signed=s.signed)),
        "git object is not signed",
    ),
    "git: no signed tag": (
        Case(lambda s: git(s, "signed", signed=replace(s.signed, require_tag=True))),
        "signed tag required but no signed tag found",
    ),
    "git: signed by another": (
        Case(lambda s: git(s, "signed", signed=llb.GitSignature("ssh-ed25519 AAAA"))),
        "failed to parse ssh public key",
    ),
    "git: signed, a key of the other kind": (
        Case(lambda s: git(s, "signed", signed=llb.GitSignature("no key"))),
        "failed to parse ssh public key",
    ),
    "git: another commit than in the bundle": (
        Case(lambda s: bundled(s, s.commits[2])),
        "expected checksum to match",
    ),
    "http: signed by another": (
        Case(lambda s: signed_file(s, "ed.pub")),
        "failed to verify pgp signature",
    ),
    "blob: missing": (
        Case(lambda s: llb.image_blob(f"{s.registry.host}/bundles@sha256:{'0' * 64}")),
        "0" * 64,
    ),
    "image: no such tag": (Case(lambda s: image(s, "img:missing")), "img:missing: not found"),
    "image: no such repository": (Case(lambda s: image(s, "missing:1")), "missing:1: not found"),
    "image: wrong checksum": (
        Case(lambda s: image(s, checksum=Digest("sha256:" + "0" * 64))),
        "0" * 64,
    ),
    "image: too many layers": (Case(lambda s: image(s, layer_limit=9)), "layer limit 9"),
    "layout: no such store": (
        Case(lambda _: llb.oci_layout("any/name@sha256:" + "1" * 64, store_id="missing")),
        "unknown store oci:missing: not found",
    ),
    "layout: no such image": (
        Case(lambda s: llb.oci_layout("any/name@sha256:" + "0" * 64, store_id="store")),
        "0" * 64 + ": not found",
    ),
}


def solve(
    address: str, case: Case, served: Served, *options: str
) -> subprocess.CompletedProcess[bytes]:
    argv = [os.environ["BUILDCTL"], "--addr", address, "build", "--progress", "plain"]
    argv += ["--oci-layout", f"store={served.layout}"]
    return subprocess.run(
        [*argv, *case.options, *options],
        input=case.make(served).marshal().SerializeToString(),
        env={**os.environ, "LLB_SECRET": "Bearer hidden"},
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", list(TREES))
def test_trees_are_equal(name: str, daemons: Daemons, served: Served, tmp_path: Path) -> None:
    listings = []
    for number, address in enumerate((daemons.ours, daemons.upstream)):
        archive = tmp_path / f"{number}.tar"
        done = solve(address, TREES[name], served, "--output", f"type=tar,dest={archive}")
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        listed = subprocess.run(
            ["tar", "--numeric-owner", "--full-time", "-tvf", str(archive)],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        if "git" in name and "time" not in name:  # files have the time of the checkout
            listed = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", "TIME", listed)
        content = subprocess.run(
            ["tar", "-xOf", str(archive)], capture_output=True, check=True
        ).stdout
        listings.append((listed.splitlines(), content))
    assert listings[0] == listings[1]


@pytest.mark.parametrize("name", list(ERRORS))
def test_both_refuse_with_these_words(name: str, daemons: Daemons, served: Served) -> None:
    case, words = ERRORS[name]
    for address in (daemons.ours, daemons.upstream):
        done = solve(address, case, served)
        assert done.returncode == 1
        error = done.stderr.decode().strip().splitlines()[-1]
        assert error.startswith("error: failed to solve: ")
        assert words in error
