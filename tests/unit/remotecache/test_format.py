"""The cache config: bytes as BuildKit writes them, anything at all on reading."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError
from boxwright.remotecache.chains import build_chains
from boxwright.remotecache.format import (
    CacheConfig,
    CacheFormatError,
    CacheInput,
    CacheLayer,
    CacheRecord,
    CacheResult,
    ChainedResult,
    decode_inline,
    read_time,
    sort_config,
)

A, B = Digest.of(b"a"), Digest.of(b"b")


def test_bytes_are_those_of_upstream() -> None:
    config = CacheConfig(
        [CacheLayer(A), CacheLayer(B, 0)],
        [
            CacheRecord("sha256:x"),
            CacheRecord(
                "sha256:y",
                ((CacheInput(0, "sel"), CacheInput(0)),),
                (CacheResult(1, 1_700_000_000_120_000_000),),
                (ChainedResult((1,), 1_700_000_000_000_000_000),),
            ),
        ],
    )
    assert config.encode().decode() == (
        f'{{"layers":[{{"blob":"{A}","parent":-1}},{{"blob":"{B}"}}],'
        '"records":[{"digest":"sha256:x"},'
        '{"layers":[{"layer":1,"createdAt":"2023-11-14T22:13:20.12Z"}],'
        '"chains":[{"layers":[1],"createdAt":"2023-11-14T22:13:20Z"}],'
        '"digest":"sha256:y","inputs":[[{"selector":"sel","link":0},{"link":0}]]}]}'
    )
    assert CacheConfig.decode(config.encode()) == config


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2023-11-14T22:13:20.123456789Z", 1_700_000_000_123_456_789),
        ("2023-11-14T23:13:20.5+01:00", 1_700_000_000_500_000_000),
        ("0001-01-01T00:00:00Z", -62_135_596_800_000_000_000),
        ("yesterday", 0),
        ("2023-13-14T22:13:20Z", 0),
    ],
)
def test_times(text: str, time_ns: int) -> None:
    assert read_time(text) == time_ns


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"layers":{}}',
        b'{"layers":[1]}',
        b'{"layers":[{"blob":"x"}]}',
        b'{"records":[{"inputs":3}]}',
        b'{"records":[{"inputs":[3]}]}',
        b'{"records":[{"inputs":[[{"link":"x"}]]}]}',
        b'{"records":[{"layers":[{"layer":true}]}]}',
        b'{"records":[{"chains":[{"layers":7}]}]}',
        b"[" * 100_000,
    ],
)
def test_malformed_documents_are_refused(data: bytes) -> None:
    with pytest.raises(CacheFormatError):
        CacheConfig.decode(data)


@pytest.mark.parametrize(
    "document",
    [
        {"records": [{"digest": "a", "inputs": [[{"link": 1}]]}]},
        {"records": [{"digest": "a", "inputs": [[{"link": -1}]]}]},
        {"records": [{"digest": "a", "inputs": [[{"link": 0}]]}]},
        {
            "records": [
                {"digest": "a", "inputs": [[{"link": 1}]]},
                {"digest": "b", "inputs": [[{"link": 0}]]},
            ]
        },
        {"layers": [{"blob": A}], "records": [{"digest": "a", "layers": [{"layer": 0}]}]},
        {"layers": [], "records": [{"digest": "a", "layers": [{"layer": 3}]}]},
    ],
)
def test_circles_and_dead_ends_are_refused(document: dict[str, object]) -> None:
    config = CacheConfig.decode(json.dumps(document).encode())
    with pytest.raises(CacheFormatError):
        build_chains(config, {})


def test_inline_records() -> None:
    assert decode_inline(base64.b64encode(b"null").decode()) == []
    text = base64.b64encode(b'[{"digest":"sha256:x"}]').decode()
    assert decode_inline(text) == [CacheRecord("sha256:x")]
    for bad in ("!", "", base64.b64encode(b"{}").decode()):
        with pytest.raises(CacheFormatError):
            decode_inline(bad)


@given(st.recursive(
    st.none() | st.booleans() | st.integers(-3, 5) | st.sampled_from([str(A), "x", ""]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["layers", "records", "blob", "parent", "digest", "inputs", "link",
                         "layer", "chains", "createdAt", "selector"]),
        inner, max_size=4,
    ),
    max_leaves=25,
))  # fmt: skip
def test_any_json_is_read_or_refused(value: object) -> None:
    try:
        config = CacheConfig.decode(json.dumps(value).encode())
        chains = build_chains(config, {})
    except BoxwrightError:
        return
    chains.marshal()


def test_order_depends_on_content_only() -> None:
    records = [
        CacheRecord("sha256:b", ((CacheInput(1),),), (CacheResult(0, 5),)),
        CacheRecord("sha256:a"),
    ]
    one = sort_config(CacheConfig([CacheLayer(B, 1), CacheLayer(A)], records))
    moved = [
        CacheRecord("sha256:a"),
        CacheRecord("sha256:b", ((CacheInput(0),),), (CacheResult(1, 5),)),
    ]
    other = sort_config(CacheConfig([CacheLayer(A), CacheLayer(B, 0)], moved))
    assert one.encode() == other.encode()
