"""Graphs that no builder makes: both daemons must take, or refuse, the same ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest
from peers import Daemons
from programs import Context

from boxwright.core.digest import Digest
from boxwright.llb.canonical import marshal_op
from boxwright.wire.pb import ops_pb2 as pb

pytestmark = [pytest.mark.reference, pytest.mark.root]

BASE = pb.Op(source=pb.SourceOp(identifier="local://base"))
ROOT = {"input": 0, "dest": "/"}
TMPFS = {"input": -1, "dest": "/t", "mountType": pb.MountType.TMPFS}


def command(
    *mounts: dict[str, object], script: str = "true", cwd: str = "/", user: str = ""
) -> pb.Op:
    meta = pb.Meta(args=["/bin/sh", "-ec", script], env=["PATH=/bin"], cwd=cwd, user=user)
    made = [pb.Mount(**mount) for mount in (mounts or (ROOT,))]  # type: ignore[arg-type]
    digest = Digest.of(marshal_op(BASE))
    return pb.Op(inputs=[pb.Input(digest=digest)], exec=pb.ExecOp(meta=meta, mounts=made))


def definition(op: pb.Op, index: int = 0) -> pb.Definition:
    terminal = pb.Op(inputs=[pb.Input(digest=Digest.of(marshal_op(op)), index=index)])
    built = pb.Definition()
    ops = (BASE, op, terminal) if op.inputs else (op, terminal)
    getattr(built, "def").extend(map(marshal_op, ops))
    return built


# Whether they are taken.
CASES: dict[str, tuple[bool, Callable[[], pb.Definition]]] = {
    "merge of nothing": (False, lambda: definition(pb.Op(merge=pb.MergeOp()))),
    "empty folder": (False, lambda: definition(command(cwd=""))),
    "relative folder": (False, lambda: definition(command(cwd="q"))),
    "output with a gap": (True, lambda: definition(command({**ROOT, "output": 2}))),
    "beyond the outputs": (False, lambda: definition(command({**ROOT, "output": 2}), 2)),
    "outputs of one number": (
        True,
        lambda: definition(command(ROOT, {"input": 0, "dest": "/o"}), 1),
    ),
    "tmpfs with a number": (True, lambda: definition(command(TMPFS, ROOT))),
    "output of a tmpfs": (False, lambda: definition(command(ROOT, TMPFS), 1)),
    "tmpfs that is read-only": (
        False,
        lambda: definition(command(ROOT, {**TMPFS, "readonly": True}, script="touch /t/x")),
    ),
    "third part of a user": (True, lambda: definition(command(user="0:0:0"))),
    "number that is no user": (False, lambda: definition(command(user="4294967294"))),
}


@pytest.mark.parametrize("name", list(CASES))
def test_both_take_the_same(name: str, daemons: Daemons, context: Context) -> None:
    context.dockerfile("", base=True)
    is_taken, make = CASES[name]
    local = ("--local", f"base={context.path}/.base")
    for address in (daemons.ours, daemons.upstream):
        done = subprocess.run(
            [os.environ["BUILDCTL"], "--addr", address, "build", "--progress", "plain", *local],
            input=make().SerializeToString(),
            capture_output=True,
            timeout=120,
            check=False,
        )
        assert (done.returncode == 0) == is_taken, done.stderr.decode()[-2000:]
