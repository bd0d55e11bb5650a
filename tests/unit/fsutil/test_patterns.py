"""Expected values were taken from moby's pattern matcher."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.errors import Code
from boxwright.fsutil.patterns import PatternError, PatternMatcher, clean


@pytest.mark.parametrize(
    ("patterns", "path", "expected"),
    [
        (["a"], "a", True),
        (["a"], "a/b/c", True),
        (["a"], "ab", False),
        (["a/"], "a/b", True),
        (["/a"], "a", False),
        (["*.go"], "x.go", True),
        (["*.go"], "d/x.go", False),
        (["**/*.go"], "x.go", True),
        (["**/*.go"], "d/e/x.go", True),
        (["**"], "any/thing", True),
        (["a/**"], "a", False),
        (["a/**"], "a/b/c", True),
        (["a/**/c"], "a/c", True),
        (["a/**/c"], "a/b/b/c", True),
        (["**/b"], "a/b/c", True),
        (["**b"], "ab", True),
        (["a?c"], "abc", True),
        (["a?c"], "a/c", False),
        (["[ab]x"], "bx", True),
        (["[^ab]x"], "bx", False),
        (["[^ab]x"], "cx", True),
        ([r"\*"], "*", True),
        ([r"\*"], "x", False),
        (["a.c"], "abc", False),
        (["*", "!a"], "a", False),
        (["*", "!a"], "b", True),
        (["*", "!a/b"], "a/b", False),
        (["*", "!a/b"], "a/c", True),
        (["*", "!a", "a/c"], "a/c", True),
        (["  a  "], "a", True),
        (["./a/../b"], "b", True),
        ([""], "a", False),
    ],
)
def test_matches(patterns, path, expected):
    assert PatternMatcher(patterns).matches(path) is expected


@pytest.mark.parametrize("pattern", ["!", "[", "[]", "a\\", "[b-a]", "[a", "[a-"])
def test_malformed_pattern_is_a_typed_error(pattern):
    with pytest.raises(PatternError) as caught:
        PatternMatcher([pattern])
    assert caught.value.code is Code.INVALID


def test_pruning_of_folders():
    include = PatternMatcher(["src/app/**", "docs"])
    assert include.can_include_below("src")
    assert not include.can_include_below("tests")
    assert PatternMatcher(["*/x"]).can_include_below("anything")
    exclude = PatternMatcher(["*", "!src/app"])
    assert exclude.can_take_back_below("src")
    assert not exclude.can_take_back_below("docs")


names = st.sampled_from(["a", "b", "c.go", "x*"])
paths = st.lists(names, min_size=1, max_size=4).map("/".join)
pattern_texts = st.lists(
    st.sampled_from(["a", "b", "/", "*", "**", "?", "[ab]", ".go", "!"]), min_size=1, max_size=5
).map("".join)


@given(st.lists(pattern_texts, max_size=4), paths)
def test_walking_down_gives_what_matching_the_path_gives(texts, path):
    try:
        matcher = PatternMatcher(texts)
    except PatternError:
        return
    parts = path.split("/")
    info: tuple[bool, ...] = ()
    matched = False
    for end in range(1, len(parts) + 1):
        matched, info = matcher.match_below("/".join(parts[:end]), info)
    assert matched is matcher.matches(path)


@given(st.lists(st.sampled_from(["a", "b", ".", "..", "", "c"]), min_size=1, max_size=6))
def test_clean_never_leaves_dots_inside(parts):
    text = clean("/" + "/".join(parts))
    assert text.startswith("/")
    assert not text.startswith("//")
    assert "/../" not in f"{text}/"
