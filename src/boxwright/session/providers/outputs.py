"""Where the outputs of a build go on the client: single files, standard output, folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, Code, NotFoundError
from boxwright.session.base import FileSink


class OutputError(BoxwrightError):
    """An output file that can't be written."""

    code = Code.ENVIRONMENT

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(f"cannot write output {path}", detail=cause.strerror or str(cause))


class PathSink:
    """A :class:`FileSink` that writes beside the target and renames when complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._file: BinaryIO | None = None

    async def write(self, data: bytes) -> None:
        """Add bytes."""
        await to_worker(self._write, data)

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(data)
        except OSError as exc:
            raise OutputError(str(self._path), exc) from exc

    def _open(self) -> BinaryIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return open(self._temporary, "wb", buffering=1 << 20)

    async def close(self) -> None:
        """Put the file in place."""
        await to_worker(self._close)

    def _close(self) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            self._file.close()
            os.replace(self._temporary, self._path)
        except OSError as exc:
            raise OutputError(str(self._path), exc) from exc

    async def abort(self) -> None:
        """Remove what was written."""
        await to_worker(self._abort)

    def _abort(self) -> None:
        if self._file is not None:
            self._file.close()
            try:
                os.unlink(self._temporary)
            except FileNotFoundError:
                pass


class StreamSink:
    """A :class:`FileSink` onto an open binary file that stays open (standard output)."""

    def __init__(self, file: BinaryIO, name: str = "-") -> None:
        self._file = file
        self._name = name

    async def write(self, data: bytes) -> None:
        """Add bytes."""
        await to_worker(self._write, data)

    def _write(self, data: bytes) -> None:
        try:
            self._file.write(data)
        except OSError as exc:
            raise OutputError(self._name, exc) from exc

    async def close(self) -> None:
        """Flush."""
        try:
            await to_worker(self._file.flush)
        except OSError as exc:
            raise OutputError(self._name, exc) from exc

    async def abort(self) -> None:
        """What a pipe has taken can't be taken back."""


OpenSink = Callable[[Mapping[str, str]], FileSink]


@dataclass(frozen=True, slots=True)
class FolderOutput:
    """A ``local`` output; ``mirror`` removes what the build did not produce."""

    path: Path
    mirror: bool = False


@dataclass(slots=True)
class OutputSinks:
    """The outputs of one build by exporter number (the position in the request)."""

    files: dict[int, OpenSink] = field(default_factory=dict)
    folders: dict[int, FolderOutput] = field(default_factory=dict)

    def open_file(self, exporter_id: int, metadata: Mapping[str, str]) -> FileSink:
        """Open the sink of a single-file output.

        Raises:
            NotFoundError: this exporter has none.
        """
        opener = self.files.get(exporter_id)
        if opener is None:
            raise NotFoundError(f"exporter {exporter_id} not found")
        return opener(metadata)
