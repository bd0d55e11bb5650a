"""Attributes of outputs: read as upstream reads them, and refused with a reason."""

import pytest

from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.exporters import resolve_exporter
from boxwright.exporters.annotations import AnnotationSet
from boxwright.exporters.base import ExportSource, parse_bool, parse_epoch, source_epoch
from boxwright.exporters.options import ImageOptions
from boxwright.fsutil.compress import Compression


def test_all_shared_attributes():
    options, rest = ImageOptions.take(
        {
            "name": "a,b",
            "compression": "zstd",
            "compression-level": "7",
            "force-compression": "",
            "oci-mediatypes": "true",
            "oci-artifact": "1",
            "source-date-epoch": "5",
            "rewrite-timestamp": "t",
            "attestation-inline": "false",
            "prefer-nondist-layers": "True",
            "annotation.k": "v",
            "other": "x",
        }
    )
    assert options.compression == Compression("zstd", 7, force=True)
    assert (options.name, options.epoch_s, options.epoch_set) == ("a,b", 5, True)
    assert options.oci_artifact
    assert options.rewrite_timestamp
    assert options.prefer_nondist
    assert options.annotations.for_platform(None).manifest == {"k": "v"}
    assert rest == {"other": "x"}


def test_defaults():
    options, rest = ImageOptions.take({})
    assert options.compression == Compression("gzip", None, force=False)
    assert options.uses_oci_types
    assert not options.epoch_set
    assert rest == {}


@pytest.mark.parametrize(
    "attributes",
    [
        {"compression": "lz4"},
        {"compression-level": "high"},
        {"force-compression": "maybe"},
        {"oci-mediatypes": ""},
        {"rewrite-timestamp": "2"},
        {"source-date-epoch": "now"},
        {"oci-artifact": "true", "oci-mediatypes": "false"},
        {"annotation-layer.k": "v"},
        {"annotation[nowhere/].k": "v"},
    ],
)
def test_malformed_attributes(attributes):
    with pytest.raises(InvalidInputError):
        ImageOptions.take(attributes)


@pytest.mark.parametrize("name", ["good:v1,a.b/BAD/Name", "a b", "a" * 300, "a:", "https://a"])
def test_names_have_to_be_references_where_they_are_used(name):
    with pytest.raises(InvalidInputError, match="failed to parse "):
        resolve_exporter("oci", {"name": name})
    with pytest.raises(InvalidInputError, match="failed to push "):
        resolve_exporter("image", {"name": name, "push": "true"})
    assert resolve_exporter("image", {"name": name}).options.name == name


def test_image_attributes():
    exporter = resolve_exporter(
        "image",
        {
            "name": "x",
            "push": "",
            "push-by-digest": "true",
            "registry.insecure": "1",
            "store": "false",
            "unpack": "false",
            "name-canonical": "true",
            "dangling-name-prefix": "none",
            "danging-name-empty-only": "true",
            "future": "yes",
        },
    )
    assert exporter.push
    assert exporter.push_by_digest
    assert exporter.insecure
    assert not exporter.store
    assert exporter.dangling_prefix == "none"
    assert exporter.metadata == {"future": "yes"}
    assert exporter.name == "exporting to image"


def test_unpacking_rewritten_layers_is_refused():
    # Our store needs no unpacking, so there is nothing to be in conflict with.
    made = resolve_exporter("image", {"unpack": "true", "rewrite-timestamp": "true"})
    assert made.options.rewrite_timestamp


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("oci", "exporting to oci image format"),
        ("docker", "exporting to docker image format"),
        ("local", "exporting to client directory"),
        ("tar", "exporting to client tarball"),
    ],
)
def test_names_of_outputs(kind, name):
    exporter = resolve_exporter(kind, {})
    assert (exporter.type, exporter.name) == (kind, name)


def test_unknown_output():
    with pytest.raises(InvalidInputError) as caught:
        resolve_exporter("floppy", {})
    assert "could not be found" in str(caught.value)


@pytest.mark.parametrize("attributes", [{"mode": "move"}, {"platform-split": "x"}])
def test_malformed_tree_attributes(attributes):
    with pytest.raises(InvalidInputError):
        resolve_exporter("local", attributes)


def test_platform_split_defaults_to_several_platforms():
    options = resolve_exporter("local", {}).options
    assert not options.splits(ExportSource())
    assert options.splits(ExportSource(refs={"a": None}))
    assert resolve_exporter("local", {"platform-split": "true"}).options.splits(ExportSource())


# -- annotations ---------------------------------------------------------------------------


def test_annotations_by_type_and_platform():
    found, rest = AnnotationSet.take(
        {
            "annotation.a": "1",
            "annotation-manifest[linux/amd64].a": "2",
            "annotation-manifest-descriptor.b": "3",
            "annotation-index.c": "4",
            "annotation-index-descriptor.d": "5",
            "annotations": "rest",
        }
    )
    assert rest == {"annotations": "rest"}
    everywhere = found.for_platform(None)
    assert everywhere.manifest == {"a": "1"}
    assert everywhere.manifest_descriptor == {"b": "3"}
    assert everywhere.index == {"c": "4"}
    assert everywhere.index_descriptor == {"d": "5"}
    assert found.for_platform(Platform("linux", "amd64")).manifest == {"a": "2"}
    assert found.for_platform(Platform("linux", "arm64")).manifest == {"a": "1"}


def test_later_annotations_win():
    first, _ = AnnotationSet.take({"annotation.a": "1", "annotation.b": "1"})
    second, _ = AnnotationSet.take({"annotation.a": "2"})
    assert first.merged(second).for_platform(None).manifest == {"a": "2", "b": "1"}
    assert first.for_platform(None).manifest == {"a": "1", "b": "1"}


def test_annotations_that_have_no_place():
    platform, _ = AnnotationSet.take({"annotation[linux/arm64].a": "1"})
    with pytest.raises(InvalidInputError):
        platform.check(["linux/amd64"], oci_types=True)
    platform.check(["linux/arm64"], oci_types=False)
    platform.check(None, oci_types=True)  # ignored where there is no index, as upstream does
    index, _ = AnnotationSet.take({"annotation-index.a": "1"})
    with pytest.raises(InvalidInputError):
        index.check([], oci_types=False)


# -- values --------------------------------------------------------------------------------


def test_booleans():
    assert parse_bool("k", "TRUE")
    assert not parse_bool("k", "f")
    assert parse_bool("k", "", empty=True)
    for word in ("yes", "tRUE", ""):
        with pytest.raises(InvalidInputError):
            parse_bool("k", word)


def test_epochs():
    assert parse_epoch("k", "") is None
    assert parse_epoch("k", "-5") == -5
    for word in ("1.5", "1e3", "٣", "9" * 30, "--1"):
        with pytest.raises(InvalidInputError):
            parse_epoch("k", word)


def test_epoch_of_the_frontend():
    source = ExportSource(metadata={"source.date.epoch": b"7"})
    (platform,) = source.platforms()
    assert source_epoch(source, platform) == 7
    assert source_epoch(ExportSource(), platform) is None


def test_several_refs_need_a_mapping():
    with pytest.raises(InvalidInputError):
        ExportSource(refs={"a": None}).platforms()


def test_estargz_needs_oci_types():
    assert ImageOptions.take({"compression": "estargz"})[0].uses_oci_types
    with pytest.raises(InvalidInputError, match='"compression=estargz" conflicts'):
        ImageOptions.take({"compression": "estargz", "oci-mediatypes": "false"})
