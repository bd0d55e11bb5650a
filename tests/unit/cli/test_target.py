import json

import pytest

from boxwright.cli.errors import UsageError
from boxwright.cli.target import choose


@pytest.fixture
def environ(tmp_path):
    folder = tmp_path / "docker/buildx/instances"
    folder.mkdir(parents=True)
    for name, driver, endpoint in (
        ("far", "remote", "tcp://far:1234"),
        ("near", "remote", "unix:///run/near.sock"),
        ("boat", "docker-container", "unix:///var/run/docker.sock"),
    ):
        node = {"Name": name + "0", "Endpoint": endpoint, "DriverOpts": {"cacert": "/ca"}}
        (folder / name).write_text(json.dumps({"Name": name, "Driver": driver, "Nodes": [node]}))
    (folder / "broken").write_text("{")
    return {"DOCKER_CONFIG": str(tmp_path / "docker"), "XDG_CONFIG_HOME": str(tmp_path / "cfg")}


def test_nothing_set_means_embedded(environ):
    assert choose(environ).is_embedded


def test_the_order_of_discovery(environ, tmp_path):
    (tmp_path / "cfg/boxwright").mkdir(parents=True)
    (tmp_path / "cfg/boxwright/builder").write_text("near\n")
    assert choose(environ).reason == "boxwright builder use"
    environ["BUILDKIT_HOST"] = "tcp://host:1"
    assert choose(environ).address == "tcp://host:1"
    environ["BUILDX_BUILDER"] = "far"
    assert choose(environ).address == "tcp://far:1234"
    environ["BOXWRIGHT_BUILDER"] = "near"
    assert choose(environ).address == "unix:///run/near.sock"
    assert choose(environ, builder="far").reason == "--builder"
    assert choose(environ, builder="embedded").is_embedded
    assert choose(environ, builder="far", addr="unix:///s").address == "unix:///s"


def test_a_remote_builder_brings_its_certificates(environ):
    assert choose(environ, builder="far").tls.ca == "/ca"


@pytest.mark.parametrize(
    "kwargs", [{"builder": "unknown"}, {"builder": "boat"}, {"addr": "ftp://x"}]
)
def test_unusable_engines_are_usage_errors(environ, kwargs):
    with pytest.raises(UsageError) as caught:
        choose(environ, **kwargs)
    assert caught.value.hint
