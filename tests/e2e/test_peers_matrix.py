"""Every form of image that we make, through a foreign registry, into foreign programs.

Compression by media types by number of platforms. Docker's types have no place for what estargz
needs, so that pair is refused, as upstream's daemon does.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import (
    PROGRAM,
    Context,
    Daemon,
    Registry,
    Run,
    find_peer,
    run,
    running_registry,
    wait_until,
)

pytestmark = [
    pytest.mark.root,
    pytest.mark.peer("crun"),
    pytest.mark.peer("docker-registry"),
]

TAR = {
    "oci": {
        "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
        "estargz": "application/vnd.oci.image.layer.v1.tar+gzip",
        "zstd": "application/vnd.oci.image.layer.v1.tar+zstd",
        "uncompressed": "application/vnd.oci.image.layer.v1.tar",
    },
    "docker": {
        "gzip": "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "zstd": "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "uncompressed": "application/vnd.docker.image.rootfs.diff.tar",
    },
}
INDEX = {
    "oci": "application/vnd.oci.image.index.v1+json",
    "docker": "application/vnd.docker.distribution.manifest.list.v2+json",
}
FORMS = [
    (compression, types, platforms)
    for compression, types, platforms in itertools.product(
        ("gzip", "zstd", "estargz", "uncompressed"), ("oci", "docker"), (1, 2)
    )
    if compression in TAR[types]
]
# containers/image, which skopeo and buildah use, does not know Docker's type for zstd, that BuildKit
# writes and containerd reads.
SKOPEO_FORMS = [form for form in FORMS if form[:2] != ("zstd", "docker")]
IDS = ["-".join(map(str, form)) for form in FORMS]
SKOPEO_IDS = ["-".join(map(str, form)) for form in SKOPEO_FORMS]
DOCKERFILE = (
    "FROM scratch\nCOPY first /\nCOPY second /\nCOPY --chown=12:34 --chmod=4755 tool /bin/tool\n"
    "ENV A=b\nUSER 12\nLABEL shape=round\n"
)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Links, odd modes, long and non-ASCII names, an empty file, and one that is replaced."""
    made = Context(tmp_path_factory.mktemp("context"))
    made.dockerfile(DOCKERFILE, base=False)
    made.write("first/d/file", "old")
    made.write("first/d/café", "é" * 1000)
    made.write("first/d/empty", "")
    made.write("first/" + "n" * 120 + "/" + "m" * 120, "long")
    made.write("first/d/large", b"".join(n.to_bytes(4, "big") for n in range(300_000)))
    os.link(made.path / "first/d/large", made.path / "first/d/same")
    (made.path / "first/d/link").symlink_to("../bin/tool")
    made.write("second/d/file", "new")
    made.write("tool", "#!/bin/sh\n", mode=0o755)
    return made


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all forms: each is made of the same snapshots."""
    folder = tmp_path_factory.mktemp("daemon")
    address = f"unix://{folder}/d.sock"
    argv = [PROGRAM, "daemon", "--root", str(folder / "state"), "--addr", address]
    made = Daemon(folder / "state", address, argv, folder / "daemon.log")
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    """One registry of CNCF for all forms."""
    with running_registry(tmp_path_factory.mktemp("registry")) as made:
        yield made


def build(daemon: Daemon, context: Context, output: str, platforms: int) -> Run:
    """Build the image for one or two platforms."""
    names = ",".join(("linux/amd64", "linux/arm64")[:platforms])
    argv = [PROGRAM, "--addr", daemon.address, "build", "--progress", "plain"]
    return run([*argv, "--platform", names, "-o", output, str(context.path)])


def attributes(compression: str, types: str) -> str:
    """Return what a form is called in an output."""
    oci = "true" if types == "oci" else "false"
    return f"compression={compression},force-compression=true,oci-mediatypes={oci}"


def tree(root: Path) -> dict[str, str]:
    """Return what lies under a root: mode, owner, links, and content or target."""
    found = {}
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            content = str(path.readlink())
        elif stat.S_ISREG(info.st_mode):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content = ""
        links = info.st_nlink if stat.S_ISREG(info.st_mode) else 0
        owner = f"{info.st_uid}:{info.st_gid}"
        found[str(path.relative_to(root))] = f"{info.st_mode:o} {owner} {links} {content}"
    return found


@pytest.fixture(scope="module")
def expected(
    daemon: Daemon, context: Context, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """The same result as a tar output, which GNU tar unpacks."""
    folder = tmp_path_factory.mktemp("expected")
    build(daemon, context, f"type=tar,dest={folder}/out.tar", 1).ok()
    root = folder / "root"
    root.mkdir()
    run(["tar", "-xpf", str(folder / "out.tar"), "-C", str(root), "--numeric-owner"]).ok()
    found = tree(root)
    assert found["d/file"].endswith(hashlib.sha256(b"new").hexdigest())
    assert found["bin/tool"].startswith("104755 12:34 1 ")
    assert " 2 " in found["d/same"]
    return found


@pytest.mark.peer("skopeo")
@pytest.mark.peer("buildah")
@pytest.mark.parametrize(("compression", "types", "platforms"), SKOPEO_FORMS, ids=SKOPEO_IDS)
def test_pushed_copied_pulled_and_mounted(
    daemon: Daemon,
    context: Context,
    registry: Registry,
    expected: dict[str, str],
    tmp_path: Path,
    compression: str,
    types: str,
    platforms: int,
) -> None:
    name = f"{registry.host}/{compression}/{types}:{platforms}"
    output = f"type=image,name={name},push=true,{attributes(compression, types)}"
    build(daemon, context, output, platforms).ok()
    inspect = ["skopeo", "inspect", "--tls-verify=false", f"docker://{name}"]
    shown = json.loads(run(inspect).ok().out)
    raw = json.loads(run([*inspect, "--raw"]).ok().out)
    assert shown["Labels"] == {"shape": "round"}
    if platforms == 2:
        assert raw["mediaType"] == INDEX[types]
        assert len(raw["manifests"]) == 2
    else:
        assert {each["mediaType"] for each in raw["layers"]} == {TAR[types][compression]}
    # all platforms, digests kept, into a folder of blobs, every one of which is checked
    copy = ["skopeo", "copy", "--all", "--preserve-digests", "--src-tls-verify=false"]
    run([*copy, f"docker://{name}", f"dir:{tmp_path}/copied"]).ok()
    assert mounted_by_buildah(name, tmp_path) == expected


def mounted_by_buildah(name: str, folder: Path) -> dict[str, str]:
    """Pull an image with buildah and return its tree."""
    buildah = ["buildah", "--root", f"{folder}/b", "--runroot", f"{folder}/b-run"]
    buildah += ["--storage-driver", "vfs"]
    pulled = run([*buildah, "pull", "-q", "--tls-verify=false", f"docker://{name}"]).ok()
    made = run([*buildah, "from", "--pull-never", pulled.out.strip()]).ok().out.strip()
    root = Path(run([*buildah, "mount", made]).ok().out.strip())
    try:
        return tree(root)
    finally:
        run([*buildah, "umount", made])
        run([*buildah, "rm", made])
        run([*buildah, "rmi", "--all"])


@pytest.mark.peer("skopeo")
@pytest.mark.parametrize(("compression", "types", "platforms"), SKOPEO_FORMS, ids=SKOPEO_IDS)
def test_archives_are_copied_whole(
    daemon: Daemon,
    context: Context,
    tmp_path: Path,
    compression: str,
    types: str,
    platforms: int,
) -> None:
    archive = tmp_path / "out.tar"
    output = f"type=oci,dest={archive},name=app:v1,{attributes(compression, types)}"
    build(daemon, context, output, platforms).ok()
    copy = ["skopeo", "copy", "--all", f"oci-archive:{archive}", f"dir:{tmp_path}/copied"]
    run(copy).ok()
    assert list((tmp_path / "copied").rglob("manifest.json"))


@pytest.mark.peer("skopeo")
@pytest.mark.parametrize("compression", ["gzip", "zstd", "uncompressed"])
def test_docker_archives_are_read(
    daemon: Daemon, context: Context, tmp_path: Path, compression: str
) -> None:
    archive = tmp_path / "out.tar"
    output = f"type=docker,dest={archive},name=app:v1,{attributes(compression, 'docker')}"
    build(daemon, context, output, 1).ok()
    copy = ["skopeo", "copy", f"docker-archive:{archive}", f"oci:{tmp_path}/layout:v1"]
    run(copy).ok()


@pytest.mark.parametrize(("compression", "types", "platforms"), FORMS, ids=IDS)
def test_we_build_on_it_again(
    daemon: Daemon,
    context: Context,
    registry: Registry,
    expected: dict[str, str],
    tmp_path: Path,
    compression: str,
    types: str,
    platforms: int,
) -> None:
    name = f"{registry.host}/again/{compression}/{types}:{platforms}"
    output = f"type=image,name={name},push=true,store=false,{attributes(compression, types)}"
    build(daemon, context, output, platforms).ok()
    user = Context(tmp_path / "user")
    user.path.mkdir()
    user.dockerfile(f"FROM {name}\n", base=False)
    build(daemon, user, f"type=tar,dest={tmp_path}/out.tar", 1).ok()
    root = tmp_path / "root"
    root.mkdir()
    run(["tar", "-xpf", str(tmp_path / "out.tar"), "-C", str(root), "--numeric-owner"]).ok()
    assert {k: v for k, v in tree(root).items() if k != "stargz.index.json"} == expected


@pytest.mark.peer("umoci")
@pytest.mark.parametrize("compression", ["gzip", "estargz", "uncompressed"])
def test_umoci_unpacks(
    daemon: Daemon,
    context: Context,
    expected: dict[str, str],
    tmp_path: Path,
    compression: str,
) -> None:
    layout = tmp_path / "layout"
    output = f"type=oci,tar=false,dest={layout},name=app:v1,{attributes(compression, 'oci')}"
    build(daemon, context, output, 1).ok()
    run(["umoci", "unpack", "--image", f"{layout}:v1", str(tmp_path / "bundle")]).ok()
    found = tree(tmp_path / "bundle/rootfs")
    found.pop("stargz.index.json", None)
    assert found == expected


@pytest.fixture(scope="module")
def containerd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """A containerd of its own; yields how its client is called."""
    folder = tmp_path_factory.mktemp("containerd")
    program = Path(find_peer("containerd"))
    argv = [str(program), "--root", f"{folder}/root", "--state", f"{folder}/state"]
    argv += ["--address", f"{folder}/c.sock"]
    # Without its CRI plugin, which wants networks.
    config = folder / "config.toml"
    config.write_text('version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\n')
    ctr = [str(program.with_name("ctr")), "--address", f"{folder}/c.sock"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*argv, "--config", str(config)], stdout=log, stderr=log)
    try:
        wait_until(lambda: run([*ctr, "version"]).status == 0, what="containerd answers")
        yield ctr
    finally:
        process.terminate()
        process.wait(120)


@pytest.mark.peer("containerd")
@pytest.mark.parametrize(("compression", "types", "platforms"), FORMS, ids=IDS)
def test_containerd_pulls_and_unpacks(
    daemon: Daemon,
    context: Context,
    registry: Registry,
    containerd: list[str],
    expected: dict[str, str],
    tmp_path: Path,
    compression: str,
    types: str,
    platforms: int,
) -> None:
    name = f"{registry.host}/ctr/{compression}/{types}:{platforms}"
    output = f"type=image,name={name},push=true,{attributes(compression, types)}"
    build(daemon, context, output, platforms).ok()
    images = [*containerd, "images"]
    native = ["--snapshotter", "native"]
    run([*images, "pull", "--plain-http", *native, "--platform", "linux/amd64", name]).ok()
    assert "complete" in run([*images, "check", *native, f"name=={name}"]).ok().out
    root = tmp_path / "root"
    root.mkdir()
    run([*images, "mount", *native, name, str(root)]).ok()
    try:
        assert {k: v for k, v in tree(root).items() if k != "stargz.index.json"} == expected
    finally:
        run([*images, "unmount", *native, "--rm", str(root)])


@pytest.mark.parametrize("platforms", [1, 2])
def test_estargz_with_dockers_types_is_refused(
    daemon: Daemon, context: Context, tmp_path: Path, platforms: int
) -> None:
    output = f"type=oci,dest={tmp_path}/out.tar,{attributes('estargz', 'docker')}"
    done = build(daemon, context, output, platforms)
    assert done.status != 0
    assert '"compression=estargz" conflicts with "oci-mediatypes=false"' in done.err
