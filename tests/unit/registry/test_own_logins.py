"""The daemon's own logins: for hosts that no client has a login for, and only those."""

from __future__ import annotations

import base64
import json
import os

import pytest

from boxwright.registry.auth import AnonymousAuth, Credentials, Token
from boxwright.session.providers.dockerconfig import DockerConfig, DockerConfigError
from boxwright.session.providers.filelogins import FileLogins
from boxwright.sources.registry import SessionAuth

HOST = "registry.example"


def write(path, host, user, secret):
    auth = base64.b64encode(f"{user}:{secret}".encode()).decode()
    path.write_text(json.dumps({"auths": {host: {"auth": auth}}}))


class Session(AnonymousAuth):
    """A client with at most one login; it fetches tokens for everybody, as stock clients do."""

    def __init__(self, login=None):
        self.login = login

    async def credentials(self, host):
        return self.login

    async def fetch_token(self, host, realm, service, scopes):
        return Token("of-a-client" if self.login else "of-nobody")


class Sessions:
    def __init__(self, session):
        self.session = session

    async def get(self, session_id):
        return self.session


def source(session, own):
    return SessionAuth(Sessions(session), ["one"], own)


def test_a_client_without_a_login_gets_the_daemons(tmp_path, run):
    write(tmp_path / "c.json", HOST, "builder", "s")
    auth = source(Session(), FileLogins(tmp_path / "c.json"))
    assert run(auth.credentials(HOST)) == Credentials("builder", "s")
    assert run(auth.fetch_token(HOST, "r", "s", ["x"])) is None


def test_a_client_with_a_login_keeps_it(tmp_path, run):
    write(tmp_path / "c.json", HOST, "builder", "s")
    auth = source(Session(Credentials("ann", "a")), FileLogins(tmp_path / "c.json"))
    assert run(auth.credentials(HOST)) == Credentials("ann", "a")
    assert run(auth.fetch_token(HOST, "r", "s", ["x"])).value == "of-a-client"


def test_other_hosts_are_the_clients_business(tmp_path, run):
    write(tmp_path / "c.json", HOST, "builder", "s")
    auth = source(Session(), FileLogins(tmp_path / "c.json"))
    assert run(auth.credentials("other.example")) is None
    assert run(auth.fetch_token("other.example", "r", "s", ["x"])).value == "of-nobody"


def test_docker_hub_by_its_own_key(tmp_path, run):
    write(tmp_path / "c.json", "https://index.docker.io/v1/", "builder", "s")
    logins = FileLogins(tmp_path / "c.json")
    assert run(logins.credentials("docker.io")) == Credentials("builder", "s")


def test_a_changed_file_is_read_again(tmp_path, run):
    path, other = tmp_path / "c.json", tmp_path / "new.json"
    write(path, HOST, "builder", "old")
    logins = FileLogins(path)
    assert run(logins.credentials(HOST)) == Credentials("builder", "old")
    write(other, HOST, "builder", "new")
    os.replace(other, path)
    assert run(logins.credentials(HOST)) == Credentials("builder", "new")
    path.unlink()
    with pytest.raises(DockerConfigError):
        run(logins.credentials(HOST))


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, run, monkeypatch):
    path = tmp_path / "c.json"
    write(path, HOST, "builder", "old")
    read = DockerConfig.read

    def slow_read(found, environ):
        config = read(found, environ)
        monkeypatch.setattr(DockerConfig, "read", read)
        write(path, HOST, "builder", "newer")
        return config

    monkeypatch.setattr(DockerConfig, "read", slow_read)
    logins = FileLogins(path)
    assert run(logins.credentials(HOST)) == Credentials("builder", "newer")


@pytest.mark.parametrize("content", [None, "{", "\0"])
def test_a_file_that_cannot_be_used_is_named_at_the_start(tmp_path, content):
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DockerConfigError) as caught:
        FileLogins(path)
    assert str(path) in caught.value.brief
