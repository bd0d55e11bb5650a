"""containerd's filter syntax as du, prune, workers and history take it."""

from __future__ import annotations

import pytest

from boxwright.engine.filters import compile_filters
from boxwright.errors import InvalidInputError

RECORD = {
    "type": "regular",
    "id": "abc",
    "inuse": "",
    "size": "100",
    "duration": "5000000000",
    "labels.a.b": "x,y",
    "when": "2026-01-02T00:00:00Z",
}


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], True),
        (["type==regular"], True),
        (["type==other"], False),
        (["type!=other"], True),
        (["id~=^a"], True),
        (["id~=^b"], False),
        (["inuse"], False),
        (["id"], True),
        (["type==regular,id==abc"], True),
        (["type==regular,id==x"], False),
        (["type==x", "id==abc"], True),
        (['labels.a.b=="x,y"'], True),
        (["size>99"], True),
        (["size>=100,size<=100"], True),
        (["duration<4s"], False),
        (["duration>4s"], True),
        (["when>2026-01-01"], True),
        (["missing==1"], False),
        (["missing!=1"], True),
        (["missing>1"], False),
        (["type=regular"], True),
        (['inuse==""'], True),
    ],
)
def test_matching(filters: list[str], wanted: bool) -> None:
    assert compile_filters(filters)(RECORD.get) is wanted


@pytest.mark.parametrize("text", ["==x", "a==b,,c", "id~=(", "a b", "type==", "type==,id==x"])
def test_malformed(text: str) -> None:
    with pytest.raises(InvalidInputError):
        compile_filters([text])
