"""What is said of results for other platforms than those asked for."""

from __future__ import annotations

import json

import pytest

from boxwright.engine.resultcheck import platform_warnings
from boxwright.errors import InvalidInputError

AMD, ARM = ("linux", "amd64"), ("linux", "arm64")


def made(*platforms: tuple[str, str]) -> dict[str, bytes]:
    """Return the metadata of a result for these platforms."""
    entries = [
        {"ID": "/".join(each), "Platform": {"os": each[0], "architecture": each[1]}}
        for each in platforms
    ]
    return {"refs.platforms": json.dumps({"Platforms": entries}).encode()}


@pytest.mark.parametrize(
    ("asked", "platforms", "is_map", "wanted"),
    [
        ("linux/amd64", [AMD], False, []),
        ("linux/arm64", [ARM], False, []),
        ("linux/x86_64", [AMD], False, []),
        ("linux/amd64,linux/arm64", [ARM, AMD], True, []),
        (
            "linux/arm64",
            [AMD],
            False,
            ['Requested platform "linux/arm64" does not match result platform "linux/amd64"'],
        ),
        (
            "linux/amd64,linux/arm64",
            [AMD],
            False,
            ["Multiple platforms requested but result is not multi-platform"],
        ),
        (
            "linux/amd64,linux/arm64",
            [AMD],
            True,
            [
                (
                    "Requested platforms linux/amd64,linux/arm64 do not match result platforms "
                    "linux/amd64"
                )
            ],
        ),
        (
            "linux/amd64,linux/amd64",
            [AMD],
            False,
            ['Duplicate platform result requested "linux/amd64"'],
        ),
    ],
)
def test_warnings(
    asked: str, platforms: list[tuple[str, str]], is_map: bool, wanted: list[str]
) -> None:
    options = {"platform": asked}
    found = platform_warnings(options, made(*platforms), len(platforms), is_map=is_map)
    assert found == wanted


def test_a_platform_that_is_none() -> None:
    (found,) = platform_warnings({"platform": "a/b/c/d"}, made(AMD), 1, is_map=False)
    assert found.startswith('Invalid platform result requested "a/b/c/d"')


def test_trees_without_names_for_their_platforms() -> None:
    with pytest.raises(InvalidInputError, match="multiple refs without platforms"):
        platform_warnings({}, {}, 2, is_map=True)
    assert platform_warnings({"platform": "linux/s390x"}, {}, 0, is_map=False) == []
