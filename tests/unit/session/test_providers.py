import asyncio
import base64
import os

import pytest

from boxwright.errors import InvalidInputError, LimitExceededError
from boxwright.session.base import ContextReadError, SecretNotFoundError
from boxwright.session.providers.auth import AuthProvider, TokenSeeds
from boxwright.session.providers.dockerconfig import DockerConfig, DockerConfigError
from boxwright.session.providers.secrets import MAX_SECRET_BYTES, SecretSource, SecretsProvider
from boxwright.session.providers.ssh import AgentSource, SshProvider


def login(config, host):
    found = asyncio.run(config.login(host))
    return None if found is None else (found.credentials.username, found.credentials.secret)


def encoded(text):
    return base64.b64encode(text.encode()).decode()


def test_stored_logins():
    config = DockerConfig(
        {
            "auths": {
                "https://index.docker.io/v1/": {"auth": encoded("hub:pw")},
                "https://reg.example.com/v2/": {"auth": encoded("u:p:with:colons")},
                "plain:5000": {"username": "a", "password": "b"},
                "token.example.com": {"auth": encoded("x:y"), "identitytoken": "idt"},
                "empty.example.com": {},
            }
        },
        {},
    )
    assert login(config, "docker.io") == ("hub", "pw")
    assert login(config, "registry-1.docker.io") == ("hub", "pw")
    assert login(config, "reg.example.com") == ("u", "p:with:colons")
    assert login(config, "plain:5000") == ("a", "b")
    assert login(config, "token.example.com") == ("", "idt")
    assert login(config, "empty.example.com") is None
    assert login(config, "unknown") is None


@pytest.fixture
def helper(tmp_path):
    """A credential helper on PATH; returns the environment."""
    script = tmp_path / "docker-credential-test"
    script.write_text(
        "#!/bin/sh\nread host\ncase $host in\n"
        'good) echo \'{"Username":"u","Secret":"s"}\' ;;\n'
        'token) echo \'{"Username":"<token>","Secret":"t"}\' ;;\n'
        "garbage) echo hello ;;\n"
        "broken) echo 'keychain is locked' ; exit 1 ;;\n"
        "*) echo 'credentials not found in native keychain' ; exit 1 ;;\n"
        "esac\n"
    )
    script.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_credential_helpers(helper, monkeypatch):
    monkeypatch.setenv("PATH", helper["PATH"])
    config = DockerConfig(
        {"credsStore": "test", "auths": {"own": {"auth": encoded("a:b")}}}, helper
    )
    assert login(config, "good") == ("u", "s")
    assert login(config, "token") == ("", "t")
    assert login(config, "unknown") is None
    assert login(config, "own") == ("a", "b")
    for host in ("garbage", "broken"):
        with pytest.raises(DockerConfigError):
            login(config, host)


def test_a_missing_helper_is_told_with_its_name(helper):
    config = DockerConfig({"credHelpers": {"x": "absent"}}, helper)
    with pytest.raises(DockerConfigError) as caught:
        login(config, "x")
    assert "docker-credential-absent" in caught.value.brief


def test_config_file_of_the_environment(tmp_path):
    assert login(DockerConfig.load({"DOCKER_CONFIG": str(tmp_path)}), "x") is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DockerConfigError):
        DockerConfig.load({"DOCKER_CONFIG": str(tmp_path)})


def test_seeds_are_kept_and_private(tmp_path):
    folder = tmp_path / "docker"
    seed = TokenSeeds(folder).get("host")
    assert TokenSeeds(folder).get("host") == seed
    assert TokenSeeds(folder).get("other") != seed
    assert (folder / ".token_seed").stat().st_mode & 0o777 == 0o600


def test_without_login_the_authority_key_depends_on_the_salt_alone(tmp_path):
    config = DockerConfig({}, {})
    one = AuthProvider(config, {"DOCKER_CONFIG": str(tmp_path / "a")})
    two = AuthProvider(config, {"DOCKER_CONFIG": str(tmp_path / "b")})

    async def key(provider, salt):
        return await provider.authority_key("host", salt)

    assert asyncio.run(key(one, b"s")) == asyncio.run(key(two, b"s"))
    assert asyncio.run(key(one, b"s")) != asyncio.run(key(one, b"t"))


def test_secret_sources(tmp_path):
    (tmp_path / "f").write_bytes(b"from file")
    provider = SecretsProvider(
        [
            SecretSource("file", path=str(tmp_path / "f")),
            SecretSource("NAME"),
            SecretSource("unset", variable="NOT_SET"),
            SecretSource("given", value=b"v"),
        ],
        {"NAME": "from environment"},
    )
    assert provider.get("file") == b"from file"
    assert provider.get("NAME") == b"from environment"
    assert provider.get("unset") == b""
    assert provider.get("given") == b"v"
    with pytest.raises(SecretNotFoundError):
        provider.get("other")
    assert "hush" not in repr(SecretSource("given", value=b"hush"))


def test_secrets_that_are_not_there_or_too_big(tmp_path):
    with pytest.raises(ContextReadError):
        SecretsProvider([SecretSource("absent", path=str(tmp_path / "absent"))], {})
    with pytest.raises(InvalidInputError):
        SecretsProvider([SecretSource("", path="x")], {})
    big = tmp_path / "big"
    big.write_bytes(b"x" * (MAX_SECRET_BYTES + 1))
    with pytest.raises(LimitExceededError):
        SecretsProvider([SecretSource("big", path=str(big))], {})


def test_ssh_sources_are_checked_at_once(tmp_path):
    (tmp_path / "key").write_text("-----BEGIN")
    for source in (
        AgentSource(),
        AgentSource(path=str(tmp_path / "absent")),
        AgentSource(path=str(tmp_path / "key")),
    ):
        with pytest.raises(InvalidInputError):
            SshProvider([source], {})
