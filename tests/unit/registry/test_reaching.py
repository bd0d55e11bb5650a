"""Endpoints: HTTP, HTTPS, certificates, mirrors, and hosts that are not there."""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import threading

import pytest

from boxwright.config.load import ConfigError
from boxwright.config.schema import KeypairConfig, RegistryConfig
from boxwright.core.reference import Reference
from boxwright.errors import Code
from boxwright.registry.errors import (
    ManifestNotFoundError,
    RegistryError,
    RegistryProtocolError,
    RegistryTlsError,
    RegistryUnreachableError,
)
from boxwright.registry.hosts import Hosts, is_loopback
from boxwright.testing.certificates import CertificateAuthority
from boxwright.testing.registry import Failure, FakeRegistry, Faults


def _fetch(kit, run, make_hosts, *, tls=None, insecure=None, faults=None):
    """Fetch a manifest from one registry and return it or the failure, and the registry."""

    async def work():
        async with FakeRegistry(tls=tls, faults=faults) as registry:
            registry.put_manifest("team/app", "1", {"schemaVersion": 2})
            async with kit.client(make_hosts(registry.host)) as client:
                try:
                    found = await client.fetch_manifest(kit.ref(registry), insecure=insecure)
                except RegistryError as exc:
                    return exc, registry
                return found, registry

    return run(work())


def test_https_with_its_own_authority(kit, run, authority):
    tls = authority.server_context(authority.issue("server", "127.0.0.1"))
    config = RegistryConfig(ca=(str(authority.ca),))
    found, _ = _fetch(kit, run, lambda host: Hosts({host: config}), tls=tls)
    assert found[0].size == len(found[1])


def test_wrong_authority_names_the_key_and_the_file(kit, run, authority, tmp_path):
    tls = authority.server_context(authority.issue("server", "127.0.0.1"))
    other = CertificateAuthority(tmp_path, "other")
    config = RegistryConfig(ca=(str(other.ca),))
    error, registry = _fetch(
        kit, run, lambda host: Hosts({host: config}, config_file="/etc/x.toml"), tls=tls
    )
    assert isinstance(error, RegistryTlsError)
    assert error.code is Code.REGISTRY_TLS
    assert f'ca = ["/path/ca.pem"] under [registry."{registry.host}"] in /etc/x.toml' in error.hint


def test_certificate_for_another_name(kit, run, authority):
    tls = authority.server_context(authority.issue("server", "registry.example"))
    config = RegistryConfig(ca=(str(authority.ca),))
    error, _ = _fetch(kit, run, lambda host: Hosts({host: config}), tls=tls)
    assert isinstance(error, RegistryTlsError)


@pytest.mark.parametrize("config", [RegistryConfig(insecure=True), RegistryConfig()])
def test_insecure_takes_any_certificate(kit, run, authority, config):
    tls = authority.server_context(authority.issue("server", "registry.example"))
    found, _ = _fetch(kit, run, lambda host: Hosts({host: config}), tls=tls, insecure=True)
    assert isinstance(found, tuple)


def test_client_certificate_per_host(kit, run, authority):
    pair, client = authority.issue("server", "127.0.0.1"), authority.issue("client")
    tls = authority.server_context(pair, client_ca=authority.ca)
    keypair = KeypairConfig(cert=str(client.cert), key_file=str(client.key))
    trusted = RegistryConfig(ca=(str(authority.ca),), keypair=(keypair,))
    assert isinstance(_fetch(kit, run, lambda host: Hosts({host: trusted}), tls=tls)[0], tuple)


