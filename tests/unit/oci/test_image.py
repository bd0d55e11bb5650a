"""Image configs: read and written back without a changed byte, as Go's encoder has them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from boxwright.core import gojson
from boxwright.errors import InvalidInputError
from boxwright.oci.image import ContainerConfig, Healthcheck, History, Image, normal_time

# Field order, escapes and what is left out are those of a Go program that decoded and
# encoded a DockerOCIImage with the same values.
FULL = (
    '{"created":"2024-01-26T23:44:47.5Z","author":"a \\u003cb@c\\u003e","architecture":"arm",'
    '"os":"linux","os.version":"1","os.features":["f"],"variant":"v7",'
    '"rootfs":{"type":"layers","diff_ids":["sha256:1"]},'
    '"history":[{"created":"2024-01-26T23:44:47Z","created_by":"x \\u0026\\u0026 y",'
    '"author":"z","comment":"c","empty_layer":true}],'
    '"config":{"User":"u","ExposedPorts":{"1/tcp":{},"80/udp":{}},"Env":["A=é"],'
    '"Entrypoint":["e"],"Cmd":["c"],"Volumes":{"/v":{}},"WorkingDir":"/w",'
    '"Labels":{"a":"1","b":"2"},"StopSignal":"INT","ArgsEscaped":true,'
    '"Healthcheck":{"Test":["CMD","x"],"Interval":1,"Timeout":2,"StartPeriod":3,'
    '"StartInterval":4,"Retries":5},"OnBuild":["RUN x"],"Shell":["/bin/sh"]}}'
)


def test_everything_is_written_as_it_was_read() -> None:
    assert Image.decode(FULL.encode()).encode().decode() == FULL


def test_an_empty_config_keeps_what_is_never_left_out() -> None:
    expected = '{"architecture":"","os":"","rootfs":{"type":"","diff_ids":null},"config":{}}'
    assert Image.decode(b"{}").encode().decode() == expected


def test_names_are_matched_in_any_case_and_unknown_ones_dropped() -> None:
    image = Image.decode(
        b'{"OS":"linux","Config":{"env":["A=1"],"MacAddress":"x"},"docker_version":"1"}'
    )
    assert (image.platform.os, image.config.env) == ("linux", ["A=1"])
    assert "docker_version" not in image.encode().decode()


def test_an_empty_healthcheck_stays() -> None:
    assert b'"Healthcheck":{}' in Image.decode(b'{"config":{"Healthcheck":{}}}').encode()
    assert b"Healthcheck" not in Image.decode(b'{"config":{"Healthcheck":null}}').encode()


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("", ""),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00Z"),
        ("2024-01-01T00:00:00.120000000Z", "2024-01-01T00:00:00.12Z"),
        ("2024-01-01T00:00:00.000000000+00:00", "2024-01-01T00:00:00Z"),
        ("2024-01-01T00:00:00+02:00", "2024-01-01T00:00:00+02:00"),
        ("2024-01-01T00:00:00.1234567891Z", "2024-01-01T00:00:00.123456789Z"),
    ],
)
def test_times(text: str, normal: str) -> None:
    assert normal_time(text) == normal


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"nonsense",
        b'{"config":[]}',
        b'{"config":{"Env":"A=1"}}',
        b'{"config":{"Env":[1]}}',
        b'{"created":"yesterday"}',
        b'{"history":["x"]}',
        b'{"rootfs":{"diff_ids":[null]}}',
        b'{"a":' * 100_000,
    ],
)
def test_what_is_no_config_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInputError):
        Image.decode(data)


def test_a_clone_is_independent() -> None:
    image = Image.decode(FULL.encode())
    copy = image.clone()
    copy.config.env.append("B=2")
    copy.config.labels["c"] = "3"
    assert copy.config.healthcheck is not None
    copy.config.healthcheck.test.append("y")
    copy.history.append(History())
    assert image.encode().decode() == FULL


TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    st.builds(
        Image,
        author=TEXT,
        config=st.builds(
            ContainerConfig,
            user=TEXT,
            exposed_ports=st.dictionaries(TEXT, st.none(), max_size=3),
            env=st.lists(TEXT, max_size=3),
            labels=st.dictionaries(TEXT, TEXT, max_size=3),
            args_escaped=st.booleans(),
            healthcheck=st.none() | st.builds(Healthcheck, st.lists(TEXT, max_size=2)),
        ),
        diff_ids=st.none() | st.lists(TEXT, max_size=2),
        history=st.lists(
            st.builds(History, created_by=TEXT, empty_layer=st.booleans()), max_size=3
        ),
    )
)
def test_encoding_is_read_back_and_stable(image: Image) -> None:
    data = image.encode()
    assert Image.decode(data).encode() == data


@given(TEXT)
def test_gojson_is_json_without_the_characters_go_escapes(text: str) -> None:
    encoded = gojson.dumps({"k": [text]})
    assert json.loads(encoded) == {"k": [text]}
    assert not set(encoded) & set("<>&\u2028\u2029")


def test_indented_gojson() -> None:
    assert gojson.dumps({"a": [], "b": [1], "c": {}}, indent=2) == (
        '{\n  "a": [],\n  "b": [\n    1\n  ],\n  "c": {}\n}'
    )
