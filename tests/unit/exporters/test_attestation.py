"""Attestations: taken apart, checked, written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from boxwright.errors import BoxwrightError, InvalidInputError
from boxwright.exporters.attestation import (
    PREDICATE_SPDX,
    Attestation,
    Statement,
    Subject,
    compact,
    digest_map,
    statements,
    unbundle,
)
from boxwright.exporters.statementfiles import statement_files


class Tree:
    """A ref over a plain folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @asynccontextmanager
    async def mounted(self) -> AsyncIterator[Path]:
        yield self.root


async def _json() -> bytes:
    return b'{"a": 1}'


def said(**fields: Any) -> Attestation:
    return Attestation(**{"path": "x.json", "content": _json, **fields})


def test_compact_keeps_texts_and_numbers() -> None:
    text = b'{ "a b" : 1.50,\n\t"c\\" d" : [ 1e10, "<&>" ] }'
    assert compact(text) == b'{"a b":1.50,"c\\" d":[1e10,"\\u003c\\u0026\\u003e"]}'
    assert compact(b"") == b"null"


def test_a_statement_as_image_and_as_file() -> None:
    statement = Statement("https://example/p", (("app", {"sha256": "00"}),), b'{"b": 1}')
    assert statement.encode() == (
        b'{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://example/p",'
        b'"subject":[{"name":"app","digest":{"sha256":"00"}}],"predicate":{"b":1}}'
    )
    assert json.loads(statement.encode_indented()) == json.loads(statement.encode())
    assert statement.encode_indented().startswith(b'{\n  "_type"')


def test_the_result_is_the_subject_unless_others_are_named() -> None:
    result = [("pkg:docker/app@v1", digest_map("sha256:11"))]
    named = Subject("other", {"sha512": "22"}, is_self=False)
    made = asyncio.run(
        statements([said(), said(subjects=(named,)), said(subjects=(Subject("also"),))], result)
    )
    assert [[name for name, _ in item.subjects] for item in made] == [
        ["pkg:docker/app@v1"],
        ["other"],
        ["pkg:docker/app@v1", "also"],
    ]
    assert made[1].subjects[0][1] == {"sha512": "22"}


def bundle(root: Path, **fields: Any) -> Attestation:
    return Attestation("bundle", ref=Tree(root), predicate_type=PREDICATE_SPDX, **fields)


def write(folder: Path, name: str, **fields: Any) -> None:
    value = {"predicateType": PREDICATE_SPDX, "predicate": {"b": 1, "a": 2}, **fields}
    (folder / name).write_text(json.dumps(value))


def test_a_bundle_is_taken_apart_and_the_core_comes_first(tmp_path: Path) -> None:
    write(tmp_path, "a.spdx.json", subject=[{"name": "n", "digest": {"sha1": "ff"}}])
    write(tmp_path, "sbom.spdx.json")
    found = asyncio.run(unbundle([bundle(tmp_path, metadata={"sbom-core": b"sbom"})]))
    assert [item.path for item in found] == ["sbom.spdx.json", "a.spdx.json"]
    made = asyncio.run(statements(found, [("self", {})]))
    assert made[0].predicate == b'{"a":2,"b":1}'
    assert made[1].subjects == (("n", {"sha1": "ff"}),)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"predicateType": "https://slsa.dev/provenance/v1"}, "does not match"),
        ({"subject": "x"}, "subject"),
        ({"subject": [{"digest": 1}]}, "digest"),
    ],
    ids=["other-type", "subject-text", "digest-number"],
)
def test_what_a_bundle_may_not_have(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    write(tmp_path, "x.json", **fields)
    with pytest.raises(InvalidInputError) as caught:
        asyncio.run(unbundle([bundle(tmp_path)]))
    assert words in str(caught.value) + caught.value.detail


def test_provenance_comes_from_the_engine_only(tmp_path: Path) -> None:
    write(tmp_path, "x.json", predicateType="https://slsa.dev/provenance/v1")
    loose = Attestation("bundle", ref=Tree(tmp_path))
    single = Attestation(
        path="x.json", ref=Tree(tmp_path), predicate_type="https://slsa.dev/provenance/v0.2"
    )
    for item in (loose, single):
        with pytest.raises(InvalidInputError, match="provenance"):
            asyncio.run(unbundle([item]))


@pytest.mark.parametrize(
    "item",
    [Attestation(), Attestation(path="x"), Attestation("bundle"), said(path="")],
    ids=["nothing", "no-content", "no-folder", "no-path"],
)
def test_incomplete_attestations(item: Attestation) -> None:
    with pytest.raises(InvalidInputError):
        asyncio.run(unbundle([item]))


def test_a_link_does_not_lead_out_of_the_tree(tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text('{"predicateType": "https://spdx.dev/Document", "predicate": 1}')
    root = tmp_path / "root"
    root.mkdir()
    (root / "x.json").symlink_to(f"../{secret.name}")
    (root / "y.json").symlink_to(secret)
    for path in ("x.json", "y.json"):
        item = Attestation(path=path, ref=Tree(root), predicate_type=PREDICATE_SPDX)
        with pytest.raises(BoxwrightError, match="cannot read"):
            asyncio.run(statements([item], []))


def test_files_beside_a_tree(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b/c").write_text("c")
    (tmp_path / "a").write_text("a")
    (tmp_path / "l").symlink_to("a")
    inline = said(metadata={"inline-only": b"true"})
    items = [inline, said(path="in/p.json")]
    found = asyncio.run(statement_files(items, tmp_path, prefix="x-", suffix="linux_arm64"))
    assert list(found) == ["x-p.linux_arm64.json"]
    subjects = json.loads(found["x-p.linux_arm64.json"])["subject"]
    assert [item["name"] for item in subjects] == ["a", "b/c"]
    assert asyncio.run(statement_files([inline], tmp_path)) == {}
    with pytest.raises(InvalidInputError, match="duplicate"):
        asyncio.run(statement_files([said(), said()], tmp_path))
