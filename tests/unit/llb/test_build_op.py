"""A definition that lies as a file in another graph's result."""

from __future__ import annotations

import pytest

from boxwright import llb
from boxwright.errors import InvalidInputError
from boxwright.wire.pb import ops_pb2 as pb


def ops(definition: pb.Definition) -> list[pb.Op]:
    return [pb.Op.FromString(data) for data in getattr(definition, "def")]


def test_the_file_of_the_name_that_was_given():
    made = ops(llb.build(llb.image("busybox"), "/graph").marshal())[1]
    assert made.build.builder == -1
    assert made.build.inputs["buildkit.llb.definition"].input == 0
    assert dict(made.build.attrs) == {"llbbuild.filename": "/graph"}
    assert len(made.inputs) == 1


def test_the_usual_name_is_not_spelled_out():
    assert not ops(llb.build(llb.image("busybox")).marshal())[1].build.attrs


def test_nothing_holds_no_definition():
    with pytest.raises(InvalidInputError):
        llb.build(llb.scratch())
