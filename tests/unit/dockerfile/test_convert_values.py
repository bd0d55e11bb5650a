"""The small conversions: paths, ports, modes, durations, step names, git remotes."""

from __future__ import annotations

import posixpath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.platform import Platform
from boxwright.dockerfile import ospaths
from boxwright.dockerfile.convert import follow_paths
from boxwright.dockerfile.convert_names import (
    platform_of,
    step_name,
    summarize_heredoc,
    upper_keyword,
)
from boxwright.dockerfile.convert_stage import StageState
from boxwright.dockerfile.dispatch import format_duration
from boxwright.dockerfile.dispatch_copy import has_wildcards, http_filename, parse_mode
from boxwright.dockerfile.dispatch_expose import parse_ports
from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.golang import parse_duration
from boxwright.dockerfile.lint import Linter
from boxwright.dockerfile.subrequests import merge_ranges, table
from boxwright.dockerfile.syntax import Position, Range
from boxwright.errors import InvalidInputError
from boxwright.llb import build_paths as paths
from boxwright.llb.build_giturl import GitRef, is_git_transport, parse_git_ref, parse_git_url

PATHS = st.lists(st.sampled_from(["", ".", "..", "a", "b c", "é"]), max_size=6).map("/".join)


@given(PATHS)
def test_clean_is_normpath_without_its_double_slash(path: str) -> None:
    expected = posixpath.normpath(path)
    assert paths.clean(path) == ("/" + expected.lstrip("/") if path[:1] == "/" else expected)


@given(PATHS)
def test_a_resolved_path_never_leaves_the_root(path: str) -> None:
    resolved = paths.resolve("/w/d", path, keep_slash=False)
    assert resolved.startswith("/")
    assert ".." not in resolved.split("/")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a", "/w/a"), ("a/", "/w/a/"), ("/a/.", "/a/."), (".", "/w"), ("./", "/w/"), ("/", "/")],
)
def test_trailing_slashes_say_that_a_destination_is_a_directory(path: str, expected: str) -> None:
    assert paths.resolve("/w", path, keep_slash=True) == expected


@pytest.mark.parametrize(
    ("path", "base", "parent"),
    [("", ".", "."), ("/", "/", "/"), ("a", "a", "."), ("/a/b/", "b", "/a/b"), ("a/b", "b", "a")],
)
def test_base_and_parent(path: str, base: str, parent: str) -> None:
    assert (paths.base(path), paths.parent(path)) == (base, parent)


@pytest.mark.parametrize(
    ("current", "path", "os", "expected"),
    [
        ("", "a", "linux", "/a"),
        ("/x", "../y/./z", "linux", "/y/z"),
        ("/x", "", "linux", "/x"),
        ("\\x", "C:\\a\\b", "windows", "\\a\\b"),
        ("\\x", "sub", "windows", "\\x\\sub"),
    ],
)
def test_workdir(current: str, path: str, os: str, expected: str) -> None:
    assert ospaths.workdir(current, path, os) == expected


@pytest.mark.parametrize("path", ["D:\\x", "C:", "\\\\server\\share"])
def test_foreign_windows_paths_are_refused(path: str) -> None:
    with pytest.raises(InvalidInputError):
        ospaths.strip_drive(path, "windows")
    assert not ospaths.is_abs(path, "windows")
    assert ospaths.strip_drive(path, "linux") == path


@pytest.mark.parametrize(
    ("text", "mode"),
    [("", None), ("755", 0o755), ("0", 0), ("07777", 0o7777), ("u+x,go=", "u+x,go=")]
    + [(text, text) for text in ("a=rwX", "+x", "g=u", "u=rwx,go=u-w", "=", "o+t-x")],
)
def test_modes(text: str, mode: int | str | None) -> None:
    assert parse_mode(text) == mode


@pytest.mark.parametrize("text", ["8", "10000", "999", "0x7", "rw", "u+z", "u+x,", ",u+x", "-1"])
def test_wrong_modes_are_refused(text: str) -> None:
    with pytest.raises(DockerfileError, match="chmod"):
        parse_mode(text)


def ports(*specs: str) -> tuple[list[str], list[str]]:
    linter = Linter()
    found = parse_ports(list(specs), linter, ())
    return found, [warning.rule for warning in linter.warnings]


def test_ports() -> None:
    assert ports("80", "90/udp", "3-5/sctp") == (
        ["80/tcp", "90/udp", "3/sctp", "4/sctp", "5/sctp"],
        [],
    )
    assert ports("1-1") == (["1/tcp"], [])


def test_ports_that_are_reported() -> None:
    assert ports("80/TCP") == (["80/tcp"], ["ExposeProtoCasing"])
    assert ports("8080:80") == (["80/tcp"], ["ExposeInvalidFormat"])
    assert ports("[::1]:8000-8001:80/UDP") == (
        ["80/udp"],
        ["ExposeProtoCasing", "ExposeInvalidFormat"],
    )


@pytest.mark.parametrize(
    "spec", ["", "/tcp", "x", "80/icmp", "5-3", "70000", "1.2.3:4:5", "1-3:1-2", "-1", "1:", "a:1"]
)
def test_wrong_ports_are_refused(spec: str) -> None:
    with pytest.raises(DockerfileError):
        ports(spec)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1_500, "1.5\u00b5s"),
        (500_000_000, "500ms"),
        (30_000_000_000, "30s"),
        (90_500_000_000, "1m30.5s"),
        (3_600_000_000_000, "1h0m0s"),
        (-2_000_000_000, "-2s"),
    ],
)
def test_durations(nanoseconds: int, text: str) -> None:
    assert format_duration(nanoseconds) == text


