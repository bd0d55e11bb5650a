"""Manifests and indexes keep their bytes; malformed ones are typed errors."""

from pathlib import Path

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError, NotFoundError
from boxwright.oci import layout, mediatypes
from boxwright.oci.manifest import Index, Manifest, detect_media_type

GOLDEN = Path(__file__).parents[2] / "golden" / "layers"
CONFIG = Descriptor(mediatypes.OCI_CONFIG, Digest.of(b"config"), 6)
LAYER = Descriptor(mediatypes.OCI_LAYER_GZIP, Digest.of(b"layer"), 5)


def test_buildkits_manifest_keeps_its_bytes():
    data = (GOLDEN / "manifest.json").read_bytes()
    assert Manifest.decode(data).encode() == data


def test_no_layers_are_null_as_go_writes_them():
    assert b'"layers": null' in Manifest(CONFIG).encode()
    assert Manifest.decode(Manifest(CONFIG).encode()).layers == ()


def test_annotations_are_sorted_and_escaped():
    manifest = Manifest(CONFIG, (LAYER,), annotations={"b": "<&>", "a": "ü"})
    text = manifest.encode().decode()
    assert text.index('"a": "ü"') < text.index('"b": "\\u003c\\u0026\\u003e"')
    assert Manifest.decode(manifest.encode()) == manifest


def test_index_round_trip():
    entry = Descriptor(
        mediatypes.OCI_MANIFEST, LAYER.digest, 5, {"x": "y"}, Platform("linux", "arm", "v7")
    )
    index = Index((entry,), annotations={"k": "v"})
    assert Index.decode(index.encode()) == index
    assert Index.decode(index.encode(indent=None)) == index


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"{}",
        b'{"config": 3}',
        b'{"config": {"digest": "sha256:12", "size": 1}}',
        b'{"config": {"digest": "%s", "size": -1}}' % LAYER.digest.encode(),
        b'{"config": {}, "manifests": []}',
        b"[" * 100_000,
        b'"' + b"x" * (9 << 20),
    ],
    ids=range(10),
)
def test_malformed_manifests(data):
    with pytest.raises(InvalidInputError):
        Manifest.decode(data)


@pytest.mark.parametrize("data", [b"{}", b'{"manifests": 1}', b'{"manifests": [], "layers": []}'])
def test_malformed_indexes(data):
    with pytest.raises(InvalidInputError):
        Index.decode(data)


def test_media_type_is_detected():
    assert detect_media_type(Manifest(CONFIG, media_type="").encode()) == mediatypes.OCI_MANIFEST
    assert detect_media_type(b'{"manifests": []}') == mediatypes.OCI_INDEX
    assert detect_media_type(b'{"mediaType": "x/y"}') == "x/y"
    with pytest.raises(InvalidInputError):
        detect_media_type(b"{}")


@pytest.mark.parametrize(
    ("oci", "docker"),
    [
        (mediatypes.OCI_LAYER, mediatypes.DOCKER_LAYER),
        (mediatypes.OCI_LAYER_GZIP, mediatypes.DOCKER_LAYER_GZIP),
        (mediatypes.OCI_LAYER_ZSTD, mediatypes.DOCKER_LAYER_ZSTD),
        (mediatypes.OCI_NONDIST + "+gzip", mediatypes.DOCKER_FOREIGN + ".gzip"),
    ],
)
def test_layer_types_convert_both_ways(oci, docker):
    assert mediatypes.convert_layer(docker, oci=True) == oci
    assert mediatypes.convert_layer(oci, oci=False) == docker
    assert mediatypes.convert_layer(oci, oci=True) == oci
    assert mediatypes.is_layer(oci)
    assert mediatypes.is_layer(docker)
    assert mediatypes.layer_compression(oci) == mediatypes.layer_compression(docker)


def test_foreign_layers_become_distributable():
    foreign = mediatypes.OCI_NONDIST + "+zstd"
    assert mediatypes.is_nondistributable(foreign)
    assert mediatypes.distributable(foreign) == mediatypes.OCI_LAYER_ZSTD
    assert mediatypes.distributable(mediatypes.OCI_LAYER) == mediatypes.OCI_LAYER


def test_compression_of_something_else():
    with pytest.raises(InvalidInputError):
        mediatypes.layer_compression(mediatypes.OCI_CONFIG)


# -- layouts -------------------------------------------------------------------------------


def test_layout_names():
    first, second = layout.named_descriptors(
        LAYER, ["docker.io/library/app:v1", f"reg.example/app@{CONFIG.digest}"]
    )
    assert first.annotations[layout.IMAGE_NAME] == "docker.io/library/app:v1"
    assert first.annotations[layout.REF_NAME] == "v1"
    assert second.annotations[layout.REF_NAME] == f"reg.example/app@{CONFIG.digest}"
    assert layout.named_descriptors(LAYER, []) == [LAYER]


def test_docker_manifest():
    data = layout.encode_docker_manifest([(Manifest(CONFIG), ["docker.io/library/app:v1"])])
    expected = f'[{{"Config":"{layout.blob_path(CONFIG.digest)}","RepoTags":["app:v1"],'
    assert data.decode() == expected + '"Layers":null}]'


def test_find_in_a_layout():
    one, two = layout.named_descriptors(LAYER, ["docker.io/library/app:v1", "r.io/b/c:v2"])
    other = Descriptor(mediatypes.OCI_MANIFEST, CONFIG.digest, 1, {layout.REF_NAME: "r.io/x:v3"})
    index = Index((one, two, other))
    assert layout.find(index, tag="v1") == one
    assert layout.find(index, tag="v2") == two
    assert layout.find(index, tag="v3") == other
    assert layout.find(index, digest=CONFIG.digest) == other
    assert layout.find(Index((one, two))) == two
    for wanted in ({"tag": "v9"}, {"digest": Digest.of(b"")}, {}):
        with pytest.raises(NotFoundError):
            layout.find(index, **wanted)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b'{"imageLayoutVersion": "2.0.0"}', b'{"imageLayoutVersion": 1}']
)
def test_unknown_layouts(data):
    with pytest.raises(InvalidInputError):
        layout.check_layout_file(data)


def test_known_layout():
    layout.check_layout_file(layout.LAYOUT_BYTES)
