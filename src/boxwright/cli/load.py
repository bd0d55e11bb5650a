"""Hand a built image to Docker or Podman on this machine (``--load``)."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING

from boxwright.errors import BoxwrightError, Code

if TYPE_CHECKING:
    from boxwright.client.request import Export

_PROGRAMS = ("docker", "podman")
_MAX_OUTPUT_BYTES = 4096


class LoadError(BoxwrightError):
    """The image could not be handed over."""

    code = Code.ENVIRONMENT


class LoadSink:
    """A file sink that feeds ``docker load`` (or ``podman load``).

    Args:
        program: Path of the program.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._process: asyncio.subprocess.Process | None = None

    async def write(self, data: bytes) -> None:
        """Add bytes of the archive."""
        if self._process is None:
            self._process = await asyncio.create_subprocess_exec(
                self._program,
                "load",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(data)
            await stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            await self.close()

    async def close(self) -> None:
        """End the archive and wait until the image is loaded.

        Raises:
            LoadError: the program failed.
        """
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        out = await process.stdout.read(_MAX_OUTPUT_BYTES)
        if await process.wait():
            raise LoadError(
                f"{self._program} load failed",
                detail=out.decode("utf-8", "replace").strip(),
                hint="write the image with -o type=docker,dest=image.tar instead",
            )

    async def abort(self) -> None:
        """End the program."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()


def find_loader() -> str:
    """Return the program that images are loaded with.

    Raises:
        LoadError: there is neither Docker nor Podman.
    """
    for name in _PROGRAMS:
        if path := shutil.which(name):
            return path
    raise LoadError(
        "--load needs Docker or Podman on this machine, and neither is there",
        hint="leave --load out to keep the image in boxwright's own store, "
        "push it with --push, or write it with -o type=docker,dest=image.tar",
    )


def load_export(attrs: Mapping[str, str]) -> Export:
    """Return the export that hands the image over.

    Raises:
        LoadError: there is nobody to hand it to.
    """
    from boxwright.client.request import Export

    program = find_loader()
    return Export("docker", attrs, sink=lambda: LoadSink(program))
