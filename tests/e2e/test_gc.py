"""What a collection would do, told before it does: `gc explain` and the collection itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import PROGRAM, Cli, Context, Daemon

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
POLICY = "[worker.oci]\ngc = false\n[[worker.oci.gcpolicy]]\nall = true\n"


@pytest.fixture
def daemon(state: Path, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that collects nothing by itself; it reads daemon.toml when it starts."""
    address = f"unix://{tmp_path}/d.sock"
    config = tmp_path / "daemon.toml"
    argv = [PROGRAM, "daemon", "--root", str(state), "--addr", address, "--config", str(config)]
    made = Daemon(state, address, argv, tmp_path / "daemon.log")
    try:
        yield made
    finally:
        made.stop()


def explained(cli: Cli, *flags: str) -> dict[str, dict[str, object]]:
    return {
        each["id"]: each for each in json.loads(cli(*flags, "gc", "explain", "--json").ok().out)
    }


def test_what_a_daemon_alone_knows_counts(
    cli: Cli, daemon: Daemon, context: Context, tmp_path: Path
) -> None:
    context.dockerfile("FROM base\nRUN head -c 3000000 /dev/urandom > /file\n")
    config, addr = tmp_path / "daemon.toml", ("--addr", daemon.address)
    # More free space than the disk has.
    config.write_text(POLICY + 'maxUsedSpace = "1TB"\nminFreeSpace = "1000TB"\n')
    daemon.start()
    image = ("-o", "type=image,name=example.org/app:1,compression=uncompressed,unpack=false")
    cli(*addr, "build", *image, context.path).ok()
    cli(*addr, "build", "--no-cache", context.path).ok()
    found = explained(cli, *addr)
    assert any(each["freed"] for each in found.values())
    assert all(each["freed"] or each["pinnedBy"] for each in found.values())

    # The image's blobs are used space, too: the records alone are below this limit.
    limit_mb = sum(int(str(each["bytes"])) for each in found.values()) // 1_000_000 + 1
    daemon.stop()
    config.write_text(POLICY + f"maxUsedSpace = {limit_mb * 1_000_000}\n")
    daemon.start()
    told = {key for key, each in explained(cli, *addr).items() if each["freed"]}
    pruning = cli(
        *addr, "prune", "--all", "--keep-storage", str(limit_mb), "--format", "{{json .}}"
    )
    removed = [json.loads(line) for line in pruning.ok().out.splitlines()]
    assert {each["id"] for each in removed} == told
    assert told
