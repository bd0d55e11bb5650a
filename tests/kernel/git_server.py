"""Git's own HTTP server program behind a small web server, and repositories to serve."""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import AsyncExitStack
from pathlib import Path

from aiohttp import web

_ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_AUTHOR_DATE": "1700000000 +0000",
    "GIT_COMMITTER_DATE": "1700000000 +0000",
    "GIT_ALLOW_PROTOCOL": "file:http",
}


class Repository:
    """A repository with a work tree."""

    def __init__(self, path: Path, *init: str) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.git("init", "--quiet", "-b", "trunk", *init)
        self.git("config", "http.receivepack", "false")
        # Fetched by refs alone unless a test allows more.
        self.git("config", "uploadpack.allowAnySHA1InWant", "false")

    def git(self, *args: str, **environment: str) -> str:
        """Run git in it."""
        return self.git_at(self.path, *args, **environment)

    @staticmethod
    def git_at(path: Path, *args: str, **environment: str) -> str:
        """Run git in any repository."""
        done = subprocess.run(
            ["git", "-C", str(path), *args],
            env={**_ENVIRONMENT, **environment},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def commit(self, files: dict[str, str], message: str = "change") -> str:
        """Write files, commit all, and return the commit."""
        for name, content in files.items():
            path = self.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self.git("add", "-A")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")


class GitServer:
    """``git http-backend`` for everything below one folder; counts what it is asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = ""
        self.host = ""
        self.login = ""
        self.peeled: dict[str, str] = {}
        """What is said of the commits of tags, in place of the truth."""
        self.services: list[str] = []
        self.logins: list[str] = []

    async def start(self, stack: AsyncExitStack) -> None:
        """Serve until the stack is closed."""
        app = web.Application(client_max_size=64 << 20)
        app.router.add_route("*", "/{path:.*}", self._serve)
        runner = web.AppRunner(app)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{runner.addresses[0][1]}"
        self.url = f"http://{self.host}"

    @property
    def fetches(self) -> int:
        """How many packs were sent (``ls-remote`` needs none)."""
        return self.services.count("fetch")

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        login = request.headers.get("Authorization", "")
        self.logins.append(login)
        if self.login and login != self.login:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=git"})
        body = await request.read()
        if request.method == "POST":
            self.services.append("fetch" if b"command=fetch" in body else "list")
        process = await asyncio.create_subprocess_exec(
            *("git", "http-backend"),
            env={
                **_ENVIRONMENT,
                "GIT_PROJECT_ROOT": str(self.folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": request.path,
                "QUERY_STRING": request.query_string,
                "REQUEST_METHOD": request.method,
                "CONTENT_TYPE": request.headers.get("Content-Type", ""),
                "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
                "HTTP_CONTENT_ENCODING": "",
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": "safe.directory",
                "GIT_CONFIG_VALUE_0": "*",
            },
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate(body)
        head, _, content = out.partition(b"\r\n\r\n")
        for truth, said in self.peeled.items():
            content = content.replace(b"peeled:" + truth.encode(), b"peeled:" + said.encode())
        headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n") if line)
        status = int(headers.pop("Status", "200").split()[0])
        return web.Response(status=status, body=content, headers=headers)
