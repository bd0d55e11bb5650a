"""The session of a client in the engine's own process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path

from boxwright.core.digest import Digest
from boxwright.core.workers import to_worker
from boxwright.errors import NotFoundError, UnimplementedError
from boxwright.registry.auth import Credentials, Token
from boxwright.session.base import (
    BytePipe,
    DirNotAllowedError,
    FileSink,
    OutputRequest,
    SecretNotFoundError,
    SshAgentNotFoundError,
    SyncRequest,
    TreeReceiver,
)
from boxwright.session.memorypipe import memory_pipe
from boxwright.session.providers.contents import OciLayouts
from boxwright.session.services import SessionServices
from boxwright.session.tasks import run_together
from boxwright.session.treeoutput import receive_output
from boxwright.session.treereceive import receive_tree
from boxwright.session.treesend import send_tree
from boxwright.session.treewalk import TreeWalk
from boxwright.wire.pb import policysession_pb2


class InProcessSession:
    """Calls a client's services directly; folders are read in place."""

    def __init__(self, services: SessionServices) -> None:
        self._services = services
        self.id = services.id
        self.name = services.name
        self.shared_key = services.shared_key
        self.closed = asyncio.Event()

    def close(self) -> None:
        """The client has gone; nothing new is asked of it."""
        self.closed.set()

    def supports(self, method_path: str) -> bool:
        """Return whether the client offers the service of this method."""
        services = self._services
        offered = {
            "moby.filesync.v1.FileSync": services.dirs,
            "moby.filesync.v1.FileSend": services.outputs,
            "moby.filesync.v1.Auth": services.auth,
            "moby.buildkit.secrets.v1.Secrets": services.secrets,
            "moby.sshforward.v1.SSH": services.ssh,
            "moby.upload.v1.Upload": services.uploads,
            "moby.exporter.v1.Exporter": services.chooser,
        }
        return offered.get(method_path.strip("/").partition("/")[0]) is not None

    def local_dir(self, name: str) -> Path | None:
        """Return the shared folder; it is always readable in place here.

        Raises:
            DirNotAllowedError: nothing is shared under this name.
        """
        if self._services.dirs is None:
            raise DirNotAllowedError(name)
        return self._services.dirs.path(name)

    async def sync_dir(
        self,
        name: str,
        request: SyncRequest,
        receiver: TreeReceiver,
        *,
        on_received: Callable[[int], None] | None = None,
    ) -> None:
        """Transfer a shared folder into ``receiver``."""
        path = self.local_dir(name)
        if path is None:
            raise DirNotAllowedError(name)
        walk = await to_worker(TreeWalk, os.fsencode(path), request)
        left, right = memory_pipe()
        await run_together(
            send_tree(left, walk), receive_tree(right, receiver, on_received=on_received)
        )

    async def credentials(self, host: str) -> Credentials | None:
        """Return the client's login for a host."""
        return await self._services.auth.credentials(host) if self._services.auth else None

    async def fetch_token(
        self, host: str, realm: str, service: str, scopes: Sequence[str]
    ) -> Token | None:
        """Let the client fetch a token."""
        auth = self._services.auth
        return await auth.fetch_token(host, realm, service, scopes) if auth else None

    async def token_authority(self, host: str, salt: bytes) -> bytes | None:
        """Return the client's key for tokens."""
        auth = self._services.auth
        return await auth.authority_key(host, salt) if auth and auth.makes_tokens else None

    async def verify_token_authority(self, host: str, salt: bytes, payload: bytes) -> bytes | None:
        """Return ``payload`` signed by the client."""
        auth = self._services.auth
        return await auth.sign(host, salt, payload) if auth and auth.makes_tokens else None

    async def secret(self, secret_id: str) -> bytes:
        """Return a secret."""
        if self._services.secrets is None:
            raise SecretNotFoundError(secret_id)
        return await to_worker(self._services.secrets.get, secret_id)

    async def check_policy(
        self, request: policysession_pb2.CheckPolicyRequest
    ) -> policysession_pb2.CheckPolicyResponse:
        """Refuse: our own client sends rules instead."""
        raise UnimplementedError("the client takes no policy decisions")

    async def ssh_check(self, agent_id: str) -> None:
        """Make sure that an agent is offered."""
        if self._services.ssh is None:
            raise SshAgentNotFoundError(agent_id)
        self._services.ssh.check(agent_id)

    async def ssh_forward(self, agent_id: str) -> BytePipe:
        """Connect to an agent."""
        if self._services.ssh is None:
            raise SshAgentNotFoundError(agent_id)
        return await self._services.ssh.connect(agent_id)

    async def send_file(self, metadata: Mapping[str, str], *, exporter_id: int = 0) -> FileSink:
        """Open the sink of an output."""
        if self._services.outputs is None:
            raise NotFoundError(f"exporter {exporter_id} not found")
        return self._services.outputs.open_file(exporter_id, metadata)

    async def send_tree(
        self,
        root: Path,
        *,
        exporter_id: int = 0,
        metadata: Mapping[str, str] | None = None,
        mtime_ns: int | None = None,
        layer_of: Callable[[bytes], int] | None = None,
        is_split: bool = False,
        on_sent: Callable[[int], None] | None = None,
    ) -> None:
        """Copy a folder to a ``local`` output."""
        del metadata
        outputs = self._services.outputs
        if outputs is None or exporter_id not in outputs.folders:
            raise NotFoundError(f"exporter {exporter_id} not found")
        target = outputs.folders[exporter_id]
        walk = await to_worker(
            TreeWalk,
            os.fsencode(root),
            reset_owner=False,
            mtime_ns=mtime_ns,
            layer_of=layer_of,
            is_split=is_split,
        )
        left, right = memory_pipe()
        await run_together(
            send_tree(left, walk, on_sent=on_sent),
            receive_output(right, os.fsencode(target.path), mirror=target.mirror),
        )

    async def find_outputs(
        self, metadata: Mapping[str, bytes], refs: Sequence[str]
    ) -> Sequence[OutputRequest]:
        """Let the client choose further outputs; nothing if it does not do that."""
        chooser = self._services.chooser
        return await chooser.find(metadata, refs) if chooser is not None else ()

    async def outputs_done(self, response: Mapping[str, str]) -> None:
        """Tell the client what the outputs reported, if it wants to know."""
        if self._services.chooser is not None:
            await self._services.chooser.done(response)

    async def read_content(self, store_id: str, digest: Digest) -> AsyncIterator[bytes]:
        """Read a blob of a layout that the client offers."""
        pieces = self._layouts().read(store_id, digest)
        while data := await to_worker(next, pieces, b""):
            yield data

    async def write_content(
        self, store_id: str, digest: Digest, size: int, pieces: Iterator[bytes]
    ) -> None:
        """Write a blob into the layout that the client wants filled."""
        del size
        await to_worker(self._layouts().write, store_id, digest, pieces)

    def _layouts(self) -> OciLayouts:
        if self._services.layouts is None:
            raise NotFoundError("the client offers no OCI layout")
        return self._services.layouts

    def pull_upload(self, url_path: str) -> AsyncIterator[bytes]:
        """Read an upload."""
        if self._services.uploads is None:
            raise UnimplementedError("the client offers no uploads")
        return self._services.uploads.pull(url_path)
