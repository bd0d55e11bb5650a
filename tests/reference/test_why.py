"""``boxwright why`` with both daemons, whoever built."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers import Client, Daemons
from programs import PROGRAM, Context, Run, run

pytestmark = [pytest.mark.reference, pytest.mark.root]

UNIMPLEMENTED = 22


def why(address: str, home: Path) -> Run:
    """Ask a daemon about its newest build."""
    return run([PROGRAM, "--addr", address, "why"], env={"HOME": str(home)})


def test_our_daemon_tells_what_every_client_built(
    client: Client, daemons: Daemons, context: Context, tmp_path: Path
) -> None:
    context.dockerfile("FROM base\nCOPY file /file\n")
    for content in (f"{client.name}, first", f"{client.name}, second"):
        context.write("file", content)
        client.build(daemons.ours, context.path).ok()
    told = why(daemons.ours, tmp_path).ok().out
    assert "file file: content, " in told


def test_other_daemons_cannot_tell(daemons: Daemons, tmp_path: Path) -> None:
    failed = why(daemons.upstream, tmp_path)
    assert failed.status == UNIMPLEMENTED
    assert "this daemon does not tell why steps ran" in failed.err
    assert "Traceback" not in failed.text