@given(st.integers(min_value=0, max_value=10**18))
def test_durations_are_read_back(nanoseconds: int) -> None:
    assert parse_duration(format_duration(nanoseconds)) == nanoseconds


def test_step_names_count_and_are_aligned() -> None:
    stage = StageState("alpine", display_name="build", command_total=10)
    names = [step_name(stage, "RUN x", None, {}) for _ in range(10)]
    assert names[0] == "[build  1/10] RUN x"
    assert names[9] == "[build 10/10] RUN x"
    stage.in_on_build = True
    assert step_name(stage, "RUN x", None, {}).endswith("] ONBUILD RUN x")


def test_step_names_show_what_a_stage_is_built_on_and_for() -> None:
    stage = StageState("alpine", command_total=1, prefix_platform=True)
    amd64 = Platform("linux", "amd64")
    assert step_name(stage, "x", amd64, {"TARGETARCH": "arm64"}) == "[linux/amd64->arm64 1/1] x"
    assert step_name(stage, "x", amd64, {"TARGETOS": "windows"}).startswith(
        "[linux/amd64->windows/amd64 "
    )
    assert step_name(stage, "x", amd64, {"TARGETPLATFORM": "linux/amd64"}).startswith(
        "[linux/amd64 2"[:13]
    )


def test_a_stage_without_steps_has_bare_names() -> None:
    assert step_name(StageState("x"), "FROM x", None, {}) == "FROM x"


def test_platform_of_an_environment() -> None:
    assert platform_of({"A": "b"}) is None
    assert platform_of({"TARGETPLATFORM": "?/?", "TARGETARCH": "arm"}) == Platform("", "arm")


def test_names_of_instructions() -> None:
    assert upper_keyword("run make") == "RUN make"
    assert upper_keyword("run") == "RUN"
    assert summarize_heredoc("\n first\r\nsecond\n") == "first..."
    assert summarize_heredoc("only\n") == "only"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://h/a/b.tgz?x=1#y", "b.tgz"),
        ("https://h/a%20b", "a b"),
        ("https://h/", "__unnamed__"),
        ("https://h", "__unnamed__"),
        ("https://[bad", "__unnamed__"),
    ],
)
def test_names_of_downloads(url: str, name: str) -> None:
    assert http_filename(url) == name


def test_wildcards() -> None:
    assert [has_wildcards(p) for p in ("a", "a*", "a?b", "[x]", "\\*", "\\\\*", "é")] == [
        False, True, True, True, False, True, False,
    ]  # fmt: skip


def test_paths_to_follow() -> None:
    assert follow_paths({"/b", "/a/c"}) == ["a/c", "b"]
    assert follow_paths({"/b", "/"}) == []
    assert follow_paths(set()) == []


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("https://h/a.git", GitRef("https://h/a.git")),
        ("https://h/a.git#r:s/../d", GitRef("https://h/a.git", "r", "d")),
        ("git@h:a/b#r", GitRef("git@h:a/b", "r")),
        ("ssh://git@h:22/a", GitRef("ssh://git@h:22/a")),
        ("github.com/a/b#r", GitRef("github.com/a/b", "r", looks_local=True)),
        (
            "https://h/a.git?tag=v1&subdir=d&commit=c&keep-git-dir&submodules=false&mtime=commit",
            GitRef(
                "https://h/a.git",
                "refs/tags/v1",
                "d",
                "c",
                keep_git_dir=True,
                submodules=False,
                mtime="commit",
            ),
        ),
        ("https://h/a.git?branch=refs/heads/b", GitRef("https://h/a.git", "refs/heads/b")),
    ],
)
def test_git_refs(text: str, ref: GitRef) -> None:
    assert parse_git_ref(text) == ref


@pytest.mark.parametrize(
    "text", ["", "a", "./a.git", "../b", "https://h/a", "ftp://h/a.git", "/x"]
)
def test_what_is_not_git(text: str) -> None:
    assert parse_git_ref(text) is None


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("x=1", 'unexpected query "x"'),
        ("ref=a&ref=b", 'query "ref" has multiple values'),
        ("ref=", 'query "ref" has no value'),
        ("tag=a&branch=b", "branch conflicts with tag"),
        ("keep-git-dir=z", 'invalid keep-git-dir value: "z"'),
        ("mtime=now", 'invalid mtime value: "now" (must be "checkout" or "commit")'),
        ("fetch-by-commit=2", 'invalid fetch-by-commit value: "2"'),
        ("ref=b#c", 'ref conflicts: "c" vs "b"'),
        ("subdir=b#:c", 'subdir conflicts: "c" vs "b"'),
    ],
)
def test_wrong_git_queries_are_refused_in_buildkits_words(query: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_git_ref(f"https://h/a.git?{query}")
    assert str(caught.value) == said


def test_git_transports() -> None:
    assert is_git_transport("ssh://h/x")
    assert is_git_transport("git@h:x")
    assert not is_git_transport("file:///x")
    url = parse_git_url("https://user:pw@Host:8/a/../b%20c?q=1#f")
    assert url is not None
    assert (url.host, url.path, url.identifier) == ("Host:8", "/a/../b c", "Host:8/b c")
    assert url.remote == "https://user:pw@Host:8/a/../b%20c"


def test_tables() -> None:
    rows = [["A", "BB", "C"], ["aaa", "", "ccc"]]
    assert table(rows, 2) == "A    BB  C\naaa      ccc\n"


def test_overlapping_ranges_become_one() -> None:
    spans = [(5, 6), (1, 2), (2, 3)]
    merged = merge_ranges([Range(Position(a), Position(b)) for a, b in spans])
    assert [(item.start.line, item.end.line) for item in merged] == [(1, 3), (5, 6)]
