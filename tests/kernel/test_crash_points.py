"""The daemon is killed at every named point of a commit, collection, import and export.

What was there before is there afterwards, nothing half-done is visible, and the same work then
succeeds on the same state folder.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from boxwright.linux import unixpath
from boxwright.store import trace
from boxwright.testing.ports import kept_port

pytestmark = [pytest.mark.root, pytest.mark.peer("busybox"), pytest.mark.peer("crun")]
PROGRAM = str(Path(sys.executable).with_name("boxwright"))

BUILD = ("blob-staged", "blob-synced", "blob-linked", "blob-recorded")
BUILD += ("snapshot-unmounted", "snapshot-recorded", "cachemount-made")
BUILD += ("image-committed", "image-named", "history-logged", "history-recorded")
UNPACK = ("snapshot-unpacked", "snapshot-renamed")
PRUNE = ("snapshot-row-deleted", "snapshot-trashed", "gc-marked", "gc-row-deleted", "gc-unlinked")
UPLOAD = ("upload-received", "upload-published")
PUSH = ("manifest-stored", "manifest-recorded")
EXPORT = ("cache-layers-written", "cache-config-written", "cache-exported")
IMPORT = ("cache-import-read",)


def test_every_point_is_crashed():
    assert {*BUILD, *UNPACK, *PRUNE, *UPLOAD, *PUSH, *EXPORT, *IMPORT} == set(trace.POINTS)


class World:
    """A state folder, a context, and the daemon that serves them for a while."""

    def __init__(self, folder: Path, registry: str) -> None:
        self.root = folder / "state"
        self.address = f"unix://{folder}/d.sock"
        self.context = folder / "context"
        self.cache = folder / "cache"
        self._config = folder / "buildkitd.toml"
        self._log = folder / "daemon.log"
        self.registry = registry
        self._config.write_text(
            f'[boxwright.registry]\naddress = "{self.registry}"\n'
            f'[registry."{self.registry}"]\nhttp = true\n'
        )
        (self.context / "bin").mkdir(parents=True)
        busybox = shutil.which("busybox") or "/bin/busybox"
        shutil.copy(busybox, self.context / "bin/busybox")
        (self.context / "bin/sh").symlink_to("busybox")

    @contextmanager
    def daemon(self, point: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """Run it; with a point it must die there."""
        env = dict(os.environ)
        if point:
            env |= {"BOXWRIGHT_TEST_CRASH": "1", "BOXWRIGHT_CRASH_POINT": point}
        argv = [PROGRAM, "daemon", "--root", str(self.root), "--addr", self.address]
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*argv, "--config", str(self._config)], stdout=log, stderr=log, env=env
            )
        try:
            self._wait_for(process)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            status = process.wait(120)
        assert status == (-signal.SIGKILL if point else 0), self._log.read_text()[-3000:]

    def _wait_for(self, process: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + 120
        path = self.address.removeprefix("unix://")
        while True:
            with socket.socket(socket.AF_UNIX) as probe, unixpath.usable(path) as name:
                if probe.connect_ex(name) == 0:
                    return
            assert process.poll() is None, self._log.read_text()[-3000:]
            assert time.monotonic() < end, "the daemon does not listen"
            time.sleep(0.02)

    def run(self, *argv: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [PROGRAM, "--addr", self.address, *argv],
            capture_output=True,
            check=False,
            timeout=120,
        )

    def build(
        self, name: str, script: str, *flags: str, push: bool = False
    ) -> subprocess.CompletedProcess[bytes]:
        text = f"FROM scratch\nCOPY bin /bin\nENV PATH=/bin\nRUN {script}\n"
        output = f"type=image,name={self.registry}/app:{name},push={str(push).lower()}"
        return self.build_text(text, "--output", output, *flags)

    def build_text(self, text: str, *flags: str) -> subprocess.CompletedProcess[bytes]:
        (self.context / "Dockerfile").write_text(text)
        return self.run("build", "--progress", "plain", *flags, str(self.context))

    def verify(self) -> list[dict[str, object]]:
        """Return what is damaged; leftovers are no damage."""
        done = subprocess.run(
            [PROGRAM, "--root", str(self.root), "store", "verify", "--json"],
            capture_output=True,
            check=False,
            timeout=120,
        )
        problems = json.loads(done.stdout)["problems"]
        return [each for each in problems if each["damage"]]

    def images(self) -> list[str]:
        done = subprocess.run(
            [PROGRAM, "--root", str(self.root), "image", "ls", "--json"],
            capture_output=True,
            check=True,
            timeout=120,
        )
        return [each["name"] for each in json.loads(done.stdout)]


@pytest.fixture(scope="module")
def seed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A state folder with an image, its cache, and a repository."""
    with kept_port() as port:  # names of images have it: it stays the same
        yield _seed(World(tmp_path_factory.mktemp("seed"), f"127.0.0.1:{port}"))


