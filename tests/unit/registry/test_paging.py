"""Lists that a registry gives page by page, as a real server sends them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from boxwright.core.digest import Digest
from boxwright.core.reference import Reference
from boxwright.oci.mediatypes import OCI_INDEX
from boxwright.registry import listing
from boxwright.registry.errors import RegistryError
from boxwright.registry.paging import _place
from boxwright.registry.referrers import referrers
from boxwright.registry.transport import own_scheme

NAMES = [f"tag{number}" for number in range(7)]
SUBJECT = Digest.of(b"subject")


class Pages:
    """A registry whose lists have three entries a page; ``link`` writes the header."""

    def __init__(self, link: str = '<{path}?last={last}>; rel="next"') -> None:
        self.link = link
        self.host = ""

    async def handle(self, request: web.Request) -> web.Response:
        if request.path == "/v2/":
            return web.json_response({})
        at = int(request.query.get("last", "0"))
        is_referrers = "referrers" in request.path
        if is_referrers:
            digests = [str(Digest.of(name.encode())) for name in NAMES]
            items: list[object] = [
                {"mediaType": OCI_INDEX, "digest": each, "size": 2} for each in digests
            ]
        else:
            items = list(NAMES)
        key = "manifests" if is_referrers else "tags"
        headers = {}
        if at + 3 < len(items):
            headers["Link"] = self.link.format(path=request.path, last=at + 3, host=self.host)
        return web.json_response({key: items[at : at + 3]}, headers=headers)


@asynccontextmanager
async def served(pages: Pages) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", pages.handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    pages.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield pages.host
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    "link",
    [
        '<{path}?last={last}>; rel="next"',
        "<{path}?last={last}>; rel=next",
        'http://ignored, <{path}?last={last}>; rel="next"',
        '</v2/other>; rel="first", <{path}?last={last}>; rel="next"',
        '<http://{host}{path}?last={last}>; title="a, b"; rel="next"',
        '<HTTP://{host}{path}?last={last}>; rel="next"',
    ],
)
def test_all_pages_are_read(link, kit, run):
    async def work() -> None:
        async with served(Pages(link)) as host, kit.client() as client:
            assert [name async for name in listing.tags(client, host, "app")] == NAMES
            found = await referrers(client, Reference.parse(f"{host}/app"), SUBJECT)
            assert [item.digest for item in found] == [Digest.of(n.encode()) for n in NAMES]

    run(work())


def test_a_next_page_elsewhere_is_an_error(kit, run):
    async def work() -> None:
        pages = Pages('<http://elsewhere.example{path}?last={last}>; rel="next"')
        async with served(pages) as host, kit.client() as client:
            with pytest.raises(RegistryError, match="can't be read") as caught:
                assert [name async for name in listing.tags(client, host, "app")]
            assert "http://elsewhere.example/v2/app/tags/list" in caught.value.detail
            with pytest.raises(RegistryError, match="can't be read"):
                await referrers(client, Reference.parse(f"{host}/app"), SUBJECT)

    run(work())


@pytest.mark.parametrize(
    "link", ['<http://[>; rel="next"', '<http://{host}9999/>; rel="next"', '<mail:x>; rel="next"']
)
def test_a_next_page_at_no_address_is_an_error(link, kit, run):
    async def work() -> None:
        async with served(Pages(link)) as host, kit.client() as client:
            with pytest.raises(RegistryError, match="can't be read"):
                assert [name async for name in listing.tags(client, host, "app")]

    run(work())


@pytest.mark.parametrize(
    ("address", "same"),
    [
        ("https://r.example:443/v2/b", True),
        ("https://R.example/v2/b", True),
        ("https://r.example.evil/v2/b", False),
        ("https://r.example:8443/v2/b", False),
        ("http://r.example/v2/b", False),
    ],
)
def test_a_port_that_goes_without_saying_may_be_said(address, same):
    assert (_place(address) == _place("https://r.example/v2")) is same


@pytest.mark.parametrize(
    ("asked", "told", "address"),
    [
        ("https://r.example/v2/a", "/v2/b?x=1", "https://r.example/v2/b?x=1"),
        ("https://r.example/v2/a", "http://r.example/v2/b", "https://r.example/v2/b"),
        ("https://r.example:8443/v2/a", "http://r.example/v2/b", "https://r.example:8443/v2/b"),
        ("http://r.example/v2/a", "http://r.example/v2/b", "http://r.example/v2/b"),
        ("https://r.example/v2/a", "http://other.example/b", "http://other.example/b"),
    ],
)
def test_the_scheme_that_was_asked_counts(asked, told, address):
    assert own_scheme(asked, told) == address
