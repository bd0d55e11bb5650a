"""Programs that are not ours accept, copy, unpack and run what we make."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from programs import Cli, Context, Layout, Registry, run

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]

DOCKERFILE = """
FROM base
RUN mkdir -p /a/b /gone && echo 1 > /a/b/file && echo 2 > /gone/file && ln -s b/file /a/link \
  && ln /a/b/file /a/hard && chown 12:34 /a/b && chmod 4755 /a/b/file
RUN rm -rf /gone && mkdir /gone && echo new > /gone/other && rm /a/link
ENV GREETING=hello
USER 12:34
WORKDIR /a
LABEL shape=round
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["echo $GREETING; id -u; pwd; cat b/file; ls /gone"]
"""
SAYS = ["hello", "12", "/a", "1", "other"]


@pytest.fixture
def project(context: Context) -> Context:
    """The context of an image with all kinds of changes in its layers."""
    context.dockerfile(DOCKERFILE)
    return context


def assert_unpacked(root: Path) -> None:
    """The tree is what the Dockerfile says."""
    file = root / "a/b/file"
    assert file.read_text() == "1\n"
    assert (file.stat().st_mode & 0o7777, file.stat().st_nlink) == (0o4755, 2)
    assert (file.parent.stat().st_uid, file.parent.stat().st_gid) == (12, 34)
    assert sorted(path.name for path in (root / "gone").iterdir()) == ["other"]
    assert not (root / "a/link").is_symlink()


@pytest.mark.peer("skopeo")
@pytest.mark.parametrize(
    "compression", ["gzip", "zstd", "uncompressed", "estargz"], ids=lambda name: name
)
def test_skopeo_copies_an_oci_archive(
    cli: Cli, project: Context, tmp_path: Path, compression: str
) -> None:
    archive = tmp_path / "out.tar"
    output = f"type=oci,dest={archive},name=app:v1,compression={compression}"
    done = cli.build("-o", output, project.path)
    if compression == "estargz" and done.status != 0:
        assert "estargz" in done.err
        assert "hint: " in done.err
        return
    done.ok()
    shown = json.loads(run(["skopeo", "inspect", f"oci-archive:{archive}"]).ok().out)
    assert shown["Labels"] == {"shape": "round"}
    assert shown["Digest"] == Layout.unpack(archive).descriptor["digest"]
    run(["skopeo", "copy", f"oci-archive:{archive}", f"dir:{tmp_path}/copied"]).ok()


@pytest.mark.peer("skopeo")
def test_skopeo_copies_a_docker_archive(cli: Cli, project: Context, tmp_path: Path) -> None:
    archive = tmp_path / "out.tar"
    cli.build("-t", "app:v1", "-o", f"type=docker,dest={archive}", project.path).ok()
    source = f"docker-archive:{archive}:docker.io/library/app:v1"
    config = json.loads(run(["skopeo", "inspect", "--config", source]).ok().out)
    assert config["config"]["Env"][-1] == "GREETING=hello"
    run(["skopeo", "copy", source, f"oci:{tmp_path}/layout:app"]).ok()


@pytest.mark.peer("umoci")
def test_umoci_unpacks_and_crun_runs(cli: Cli, project: Context, tmp_path: Path) -> None:
    archive = tmp_path / "out.tar"
    cli.build("-o", f"type=oci,dest={archive},name=app:v1", project.path).ok()
    layout = Layout.unpack(archive)
    bundle = tmp_path / "bundle"
    run(["umoci", "unpack", "--image", f"{layout.path}:v1", str(bundle)]).ok()
    assert_unpacked(bundle / "rootfs")
    assert_runs(bundle)


def assert_runs(bundle: Path) -> None:
    """A runtime runs the bundle that umoci made, and it says what it should."""
    spec = json.loads((bundle / "config.json").read_text())
    spec["process"]["terminal"] = False
    spec["linux"].pop("resources", None)
    spec["linux"].pop("cgroupsPath", None)
    (bundle / "config.json").write_text(json.dumps(spec))
    # crun before 1.9 refuses hybrid control group hosts, so it must not see them
    script = (
        "mount --make-rprivate / && "
        "{ ! test -d /sys/fs/cgroup/unified || mount -t tmpfs none /sys/fs/cgroup/unified; } && "
        f"crun --root {bundle}/state run --bundle {bundle} app-{os.getpid()}"
    )
    done = run(["unshare", "--mount", "sh", "-c", script]).ok()
    assert done.out.split() == SAYS


def test_a_tar_output_is_a_root_file_system(cli: Cli, project: Context, tmp_path: Path) -> None:
    archive = tmp_path / "out.tar"
    cli.build("-o", f"type=tar,dest={archive}", project.path).ok()
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["tar", "-xpf", str(archive), "-C", str(root), "--numeric-owner"], check=True)
    assert_unpacked(root)
    said = run(["chroot", str(root), "/bin/sh", "-c", "ls /gone"]).ok()
    assert said.out == "other\n"


def test_a_folder_output_is_a_root_file_system(cli: Cli, project: Context, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    cli.build("-o", folder, project.path).ok()
    assert (folder / "a/b/file").read_text() == "1\n"
    assert sorted(path.name for path in (folder / "gone").iterdir()) == ["other"]


@pytest.mark.peer("docker-registry")
@pytest.mark.peer("skopeo")
def test_a_foreign_registry_between_us_and_skopeo(
    cli: Cli, project: Context, registry: Registry, tmp_path: Path
) -> None:
    name = f"{registry.host}/deep/er/app:v1"
    done = cli.build(
        "-t", name, "--push", "--metadata-file", tmp_path / "meta.json", project.path
    ).ok()
    assert "Traceback" not in done.text
    digest = json.loads((tmp_path / "meta.json").read_text())["containerimage.digest"]
    insecure = "--tls-verify=false"
    shown = json.loads(run(["skopeo", "inspect", insecure, f"docker://{name}"]).ok().out)
    assert shown["Digest"] == digest
    # and back: what skopeo pushed is our base, by tag and by digest
    copied = f"{registry.host}/copied:v1"
    run(
        [
            *("skopeo", "copy", "--src-tls-verify=false", "--dest-tls-verify=false"),
            *(f"docker://{name}", f"docker://{copied}"),
        ]
    ).ok()
    for base in (copied, f"{registry.host}/copied@{digest}"):
        other = Context(tmp_path / f"other-{base.count('@')}")
        other.path.mkdir()
        other.dockerfile(
            f"FROM {base}\nUSER 0\nRUN cat /a/b/file > /copy && rm /a/b/file\n", base=False
        )
        folder = tmp_path / f"out-{base.count('@')}"
        cli.build("-o", folder, other.path).ok()
        assert (folder / "copy").read_text() == "1\n"
        assert not (folder / "a/b/file").exists()


@pytest.mark.peer("buildah")
def test_buildah_pulls_and_runs(cli: Cli, project: Context, tmp_path: Path) -> None:
    archive = tmp_path / "out.tar"
    cli.build("-o", f"type=oci,dest={archive},name=app:v1", project.path).ok()
    store = [
        *("--root", f"{tmp_path}/buildah", "--runroot", f"{tmp_path}/buildah-run"),
        *("--storage-driver", "vfs"),
    ]
    pulled = run(["buildah", *store, "pull", "-q", f"oci-archive:{archive}"]).ok().out.strip()
    made = run(["buildah", *store, "from", "--pull-never", pulled]).ok().out.strip()
    root = Path(run(["buildah", *store, "mount", made]).ok().out.strip())
    try:
        assert_unpacked(root)
    finally:
        run(["buildah", *store, "umount", made])
        run(["buildah", *store, "rm", made])
