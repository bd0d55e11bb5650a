"""Images between layouts: copied, cut down, put together, checked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from boxwright.client.imagecopy import ImageTree, combine, copy, only_platforms, read_tree
from boxwright.client.imageplaces import ImageDamagedError, LayoutPlace, layout_place
from boxwright.client.imagereport import ImageIncompleteError, check, render
from boxwright.core import gojson
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import BoxwrightError, InvalidInputError, NotFoundError
from boxwright.exporters.attached import PREDICATE_TYPE, REFERENCE_DIGEST
from boxwright.exporters.attestation import PREDICATE_SLSA_1, PREDICATE_SPDX
from boxwright.oci import layout, mediatypes
from boxwright.oci.annotations import REFERENCE_TYPE
from boxwright.oci.manifest import Index, Manifest

AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


class Folder:
    """An OCI layout that is made by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "blobs/sha256").mkdir(parents=True)
        (path / layout.LAYOUT_FILE).write_bytes(layout.LAYOUT_BYTES)
        self.place = LayoutPlace(path, "v1")

    def put(self, data: bytes, media_type: str, **fields: Any) -> Descriptor:
        digest = Digest.of(data)
        (self.path / layout.blob_path(digest)).write_bytes(data)
        return Descriptor(media_type, digest, len(data), **fields)

    def image(self, platform: Platform, *, content: bytes = b"layer") -> Descriptor:
        config = self.put(gojson.encode(platform.to_json()), mediatypes.OCI_CONFIG)
        layer = self.put(content + str(platform).encode(), mediatypes.OCI_LAYER)
        body = Manifest(config, (layer,)).encode()
        return self.put(body, mediatypes.OCI_MANIFEST, platform=platform)

    def about(self, image: Descriptor, subject: Digest | None = None) -> Descriptor:
        layers = []
        for kind in (PREDICATE_SLSA_1, PREDICATE_SPDX):
            statement = {
                "predicateType": kind,
                "subject": [{"name": "x", "digest": {"sha256": (subject or image.digest).hex}}],
                "predicate": {"kind": kind},
            }
            notes = {PREDICATE_TYPE: kind}
            data = gojson.encode(statement)
            layers.append(self.put(data, mediatypes.IN_TOTO, annotations=notes))
        config = self.put(b"{}", mediatypes.OCI_EMPTY)
        return self.put(
            Manifest(config, tuple(layers)).encode(),
            mediatypes.OCI_MANIFEST,
            annotations={
                REFERENCE_TYPE: "attestation-manifest",
                REFERENCE_DIGEST: str(image.digest),
            },
            platform=Platform("unknown", "unknown"),
        )

    def name(self, entries: Sequence[Descriptor]) -> Descriptor:
        """Put an index over entries under the tag v1."""
        root = self.put(Index(tuple(entries)).encode(), mediatypes.OCI_INDEX)
        named = Descriptor(root.media_type, root.digest, root.size, {layout.REF_NAME: "v1"})
        (self.path / layout.INDEX_FILE).write_bytes(layout.encode_index([named]))
        return root


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "layout")


@pytest.fixture
def whole(folder: Folder) -> Folder:
    """Two platforms, each with attestations."""
    images = [folder.image(AMD64), folder.image(ARM64)]
    folder.name([*images, *(folder.about(image) for image in images)])
    return folder


def run_copy(tree: ImageTree, target: LayoutPlace) -> None:
    asyncio.run(copy(tree, [target]))


def test_a_copy_is_equal_and_complete(whole: Folder, tmp_path: Path) -> None:
    tree = asyncio.run(read_tree(whole.place))
    target = LayoutPlace(tmp_path / "copy", "v2")
    run_copy(tree, target)
    again = asyncio.run(read_tree(target))
    assert again.root == tree.root
    assert list(again.bodies) == list(tree.bodies)
    assert again.blobs.keys() == tree.blobs.keys()
    found = asyncio.run(check(again, target, ["provenance", "sbom"]))
    assert [(image.platform, said.kinds()) for image, said in found] == [
        ("linux/amd64", ["provenance", "sbom"]),
        ("linux/arm64", ["provenance", "sbom"]),
    ]
    run_copy(tree, target)
    index = Index.decode((tmp_path / "copy/index.json").read_bytes())
    assert [item.annotations[layout.REF_NAME] for item in index.manifests] == ["v2"]


def test_a_copy_without_a_tag_takes_none_away(whole: Folder, tmp_path: Path) -> None:
    tree = asyncio.run(read_tree(whole.place))
    for tag in ("v2", "", ""):
        run_copy(tree, LayoutPlace(tmp_path / "copy", tag))
    index = Index.decode((tmp_path / "copy/index.json").read_bytes())
    assert [item.annotations for item in index.manifests] == [{layout.REF_NAME: "v2"}]


def test_one_platform_keeps_what_is_said_about_it(whole: Folder) -> None:
    tree = only_platforms(asyncio.run(read_tree(whole.place)), [ARM64])
    image, about = tree.entries()
    assert image.platform == ARM64
    assert about.annotations[REFERENCE_DIGEST] == image.digest
    assert len(tree.bodies) == 3
    with pytest.raises(NotFoundError, match="no image for linux/s390x"):
        only_platforms(tree, [Platform("linux", "s390x")])


