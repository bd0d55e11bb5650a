"""A store with git sources and a server for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from git_server import GitServer, Repository

from boxwright.errors import BoxwrightError
from boxwright.registry.hosts import Hosts
from boxwright.session.inprocess import InProcessSession
from boxwright.session.manager import SessionManager
from boxwright.session.providers.contents import OciLayouts
from boxwright.session.providers.secrets import SecretsProvider
from boxwright.session.services import SessionServices
from boxwright.snapshots.cachemounts import CacheMounts
from boxwright.snapshots.manager import SnapshotManager
from boxwright.sources.base import SourceContext
from boxwright.sources.blob import BlobFiles
from boxwright.sources.git import GitSource, GitSources
from boxwright.sources.git_access import GitAccess
from boxwright.sources.git_repository import GitRepositories
from boxwright.sources.registry import RegistryClients
from boxwright.store import Store


class Log:
    """Progress that keeps the log."""

    def __init__(self) -> None:
        self.text = ""

    def status(self, *args: object, **kwargs: object) -> None:
        """Ignore."""

    def log(self, stream: int, data: bytes) -> None:
        """Keep."""
        self.text += data.decode()


class Secrets(SecretsProvider):
    """Secrets that a test changes."""

    def __init__(self, values: dict[str, bytes]) -> None:
        super().__init__({})
        self._values = values

    def get(self, secret_id: str) -> bytes:
        if secret_id in self._values:
            return self._values[secret_id]
        return super().get(secret_id)


class Bench:
    """A store with git sources, one client, and a server with one repository."""

    def __init__(self, root: Path, server: GitServer, repository: Repository) -> None:
        self.root = root
        self.server = server
        self.repository = repository
        self.store = Store.open(root)
        self.snapshots = SnapshotManager.open(self.store)
        repositories = GitRepositories(CacheMounts(self.snapshots), self.store.db)
        access = GitAccess(root / "run", no_agent)
        self.secrets: dict[str, bytes] = {}
        sessions = SessionManager()
        self.layout = root.parent / "layout"
        (self.layout / "blobs/sha256").mkdir(parents=True)
        (self.layout / "oci-layout").write_text("{}")
        layouts = OciLayouts()
        layouts.add_source("store", self.layout)
        services = SessionServices(secrets=Secrets(self.secrets), layouts=layouts)
        session = InProcessSession(services)
        sessions.attach(session)
        self.clients = RegistryClients(Hosts(), sessions)
        blobs = BlobFiles(self.snapshots, self.clients, sessions)
        self.sources = GitSources(self.snapshots, repositories, access, blobs)
        self.log = Log()
        self.context = SourceContext(sessions.group([session.id]), self.log)

    def source(self, fragment: str = "", name: str = "app", **attrs: str) -> GitSource:
        remote = f"{self.server.url}/{name}/.git"
        rest = f"{self.server.host}/{name}/.git" + (f"#{fragment}" if fragment else "")
        named = {f"git.{key}": value for key, value in {"fullurl": remote, **attrs}.items()}
        return self.sources.resolve(rest, named, None)

    async def key(self, source: GitSource) -> str:
        return (await source.cache_key(self.context, 0)).key

    async def files(self, source: GitSource) -> dict[str, str]:
        """Check out and return the files with their content, links with their target."""
        async with await source.snapshot(self.context) as ref, ref.mounted() as root:
            return {
                str(path.relative_to(root)): (
                    f"-> {path.readlink()}" if path.is_symlink() else path.read_text()
                )
                for path in root.rglob("*")
                if path.is_symlink() or path.is_file()
                if ".git" not in path.relative_to(root).parts[:1]
            }

    async def failure(self, source: GitSource) -> BoxwrightError:
        with pytest.raises(BoxwrightError) as caught:
            await source.snapshot(self.context)
        return caught.value

    async def close(self) -> None:
        await self.clients.close()
        await self.snapshots.close()
        self.store.close()


@asynccontextmanager
async def no_agent(*args: object, **kwargs: object):
    raise AssertionError("no agent was asked for")
    yield


def run(tmp_path: Path, use: Callable[[Bench], Awaitable[None]], *init: str) -> None:
    served = tmp_path / "served"
    repository = Repository(served / "app", *init)
    repository.commit({"file": "one\n", "sub/deep/x": "x\n"})

    async def main() -> None:
        async with AsyncExitStack() as stack:
            server = GitServer(served)
            await server.start(stack)
            bench = Bench(tmp_path / "state", server, repository)
            stack.push_async_callback(bench.close)
            await use(bench)

    asyncio.run(main())
