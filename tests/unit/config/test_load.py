"""buildkitd.toml is read as BuildKit reads it; mistakes are named."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from boxwright.config import load as loader
from boxwright.config import schema

SAMPLE = """
root = "/var/lib/x"
insecure-entitlements = ["network.host"]
[grpc]
address = ["unix:///run/x.sock", "tcp://0.0.0.0:1234"]
[grpc.tls]
cert = "/c.pem"
key = "/k.pem"
ca = "/ca.pem"
[worker.oci]
max-parallelism = 4
gckeepstorage = "10GB"
[[worker.oci.gcpolicy]]
keepDuration = "48h"
maxUsedSpace = "20%"
[registry."192.168.0.110:8082"]
http = true
insecure = true
[otel]
socketPath = "/x"
[worker.containerd]
address = "/run/c.sock"
"""


def parse(text: str) -> loader.LoadedConfig:
    return loader.parse(tomllib.loads(text))


def test_sample_of_upstream_keys() -> None:
    loaded = parse(SAMPLE)
    config = loaded.config
    assert config.grpc.address == ("unix:///run/x.sock", "tcp://0.0.0.0:1234")
    assert config.grpc.tls.key_file == "/k.pem"
    assert config.worker.oci.max_parallelism == 4
    assert config.worker.oci.gc_policy[0].max_used_space == "20%"
    assert config.registry["192.168.0.110:8082"].http is True
    assert loaded.warnings == ()


def test_unknown_key_is_a_warning_with_a_suggestion() -> None:
    (warning,) = parse("[worker.oci]\nmax-paralelism = 4\n").warnings
    assert "max-parallelism" in warning


def test_unknown_key_of_our_own_is_an_error() -> None:
    with pytest.raises(loader.ConfigError) as error:
        parse("[boxwright]\nlogquota = 1\n")
    assert "logQuota" in error.value.hint


def test_registry_key_with_a_path_is_pointed_out() -> None:
    (warning,) = parse('[registry."docker.io/ameide"]\nhttp = true\n').warnings
    assert 'registry."docker.io"' in warning


@pytest.mark.parametrize(
    "text",
    ["root = 3", "[grpc]\nuid = 'x'", "grpc = 1", "[worker.oci]\nlabels = 'a'", "debug = 1"],
)
def test_wrong_types_are_errors(text: str) -> None:
    with pytest.raises(loader.ConfigError):
        parse(text)


def test_named_file_must_exist_and_default_need_not(tmp_path: Path) -> None:
    missing = tmp_path / "none.toml"
    with pytest.raises(loader.ConfigError):
        loader.load(missing)
    found = loader.load(None, default=missing)
    assert (found.config, found.path) == (schema.Config(), missing)


def test_broken_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("a = [")
    with pytest.raises(loader.ConfigError) as error:
        loader.load(path)
    assert str(path) in error.value.brief


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10GB", 10**10),
        ("512MiB", 512 << 20),
        ("20%", 200),
        (7, 7),
        ("3k", 3000),
        ("1.5g", 15 * 10**8),
    ],
)
def test_sizes(text: str | int, wanted: int) -> None:
    assert loader.parse_size(text, total_bytes=1000) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10GB", 10 << 30),
        ("10 g", 10 << 30),
        ("512MiB", 512 << 20),
        ("1.5k", 1536),
        ("1000", 1000),
        ("7b", 7),
        (7, 7),
        ("10%", 11 * 10**9),
        ("0%", 0),
    ],
)
def test_sizes_of_garbage_collection_are_buildkits(text: str | int, wanted: int) -> None:
    assert loader.parse_disk_space(text, disk_bytes=100 << 30) == wanted


@pytest.mark.parametrize("text", ["x", "10XB", "-3k", "120%", -1, ""])
def test_bad_sizes(text: str | int) -> None:
    with pytest.raises(loader.ConfigError):
        loader.parse_size(text, total_bytes=1000)
    with pytest.raises(loader.ConfigError):
        loader.parse_disk_space(text, disk_bytes=1000)


@pytest.mark.parametrize(
    ("text", "seconds"), [("48h", 172800), (60, 60), ("1h30m", 5400), ("90", 90), ("1.5s", 1.5)]
)
def test_durations(text: str | int, seconds: float) -> None:
    assert loader.parse_duration_ns(text) == int(seconds * 10**9)


@pytest.mark.parametrize("text", ["x", "5q", "h"])
def test_bad_durations(text: str) -> None:
    with pytest.raises(loader.ConfigError):
        loader.parse_duration_ns(text)


def test_a_timeout_is_longer_than_nothing():
    assert loader.parse_timeout_s("1m30s") == 90.0
    for text in ("0s", "-5s", 0, "soon"):
        with pytest.raises(loader.ConfigError):
            loader.parse_timeout_s(text)


def test_every_key_is_documented() -> None:
    seen = 0
    queue: list[type] = [
        value for value in vars(schema).values() if dataclasses.is_dataclass(value)
    ]
    for cls in queue:
        for field in dataclasses.fields(cls):
            assert field.metadata["doc"].endswith("."), (cls, field.name)
            seen += 1
    assert seen > 50


def test_a_key_that_changes_nothing_warns_unless_it_is_the_default() -> None:
    assert parse("[worker.oci]\nenabled = true\n").warnings == ()
    (warning,) = parse('[grpc]\ndebugAddress = "127.0.0.1:1"\n').warnings
    assert warning == "configuration key grpc.debugAddress has no effect"
