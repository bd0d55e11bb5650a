"""Trees, layers and images for tests of snapshots."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.snapshots import (
    ImmutableRef,
    LayerBlob,
    SnapshotManager,
    changes,
)
from boxwright.store import Store

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


async def commit(
    manager: SnapshotManager, parent: ImmutableRef | None, write: Callable[[Path], object]
) -> ImmutableRef:
    tree = manager.new(parent, description="step")
    async with tree.mounted() as root:
        write(root)
    return await tree.commit()


def put(**contents: str | None) -> Callable[[Path], None]:
    """Return a step that writes files (``a__b`` is ``a/b``) and removes those with None."""

    def write(root: Path) -> None:
        for name, content in contents.items():
            path = root / name.replace("__", "/")
            if content is None:
                if path.is_dir():
                    for inner in path.iterdir():
                        inner.unlink()
                    path.rmdir()
                else:
                    path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    return write


def listing(root: Path) -> dict[str, str]:
    """Return all files of a tree; a whiteout that shows through would break it."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            found[str(path.relative_to(root))] = path.read_text()
    return found


async def contents(ref: ImmutableRef) -> dict[str, str]:
    async with ref.mounted() as root:
        return listing(root)


async def layer_changes(ref: ImmutableRef) -> list[list[tuple[str, str]]]:
    found = []
    for layer in await ref.layers():
        async with ref.layer_tree(layer.snapshot_id) as tree:
            found.append([(change.path.decode(), change.kind) for change in changes(tree)])
    return found


def layer_archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def image_layer(
    store: Store, files: dict[str, bytes], fetched: list[str] | None = None
) -> LayerBlob:
    raw = layer_archive(files)
    blob = gzip.compress(raw, mtime=0)

    async def fetch() -> None:
        assert fetched is not None
        fetched.append(str(Digest.of(blob)))
        await asyncio.sleep(0)
        store.blobs.put(blob)

    return LayerBlob(Descriptor(GZIP, Digest.of(blob), len(blob)), Digest.of(raw), fetch)