def _seed(world: World) -> World:
    with world.daemon():
        done = world.build("kept", "echo kept > /kept", push=True)
        assert done.returncode == 0, done.stderr.decode()
        flags = ("--cache-to", f"type=registry,ref={world.registry}/cache:seed,mode=max")
        done = world.build("cached", "echo cached > /cached", *flags)
        assert done.returncode == 0, done.stderr.decode()
    return world


@pytest.fixture
def world(seed: World, tmp_path: Path) -> World:
    """A copy of the seed, in a folder of its own."""
    made = World(tmp_path, seed.registry)
    subprocess.run(["cp", "-a", str(seed.root), str(made.root)], check=True)
    return made


def check(world: World, work, point: str) -> None:
    """Crash ``work`` at a point; afterwards all is sound and ``work`` succeeds."""
    with world.daemon(point):
        status = work().returncode
        assert status or point.startswith("history-")  # told after the build has answered
    assert world.verify() == []
    names = world.images()
    assert f"{world.registry}/app:kept" in names
    with world.daemon():
        kept = world.build_text(
            f"FROM {world.registry}/app:kept\nRUN test -f /kept\n", "--pull", "--no-cache"
        )
        assert kept.returncode == 0, kept.stderr.decode()
        again = work()
        assert again.returncode == 0, again.stderr.decode()
    assert world.verify() == []


@pytest.mark.parametrize("point", BUILD)
def test_build_and_image_export(world, point):
    script = "--mount=type=cache,target=/c echo new > /new"
    check(world, lambda: world.build("new", script), point)
    assert f"{world.registry}/app:new" in world.images()


@pytest.mark.parametrize("point", UNPACK)
def test_layers_are_unpacked(world, point):
    with world.daemon():
        assert world.run("prune", "--all").returncode == 0
    text = f"FROM {world.registry}/app:kept\nRUN echo more > /more\n"
    check(world, lambda: world.build_text(text), point)


@pytest.mark.parametrize("point", PRUNE)
def test_collection(world, point):
    name = f"{world.registry}/app:cached"  # its manifest goes with the cache
    subprocess.run([PROGRAM, "--root", str(world.root), "image", "rm", name], check=True)
    check(world, lambda: world.run("prune", "--all"), point)


_UPLOAD = """
import hashlib, sys, urllib.request
from urllib.parse import urljoin
data = b"uploaded"
base = "http://" + sys.argv[1] + "/v2/other/blobs/uploads/"
with urllib.request.urlopen(urllib.request.Request(base, method="POST")) as answer:
    place = urljoin(base, answer.headers["Location"])
place += ("&" if "?" in place else "?") + "digest=sha256:" + hashlib.sha256(data).hexdigest()
with urllib.request.urlopen(urllib.request.Request(place, data, method="PUT")) as answer:
    assert answer.status == 201, answer.status
"""


@pytest.mark.parametrize("point", UPLOAD)
def test_upload_into_the_registry(world, point):
    # what the daemon itself pushes is in its store: it is mounted, not sent
    argv = [sys.executable, "-c", _UPLOAD, world.registry]
    check(world, lambda: subprocess.run(argv, capture_output=True, check=False), point)


@pytest.mark.parametrize("point", PUSH)
def test_push_into_the_registry(world, point):
    def push():
        return world.build("pushed", "echo pushed > /pushed", push=True)

    check(world, push, point)


@pytest.mark.parametrize("point", EXPORT)
def test_cache_export(world, point):
    flags = ("--cache-to", f"type=registry,ref={world.registry}/cache:new,mode=max")
    check(world, lambda: world.build("new", "echo new > /new", *flags), point)


@pytest.mark.parametrize("point", IMPORT)
def test_cache_import(world, point):
    with world.daemon():
        assert world.run("prune", "--all").returncode == 0
    flags = ("--cache-from", f"type=registry,ref={world.registry}/cache:seed")
    check(world, lambda: world.build("again", "echo cached > /cached", *flags), point)