def test_missing_client_certificate_names_the_key(kit, run, authority):
    # A blocking server: asyncio's closes without the alert that other servers send.
    context = authority.server_context(
        authority.issue("server", "127.0.0.1"), client_ca=authority.ca
    )
    listener = socket.create_server(("127.0.0.1", 0))
    host = f"127.0.0.1:{listener.getsockname()[1]}"

    def answer():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), connection:
                    context.wrap_socket(connection, server_side=True).recv(1)

    server = threading.Thread(target=answer)
    server.start()

    async def work():
        hosts = Hosts({host: RegistryConfig(ca=(str(authority.ca),), http=False)})
        async with kit.client(hosts) as client:
            with pytest.raises(RegistryTlsError) as caught:
                await client.resolve(Reference(host, "app", "1"))
            return caught.value

    try:
        assert f'keypair under [registry."{host}"]' in run(work()).hint
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        server.join()


def test_certs_d_folder(kit, run, authority, tmp_path):
    tls = authority.server_context(authority.issue("server", "127.0.0.1"))
    folder = tmp_path / "certs.d"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.ca.read_bytes())
    config = RegistryConfig(tls_config_dir=(str(folder),))
    assert isinstance(_fetch(kit, run, lambda host: Hosts({host: config}), tls=tls)[0], tuple)


def test_missing_ca_file_is_a_configuration_error(kit, run):
    config = RegistryConfig(ca=("/nonexistent/ca.pem",), http=False)
    with pytest.raises(ConfigError, match="CA file"):
        _fetch(kit, run, lambda host: Hosts({host: config}))


def test_http_registry_asked_in_https(kit, run):
    hosts = lambda host: Hosts({host: RegistryConfig(http=False)})  # noqa: E731
    error, registry = _fetch(kit, run, hosts)
    assert isinstance(error, RegistryProtocolError)
    assert error.code is Code.REGISTRY_PROTOCOL
    assert f'http = true under [registry."{registry.host}"] in buildkitd.toml' in error.hint


def test_https_registry_asked_in_http(kit, run, authority):
    tls = authority.server_context(authority.issue("server", "127.0.0.1"))
    hosts = lambda host: Hosts({host: RegistryConfig(http=True)})  # noqa: E731
    error, registry = _fetch(kit, run, hosts, tls=tls)
    assert isinstance(error, RegistryProtocolError)
    assert f'remove http = true under [registry."{registry.host}"]' in error.hint


def test_https_registry_that_says_so_in_http(kit, run):
    text = b"Client sent an HTTP request to an HTTPS server.\n"
    faults = Faults(failures=[Failure("GET", "/manifests/", 400, body=text)])
    hosts = lambda host: Hosts({host: RegistryConfig(http=True)})  # noqa: E731
    error, _ = _fetch(kit, run, hosts, faults=faults)
    assert isinstance(error, RegistryProtocolError)


@pytest.mark.parametrize("with_tls", [True, False])
def test_loopback_is_found_out(kit, run, authority, with_tls):
    tls = authority.server_context(authority.issue("server", "127.0.0.1")) if with_tls else None
    config = RegistryConfig(ca=(str(authority.ca),))
    found, _ = _fetch(kit, run, lambda host: Hosts({host: config}), tls=tls)
    assert isinstance(found, tuple)


def test_loopback_with_an_unknown_certificate_is_a_tls_error(kit, run, authority):
    tls = authority.server_context(authority.issue("server", "127.0.0.1"))
    error, _ = _fetch(kit, run, lambda host: Hosts(), tls=tls)
    assert isinstance(error, RegistryTlsError)


def test_nothing_listens(kit, run):
    async def work():
        async with kit.client() as client:
            with pytest.raises(RegistryUnreachableError) as caught:
                await client.resolve(Reference("127.0.0.1:1", "app", "1"))
            return caught.value

    error = run(work())
    assert error.reason == "refused"
    assert error.code is Code.REGISTRY_UNREACHABLE
    assert "127.0.0.1:1" in error.brief


@pytest.mark.parametrize("insecure", [None, True])
def test_a_name_that_does_not_resolve_is_not_tried_again(kit, run, caplog, insecure):
    async def work():
        async with kit.client() as client:
            with pytest.raises(RegistryUnreachableError) as caught:
                await client.resolve(
                    Reference("no-such-host.invalid", "app", "1"), insecure=insecure
                )
            return caught.value

    with caplog.at_level(logging.WARNING):
        assert run(work()).reason == "name"
    assert "trying again" not in caplog.text


