"""Files and git repositories on a web server of the test's own."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from aiohttp import web

sys.path.insert(0, str(Path(__file__).parent.parent / "kernel"))

from git_server import GitServer, Repository

__all__ = ["Repository", "Site"]


class Site:
    """Files and git repositories, served from a thread with a loop of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "files").mkdir(parents=True)
        (folder / "git").mkdir()
        self.git = GitServer(folder / "git")
        self.url = ""
        self.asked: list[tuple[str, str, int]] = []
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()])

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(120)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(120)
        self._loop.close()

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            await self.git.start(stack)
            app = web.Application(middlewares=[self._note])
            app.router.add_static("/", self.folder / "files")
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._ready.set()
            await self._end.wait()

    @web.middleware
    async def _note(self, request: web.Request, handler) -> web.StreamResponse:
        response = await handler(request)
        self.asked.append((request.method, request.path, response.status))
        return response

    def file(self, name: str, content: bytes) -> str:
        """Serve a file; return its URL."""
        (self.folder / "files" / name).write_bytes(content)
        return f"{self.url}/{name}"

    def repository(self, name: str) -> tuple[Repository, str]:
        """Serve a repository; return it with its remote."""
        made = Repository(self.folder / "git" / f"{name}.work")
        # Only a URL that ends in .git is taken as git's.
        (self.folder / "git" / f"{name}.git").symlink_to(f"{name}.work/.git")
        return made, f"{self.git.url}/{name}.git"
