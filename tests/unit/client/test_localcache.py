"""Folders with build caches: what a reset removes, and what it leaves to others."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from boxwright.client.localcache import CacheSpec, CacheWriters, offer, publish
from boxwright.core.digest import Digest
from boxwright.oci.mediatypes import OCI_MANIFEST
from boxwright.session.providers.contents import CACHE_PREFIX, OciLayouts


class Cache:
    """A folder that builds export to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        offer(None, (), [self.spec()])

    def spec(self, tag: str = "latest", *, reset: bool = False) -> CacheSpec:
        return CacheSpec(
            "local",
            {"dest": str(self.folder), "tag": tag, "reset": "true" if reset else "false"},
        )

    def write(self, data: bytes, algorithm: str = "sha256") -> str:
        digest = Digest.of_hash(algorithm, hashlib.new(algorithm, data).hexdigest())
        layouts = OciLayouts()
        layouts.add_cache(str(self.folder), writable=True)
        layouts.write(f"{CACHE_PREFIX}{self.folder}", digest, iter([data]))
        return str(digest)

    def export(self, layer: bytes, algorithm: str = "sha256") -> dict[str, str]:
        """Write a cache of one layer, as a build does before its client publishes it."""
        written = self.write(layer, algorithm)
        layers = [{"mediaType": "x", "digest": written, "size": len(layer)}]
        body = json.dumps({"mediaType": OCI_MANIFEST, "layers": layers}).encode()
        root = {"mediaType": OCI_MANIFEST, "digest": self.write(body), "size": len(body)}
        return {"cache.manifest": json.dumps(root)}

    @property
    def layers(self) -> set[bytes]:
        found = [path.read_bytes() for path in self.folder.glob("blobs/*/*")]
        return {each for each in found if not each.startswith(b"{")}


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_a_reset_removes_what_no_tag_needs(cache: Cache, algorithm: str) -> None:
    for layer, reset in ((b"old", False), (b"new", True)):
        exports = [cache.spec(reset=reset)]
        with CacheWriters(exports) as writers:
            publish(exports, cache.export(layer, algorithm), writers)
    assert cache.layers == {b"new"}


def test_a_reset_leaves_what_another_build_has_not_published_yet(cache: Cache) -> None:
    ours, theirs = [cache.spec(reset=True)], [cache.spec("other", reset=True)]
    cache.write(b"litter")
    with CacheWriters(theirs) as their_writers:
        answer = cache.export(b"theirs")
        with CacheWriters(ours) as writers:
            publish(ours, cache.export(b"ours"), writers)
        assert cache.layers == {b"ours", b"theirs", b"litter"}
        publish(theirs, answer, their_writers)  # now nobody else is there
    assert cache.layers == {b"ours", b"theirs"}


def test_a_build_waits_for_a_reset_and_can_be_cancelled_meanwhile(cache: Cache) -> None:
    async def main() -> None:
        resetting = os.open(cache.folder, os.O_RDONLY)
        fcntl.flock(resetting, fcntl.LOCK_EX)
        with CacheWriters([cache.spec()]) as writers:
            waiting, given_up = (asyncio.ensure_future(writers.wait()) for _ in range(2))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            given_up.cancel()
            await asyncio.wait([given_up])
            os.close(resetting)
            await waiting
            with CacheWriters([cache.spec()]) as others, others.alone(cache.folder) as is_alone:
                assert not is_alone
            await writers.wait()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_another_process_is_another_build(cache: Cache) -> None:
    exports = [cache.spec(reset=True)]
    cache.write(b"theirs")
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], 0), fcntl.LOCK_SH); print()"
    other = subprocess.Popen(
        [sys.executable, "-c", f"{code}; sys.stdout.flush(); sys.stdin.read()", cache.folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout is not None
    other.stdout.readline()
    with CacheWriters(exports) as writers:
        publish(exports, cache.export(b"ours"), writers)
        assert cache.layers == {b"ours", b"theirs"}
        other.communicate()  # however it ends, its lock ends with it
        publish(exports, cache.export(b"ours"), writers)
        assert cache.layers == {b"ours"}


def test_one_build_may_name_a_folder_several_times(cache: Cache) -> None:
    again = CacheSpec("local", {"dest": f"{cache.folder}/../cache", "tag": "b", "reset": "1"})
    exports = [cache.spec("a", reset=True), again]
    cache.write(b"litter")
    with CacheWriters(exports) as writers:
        publish(exports, cache.export(b"ours"), writers)
    assert cache.layers == {b"ours"}


def test_a_lock_ends_with_its_build(cache: Cache) -> None:
    before = set(os.listdir("/proc/self/fd"))
    with CacheWriters([cache.spec()]) as writers, writers.alone(cache.folder) as is_alone:
        assert is_alone
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_folder_without_locks_is_reset_as_ever(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(9, "no locks here")

    monkeypatch.setattr("fcntl.flock", refuse)
    exports = [cache.spec(reset=True)]
    cache.write(b"litter")
    with CacheWriters(exports) as writers:
        publish(exports, cache.export(b"ours"), writers)
    assert cache.layers == {b"ours"}
