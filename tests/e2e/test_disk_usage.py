"""What ``du`` says is what the disk has: files that steps copied by link count once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from programs import Cli, Context

from boxwright.linux.files import disk_usage

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
MIB = 1 << 20


def listed(cli: Cli) -> dict[str, int]:
    """Return the bytes of all records by what they are."""
    records = json.loads(cli("du", "--format", "{{json .}}").ok().out)
    return {f"{each['description']} {each['id']}": each["size"] for each in records}


def on_disk(root: Path) -> int:
    """Return what trees take, without the folders that they lie in."""
    folder = root / "snapshots"
    outer = sum(path.stat().st_blocks * 512 for path in folder.iterdir())
    return disk_usage(folder) - outer


def test_copies_by_link_count_once(cli: Cli, context: Context) -> None:
    (context.path).mkdir(exist_ok=True)
    for name in ("one", "two"):
        (context.path / name).write_bytes(os.urandom(3 * MIB))
    context.dockerfile(
        "FROM base AS a\nCOPY one two /files/\nFROM base AS b\nCOPY --from=a /files /again\n"
        "FROM base\nCOPY one /\nCOPY --from=b /again /third\nRUN cat /one > /four\n"
    )
    cli.build("-o", "type=cacheonly", context.path).ok()
    before = listed(cli)
    assert sum(before.values()) == on_disk(cli.root)
    # Not 27: what one tree has twice, /one and /third/one, is copied, and nothing else.
    assert sum(size for size in before.values() if size > MIB) < 15 * MIB
    # the context goes, its files live on in the steps
    cli("prune", "--filter", "type==source.local").ok()
    after = listed(cli)
    assert not any("local source" in name for name in after)
    assert sum(after.values()) == on_disk(cli.root)
    assert sum(size for size in after.values() if size > MIB) > 9 * MIB
    cli("prune", "--all").ok()
    assert sum(listed(cli).values()) == on_disk(cli.root) == 0


def test_a_collection_frees_what_it_says(cli: Cli, context: Context) -> None:
    for number in range(3):
        (context.path / "file").write_bytes(os.urandom(3 * MIB))
        context.dockerfile(f"COPY file /file\nRUN echo {number} > /n\n")
        cli.build("-o", "type=cacheonly", context.path).ok()
    limit = 7
    cli("prune", "--all", "--keep-storage", str(limit)).ok()
    left = sum(listed(cli).values())
    assert left == on_disk(cli.root)
    assert 3 * MIB < left <= limit * 10**6
