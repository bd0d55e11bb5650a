"""Cache-map digests against those that BuildKit computed (tests/golden/cachekeys)."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.llb.canonical import marshal_op
from boxwright.ops.cachemap import (
    CacheMapError,
    Selector,
    base_name,
    cache_map,
    clean_path,
    content_key,
    dedupe_paths,
    dedupe_selectors,
    has_wildcard,
    source_cache_map,
)
from boxwright.wire.pb import ops_pb2 as pb

GOLDEN = Path(__file__).parents[2] / "golden/cachekeys/ops.json"
CASES = json.loads(GOLDEN.read_text())


def platform_of(op):
    p = op.platform
    if not op.HasField("platform"):
        return None
    return Platform(p.OS, p.Architecture, p.Variant, p.OSVersion, tuple(p.OSFeatures))


def load(case):
    return pb.Op.FromString(base64.b64decode(case["marshaled"]))


def case_ids():
    return [f"{c['name']}-{c['vertex'][7:13]}" for c in CASES]


@pytest.mark.parametrize("case", CASES, ids=case_ids())
def test_equal_to_buildkit(case):
    op = load(case)
    spec = cache_map(op, len(op.inputs), platform_of(op))
    assert spec.digest == case["digest"]
    deps = [{"selector": d.selector, "content": d.content is not None} for d in spec.deps]
    assert deps == (case["deps"] or [])


@pytest.mark.parametrize("case", CASES, ids=case_ids())
def test_vertex_digest_is_that_of_buildkit(case):
    if case["name"] == "build":
        pytest.skip("the order of map entries with empty values is the encoder's own")
    assert Digest.of(marshal_op(load(case))) == case["vertex"]


def one(name, kind):
    return next(load(c) for c in CASES if c["name"] == name and load(c).WhichOneof("op") == kind)


def key(op):
    return cache_map(op, len(op.inputs), Platform("linux", "amd64")).digest


def test_what_is_left_out_of_a_command():
    op = one("exec-proxy-hosts", "exec")
    same = pb.Op()
    same.CopyFrom(op)
    same.exec.meta.proxy_env.http_proxy = "http://elsewhere"
    same.exec.meta.extraHosts[0].IP = "192.0.2.1"
    assert key(same) == key(op)
    same.exec.meta.extraHosts[0].Host = "other"
    assert key(same) != key(op)


def test_the_platform_counts_for_commands_only():
    op = one("exec-plain", "exec")
    count = len(op.inputs)
    assert cache_map(op, count, Platform("linux", "arm64")) != cache_map(
        op, count, Platform("linux", "amd64")
    )
    copy = one("copy-file", "file")
    assert cache_map(copy, 2, Platform("linux", "arm64")) == cache_map(copy, 2, None)


def test_content_of_a_copy_is_what_is_selected():
    spec = cache_map(one("copy-wildcard", "file"), 2)
    assert spec.deps[0].content is None
    assert spec.deps[1].content == (Selector("/*.go", wildcard=True, follow_links=True),)
    spec = cache_map(one("copy-include-exclude", "file"), 2)
    assert spec.deps[1].content == (
        Selector("/", include=("*.c", "!x"), exclude=("vendor",), required=("a",)),
    )


def test_content_of_mounts():
    op = one("exec-bind-selector", "exec")
    deps = cache_map(op, len(op.inputs), Platform("linux", "amd64")).deps
    assert deps[0].content is None  # the root
    assert deps[1].content == (Selector("/sub/dir", follow_links=True),)
    whole = one("exec-bind", "exec")
    assert cache_map(whole, 2, Platform("linux", "amd64")).deps[1].content == (Selector(),)


def test_forcing_an_unsafe_content_key_is_refused():
    op = one("exec-bind-rw", "exec")
    bad = op.exec.mounts[1]
    bad.selector, bad.readonly, bad.output = "/part", False, 1
    bad.contentCache = pb.MountContentCache.ON
    with pytest.raises(CacheMapError, match="by content"):
        cache_map(op, len(op.inputs), Platform("linux", "amd64"))


def test_inputs_out_of_range_are_refused():
    op = one("exec-bind", "exec")
    with pytest.raises(CacheMapError, match="not there"):
        cache_map(op, 1, Platform("linux", "amd64"))
    copy = one("copy-owner-name", "file")
    copy.file.actions[0].copy.owner.user.byName.input = 9
    with pytest.raises(CacheMapError, match="not there"):
        cache_map(copy, 2)


def test_sources_have_no_cache_map_of_their_own():
    with pytest.raises(CacheMapError):
        cache_map(pb.Op(source=pb.SourceOp(identifier="local://x")), 0)


def test_session_keys_are_marked_as_worthless_elsewhere():
    digest = Digest.of(b"buildkit.source.v0:session:x:y")
    assert source_cache_map("session:x:y").digest == f"random:{digest.hex}"
    assert source_cache_map("sha256:aa").digest == Digest.of(b"buildkit.source.v0:sha256:aa")


def test_content_key_joins_digests():
    assert content_key(["sha256:a", "sha256:b"]) == Digest.of(b"sha256:a\0sha256:b")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("", "."),
        ("/", "/"),
        ("//", "/"),
        ("/a/b/", "b"),
        ("a", "a"),
        ("..", ".."),
        ("/a//b//", "b"),
    ],
)
def test_base_name(path, name):
    assert base_name(path) == name


@pytest.mark.parametrize(
    ("path", "clean"),
    [("/", "/"), ("//a", "/a"), ("/../a/./b/..", "/a"), ("/a//b/", "/a/b")],
)
def test_clean_path(path, clean):
    assert clean_path(path) == clean


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a*", True),
        ("a?", True),
        ("[a]", True),
        ("a\\*", False),
        ("a\\\\*", True),
        ("plain", False),
    ],
)
def test_has_wildcard(path, found):
    assert has_wildcard(path) is found


def test_dedupe_selectors_keeps_filtered_ones():
    filtered = Selector("/a", include=("*.c",))
    found = dedupe_selectors(
        [Selector("/b/c"), filtered, Selector("/b"), Selector("/b/c", follow_links=True)]
    )
    assert found == (filtered, Selector("/b"), Selector("/b/c", follow_links=True))


@given(st.lists(st.sampled_from(["/", "/a", "/a/b", "/ab", "/a/b/c", "/b", "/b/"]), min_size=2))
def test_dedupe_paths_keeps_a_cover(paths):
    kept = dedupe_paths(paths)
    assert set(kept) <= set(paths)
    for path in paths:
        assert any(path == k or path.startswith(k.rstrip("/") + "/") for k in kept)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=50))
def test_any_text_makes_a_key_that_depends_on_it(text):
    op = one("mkdir", "file")
    before = key(op)
    op.file.actions[0].mkdir.path += "x" + text
    assert key(op) != before
