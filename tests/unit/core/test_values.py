"""Digests, platforms and references: what is accepted, what it becomes, what is refused."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.core.reference import Reference
from boxwright.errors import InvalidInputError


@given(st.binary())
def test_digest_of_bytes(data: bytes) -> None:
    digest = Digest.of(data)
    assert digest == "sha256:" + hashlib.sha256(data).hexdigest()
    assert Digest(str(digest)).hex == digest.hex


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        "sha256:xyz",
        "sha256:" + "A" * 64,
        "md5:" + "a" * 32,
        "a" * 64,
        "sha256:" + "a" * 63,
        "sha256:" + "a" * 64 + "\n",
    ],
)
def test_malformed_digests(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Digest(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/x86_64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm", "linux/arm/v7"),
        ("armel", "linux/arm/v6"),
        ("linux/amd64/v1", "linux/amd64"),
        ("linux/amd64/v3", "linux/amd64/v3"),
        ("macos/arm64", "darwin/arm64"),
        ("linux/riscv64", "linux/riscv64"),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ("linux(+b+a)/amd64", "linux(+a+b)/amd64"),
        ("linux(1%2B2+a%25)/amd64", "linux(1%2B2+a%25)/amd64"),
    ],
)
def test_platforms(text: str, wanted: str) -> None:
    assert str(Platform.parse(text)) == wanted


@pytest.mark.parametrize(
    ("host", "image", "runs"),
    [
        ("10.0.17763.1", "10.0.17763.9", True),
        ("10.0.17763", "10.0.14393", False),
        ("10.0.20348", "10.0.17763", False),
        ("10.0.22621", "10.0.20348", True),
        ("10.0.26100", "10.0.20348", True),
        ("10.0.26100", "10.0.25398", True),
        ("10.0.26200", "10.0.20348", False),
        ("10.0.20348", "10.0.26100", False),
        ("11.0.20348", "10.0.20348", False),
        ("", "10.0.20348", True),
        ("10.0.20348", "", True),
        ("10.0.20348", "unknown", False),
        ("unknown", "10.0.20348", True),
        ("10.0.99999", "10.0.20348", True),
    ],
)
def test_versions_count_on_windows_alone(host: str, image: str, runs: bool) -> None:
    wanted = Platform("windows", "amd64", os_version=host)
    assert wanted.matches(Platform("windows", "amd64", os_version=image)) is runs
    win32k = Platform("windows", "amd64", os_version=image, os_features=("win32k",))
    assert wanted.matches(win32k) is runs
    linux = Platform("linux", "amd64", os_version=host)
    assert linux.matches(Platform("linux", "amd64", os_version=image))


def test_features_of_an_image_must_be_known() -> None:
    plain, one = Platform("linux", "amd64"), Platform("linux", "amd64", os_features=("a",))
    assert one.matches(plain)
    assert one.matches(one)
    assert not plain.matches(one)


@pytest.mark.parametrize("text", ["", "a/b/c/d", "linux/", "/amd64", "nonsense"])
def test_malformed_platforms(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("debian", "docker.io/library/debian", "debian"),
        ("debian:12", "docker.io/library/debian:12", "debian:12"),
        ("team/app", "docker.io/team/app", "team/app"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/a/b:v1", "localhost:5000/a/b:v1", "localhost:5000/a/b:v1"),
        ("ghcr.io/x/y@sha256:" + "a" * 64, "ghcr.io/x/y@sha256:" + "a" * 64, None),
        ("index.docker.io/library/x", "docker.io/library/x", "x"),
        ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
    ],
)
def test_references(text: str, full: str, familiar: str | None) -> None:
    parsed = Reference.parse(text)
    assert str(parsed) == full
    assert parsed.familiar == (familiar or full)
    assert Reference.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text", ["", "UPPER", "a//b", "a:", "a:-bad", "a@sha256:00", "-a", "a_", "a/b:" + "t" * 129]
)
def test_malformed_references(text: str) -> None:
    with pytest.raises(InvalidInputError):
        Reference.parse(text)


def test_what_is_wrong_with_a_reference_is_said():
    with pytest.raises(InvalidInputError, match=r"name \(library/Foo\) must be lowercase"):
        Reference.parse("Foo:v1")
    with pytest.raises(InvalidInputError, match="not be more than 255 characters"):
        Reference.parse("a" * 256)
    assert Reference.parse("example.org/" + "a" * 255)


def test_descriptor_round_trip() -> None:
    made = Descriptor(
        "application/x",
        Digest.of(b"x"),
        1,
        {"b": "2", "a": "1"},
        Platform("linux", "arm", "v7"),
        ("https://e/x",),
        "application/y",
    )
    assert Descriptor.from_json(made.to_json()) == made


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"digest": "sha256:" + "a" * 64, "size": -1},
        {"digest": "sha256:" + "a" * 64, "size": True},
        {"digest": "x", "size": 1},
    ],
)
def test_malformed_descriptors(data: object) -> None:
    with pytest.raises(InvalidInputError):
        Descriptor.from_json(data)
