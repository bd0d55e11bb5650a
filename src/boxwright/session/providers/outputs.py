"""Where the outputs of a build go on the client: single files, standard output, folders."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from boxwright.core.dataclass import dataclass, field
from boxwright.core.workers import to_worker
from boxwright.errors import BoxwrightError, Code, NotFoundError
from boxwright.session.base import FileSink, OutputRequest

_BUFFER = 1 << 20


class OutputError(BoxwrightError):
    """An output file that can't be written."""

    code = Code.ENVIRONMENT

    def __init__(self, path: str, cause: OSError) -> None:
        super().__init__(
            f"cannot write output {path}",
            detail=cause.strerror or str(cause),
            hint="give dest= a place that you may write to and that has room",
        )
        if cause.errno in {errno.ENOSPC, errno.EDQUOT}:
            self.__dict__["code"] = Code.DISK_FULL
        elif cause.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
            self.__dict__["code"] = Code.PERMISSION


class OutputChooser(Protocol):
    """Chooses outputs of a build when its result is there (moby.exporter.v1.Exporter)."""

    async def find(
        self, metadata: Mapping[str, bytes], refs: Sequence[str]
    ) -> Sequence[OutputRequest]:
        """Return the further outputs to make of a result.

        Args:
            metadata: The frontend's.
            refs: Ids under which the result's trees can be read through the gateway.
        """
        ...

    async def done(self, response: Mapping[str, str]) -> None:
        """Take what all outputs reported; an error fails the build."""
        ...


class PathSink:
    """A :class:`FileSink` that appears under its name when it is complete, and not before.

    The file has no name while it is written, so nothing is left of it even if this process is
    killed. What exists and is no ordinary file (``/dev/null``, a pipe) is written in place;
    a symbolic link is followed.
    """

    def __init__(self, path: Path) -> None:
        self._shown = path
        self._path = Path(os.path.realpath(path))
        self._temporary = self._path.with_name(f".{self._path.name[:200]}.{os.getpid()}.partial")
        self._file: BinaryIO | None = None
        self._is_named = False
        self._is_in_place = False

    async def write(self, data: bytes) -> None:
        """Add bytes."""
        await to_worker(self._write, data)

    def _write(self, data: bytes) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            self._file.write(data)
        except OSError as exc:
            raise OutputError(str(self._shown), exc) from exc

    def _open(self) -> BinaryIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists() and not self._path.is_file() and not self._path.is_dir():
            self._is_in_place = True
            return open(self._path, "wb", buffering=_BUFFER)
        flags = os.O_WRONLY | os.O_CLOEXEC
        try:
            fd = os.open(self._path.parent, flags | os.O_TMPFILE, 0o666)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                raise
            self._is_named = True
            fd = os.open(self._temporary, flags | os.O_CREAT | os.O_TRUNC, 0o666)
        return open(fd, "wb", buffering=_BUFFER)

    async def close(self) -> None:
        """Put the file in place."""
        await to_worker(self._close)

    def _close(self) -> None:
        try:
            if self._file is None:
                self._file = self._open()
            self._file.flush()
            if not self._is_in_place:
                self._publish(self._file.fileno())
            self._file.close()
        except OSError as exc:
            raise OutputError(str(self._shown), exc) from exc

    def _publish(self, fd: int) -> None:
        if not self._is_named:
            # A link can't replace a file, so it gets a name of its own for a moment.
            self._temporary.unlink(missing_ok=True)
            # Only with a folder given does Python call linkat(2), which follows procfs's link.
            os.link(f"/proc/self/fd/{fd}", self._temporary, src_dir_fd=fd, follow_symlinks=True)
        try:
            os.replace(self._temporary, self._path)
        except OSError:
            self._temporary.unlink(missing_ok=True)
            raise

    async def abort(self) -> None:
        """Remove what was written."""
        await to_worker(self._abort)

    def _abort(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a full disk, again
                self._file.close()
            if self._is_named:
                self._temporary.unlink(missing_ok=True)


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