def test_one_index_of_several_images(tmp_path: Path, whole: Folder) -> None:
    other = Folder(tmp_path / "other")
    newer = other.image(AMD64, content=b"newer")
    named = Descriptor(newer.media_type, newer.digest, newer.size, {layout.REF_NAME: "v1"})
    (other.path / layout.INDEX_FILE).write_bytes(layout.encode_index([named]))
    trees = [asyncio.run(read_tree(item.place)) for item in (whole, other)]
    made = asyncio.run(combine(trees, {"a": "b"}))
    entries = made.entries()
    assert [str(entry.platform) for entry in entries] == [
        "linux/amd64",
        "linux/arm64",
        "unknown/unknown",
    ]
    assert entries[0].digest == newer.digest
    assert json.loads(made.bodies[made.root.digest][1])["annotations"] == {"a": "b"}
    target = LayoutPlace(tmp_path / "made")
    run_copy(made, target)
    assert len(asyncio.run(check(asyncio.run(read_tree(target)), target))) == 2


def test_a_lost_blob_and_a_damaged_one(whole: Folder) -> None:
    tree = asyncio.run(read_tree(whole.place))
    blob = next(item for item, _ in tree.blobs.values() if item.media_type == mediatypes.OCI_LAYER)
    path = whole.path / layout.blob_path(blob.digest)
    for damage in (lambda: path.write_bytes(b"other"), path.unlink):
        damage()
        with pytest.raises(ImageIncompleteError) as caught:
            asyncio.run(check(tree, whole.place))
        assert str(blob.digest) in caught.value.detail
    with pytest.raises(NotFoundError):
        run_copy(tree, LayoutPlace(whole.path.parent / "copy"))


def test_a_copy_of_damaged_bytes_gets_no_name(whole: Folder, tmp_path: Path) -> None:
    tree = asyncio.run(read_tree(whole.place))
    blob = next(iter(tree.blobs))
    (whole.path / layout.blob_path(blob)).write_bytes(b"other")
    with pytest.raises(ImageDamagedError):
        run_copy(tree, LayoutPlace(tmp_path / "copy"))
    assert not (tmp_path / "copy/index.json").exists()


def test_a_damaged_manifest(whole: Folder) -> None:
    root = asyncio.run(read_tree(whole.place)).root
    (whole.path / layout.blob_path(root.digest)).write_bytes(b"{}")
    with pytest.raises(ImageDamagedError):
        asyncio.run(read_tree(whole.place))


def test_attestations_about_something_else(folder: Folder) -> None:
    image, other = folder.image(AMD64), folder.image(ARM64)
    folder.name([image, folder.about(other)])
    with pytest.raises(ImageDamagedError, match="not in it"):
        asyncio.run(check(asyncio.run(read_tree(folder.place)), folder.place))
    folder.name([image, folder.about(image, subject=other.digest)])
    with pytest.raises(ImageDamagedError, match="another image"):
        asyncio.run(check(asyncio.run(read_tree(folder.place)), folder.place))


def test_what_is_required_and_missing(folder: Folder) -> None:
    folder.name([folder.image(AMD64)])
    with pytest.raises(ImageIncompleteError, match="no sbom for linux/amd64"):
        asyncio.run(check(asyncio.run(read_tree(folder.place)), folder.place, ["sbom"]))


def test_templates(whole: Folder) -> None:
    tree = asyncio.run(read_tree(whole.place))

    def filled(template: str) -> str:
        return asyncio.run(render(template, "app", tree))

    assert filled("{{.Name}} at {{ .Manifest.Digest }}") == f"app at {tree.root.digest}"
    assert json.loads(filled("{{json .Image}}")).keys() == {"linux/amd64", "linux/arm64"}
    assert json.loads(filled("{{json .SBOM}}"))["linux/arm64"] == {
        "SPDX": {"kind": PREDICATE_SPDX}
    }
    provenance = json.loads(filled("{{json .Provenance}}"))["linux/amd64"]
    assert provenance == {"SLSA": {"kind": PREDICATE_SLSA_1}}
    assert json.loads(filled("{{json .}}")).keys() == {"Name", "Manifest", "Image"}
    for template in ("{{range .Image}}", "{{.Nothing}}", "{{.Manifest.x}}", "{{"):
        with pytest.raises(InvalidInputError):
            filled(template)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("oci:folder", "oci:folder"),
        ("oci:/a/b:v1", "oci:/a/b:v1"),
        ("oci:/a:b/c", "oci:/a:b/c"),
        ("oci://a/b:v1", "oci:a/b:v1"),
    ],
)
def test_names_of_layouts(text: str, name: str) -> None:
    assert layout_place(text).name == name


def test_no_folder_and_no_layout(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError):
        layout_place("oci:")
    with pytest.raises(BoxwrightError, match=r"index\.json"):
        asyncio.run(read_tree(LayoutPlace(tmp_path)))
