import pytest

from boxwright.cli import parse
from boxwright.cli.errors import UsageError
from boxwright.cli.parse import Output


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("out", Output("local", "out", {})),
        ("-", Output("tar", "-", {})),
        ("type=local,dest=out", Output("local", "out", {})),
        ("type=oci,dest=a.tar,compression=zstd", Output("oci", "a.tar", {"compression": "zstd"})),
        ("type=registry", Output("image", "", {"push": "true"})),
        ('type=image,"name=a,b"', Output("image", "", {"name": "a,b"})),
        ("Type=image,PUSH=true", Output("image", "", {"push": "true"})),
    ],
)
def test_outputs(text, expected):
    assert parse.parse_output(text) == expected


@pytest.mark.parametrize("text", ["dest=x,name=y", "type=,dest=x", "type=oci,flag", '"type=oci'])
def test_malformed_outputs(text):
    with pytest.raises(UsageError):
        parse.parse_output(text)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("id=a,src=f", ("a", "f", "")),
        ("id=a,source=f,type=file", ("a", "f", "")),
        ("id=a,env=V", ("a", "", "V")),
        ("id=a,type=env,src=V", ("a", "", "V")),
        ("id=a", ("a", "", "")),
    ],
)
def test_secrets(text, source):
    (found,) = parse.parse_secrets([text])
    assert (found.id, found.path, found.variable) == source


@pytest.mark.parametrize("text", ["src=f", "id=a,type=vault", "id=a,what=b", "nonsense"])
def test_malformed_secrets(text):
    with pytest.raises(UsageError):
        parse.parse_secrets([text])


def test_ssh():
    default, named = parse.parse_ssh(["default", "key=/run/agent,raw=true"])
    assert (default.id, default.path, default.raw) == ("default", "", False)
    assert (named.id, named.path, named.raw) == ("key", "/run/agent", True)


def test_caches():
    bare, full = parse.parse_cache(["reg/app", "type=registry,ref=reg/app,mode=max"], "--cache-to")
    assert (bare.type, bare.attrs) == ("registry", {"ref": "reg/app"})
    assert (full.type, full.attrs) == ("registry", {"ref": "reg/app", "mode": "max"})


def test_build_args_without_value_come_from_the_environment():
    found = parse.parse_build_args(["A=1", "B", "C", "D="], {"B": "2"})
    assert found == {"A": "1", "B": "2", "D": ""}


@pytest.mark.parametrize(
    ("text", "expected"), [("64m", 64 << 20), ("1g", 1 << 30), ("10", 10), ("2KiB", 2048)]
)
def test_sizes(text, expected):
    assert parse.parse_bytes(text, "--shm-size") == expected


@pytest.mark.parametrize("text", ["", "x", "m", "1x"])
def test_malformed_sizes(text):
    with pytest.raises(UsageError):
        parse.parse_bytes(text, "--shm-size")
