"""Attributes, file names and cache keys of http sources; keys were printed by BuildKit's code."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.digest import Digest
from boxwright.errors import InvalidInputError, UnimplementedError
from boxwright.sources.http_attributes import (
    HttpAttributes,
    choose_filename,
    parse_go_int,
    parse_http_date,
)
from boxwright.sources.http_fetch import parse_url
from boxwright.sources.http_request import HttpRequest, redacted

URL = "http://h/a"
HELLO = Digest.of(b"hello")
MODIFIED = datetime(2024, 3, 5, 6, 7, 8, tzinfo=UTC)


def test_cache_keys_are_buildkits() -> None:
    plain = HttpAttributes.parse(URL, {})
    key = plain.cache_key(HELLO, "a", None)
    assert key == "sha256:5497abae5f81744f341b0402a28b4d9cd54f5445dcc645d9d6839e3b2aa788e9"
    escaped = plain.cache_key(HELLO, "a<b>&.txt", MODIFIED)
    assert escaped == "sha256:eda409ee13b96cea318885b348aa3ee92df12145ab2934b5f4830443cc7b9077"
    full = HttpAttributes.parse(
        URL,
        {
            "http.perm": "0644",
            "http.uid": "5",
            "http.gid": "6",
            "http.authheadersecret": "s",
            "http.header.user-agent": "x",
            "http.header.accept": "text/*",
            "http.header.cookie": "may not be set",
        },
    )
    key = full.cache_key(HELLO, "a", MODIFIED)
    assert key == "sha256:80fa73e988a77190b832a2afeca3f8359cdcc7a17d998ab1d20250958ea92878"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://h/a%20b", "a b"),
        ("http://h/", "download"),
        ("http://h", "download"),
        ("http://h/x/..", "download"),
        ("http://h/d/", "d"),
        ("http://h/a?b=/c", "a"),
        ("http://h/%2e%2e", "download"),
        ("http://h/a%2Fb", "b"),
        ("http://h/a\\b", "a\\b"),
        ("http://h/a%0Ab", "download"),
    ],
)
def test_names_from_urls_are_buildkits(url: str, name: str) -> None:
    assert choose_filename(url, "") == name


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="tool.tar"', "tool.tar"),
        ('attachment; filename="../../etc/passwd"', "passwd"),
        ("attachment; filename*=UTF-8''na%C3%AFve", "naïve"),
        ("inline", "a"),
        ('attachment; filename="dir/"', "a"),
    ],
)
def test_names_from_headers(disposition: str, name: str) -> None:
    assert choose_filename(URL, "", disposition) == name
    assert choose_filename(URL, "given", disposition) == "given"


@given(st.text(max_size=40), st.text(max_size=40))
def test_any_name_is_a_plain_name(given_name: str, disposition: str) -> None:
    name = choose_filename(URL, given_name, disposition)
    assert name not in {"", ".", ".."}
    assert "/" not in name
    assert "\0" not in name


@pytest.mark.parametrize(("text", "value"), [("0644", 0o644), ("0x10", 16), ("7", 7), ("-1", -1)])
def test_numbers_as_go_reads_them(text: str, value: int) -> None:
    assert parse_go_int("http.perm", text) == value


@pytest.mark.parametrize("text", ["", "09", "rw", " 1", "1e3"])
def test_no_numbers(text: str) -> None:
    with pytest.raises(InvalidInputError, match=r"http\.perm"):
        parse_go_int("http.perm", text)


def test_a_signature_and_its_key_come_together() -> None:
    found = HttpAttributes.parse(URL, {"http.sig.pubkey": "key", "http.sig.signature": "sig"})
    assert (found.public_keys, found.signature) == (b"key", b"sig")
    for name in ("pubkey", "signature"):
        with pytest.raises(InvalidInputError, match="requires both pubkey and signature"):
            HttpAttributes.parse(URL, {f"http.sig.{name}": "x"})


def test_what_is_not_known_is_refused_not_ignored() -> None:
    with pytest.raises(UnimplementedError):
        HttpAttributes.parse(URL, {"http.sig.other": "x"})


def test_malformed_checksum() -> None:
    with pytest.raises(InvalidInputError, match="digest"):
        HttpAttributes.parse(URL, {"http.checksum": "sha256:short"})


@pytest.mark.parametrize(
    "text",
    [
        "Tue, 05 Mar 2024 06:07:08 GMT",
        "Tuesday, 05-Mar-24 06:07:08 GMT",
        "Tue Mar  5 06:07:08 2024",
    ],
)
def test_dates(text: str) -> None:
    assert parse_http_date(text) == MODIFIED


@pytest.mark.parametrize(
    "text",
    ["", "yesterday", "0", "Tue, 99 Mar 2024 06:07:08 GMT", "Tue, 05 Mar 2024 06:07:08 +0200"],
)
def test_no_dates(text: str) -> None:
    assert parse_http_date(text) is None


def test_passwords_are_not_shown() -> None:
    assert redacted("https://joe:word@h:8/p?q@r") == "https://joe:xxxxx@h:8/p?q@r"
    assert redacted("https://h/p:a@b") == "https://h/p:a@b"
    assert "word" not in repr(HttpRequest(URL, {}, login="Bearer word"))


@pytest.mark.parametrize("url", ["http://", "http:///path", "http://h:bad/", "ftp://h/"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(InvalidInputError):
        parse_url(url)


def test_a_url_that_cannot_be_read_is_no_failure_of_ours() -> None:
    with pytest.raises(InvalidInputError, match=r'parse "http://\[::1/a"'):
        HttpAttributes.parse("http://[::1/a", {})


def test_signed_urls_are_sent_as_written() -> None:
    url = "http://h/a%7Eb?sig=%2fx%2B+y"
    assert str(parse_url(url)) == url
    assert str(parse_url("http://h/a b")) == "http://h/a%20b"
