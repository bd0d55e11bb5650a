"""Http sources against a real server on loopback, into real snapshots."""

from __future__ import annotations

import asyncio
import gzip
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code
from boxwright.session.inprocess import InProcessSession
from boxwright.session.manager import SessionManager
from boxwright.session.providers.secrets import SecretsProvider
from boxwright.session.providers.uploads import UploadProvider
from boxwright.session.services import SessionServices
from boxwright.snapshots.manager import SnapshotManager
from boxwright.sources.base import SourceContext
from boxwright.sources.http import HttpDownloads, HttpSource, HttpSources
from boxwright.sources.resolutions import Resolutions
from boxwright.store import Store

pytestmark = pytest.mark.root

CONTENT = b"some content\n" * 1000
MODIFIED = "Tue, 05 Mar 2024 06:07:08 GMT"


class Site:
    """A web site whose answers a test sets; it keeps what it was asked."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.content = CONTENT
        self.asked: list[tuple[str, str]] = []
        self.requests: list[web.Request] = []
        self.secret = ""
        self.url = ""
        self.other_url = ""

    async def start(self, stack: AsyncExitStack) -> None:
        app = web.Application()
        app.router.add_get("/moved", self.moved, allow_head=True)
        app.router.add_get("/loop", self.loop)
        app.router.add_get("/status/{code}", self.status)
        app.router.add_get("/short", self.short)
        app.router.add_get("/{name:.*}", self.file)
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{port}"
        self.other_url = f"http://localhost:{port}"

    def note(self, request: web.Request) -> None:
        self.asked.append((request.method, request.path))
        self.requests.append(request)

    async def file(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        if self.secret and request.headers.get("Authorization") != self.secret:
            return web.Response(status=401)
        etag = self.headers.get("ETag", "").removeprefix("W/")
        wanted = request.headers.get("If-None-Match", "")
        since = request.headers.get("If-Modified-Since", "")
        if etag and etag in wanted:
            return web.Response(status=304, headers=self.headers)
        if since and since == self.headers.get("Last-Modified"):
            return web.Response(status=304)
        return web.Response(body=self.content, headers=self.headers)

    async def moved(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        raise web.HTTPFound(request.query.get("to", "/file"))

    async def loop(self, request: web.Request) -> web.StreamResponse:
        self.note(request)
        raise web.HTTPFound("/loop")

    async def status(self, request: web.Request) -> web.StreamResponse:
        return web.Response(status=int(request.match_info["code"]), text="no")

    async def short(self, request: web.Request) -> web.StreamResponse:
        """Break off in the middle of the body."""
        response = web.StreamResponse(headers={"Content-Length": "1000"})
        await response.prepare(request)
        await response.write(b"x" * 10)
        assert request.transport is not None
        request.transport.abort()
        return response


class Bench:
    """A store with http sources, and one client with secrets and uploads."""

    def __init__(self, root: Path, site: Site, **options: int) -> None:
        self.site = site
        self.store = Store.open(root)
        self.snapshots = SnapshotManager.open(self.store)
        self.downloads = HttpDownloads(self.snapshots, **options)
        self.secrets: dict[str, bytes] = {}
        self.uploads = UploadProvider()
        sessions = SessionManager()
        self.session = InProcessSession(
            SessionServices(secrets=_Secrets(self.secrets), uploads=self.uploads)
        )
        sessions.attach(self.session)
        self.context = SourceContext(sessions.group([self.session.id]))

    def source(self, path: str = "/file", **attrs: str) -> HttpSource:
        return self.at(self.site.url + path, **attrs)

    def at(self, url: str, **attrs: str) -> HttpSource:
        scheme, _, rest = url.partition("://")
        named = {f"http.{name}": value for name, value in attrs.items()}
        return HttpSources(scheme, self.downloads).resolve(rest, named, None)

    async def key(self, source: HttpSource) -> str:
        return (await source.cache_key(self.context, 0)).key

    async def content(self, source: HttpSource) -> dict[str, bytes]:
        async with await source.snapshot(self.context) as ref, ref.mounted() as root:
            return {path.name: path.read_bytes() for path in root.iterdir()}

    async def stat(self, source: HttpSource) -> os.stat_result:
        async with await source.snapshot(self.context) as ref, ref.mounted() as root:
            return next(root.iterdir()).lstat()

    async def close(self) -> None:
        await self.downloads.close()
        await self.snapshots.close()
        self.store.close()


class _Secrets(SecretsProvider):
    """Secrets that a test changes."""

    def __init__(self, values: dict[str, bytes]) -> None:
        super().__init__({})
        self._values = values

    def get(self, secret_id: str) -> bytes:
        if secret_id in self._values:
            return self._values[secret_id]
        return super().get(secret_id)


def run(tmp_path: Path, use: Callable[[Bench], Awaitable[None]], **options: int) -> Site:
    site = Site()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await site.start(stack)
            bench = Bench(tmp_path / "state", site, **options)
            stack.push_async_callback(bench.close)
            await use(bench)

    asyncio.run(main())
    return site


def test_content_mode_time_and_pin(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.headers = {"Last-Modified": MODIFIED}
        source = bench.source(perm="0751", uid="7", gid="8")
        key = await source.cache_key(bench.context, 0)
        assert key.pin == Digest.of(CONTENT)
        assert await bench.content(source) == {"file": CONTENT}
        found = await bench.stat(source)
        assert stat.S_IMODE(found.st_mode) == 0o751
        assert (found.st_uid, found.st_gid, found.st_mtime) == (7, 8, 1709618828)
        plain = await bench.stat(bench.source())
        assert stat.S_IMODE(plain.st_mode) == 0o600

    site = run(tmp_path, use)
    assert site.asked == [("GET", "/file"), ("GET", "/file")]


def test_an_unchanged_tag_costs_one_head(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.headers = {"ETag": 'W/"one"'}
        first = await bench.key(bench.source())
        bench.site.asked.clear()
        again = bench.source()
        assert await bench.key(again) == first
        assert await bench.content(again) == {"file": CONTENT}
        assert bench.site.asked == [("HEAD", "/file")]

        bench.site.headers = {"ETag": '"two"'}
        bench.site.content = b"changed"
        changed = bench.source()
        assert await bench.key(changed) != first
        assert await bench.content(changed) == {"file": b"changed"}

        bench.site.headers, bench.site.content = {"ETag": '"one"'}, CONTENT
        bench.site.asked.clear()
        assert await bench.key(bench.source()) == first
        assert bench.site.asked == [("HEAD", "/file")]  # both are remembered

    run(tmp_path, use)


def test_a_build_sees_what_it_was_told_first(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        held: list[Callable[[], Awaitable[None]]] = []

        def build() -> SourceContext:
            return replace(bench.context, on_cleanup=held.append, resolutions=(Resolutions(),))

        bench.context = build()
        told = await bench.source().metadata(bench.context)
        bench.site.content = b"changed"
        assert await bench.content(bench.source()) == {"file": CONTENT}
        key = told.digest
        assert (await bench.source().cache_key(bench.context, 0)).pin == key
        assert await bench.source().content_checksum(bench.context, "sha256", b"") == key
        bench.context = build()
        assert await bench.content(bench.source()) == {"file": b"changed"}
        for release in held:
            await release()

    site = run(tmp_path, use)
    assert len(site.asked) == 2


def test_an_old_date_is_asked_about(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.headers = {"Last-Modified": MODIFIED}
        first = await bench.key(bench.source())
        bench.site.content = b"never sent"
        again = bench.source()
        assert await bench.key(again) == first
        assert await bench.content(again) == {"file": CONTENT}
        assert bench.site.requests[-1].headers["If-Modified-Since"] == MODIFIED

    run(tmp_path, use)


def test_records_outlive_the_process_and_go_with_the_snapshot(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.headers = {"ETag": '"one"'}
        first = await bench.key(bench.source())
        await bench.close()

        reopened = Bench(tmp_path / "state", bench.site)
        try:
            bench.site.asked.clear()
            again = reopened.source()
            assert await reopened.key(again) == first
            assert bench.site.asked == [("HEAD", "/file")]
            async with await again.snapshot(reopened.context) as ref:
                db = reopened.store.db
                db.execute("DELETE FROM snapshots WHERE id = ?", (ref.id,))
                assert db.execute("SELECT count(*) FROM http_answers") == [(0,)]
        finally:
            await reopened.close()

    site = Site()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            await site.start(stack)
            await use(Bench(tmp_path / "state", site))

    asyncio.run(main())


def test_checksum_needs_no_request_for_the_key(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        right = bench.source(checksum=Digest.of(CONTENT))
        await bench.key(right)
        assert bench.site.asked == []
        assert await bench.content(right) == {"file": CONTENT}
        bench.site.asked.clear()
        assert await bench.content(bench.source(checksum=Digest.of(CONTENT))) == {"file": CONTENT}
        assert bench.site.asked == []

        wrong = bench.source(checksum=Digest.of(b"other"))
        with pytest.raises(BoxwrightError) as caught:
            await wrong.snapshot(bench.context)
        assert caught.value.code is Code.DIGEST_MISMATCH
        assert Digest.of(CONTENT) in str(caught.value)

    run(tmp_path, use)


def test_names(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.headers = {"Content-Disposition": 'attachment; filename="../../tool"'}
        assert list(await bench.content(bench.source())) == ["tool"]
        assert list(await bench.content(bench.source(filename="mine"))) == ["mine"]
        bench.site.headers = {}
        assert list(await bench.content(bench.source("/"))) == ["download"]
        with pytest.raises(BoxwrightError) as caught:
            await bench.key(bench.source("/" + "n" * 300))
        assert caught.value.code is Code.INVALID

    run(tmp_path, use)


def test_redirects_keep_logins_at_home(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.secrets["TOKEN"] = b"Basic c2VjcmV0\n"
        bench.site.secret = "Basic c2VjcmV0"
        here = bench.source("/moved", authheadersecret="TOKEN")
        assert await bench.content(here) == {"moved": CONTENT}

        away = bench.source(f"/moved?to={bench.site.other_url}/file", authheadersecret="TOKEN")
        with pytest.raises(BoxwrightError) as caught:
            await bench.key(away)
        assert caught.value.code is Code.PERMISSION
        assert "Authorization" not in bench.site.requests[-1].headers
        assert "c2VjcmV0" not in str(caught.value)

        with pytest.raises(BoxwrightError, match="redirects"):
            await bench.key(bench.source("/loop"))
        with pytest.raises(BoxwrightError) as caught:
            await bench.key(bench.source("/moved?to=file:///etc/passwd"))
        assert caught.value.code is Code.INVALID

    run(tmp_path, use)


def test_logins_by_host(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.secret = "Bearer tok"
        with pytest.raises(BoxwrightError) as caught:
            await bench.key(bench.source())
        assert caught.value.code is Code.PERMISSION
        assert "HTTP_AUTH_HEADER_127.0.0.1" in caught.value.hint
        bench.secrets["HTTP_AUTH_TOKEN_127.0.0.1"] = b"tok"
        await bench.key(bench.source())
        bench.secrets["HTTP_AUTH_TOKEN_127.0.0.1"] = b"bad\nX-Injected: yes"
        with pytest.raises(BoxwrightError) as caught:
            await bench.key(bench.source("/else"))
        assert "Injected" not in str(caught.value)

    run(tmp_path, use)


def test_allowed_headers_are_sent(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        headers = {"header.accept": "text/plain", "header.cookie": "no"}
        await bench.key(bench.source(**headers))
        sent = bench.site.requests[-1].headers
        assert sent["Accept"] == "text/plain"
        assert "Cookie" not in sent

    run(tmp_path, use)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/status/404", Code.SOURCE_NOT_FOUND),
        ("/status/403", Code.PERMISSION),
        ("/status/500", Code.UNAVAILABLE),
        ("/short", Code.UNAVAILABLE),
    ],
)
def test_failures_leave_nothing(tmp_path: Path, path: str, code: Code) -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(BoxwrightError) as caught:
            await bench.key(bench.source(path))
        assert caught.value.code is code
        assert bench.site.url in str(caught.value)
        assert bench.snapshots.records() == []

    run(tmp_path, use)


def test_what_is_no_error_is_taken_even_if_it_leads_on(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        assert await bench.content(bench.source("/status/300")) == {"300": b"no"}

    run(tmp_path, use)


def test_nobody_listens(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        with pytest.raises(BoxwrightError) as caught:
            await bench.key(bench.at("http://127.0.0.1:1/file"))
        assert caught.value.code is Code.UNAVAILABLE
        assert caught.value.retryable

    run(tmp_path, use)


def test_limit_counts_what_is_unpacked(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.content = gzip.compress(bytes(1 << 20))
        bench.site.headers = {"Content-Encoding": "gzip"}
        with pytest.raises(BoxwrightError) as caught:
            await bench.key(bench.source())
        assert caught.value.code is Code.LIMIT
        assert bench.snapshots.records() == []

    run(tmp_path, use, limit_bytes=100_000)


def test_transfer_compression_is_undone(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.content = gzip.compress(CONTENT)
        bench.site.headers = {"Content-Encoding": "gzip"}
        assert await bench.content(bench.source()) == {"file": CONTENT}

    run(tmp_path, use)


def test_uploads_are_read_once_and_shared(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        stream = tmp_path / "stream"
        stream.write_bytes(CONTENT)
        with stream.open("rb") as file:
            url = bench.uploads.add(file)
            first = await bench.key(bench.at(url, filename="context"))
            again = bench.at(url, filename="context")
            assert await bench.key(again) == first
            assert await bench.content(again) == {"context": CONTENT}
        with pytest.raises(BoxwrightError):
            await bench.key(bench.at("http://buildkit-session/unknown"))

    run(tmp_path, use)


def test_signatures(tmp_path: Path) -> None:
    data = Path(__file__).parent.parent / "unit/sources/openpgp"
    texts = {name: (data / name).read_text() for name in ("rsa.pub", "ed.pub", "rsa.asc")}

    async def use(bench: Bench) -> None:
        bench.site.content = (data / "content").read_bytes()
        named = {"sig.signature": texts["rsa.asc"], "sig.pubkey": texts["rsa.pub"]}
        signed = bench.source(**named)
        assert await bench.key(signed) == await bench.key(bench.source())
        assert await bench.content(signed) == {"file": bench.site.content}
        pinned = bench.source(checksum=Digest.of(bench.site.content), **named)
        assert (await pinned.metadata(bench.context)).digest == Digest.of(bench.site.content)

        async def refused(**attrs: str) -> str:
            with pytest.raises(BoxwrightError, match="failed to verify pgp signature") as caught:
                await bench.source(**attrs).metadata(bench.context)
            assert caught.value.code is Code.SIGNATURE
            with pytest.raises(BoxwrightError, match="failed to verify pgp signature"):
                await bench.key(bench.source(**attrs))
            return str(caught.value)

        assert "unknown key" in await refused(**{**named, "sig.pubkey": texts["ed.pub"]})
        bench.site.content += b"more\n"
        assert "does not fit the content" in await refused(**named)

    run(tmp_path, use)


def test_content_checksums_with_a_suffix(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        found = await bench.source().content_checksum(bench.context, "sha256", b"tail")
        assert found == Digest.of(CONTENT + b"tail")
        long = await bench.source().content_checksum(bench.context, "sha512", b"")
        assert long.startswith("sha512:")

    run(tmp_path, use)


def test_same_download_at_the_same_time_is_one(tmp_path: Path) -> None:
    async def use(bench: Bench) -> None:
        bench.site.headers = {"ETag": '"one"'}
        keys = await asyncio.gather(*(bench.key(bench.source()) for _ in range(5)))
        assert len(set(keys)) == 1
        assert [asked for asked in bench.site.asked if asked[0] == "GET"] == [("GET", "/file")]

    run(tmp_path, use)
