"""containerd's filter syntax as du, prune and workers take it."""

from __future__ import annotations

import pytest

from boxwright.engine.filters import compile_filters
from boxwright.errors import InvalidInputError

RECORD = {
    ("type",): "regular",
    ("id",): "abc",
    ("private",): "",
    ("labels", "a", "b"): "x,y",
    ("labels", "c-d"): "/z",
}


@pytest.mark.parametrize(
    ("filters", "wanted"),
    [
        ([], True),
        ([""], True),
        (["type==regular"], True),
        (["type==other"], False),
        (["type!=other"], True),
        (["id~=^a"], True),
        (["id~=^b"], False),
        (["id~=/^a/"], True),
        (["id~=|B|", r'id~="\x62"'], True),
        (["id~=("], False),
        (["inuse"], False),
        (["id"], True),
        (["type==regular,id==abc"], True),
        (["type == regular, id == abc"], True),
        (["type==regular,id==x"], False),
        (["type==x", "id==abc"], True),
        (['labels.a.b=="x,y"'], True),
        (['labels."c-d"=="/z"'], True),
        (["missing==1"], False),
        (["missing!=1"], True),
        # What is true or false is there or not, and has no text.
        (["private"], True),
        (["private==true"], False),
        (["private!=true"], True),
        (['private==""'], True),
        (['inuse==""'], False),
    ],
)
def test_matching(filters: list[str], wanted: bool) -> None:
    assert compile_filters(filters)(RECORD.get) is wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("==x", "[ >|=|< =x]: expected field or quoted"),
        ("a==b,,c", "[a==b, >|,|< c]: expected field or quoted"),
        ("a b", '[a  >|b|< ]: expected an operator ("=="|"!="|"~=")'),
        ("a ", '[a ]: expected an operator ("=="|"!="|"~=")'),
        ("type==", "[type==]: expected value or quoted"),
        ("type==,id==x", "[type== >|,|< id==x]: expected value or quoted"),
        ("type=x", '[type >|=|< x]: unsupported operator "="'),
        ("size>3", '[size >|>|< 3]: expected an operator ("=="|"!="|"~=")'),
        ("a-b==c", '[a >|-|< b==c]: expected an operator ("=="|"!="|"~=")'),
        ("type==/x/", "[type== >|/|< x/]: invalid quote encountered"),
        ("id~=|x", "[id~= >|||< x]: quoted literal not terminated"),
        (r'type=="\q"', r'[type== >|"|< \q"]: illegal escape sequence'),
        (r'type=="\x1"', r'[type== >|"|< \x1"]: illegal numeric escape sequence'),
        (r'type=="\777"', r'[type== >|"|< \777"]: unquoting failed: quote syntax error'),
        ("id==x y", "[id==x >| |< y]: unexpected input:  "),
        ("id.==", "[id. >|=|< =]: expected field or quoted"),
    ],
)
def test_malformed(text: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        compile_filters([text])
    assert str(caught.value) == f"filters: parse error: {said}: invalid argument"