def test_mirrors_come_first_and_failures_fall_through(kit, run):
    async def work():
        async with FakeRegistry() as empty, FakeRegistry() as full, FakeRegistry() as origin:
            full.put_manifest("cache/team/app", "1", {"schemaVersion": 2, "from": "mirror"})
            origin.put_manifest("team/app", "1", {"schemaVersion": 2, "from": "origin"})
            mirrors = ("127.0.0.1:1", empty.host, f"http://{full.host}/cache")
            hosts = Hosts({origin.host: RegistryConfig(mirrors=mirrors)})
            async with kit.client(hosts) as client:
                _, body = await client.fetch_manifest(kit.ref(origin))
                assert b"mirror" in body
                _, body = await client.fetch_manifest(kit.ref(origin), mirrors=False)
                assert b"origin" in body
                full.manifests.clear()
                _, body = await client.fetch_manifest(kit.ref(origin))
                assert b"origin" in body
                origin.manifests.clear()
                with pytest.raises(ManifestNotFoundError) as caught:
                    await client.fetch_manifest(kit.ref(origin))
                assert caught.value.host == origin.host

    run(work())


def test_a_mirror_with_a_wrong_manifest_is_passed_over(kit, run):
    async def work():
        async with FakeRegistry() as mirror, FakeRegistry() as origin:
            digest, body = origin.put_manifest("team/app", "1", {"schemaVersion": 2})
            mirror.manifests["team/app", digest] = ("", b"{}")
            hosts = Hosts({origin.host: RegistryConfig(mirrors=(mirror.host,))})
            async with kit.client(hosts) as client:
                ref = Reference(origin.host, "team/app", digest=digest)
                assert (await client.fetch_manifest(ref))[1] == body

    run(work())


def test_a_blob_goes_on_at_the_origin_where_its_mirror_broke_off(kit, run):
    data = bytes(range(256)) * 4096

    async def work():
        faults = Faults(break_downloads=99, break_after=100_000)
        async with FakeRegistry(faults=faults) as mirror, FakeRegistry() as origin:
            mirror.put_blob("team/app", data)
            origin.put_blob("team/app", data)
            hosts = Hosts({origin.host: RegistryConfig(mirrors=(mirror.host,))})
            sink = kit.Memory()
            async with kit.client(hosts, retries=2) as client:
                await client.fetch_blob(kit.ref(origin), kit.descriptor(data), sink)
            assert bytes(sink.data) == data
            return origin.requests

    assert run(work())[-1].headers["Range"].startswith("bytes=")


def test_a_key_with_a_path_is_pointed_out(caplog):
    with caplog.at_level(logging.WARNING):
        Hosts({"docker.io/ameide": RegistryConfig(http=True)})
    assert "configuration is per host" in caplog.text
    assert '[registry."docker.io"]' in caplog.text


def test_docker_hub_is_asked_where_it_lives():
    endpoint = Hosts().endpoint("docker.io")
    assert endpoint.base_url == "https://registry-1.docker.io/v2"
    assert endpoint.name == "docker.io"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("k3d.localhost:5001", True),
        ("127.0.0.1:80", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("localhost.example.com", False),
        ("10.0.0.1:5000", False),
        ("registry.example:5000", False),
    ],
)
def test_loopback_names(host, expected):
    assert is_loopback(host) is expected


def test_contexts_verify_unless_told_otherwise():
    hosts = Hosts({"loose.example": RegistryConfig(insecure=True)})
    assert hosts.endpoint("strict.example").ssl_context().verify_mode is ssl.CERT_REQUIRED
    assert hosts.endpoint("loose.example").ssl_context().verify_mode is ssl.CERT_NONE
    strict_again = hosts.endpoint("loose.example", insecure=False)
    assert strict_again.ssl_context().verify_mode is ssl.CERT_REQUIRED
