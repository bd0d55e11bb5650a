"""TLS and mTLS: ALPN, verification both ways, renewal without a restart."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from boxwright.wire import methods as m
from boxwright.wire.bytestream import SocketStream
from boxwright.wire.client import ConnectError, Connection
from boxwright.wire.pb import control_pb2
from boxwright.wire.server import Server
from boxwright.wire.status import RpcError
from boxwright.wire.tls import TlsConfigError, TlsOptions


class Authority:
    """A certificate authority that writes PEM files into one folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.cert = self._sign(subject, subject, self.key, ca=True)
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self.cert.public_bytes(serialization.Encoding.PEM))

    def _sign(self, subject, issuer, key, *, ca=False, names=()):
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, file: str, common_name: str, *, unit: str = "", names=()) -> TlsOptions:
        key = ec.generate_private_key(ec.SECP256R1())
        attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
        if unit:
            attributes.append(x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, unit))
        cert = self._sign(x509.Name(attributes), self.cert.subject, key, names=names)
        cert_path, key_path = self.folder / f"{file}.crt", self.folder / f"{file}.key"
        cert_path.write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return TlsOptions(ca=self.path, cert=cert_path, key=key_path)


LOCAL = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("builder")]


async def info(request, ctx):
    answer = control_pb2.InfoResponse()
    answer.buildkitVersion.version = ctx.peer.tls_subject or ""
    answer.buildkitVersion.package = ",".join(ctx.peer.tls_organizational_units)
    answer.buildkitVersion.revision = ",".join(ctx.peer.tls_names)
    return answer


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 120))


async def ask(address, options):
    connection = await Connection.open(address, tls=options)
    try:
        return (await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())).buildkitVersion
    finally:
        await connection.close()


async def listening(options):
    server = Server()
    server.add(m.CONTROL_INFO, info)
    return server, await server.listen("tcp://127.0.0.1:0", tls=options)


def test_mutual_tls_tells_the_server_who_calls(tmp_path):
    async def main():
        authority = Authority(tmp_path, "ca")
        server, address = await listening(authority.issue("server", "builder", names=LOCAL))
        client = authority.issue(
            "client", "ci-main", unit="smoke", names=[x509.RFC822Name("ci@example.com")]
        )
        seen = await ask(address, client)
        assert (seen.version, seen.package, seen.revision) == (
            "ci-main",
            "smoke",
            "ci@example.com",
        )
        await server.shutdown(1)

    run(main())


def test_client_without_certificate_is_refused(tmp_path):
    async def main():
        authority = Authority(tmp_path, "ca")
        server, address = await listening(authority.issue("server", "builder", names=LOCAL))
        with pytest.raises((ConnectError, RpcError)):
            await ask(address, TlsOptions(ca=authority.path))
        stranger = Authority(tmp_path, "other").issue("stranger", "ci")
        with pytest.raises((ConnectError, RpcError)):
            await ask(address, TlsOptions(authority.path, stranger.cert, stranger.key))
        await server.shutdown(1)

    run(main())


def test_wrong_ca_and_wrong_name_are_named(tmp_path):
    async def main():
        authority = Authority(tmp_path, "ca")
        options = authority.issue("server", "builder", names=[x509.DNSName("builder")])
        server, address = await listening(TlsOptions(cert=options.cert, key=options.key))
        other = Authority(tmp_path, "other")
        with pytest.raises(ConnectError) as caught:
            await ask(address, TlsOptions(ca=other.path))
        assert "TLS" in caught.value.detail
        with pytest.raises(ConnectError) as caught:
            await ask(address, TlsOptions(ca=authority.path))
        assert "127.0.0.1" in caught.value.detail
        seen = await ask(address, TlsOptions(ca=authority.path, server_name="builder"))
        assert seen.version == ""
        await server.shutdown(1)

    run(main())


def test_renewed_certificates_are_used_by_the_next_handshake(tmp_path):
    async def main():
        old, new = Authority(tmp_path, "old"), Authority(tmp_path, "new")
        served = old.issue("server", "builder", names=LOCAL)
        client_ca = tmp_path / "client-ca.pem"
        client_ca.write_bytes(old.path.read_bytes())
        server, address = await listening(TlsOptions(client_ca, served.cert, served.key))
        old_client = old.issue("old-client", "before")
        await ask(address, old_client)
        # Renew everything: the CA that the server trusts, its own certificate and key.
        client_ca.write_bytes(new.path.read_bytes())
        new.issue("server", "builder", names=LOCAL)
        new_client = new.issue("new-client", "after")
        assert (await ask(address, new_client)).version == "after"
        with pytest.raises((ConnectError, RpcError)):
            await ask(address, TlsOptions(new.path, old_client.cert, old_client.key))
        # A broken renewal keeps the former set.
        served.cert.write_text("not a certificate")
        assert (await ask(address, new_client)).version == "after"
        await server.shutdown(1)

    run(main())


def test_client_that_offers_no_alpn_is_served(tmp_path):
    """As buildx's remote driver connects."""

    async def main():
        authority = Authority(tmp_path, "ca")
        options = authority.issue("server", "builder", names=LOCAL)
        server, address = await listening(TlsOptions(cert=options.cert, key=options.key))
        context = ssl.create_default_context(cafile=authority.path)
        loop = asyncio.get_running_loop()
        port = int(address.rsplit(":", 1)[1])
        _, stream = await loop.create_connection(SocketStream, "127.0.0.1", port, ssl=context)
        connection = Connection.over(stream)
        await connection.unary(m.CONTROL_INFO, control_pb2.InfoRequest())
        await connection.close()
        await server.shutdown(1)

    run(main())


def test_unusable_files_are_config_errors(tmp_path):
    async def main():
        missing = tmp_path / "missing.pem"
        with pytest.raises(TlsConfigError):
            await Server().listen("tcp://127.0.0.1:0", tls=TlsOptions(cert=missing, key=missing))
        with pytest.raises(TlsConfigError):
            await Server().listen("tcp://127.0.0.1:0", tls=TlsOptions())
        garbage = tmp_path / "garbage.pem"
        garbage.write_text("x")
        with pytest.raises(TlsConfigError):
            await Connection.open("tcp://127.0.0.1:9", tls=TlsOptions(ca=garbage))

    run(main())


def test_peer_that_speaks_http1_is_refused_on_both_sides(tmp_path):
    async def main():
        authority = Authority(tmp_path, "ca")
        options = authority.issue("server", "builder", names=LOCAL)
        server, address = await listening(TlsOptions(cert=options.cert, key=options.key))
        port = int(address.rsplit(":", 1)[1])
        plain = ssl.create_default_context(cafile=authority.path)
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=plain)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"not an HTTP/2 connection" in await reader.read()
        writer.close()
        await server.shutdown(1)

        served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        served.load_cert_chain(options.cert, options.key)

        async def hang_up(reader, writer):
            await reader.read()
            writer.close()

        http1 = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=served)
        port = http1.sockets[0].getsockname()[1]
        with pytest.raises(ConnectError) as caught:
            await Connection.open(f"tcp://127.0.0.1:{port}", tls=TlsOptions(ca=authority.path))
        assert "HTTP/2" in caught.value.detail
        http1.close()
        await http1.wait_closed()

    run(main())
