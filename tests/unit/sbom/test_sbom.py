"""Packages that the built-in scanner finds, and the document that it writes."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.sbom import databases, gobinary, spdx
from boxwright.sbom.packages import Distribution, spdx_license
from boxwright.sbom.scan import scan

DEBIAN = Distribution("debian", "12")

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.36-9)
Version: 2.36-9+deb12u4
Maintainer: GNU Libc Maintainers <a@b.c>
Description: text
 more: text

Package: gone
Status: deinstall ok config-files
Version: 1

Package: half
"""

INSTALLED = """C:Q1abc=
P:musl
V:1.2.4-r2
A:x86_64
L:MIT
o:musl
m:Someone <s@x>

P:busybox-binsh
V:1.36
o:busybox
L:GPL-2.0 only please
"""


def test_dpkg() -> None:
    (found,) = databases.dpkg(STATUS, DEBIAN, "/s")
    assert found.url == (
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u4?arch=amd64&distro=debian-12&upstream=glibc%402.36-9"
    )
    assert found.supplier == "Organization: GNU Libc Maintainers (a@b.c)"


def test_apk() -> None:
    one, two = databases.apk(INSTALLED, Distribution("alpine", "3.19"), "/s")
    assert one.url == "pkg:apk/alpine/musl@1.2.4-r2?arch=x86_64&distro=alpine-3.19"
    assert (one.license, two.license) == ("MIT", "")
    assert two.url.endswith("&upstream=busybox")


def test_python_and_npm() -> None:
    text = "Name: My_Pkg.x\nVersion: 1\nLicense-Expression: MIT OR Apache-2.0\n\nName: no\n"
    found = databases.python(text, "/s")
    assert found is not None
    assert (found.url, found.license) == ("pkg:pypi/my-pkg-x@1", "MIT OR Apache-2.0")
    assert databases.python("Name: x\n", "/s") is None
    scoped = databases.npm('{"name": "@a/b", "version": "1.0", "license": "ISC"}', "/s")
    assert scoped is not None
    assert scoped.url == "pkg:npm/%40a/b@1.0"
    for text in ("", "[]", "{", '{"name": 1, "version": "1"}', "[" * 100_000):
        assert databases.npm(text, "/s") is None


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("MIT", True),
        ("(MIT OR Apache-2.0) AND BSD-3-Clause", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", True),
        ("see LICENSE", False),
        ("AND", False),
        ("", False),
    ],
)
def test_licenses(text: str, kept: bool) -> None:
    assert spdx_license(text) == (text if kept else "")


def go_program(info: str, version: str = "go1.22.1") -> bytes:
    """Return a small ELF file with build information."""

    def text(value: bytes) -> bytes:
        length, out = len(value), b""
        while length >= 0x80:
            out += bytes([length & 0x7F | 0x80])
            length >>= 7
        return out + bytes([length]) + value

    marked = b"0" * 16 + info.encode() + b"1" * 16
    section = (b"\xff Go buildinf:\x08\x02").ljust(32, b"\0") + text(version.encode())
    section += text(marked)
    names = b"\0.go.buildinfo\0.shstrtab\0"
    offset = 64
    table = offset + len(section) + len(names)
    head = b"\x7fELF\x02\x01\x01".ljust(40, b"\0") + struct.pack("<Q", table)
    head = head.ljust(58, b"\0") + struct.pack("<HHH", 64, 3, 2)

    def header(name: int, start: int, size: int) -> bytes:
        return struct.pack("<I", name).ljust(24, b"\0") + struct.pack("<QQ", start, size).ljust(
            40, b"\0"
        )

    return (
        head
        + section
        + names
        + header(0, 0, 0)
        + header(1, offset, len(section))
        + header(15, offset + len(section), len(names))
    )


MODULES = (
    "path\texample.org/app\nmod\texample.org/app\t(devel)\t\n"
    "dep\tgithub.com/a/b\tv1.0.0\th1:x\ndep\tgithub.com/old/c\tv0.1.0\n"
    "=>\tgithub.com/new/c\tv0.2.0\th1:y\nbuild\t-compiler=gc\n"
)


def test_go_programs() -> None:
    found = [item.url for item in gobinary.modules(io.BytesIO(go_program(MODULES)), "/app")]
    assert found == [
        "pkg:golang/stdlib@1.22.1",
        "pkg:golang/example.org/app",
        "pkg:golang/github.com/a/b@v1.0.0",
        "pkg:golang/github.com/new/c@v0.2.0",
    ]


@given(st.binary(max_size=300), st.integers(0, 600), st.booleans())
def test_damaged_programs_are_no_error(junk: bytes, place: int, keep: bool) -> None:
    good = go_program(MODULES)
    data = good[:place] + junk + (good[place + len(junk) :] if keep else b"")
    list(gobinary.modules(io.BytesIO(data), "/x"))


@given(st.text(max_size=400))
def test_any_text_can_be_read(text: str) -> None:
    list(databases.dpkg(text, DEBIAN, "/s"))
    list(databases.apk(text, DEBIAN, "/s"))
    databases.python(text, "/s")
    databases.npm(text, "/s")
    databases.os_release(text)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with a package of every kind, and links that lead out of it."""

    def write(name: str, data: str | bytes, mode: int = 0o644) -> None:
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        path.chmod(mode)

    write("etc/os-release", 'ID=debian\nVERSION_ID="12"\n')
    write("var/lib/dpkg/status", STATUS)
    write("lib/apk/db/installed", INSTALLED)
    write("usr/lib/python3/x-1.dist-info/METADATA", "Name: x\nVersion: 1\n")
    write("app/node_modules/@a/b/package.json", '{"name": "@a/b", "version": "2"}')
    write("app/src/package.json", '{"name": "mine", "version": "2"}')
    write("bin/app", go_program(MODULES), 0o755)
    write("bin/data", go_program(MODULES))
    write("proc/1/root/var/lib/dpkg/status", STATUS)
    (tmp_path / "outside.dist-info").mkdir()
    (tmp_path / "outside.dist-info/METADATA").write_text("Name: outside\nVersion: 1\n")
    (tmp_path / "root/link").symlink_to("../outside.dist-info")
    return tmp_path / "root"


def test_a_whole_tree(tree: Path) -> None:
    found = scan(tree)
    assert [item.name for item in found.packages if item.kind != "golang"] == [
        "busybox-binsh",
        "musl",
        "libc6",
        "b",
        "x",
    ]
    assert {item.source for item in found.packages if item.kind == "golang"} == {"/bin/app"}
    assert found.distribution == DEBIAN


def test_the_document_is_the_same_twice_and_names_everything_once(tree: Path) -> None:
    one = spdx.document(scan(tree), "sbom", 0)
    assert one == spdx.document(scan(tree), "sbom", 0)
    value = json.loads(one)
    assert value["spdxVersion"] == "SPDX-2.3"
    assert value["creationInfo"]["created"] == "1970-01-01T00:00:00Z"
    ids = [item["SPDXID"] for item in value["packages"]]
    assert len(ids) == len(set(ids)) == 1 + len(scan(tree).packages)
    related = {item["relatedSpdxElement"] for item in value["relationships"]}
    assert related == set(ids)


def test_a_scan_that_is_stopped_ends(tree: Path) -> None:
    assert scan(tree, stopped=lambda: True).packages == ()
