"""Go's path.Match."""

from __future__ import annotations

import pytest

from boxwright.errors import InvalidInputError
from boxwright.snapshots.glob import Glob


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("/a*", "/abc", True),
        ("/a*", "/a/b", False),
        ("/a*/b", "/ac/b", True),
        ("/?", "/ü", True),
        ("/??", "/ü", False),
        ("/[a-c]x", "/bx", True),
        ("/[^a-c]x", "/bx", False),
        ("/[^a-c]x", "/dx", True),
        ("/a[^b]c", "/a/c", True),
        ("/[ä-ö]", "/å", True),
        (r"/\*", "/*", True),
        (r"/\*", "/a", False),
        (r"/[\]]", "/]", True),
        ("/a.b", "/axb", False),
        ("/a\n*", "/a\nb", True),
    ],
)
def test_matches(pattern, path, matches):
    assert Glob(pattern.encode()).matches(path.encode()) is matches


@pytest.mark.parametrize("pattern", ["/[", "/[]", "/[a", "/[a-", "/[-a]", "/a\\", "/[]a]"])
def test_malformed(pattern):
    with pytest.raises(InvalidInputError):
        Glob(pattern.encode()).matches(b"/a")


@pytest.mark.parametrize(
    ("pattern", "fixed"),
    [
        ("/a/b*", (b"/a", True)),
        ("/*", (b"", True)),
        ("/a/b", (b"/a/b", False)),
        (r"/a\*/b?", (rb"/a\*", True)),
        ("/a/[x]/c", (b"/a", True)),
    ],
)
def test_fixed_part(pattern, fixed):
    assert Glob(pattern.encode()).fixed_part == fixed


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [("/a*/b", "/ax", True), ("/a*/b", "/x", False), ("/a*/b", "/ax/b", False), ("/*", "", True)],
)
def test_pruning_keeps_what_can_match(pattern, path, expected):
    assert Glob(pattern.encode()).may_match_below(path.encode()) is expected
