"""What two layouts differ in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from boxwright.client.reproducible import Difference, NotReproducibleError, compare_layouts
from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.fsutil.tar import Entry, EntryType, TarWriter
from boxwright.oci import layout, mediatypes
from boxwright.oci.manifest import Index, Manifest

HISTORY = [{"created_by": "RUN make"}, {"created_by": "ENV A=1", "empty_layer": True}]


def archive(*entries: tuple[Entry, bytes]) -> bytes:
    pieces: list[bytes] = []
    tar = TarWriter(pieces.append)
    for entry, content in entries:
        tar.add(entry, content)
    tar.close()
    return b"".join(pieces)


def file(name: str, content: bytes = b"", **fields: Any) -> tuple[Entry, bytes]:
    return Entry(name.encode(), EntryType.FILE, **{"mode": 0o644, **fields}), content


class Image:
    """An image layout that is being written."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.found: list[Descriptor] = []

    def put(self, data: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(data)
        path = self.root / layout.blob_path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return Descriptor(media_type, digest, len(data))

    def add(self, *layers: bytes, platform: str = "linux/amd64", **config: Any) -> Image:
        described = tuple(self.put(data, mediatypes.OCI_LAYER_GZIP) for data in layers)
        fields = {"history": HISTORY, "rootfs": {"diff_ids": [str(len(layers))]}, **config}
        document = self.put(json.dumps(fields).encode(), mediatypes.OCI_CONFIG)
        manifest = self.put(Manifest(document, described).encode(), mediatypes.OCI_MANIFEST)
        self.found.append(
            Descriptor(
                manifest.media_type,
                manifest.digest,
                manifest.size,
                platform=Platform.parse(platform),
            )
        )
        return self

    def add_attestation(self, text: bytes) -> Image:
        noted = {"vnd.docker.reference.type": "attestation-manifest"}
        made = self.put(text, mediatypes.OCI_MANIFEST)
        self.found.append(Descriptor(made.media_type, made.digest, made.size, noted))
        return self

    def done(self) -> Path:
        root = self.found[0]
        if len(self.found) > 1:
            root = self.put(Index(tuple(self.found)).encode(), mediatypes.OCI_INDEX)
        (self.root / "index.json").write_bytes(layout.encode_index([root]))
        return self.root


def compare(tmp_path: Path, one: list[bytes], two: list[bytes], **config: Any) -> list[str]:
    first = Image(tmp_path / "1").add(*one).done()
    second = Image(tmp_path / "2").add(*two, **config).done()
    return [str(each) for each in compare_layouts(first, second)]


def test_equal_images_have_no_differences(tmp_path: Path) -> None:
    layer = gzip.compress(archive(file("a", b"1")))
    assert compare(tmp_path, [layer], [layer]) == []


def test_content_attributes_and_missing_files(tmp_path: Path) -> None:
    one = archive(
        file("same", b"x"), file("a", b"1"), file("m", mode=0o600), file("t", mtime=5), file("l")
    )
    two = archive(
        file("same", b"x"), file("a", b"22"), file("m"), file("t", mtime=6), file("r", uid=3)
    )
    assert compare(tmp_path, [one], [two]) == [
        "layer 1 (RUN make): /l: only in the first",
        "layer 1 (RUN make): /r: only in the second",
        "layer 1 (RUN make): /a: size, content",
        "layer 1 (RUN make): /m: mode",
        "layer 1 (RUN make): /t: mtime",
    ]


def test_order_and_compression_alone(tmp_path: Path) -> None:
    a, b = file("a", b"1"), file("b", b"2")
    assert compare(tmp_path / "x", [archive(a, b)], [archive(b, a)]) == [
        "layer 1 (RUN make): archive: order of entries"
    ]
    plain = archive(a, b)
    assert compare(tmp_path / "y", [plain], [gzip.compress(plain)]) == [
        "layer 1 (RUN make): archive: compression"
    ]


def test_fields_of_the_config(tmp_path: Path) -> None:
    layer = archive(file("a"))
    history = [{**HISTORY[0], "created": "now"}, HISTORY[1]]
    found = compare(tmp_path, [layer], [layer], history=history, config={"Env": ["A=2"]})
    assert found == ["config: config: value", "config: history[0].created: value"]


def test_another_number_of_layers(tmp_path: Path) -> None:
    layer = archive(file("a"))
    assert "manifest: number of layers: 1 and 2" in compare(tmp_path, [layer], [layer, layer])


def test_platforms_are_compared_one_by_one_without_attestations(tmp_path: Path) -> None:
    roots = []
    for name, content in (("1", b"x"), ("2", b"y")):
        image = Image(tmp_path / name)
        image.add(archive(file("a")), platform="linux/amd64")
        image.add(archive(file("b", content)), platform="linux/arm64")
        roots.append(image.add_attestation(content).done())
    (found,) = compare_layouts(*roots)
    assert str(found) == "linux/arm64: layer 1 (RUN make): /b: content"


def test_a_platform_that_only_one_has(tmp_path: Path) -> None:
    layer = archive(file("a"))
    first = Image(tmp_path / "1").add(layer).done()
    second = Image(tmp_path / "2").add(layer, platform="linux/arm64").done()
    assert len(compare_layouts(first, second)) == 2


@pytest.mark.parametrize(
    ("differences", "hint"),
    [
        ([Difference("config", "created", ("value",))], "SOURCE_DATE_EPOCH"),
        ([Difference("layer 1", "/a", ("mtime",))], "SOURCE_DATE_EPOCH"),
        ([Difference("layer 1", "/a", ("mtime", "content"))], "inputs alone"),
    ],
)
def test_the_hint_depends_on_what_differs(differences: list[Difference], hint: str) -> None:
    assert hint in (NotReproducibleError(differences).hint or "")


def test_many_differences_are_counted() -> None:
    many = [Difference("layer 1", f"/{number}", ("content",)) for number in range(50)]
    assert "and 30 more" in (NotReproducibleError(many).detail or "")


def test_what_is_no_layout(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no image layout"):
        compare_layouts(tmp_path, tmp_path)
