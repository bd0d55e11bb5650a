"""The final config: history, times and layers as upstream completes them."""

import json
from pathlib import Path

import pytest

from boxwright.core.platform import Platform
from boxwright.errors import InvalidInputError
from boxwright.oci.image import History
from boxwright.oci.patch import (
    EXPORTER_COMMENT,
    LayerMeta,
    default_config,
    normalize_history,
    parse_history,
    patch_config,
)
from boxwright.oci.platforms import metadata_value, parse_platforms

GOLDEN = Path(__file__).parents[2] / "golden" / "layers" / "config.json"
EPOCH = 1_700_000_000
CONFIG = b'{"os":"linux","architecture":"amd64"}'


def test_buildkits_config_keeps_its_bytes():
    data = GOLDEN.read_bytes()
    value = json.loads(data)
    patched = patch_config(
        data,
        diff_ids=value["rootfs"]["diff_ids"],
        history=normalize_history(parse_history(data), [LayerMeta("x", "")] * 5),
        epoch_s=EPOCH,
    )
    assert patched == data


def test_a_config_without_anything():
    assert json.loads(patch_config(CONFIG, diff_ids=[], history=None)) == {
        "architecture": "amd64",
        "created": None,
        "history": None,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": None},
    }


def test_keys_are_sorted_and_values_kept():
    config = b'{"os":"linux","x":{"b":1,"a":[1.5,"<"]},"architecture":"arm64","Docker":"y"}'
    patched = patch_config(config, diff_ids=["d"], history=[])
    assert patched == (
        b'{"Docker":"y","architecture":"arm64","created":null,"history":[],"os":"linux",'
        b'"rootfs":{"type":"layers","diff_ids":["d"]},"x":{"b":1,"a":[1.5,"\\u003c"]}}'
    )


@pytest.mark.parametrize(
    "config", [b"null", b"[]", b"{", b'{"os":"linux"}', b'{"architecture":"amd64","os":""}']
)
def test_malformed_configs(config):
    with pytest.raises(InvalidInputError):
        patch_config(config, diff_ids=[], history=None)


def test_missing_history_comes_from_the_layers():
    metas = [LayerMeta("one", "2020-01-01T00:00:00Z"), LayerMeta("two", "2021-01-01T00:00:00Z")]
    items = normalize_history([History(created="2019-01-01T00:00:00Z", created_by="known")], metas)
    assert [(item.created, item.created_by, item.comment) for item in items] == [
        ("2019-01-01T00:00:00Z", "known", ""),
        ("2021-01-01T00:00:00Z", "two", EXPORTER_COMMENT),
    ]
    assert normalize_history(None, []) is None


def test_history_of_too_many_layers_becomes_empty():
    items = normalize_history([History(), History(empty_layer=True), History()], [LayerMeta()])
    assert [item.empty_layer for item in items] == [False, True, True]


def test_missing_times_are_those_of_the_layers_or_of_what_is_near():
    items = normalize_history(
        [
            History(created="2019-01-01T00:00:00Z"),
            History(empty_layer=True),
            History(),
            History(empty_layer=True),
        ],
        [LayerMeta(), LayerMeta("b", "2022-01-01T00:00:00Z")],
    )
    assert [item.created[:4] for item in items] == ["2019", "2022", "2022", "2022"]


def test_times_are_clamped_but_those_of_the_base_are_kept():
    base = [History(created="2030-01-01T00:00:00Z", created_by="base")]
    history = [
        *base,
        History(created="2031-01-01T00:00:00Z"),
        History(created="2020-01-01T00:00:00Z"),
    ]
    config = CONFIG[:-1] + b',"created":"2031-01-01T00:00:00Z"}'
    value = json.loads(
        patch_config(
            config, diff_ids=["a", "b", "c"], history=history, epoch_s=EPOCH, base_history=base
        )
    )
    assert [item["created"] for item in value["history"]] == [
        "2030-01-01T00:00:00Z",
        "2023-11-14T22:13:20Z",
        "2020-01-01T00:00:00Z",
    ]
    assert value["created"] == "2023-11-14T22:13:20Z"


def test_creation_time_is_that_of_the_last_history_item():
    history = [History(created="2020-01-01T00:00:00Z"), History(created="2019-01-01T00:00:00Z")]
    value = json.loads(patch_config(CONFIG, diff_ids=[], history=history))
    assert value["created"] == "2019-01-01T00:00:00Z"


def test_inline_cache_is_embedded():
    value = json.loads(patch_config(CONFIG, diff_ids=[], history=None, inline_cache=b'{"a":1}'))
    assert value["moby.buildkit.cache.v0"] == {"a": 1}


@pytest.mark.parametrize("text", ["yesterday", "2023-13-14T22:13:20Z", "2023-11-31T22:13:20Z"])
def test_what_is_no_time_is_refused(text):
    config = json.dumps({"os": "linux", "architecture": "arm64", "created": text}).encode()
    with pytest.raises(InvalidInputError, match="invalid time"):
        patch_config(config, diff_ids=[], history=None, epoch_s=EPOCH)


def test_default_config():
    value = json.loads(default_config(Platform("linux", "arm64")))
    assert value["config"]["WorkingDir"] == "/"
    assert value["config"]["Env"][0].startswith("PATH=/usr/local/sbin:")
    assert value["architecture"] == "arm64"


# -- platforms -----------------------------------------------------------------------------


def test_platforms_from_the_mapping():
    raw = json.dumps(
        {
            "Platforms": [
                {"ID": "linux/amd64", "Platform": {"os": "linux", "architecture": "x86_64"}},
                {"ID": "x", "Platform": {"os": "linux", "architecture": "arm", "variant": "7"}},
            ]
        }
    ).encode()
    first, second = parse_platforms({"refs.platforms": raw})
    assert (first.id, first.platform) == ("linux/amd64", Platform("linux", "amd64"))
    assert (second.id, second.platform) == ("x", Platform("linux", "arm", "v7"))


def test_platform_from_the_config():
    (only,) = parse_platforms({"containerimage.config": b'{"os":"linux","architecture":"s390x"}'})
    assert only.id == "linux/s390x"
    (host,) = parse_platforms({})
    assert host.platform == Platform.host()


@pytest.mark.parametrize(
    "metadata",
    [
        {"refs.platforms": b""},
        {"refs.platforms": b'{"Platforms":[]}'},
        {"refs.platforms": b'{"Platforms":[{"ID":"","Platform":{"os":"a","architecture":"b"}}]}'},
        {"refs.platforms": b'{"Platforms":[{"ID":"x","Platform":{"os":"a"}}]}'},
        {"refs.platforms": b'{"Platforms":[3]}'},
        {"containerimage.config": b'{"os":"linux"}'},
        {"containerimage.config": b"{"},
    ],
)
def test_malformed_platforms(metadata):
    with pytest.raises(InvalidInputError):
        parse_platforms(metadata)


def test_metadata_of_one_platform_wins():
    (host,) = parse_platforms({})
    metadata = {"k": b"all", f"k/{host.id}": b"mine"}
    assert metadata_value(metadata, "k", host) == b"mine"
    assert metadata_value(metadata, "k", None) == b"all"
    assert metadata_value({"k": b"all"}, "k", host) == b"all"
