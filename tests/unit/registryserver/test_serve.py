"""Listening, logins, TLS, read-only service, and a killed process."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from boxwright.errors import InvalidInputError
from boxwright.registryserver.app import ServerOptions
from boxwright.registryserver.serve import (
    ListenOptions,
    RegistryListenError,
    parse_address,
    read_users,
)
from boxwright.store.store import Store
from boxwright.testing.certificates import CertificateAuthority


def _basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


def test_logins(served, run):
    async def work():
        async with served(ServerOptions(users={"ann": "pass:word"})) as peer:
            denied = await peer("GET", "/v2/")
            assert (denied.status, denied.code) == (401, "UNAUTHORIZED")
            assert denied.headers["WWW-Authenticate"].startswith("Basic ")
            for wrong in ("ann:nope", "bob:pass:word", "ann", ""):
                answer = await peer("GET", "/v2/", Authorization=_basic(wrong))
                assert answer.status == 401
            for malformed in ("Basic", "Basic %%%", "Bearer x", "Basic /w=="):
                assert (await peer("GET", "/v2/", Authorization=malformed)).status == 401
            allowed = await peer("GET", "/v2/", Authorization=_basic("ann:pass:word"))
            assert allowed.status == 200

    run(work())


def test_read_only(served, run):
    async def work():
        async with served() as peer:
            digest, *_ = await peer.push_image("app", "v1")
        async with served(ServerOptions(read_only=True)) as peer:
            assert (await peer("GET", "/app/manifests/v1")).status == 200
            for method, path in (
                ("POST", "/app/blobs/uploads/"),
                ("PUT", "/app/manifests/v2"),
                ("DELETE", f"/app/manifests/{digest}"),
            ):
                answer = await peer(method, path)
                assert (answer.status, answer.code) == (405, "UNSUPPORTED")

    run(work())


def test_tls(served, run, tmp_path):
    pair = CertificateAuthority(tmp_path).issue("server", "127.0.0.1")

    async def work():
        async with served(tls_cert=str(pair.cert), tls_key=str(pair.key)) as peer:
            assert peer.url.startswith("https://127.0.0.1:")
            await peer.push_image("app", "v1")
            assert (await peer("GET", "/app/manifests/v1")).status == 200

    run(work())


@pytest.mark.parametrize(("cert", "key"), [("a", ""), ("", "a"), ("/none", "/none")])
def test_unusable_certificates(cert, key):
    with pytest.raises(InvalidInputError):
        ListenOptions(tls_cert=cert, tls_key=key).ssl_context()


def test_port_in_use(served, run, tmp_path):
    async def work():
        async with served() as peer:
            port = int(peer.url.rpartition(":")[2])
            served.root = tmp_path / "second"
            with pytest.raises(RegistryListenError, match=str(port)):
                async with served(port=port):
                    pass

    run(work())


def test_addresses():
    assert parse_address("127.0.0.1:5000") == ("127.0.0.1", 5000)
    assert parse_address(":5000") == ("127.0.0.1", 5000)
    assert parse_address("[::1]:5000") == ("::1", 5000)
    for wrong in ("5000", "host:", "host:http", "host:99999"):
        with pytest.raises(InvalidInputError):
            parse_address(wrong)


def test_users_of_a_file(tmp_path):
    assert read_users("") == {}
    path = tmp_path / "users"
    path.write_text("# who may\n\nann:pass:word\nbob:x\r\n")
    assert read_users(str(path)) == {"ann": "pass:word", "bob": "x"}
    for wrong in ("ann", ":x", "ann:", "", "# nobody"):
        path.write_text(wrong)
        with pytest.raises(InvalidInputError):
            read_users(str(path))
    with pytest.raises(InvalidInputError):
        read_users(f"{tmp_path}/none")


_PROGRAM = """
import asyncio, sys
from pathlib import Path
from boxwright.registryserver.serve import ListenOptions, serve
asyncio.run(serve(Path(sys.argv[1]), ListenOptions(), on_ready=lambda a: print(a, flush=True)))
"""


def _start(root: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def test_a_killed_server_leaves_nothing_half_written(served, run, tmp_path):
    import asyncio

    root = tmp_path / "served"
    process, url = _start(root)

    async def upload():
        host, _, port = url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v2/app/blobs/uploads/ HTTP/1.1\r\nHost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        where = next(
            line.partition(b" ")[2] for line in head.split(b"\r\n") if line.startswith(b"Location")
        )
        writer.write(b"PATCH %b HTTP/1.1\r\nHost: x\r\nContent-Length: 1048577\r\n\r\n" % where)
        writer.write(b"x" * 1048576)
        await writer.drain()
        while not any(path.stat().st_size for path in (root / "ingest").iterdir()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        process.kill()
        process.wait()
        writer.transport.abort()

    try:
        run(upload())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert os.listdir(root / "ingest") != []
    store = Store.open(root)
    try:
        assert os.listdir(root / "ingest") == []
        assert os.listdir(root / "blobs" / "sha256") == []
        assert store.verify().is_sound
    finally:
        store.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(tmp_path, number):
    process, url = _start(tmp_path / "served")
    assert url.startswith("http://127.0.0.1:")
    process.send_signal(number)
    assert process.wait(120) == 0
    process.stdout.close()
    store = Store.open(tmp_path / "served")
    assert store.was_clean
    store.close()
