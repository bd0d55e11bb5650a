"""The words for connections that failed, as aiohttp raises them."""

from __future__ import annotations

import asyncio

import aiohttp

from boxwright.registry.dialing import what_broke
from boxwright.testing.ports import kept_port


async def _failure(url: str) -> BaseException:
    async with aiohttp.ClientSession() as http:
        try:
            async with http.get(url):
                raise AssertionError(f"{url} answered")
        except aiohttp.ClientError as exc:
            return exc


def test_a_refused_connection_names_address_and_cause() -> None:
    with kept_port() as port:
        said = what_broke(asyncio.run(_failure(f"http://127.0.0.1:{port}/v2/")))
        assert said == f"connect to 127.0.0.1:{port}: connection refused"
        # Several addresses are tried for a name; the cause is said once.
        said = what_broke(asyncio.run(_failure(f"http://localhost:{port}/v2/")))
        assert said == f"connect to localhost:{port}: connection refused"


def test_a_name_that_is_not_known() -> None:
    said = what_broke(asyncio.run(_failure("http://nobody.invalid/")))
    assert said.startswith("dial tcp: lookup nobody.invalid: ")
    assert "ssl" not in said


def test_tls_with_somebody_who_does_not_speak_it() -> None:
    async def scenario() -> tuple[int, BaseException]:
        server = await asyncio.start_server(_hang_up, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return port, await _failure(f"https://127.0.0.1:{port}/")

    port, error = asyncio.run(scenario())
    said = what_broke(error)
    assert said.startswith(f"connect to 127.0.0.1:{port}: ")
    assert "ssl:default" not in said


async def _hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(64)
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    writer.close()


def test_anything_else_is_its_text_or_its_type() -> None:
    assert what_broke(aiohttp.ServerDisconnectedError("gone")) == "gone"
    assert what_broke(TimeoutError()) == "TimeoutError"
