"""Directives found without parsing the file."""

import pytest

from boxwright.dockerfile.directives import detect_syntax, find_directive
from boxwright.dockerfile.dockerignore import parse_dockerignore
from boxwright.dockerfile.suggest import edit_distance, nearest


@pytest.mark.parametrize(
    ("source", "value", "line"),
    [
        (b"# syntax=docker/dockerfile:1\nFROM a\n", "docker/dockerfile:1", 1),
        (b"#syntax = a b\r\n", "a b", 1),
        (b"\xef\xbb\xbf# SYNTAX=a\n", "a", 1),
        (b"# escape=`\n# syntax=a\n", "a", 2),
        (b"#!/usr/bin/env x\n# syntax=a\n", "a", 2),
        (b"// syntax=a\nfunc main() {}\n", "a", 1),
        (b'{"syntax": "a", "x": 1}', "a", 1),
    ],
)
def test_syntax_is_detected(source, value, line):
    found = detect_syntax(source)
    assert found is not None
    assert (found.value, found.ranges[0].start.line) == (value, line)


def test_blanks_cost_no_more_than_other_text():
    assert detect_syntax(b"# syntax=a" + b" " * 60_000 + b"b\n") is not None
    assert find_directive("escape", b"# escape=  \n").value == " "


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"\n# syntax=a\n",
        b"# a comment\n# syntax=a\n",
        b"# other=b\n# syntax=a\n",
        b"FROM a\n# syntax=a\n",
        b"# syntax=\nFROM a\n",
        b'{"syntax": 1}',
        b'["syntax"]',
        b"{" * 100_000,
    ],
)
def test_no_syntax(source):
    assert detect_syntax(source) is None


def test_check_is_read_from_hash_comments_only_unless_told():
    assert find_directive("check", b"# check=skip=all\n") is not None
    assert find_directive("check", b"// check=skip=all\n") is None
    assert find_directive("check", b"// check=skip=all\n", any_format=True) is not None


def test_dockerignore():
    data = b"\xef\xbb\xbf# c\n\n /a/b/ \n! /c/./d\n!\n  # no comment\r\n//x\n/\n..\n"
    assert parse_dockerignore(data) == (
        "a/b",
        "!c/d",
        "!",
        "# no comment",
        "x",
        "/",
        "..",
    )


def test_suggestions():
    assert nearest("RUNN", ["ENV", "RUN"], case_sensitive=False) == "RUN"
    assert nearest("runn", ["ENV", "RUN"], case_sensitive=False) == "run"
    assert nearest("fr", ["ARG", "FROM"], case_sensitive=False) == "from"
    assert nearest("xyzzy", ["ENV", "RUN"]) == ""
    assert nearest("ENV", ["ENV", "END"]) == ""
    assert nearest("Env", ["ENV"]) == "ENV"
    assert edit_distance("kitten", "sitting", 5) == 3
    assert edit_distance("kitten", "sitting", 2) == 3
