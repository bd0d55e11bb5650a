"""The daemon's own registry and its own logins, as the configuration says."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakeregistry import ServedRegistry
from programs import Cli, Context, Daemon, run, wait_until

from boxwright.errors import EXIT_CODES, Code
from boxwright.testing.certificates import CertificateAuthority
from boxwright.testing.registry import Auth

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]


@contextlib.contextmanager
def configured(state: Path, folder: Path, text: str) -> Iterator[Daemon]:
    """Run a daemon with a configuration."""
    from programs import PROGRAM

    config, address = folder / "buildkitd.toml", f"unix://{folder}/d.sock"
    config.write_text(text)
    argv = [PROGRAM, "daemon", "--root", str(state), "--addr", address, "--config", str(config)]
    made = Daemon(state, address, argv, folder / "daemon.log")
    made.start()
    try:
        yield made
    finally:
        made.stop()


def registry_address(daemon: Daemon) -> str:
    """Return where the daemon says that it serves its registry."""

    def said() -> re.Match[str] | None:
        return re.search(r"registry listening on (https?://[0-9.:]+)", daemon.log.read_text())

    wait_until(said, what="the registry listens")
    found = said()
    assert found is not None
    return found[1]


@pytest.mark.peer("skopeo")
def test_the_daemon_serves_what_it_built_over_tls_to_its_users(
    cli: Cli, state: Path, context: Context, tmp_path: Path
) -> None:
    authority = CertificateAuthority(tmp_path)
    pair = authority.issue("server", "127.0.0.1")
    (tmp_path / "users").write_text("ann:secret\n")
    context.dockerfile("FROM scratch\nCOPY Dockerfile /file\n", base=False)
    text = (
        f'[boxwright.registry]\naddress = "127.0.0.1:0"\ntlsCert = "{pair.cert}"\n'
        f'tlsKey = "{pair.key}"\nusers = "{tmp_path}/users"\nreadOnly = true\n'
    )
    trusted = tmp_path / "trusted"
    trusted.mkdir()
    (trusted / "ca.crt").write_bytes(authority.ca.read_bytes())
    with configured(state, tmp_path, text) as daemon:
        output = "type=image,name=team/app:v1"
        cli("--addr", daemon.address, "build", "-o", output, context.path).ok()
        url = registry_address(daemon)
        name = f"docker://{url.removeprefix('https://')}/team/app:v1"
        assert url.startswith("https://")
        copy = ["skopeo", "copy", "--src-cert-dir", str(trusted), name, f"dir:{tmp_path}/copy"]
        assert "unauthorized" in run(copy).err
        run([*copy, "--src-creds", "ann:secret"]).ok()
        back = ["--dest-cert-dir", str(trusted), "--dest-creds", "ann:secret"]
        pushed = run(["skopeo", "copy", *back, f"dir:{tmp_path}/copy", f"{name}-new"])
        assert pushed.status != 0
        assert "read-only" in pushed.err
        listing = cli("registry", "ls", url.removeprefix("https://"))
        assert listing.status == EXIT_CODES[Code.REGISTRY_TLS]
        assert 'set ca = ["/path/ca.pem"] under [registry."127.0.0.1:' in listing.err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ('users = "/nonexistent/users"', "can't read the users of the registry"),
        ('tlsCert = "/nonexistent/cert"', "a certificate and its key"),
    ],
    ids=["users", "certificate"],
)
def test_a_registry_that_cannot_be_as_wanted_stops_the_daemon(
    cli: Cli, tmp_path: Path, setting: str, words: str
) -> None:
    config = tmp_path / "buildkitd.toml"
    config.write_text(f'[boxwright.registry]\naddress = "127.0.0.1:0"\n{setting}\n')
    done = cli("daemon", "--config", config, "--addr", f"unix://{tmp_path}/d.sock")
    assert done.status == EXIT_CODES[Code.INVALID], done.text
    assert words in done.err


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_a_client_without_a_login_pushes_with_the_daemons(
    cli: Cli, state: Path, context: Context, tmp_path: Path, kind: str
) -> None:
    context.dockerfile("FROM scratch\nCOPY Dockerfile /file\n", base=False)
    logins = tmp_path / "logins.json"
    with ServedRegistry(auth=Auth(kind, {"builder": "s3cret"})) as registry:
        entry = {"auth": base64.b64encode(b"builder:s3cret").decode()}
        logins.write_text(json.dumps({"auths": {"other.example": entry}}))
        with configured(state, tmp_path, f'[boxwright]\nregistryLogins = "{logins}"\n') as daemon:
            name = f"{registry.host}/team/app:1"
            argv = ("--addr", daemon.address, "build", "-t", name, "--push", context.path)
            denied = cli(*argv)
            assert denied.status == EXIT_CODES[Code.REGISTRY_AUTH]
            assert "docker login" in denied.err
            logins.write_text(json.dumps({"auths": {registry.host: entry}}))
            cli(*argv).ok()
            assert ("team/app", "1") in registry.fake.tags
            assert "s3cret" not in daemon.log.read_text()
