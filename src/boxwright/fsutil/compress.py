"""Streaming compression and decompression of layers, deterministic at any speed.

Invariant: for one algorithm, level and library version the output is a function of the input
bytes alone, whatever the sizes of the writes and the number of threads. Registries and
caches deduplicate by the digest of the compressed bytes, so this is what makes the second
push of an equal layer free. Hence: input is cut into fixed blocks again (ISA-L's output
depends on the sizes of its inputs), every block is compressed on its own, the gzip header is
constant, and :func:`compressor_version`
names what else the bytes depend on.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final, Protocol, cast

import deflate
import isal
import zstandard
from isal import isal_zlib

from boxwright.core.dataclass import dataclass
from boxwright.errors import BoxwrightError, Code, InvalidInputError

GZIP_BLOCK: Final = 1 << 20
ZSTD_BLOCK: Final = 4 << 20
WINDOW: Final = 32 << 10
# no name, no time, "unknown" system: nothing of the machine gets into the digest
GZIP_HEADER: Final = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"

ALGORITHMS: Final = ("uncompressed", "gzip", "zstd", "estargz")

_MAGIC_GZIP = b"\x1f\x8b\x08"
_MAGIC_ZSTD = b"\x28\xb5\x2f\xfd"
_MAGIC_BZIP2 = b"BZh"
_MAGIC_XZ = b"\xfd7zXZ\x00"
_ISAL_MAX_LEVEL = 3
# For each of gzip's levels the fastest of libdeflate whose output is no larger than Go's, of
# programs and of texts alike.
_LIBDEFLATE_LEVELS: Final = {4: 2, 5: 4, 6: 5, 7: 6, 8: 8, 9: 9}
# What can't be compressed takes a third of the time at this level.
_ISAL_FAST_LEVEL = 1
# Ends of the parts of a block, each of which says whether the next one is worth compressing.
_PART_ENDS = (64 << 10, 256 << 10, 512 << 10, 768 << 10, GZIP_BLOCK)
_WORTH_IT = 0.99


class CompressedDataError(BoxwrightError):
    """Compressed input that is corrupt or cut off."""

    code = Code.HOSTILE_INPUT

    def __init__(self, algorithm: str, problem: str) -> None:
        super().__init__(f"invalid {algorithm} data", detail=problem)
        self.algorithm = algorithm


@dataclass(frozen=True, slots=True)
class Compression:
    """How a layer's blob is compressed.

    Attributes:
        algorithm: ``uncompressed``, ``gzip``, ``zstd`` or ``estargz`` (gzip in pieces, with a
            table of contents: :mod:`boxwright.fsutil.estargz`).
        level: upstream's ``compression-level``; None is the fast default. For gzip 0 to 3
            are ISA-L's levels (None is 3), 4 to 9 give the sizes of Go's gzip, by libdeflate.
            For zstd 0 to 22 (None is 3).
        force: blobs that exist with another compression are converted.
    """

    algorithm: str = "gzip"
    level: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise InvalidInputError(
                f"unsupported compression type {self.algorithm}",
                hint=f"use one of {', '.join(ALGORITHMS)}",
            )

    def gzip_plan(self) -> tuple[str, int]:
        """Return the library (``isal`` or ``libdeflate``) and its level for gzip."""
        if self.level is None or self.level < 0:
            return "isal", _ISAL_MAX_LEVEL
        if self.level <= _ISAL_MAX_LEVEL:
            return "isal", self.level
        return "libdeflate", _LIBDEFLATE_LEVELS[min(self.level, max(_LIBDEFLATE_LEVELS))]


def compressor_version(compression: Compression) -> str:
    """Name the compressor, its version and level, as recorded with a blob it made."""
    match compression.algorithm:
        case "gzip" | "estargz":
            library, level = compression.gzip_plan()
            version = isal.__version__ if library == "isal" else deflate.__version__
            made = f"{compression.algorithm}/{library}-{version}/{level}"
            if compression.algorithm == "estargz":
                return made
            fast = f"+{_ISAL_FAST_LEVEL}" if (library, level) == ("isal", _ISAL_MAX_LEVEL) else ""
            return f"{made}{fast}/{GZIP_BLOCK}"
        case "zstd":
            version = ".".join(map(str, zstandard.ZSTD_VERSION))
            return f"zstd/{version}/{_zstd_level(compression)}"
        case other:
            return other


class Compressor(Protocol):
    """Takes bytes in any pieces, hands compressed bytes to its sink."""

    def write(self, data: bytes) -> None:
        """Add input."""
        ...

    def close(self) -> None:
        """Finish the stream; the last bytes are at the sink when this returns."""
        ...


def open_compressor(
    compression: Compression,
    sink: Callable[[bytes], object],
    *,
    threads: int | None = None,
    hurry: threading.Event | None = None,
) -> Compressor:
    """Return a compressor into ``sink`` (called in the caller's thread, in order).

    Args:
        compression: what to make.
        sink: takes pieces of output.
        threads: how many blocks are compressed at once; by default one per core. Has no
            influence on the output.
        hurry: until it is set nobody waits for the result, and gzip blocks are compressed by
            threads that yield to all others. None is the same as one that is set.
    """
    threads = threads or os.cpu_count() or 1
    match compression.algorithm:
        case "uncompressed":
            return _Copy(sink)
        case "zstd":
            return _Zstd(_zstd_level(compression), sink, threads)
        case _:
            library, level = compression.gzip_plan()
            blocks = _InOrder(sink, threads, hurry)
            return _Gzip(level, blocks) if library == "isal" else _GzipMembers(level, blocks)


def _zstd_level(compression: Compression) -> int:
    return 3 if compression.level is None or compression.level < 0 else min(compression.level, 22)


class _Copy:
    def __init__(self, sink: Callable[[bytes], object]) -> None:
        self._sink = sink

    def write(self, data: bytes) -> None:
        self._sink(data)

    def close(self) -> None:
        pass


class _Blocks:
    """Cuts what is written into blocks of one size."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pieces: list[bytes | memoryview] = []
        self._pending = 0

    def add(self, data: bytes) -> list[bytes]:
        """Return the blocks that are complete, every byte of them copied once at most."""
        blocks: list[bytes] = []
        rest: bytes | memoryview = data
        while self._pending + len(rest) >= self._size:
            cut = self._size - self._pending
            if cut == len(rest):
                self._pieces.append(rest)
                rest = b""
            else:
                view = memoryview(rest)
                self._pieces.append(view[:cut])
                rest = view[cut:]
            blocks.append(self.rest())
            self._pieces, self._pending = [], 0
        if rest:
            self._pieces.append(rest)
            self._pending += len(rest)
        return blocks

    def rest(self) -> bytes:
        if len(self._pieces) == 1 and isinstance(self._pieces[0], bytes):
            return self._pieces[0]
        return b"".join(self._pieces)


class _InOrder:
    """Compresses blocks, several at a time; their output leaves in the order of their coming."""

    def __init__(
        self, sink: Callable[[bytes], object], threads: int, hurry: threading.Event | None
    ) -> None:
        self.sink = sink
        self._threads = threads
        self._hurry = hurry
        self._queue: deque[Future[bytes]] = deque()

    def add(self, compress: Callable[[], bytes], *, last: bool) -> None:
        """Compress a block; when this returns from the last one, all output has left."""
        if self._threads == 1 or (last and not self._queue):
            self.sink(compress())
            return
        if len(self._queue) > self._threads:
            self.sink(self._queue.popleft().result())
        self._queue.append(block_pool(self._hurry).submit(compress))
        while last and self._queue:
            self.sink(self._queue.popleft().result())


class _Gzip:
    """One gzip member by ISA-L: each block has the end of the one before it as dictionary."""

    def __init__(self, level: int, blocks: _InOrder) -> None:
        self._compress = _isal_block_in_parts if level == _ISAL_MAX_LEVEL else _isal_block
        self._level = level
        self._out = blocks
        self._blocks = _Blocks(GZIP_BLOCK)
        self._dictionary = b""
        self._crc = 0
        self._size = 0
        self._out.sink(GZIP_HEADER)

    def write(self, data: bytes) -> None:
        for block in self._blocks.add(data):
            self._submit(block, last=False)

    def close(self) -> None:
        self._submit(self._blocks.rest(), last=True)
        self._out.sink(struct.pack("<II", self._crc, self._size & 0xFFFFFFFF))

    def _submit(self, block: bytes, *, last: bool) -> None:
        self._crc = isal_zlib.crc32(block, self._crc)
        self._size += len(block)
        dictionary, self._dictionary = self._dictionary, block[-WINDOW:]
        self._out.add(partial(self._compress, self._level, block, dictionary, last), last=last)


class _GzipMembers:
    """A gzip member of its own for every block: libdeflate knows whole streams only."""

    def __init__(self, level: int, blocks: _InOrder) -> None:
        self._plan = ("libdeflate", level)
        self._out = blocks
        self._blocks = _Blocks(GZIP_BLOCK)

    def write(self, data: bytes) -> None:
        for block in self._blocks.add(data):
            self._out.add(partial(gzip_member, self._plan, block), last=False)

    def close(self) -> None:
        self._out.add(partial(gzip_member, self._plan, self._blocks.rest()), last=True)


def gzip_member(plan: tuple[str, int], data: bytes) -> bytes:
    """Return ``data`` as a gzip member of its own.

    Args:
        plan: library and level (:meth:`Compression.gzip_plan`).
        data: all that it holds.
    """
    library, level = plan
    if library == "isal":
        packed: bytes | bytearray = _isal_block(level, data, b"", last=True)
    else:
        packed = deflate.deflate_compress(data, level)
    end = struct.pack("<II", isal_zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return b"".join((GZIP_HEADER, packed, end))


def _isal_object(level: int, dictionary: bytes) -> Any:  # noqa: ANN401
    if dictionary:
        return isal_zlib.compressobj(level, isal_zlib.DEFLATED, -15, 8, 0, dictionary)
    return isal_zlib.compressobj(level, isal_zlib.DEFLATED, -15)


def _isal_block_in_parts(level: int, block: bytes, dictionary: bytes, last: bool) -> bytes:  # noqa: FBT001
    """Compress a block; behind a part that did not become smaller, at the fast level.

    Layers are full of what is compressed already. The choice depends on the block alone.
    """
    out: list[bytes] = []
    start, current = 0, level
    compressor = _isal_object(level, dictionary)
    while True:
        end = min(len(block), next(each for each in _PART_ENDS if each > start))
        is_end = last and end == len(block)
        part = memoryview(block)[start:end]
        flush = isal_zlib.Z_FINISH if is_end else isal_zlib.Z_SYNC_FLUSH
        out.append(compressor.compress(part) + compressor.flush(flush))
        if end == len(block):
            return b"".join(out)
        wanted = level if len(out[-1]) < len(part) * _WORTH_IT else _ISAL_FAST_LEVEL
        if wanted != current:
            current = wanted
            compressor = _isal_object(current, block[end - WINDOW : end])
        start = end


def _isal_block(level: int, block: bytes, dictionary: bytes, last: bool) -> bytes:  # noqa: FBT001
    compressor = _isal_object(level, dictionary)
    flush = isal_zlib.Z_FINISH if last else isal_zlib.Z_SYNC_FLUSH
    data: bytes = compressor.compress(block) + compressor.flush(flush)
    return data


class _Zstd:
    """One zstd frame in libzstd's multi-thread form, which any thread count shares."""

    def __init__(self, level: int, sink: Callable[[bytes], object], threads: int) -> None:
        # threads=0 would choose the single-thread form, whose bytes differ
        parameters = zstandard.ZstdCompressionParameters.from_level(
            level, threads=max(1, threads), write_checksum=1, write_content_size=0
        )
        self._object = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        self._sink = sink
        self._blocks = _Blocks(ZSTD_BLOCK)

    def write(self, data: bytes) -> None:
        for block in self._blocks.add(data):
            self._put(self._object.compress(block))

    def close(self) -> None:
        self._put(self._object.compress(self._blocks.rest()))
        self._put(self._object.flush())

    def _put(self, data: bytes) -> None:
        if data:
            self._sink(data)


_pools: dict[bool, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
_BACKGROUND_NICE: Final = 15


def block_pool(hurry: threading.Event | None) -> ThreadPoolExecutor:
    """Return the threads that compress blocks: until ``hurry`` is set those in the background.

    They are apart from the engine's pool because a function of that pool waits for them;
    a block never waits for anything. Those in the background are as many, of low priority: what
    they do outside the interpreter's lock is nearly all they do.
    """
    background = hurry is not None and not hurry.is_set()
    with _pools_lock:
        if background not in _pools:
            _pools[background] = ThreadPoolExecutor(
                max_workers=os.cpu_count() or 1,
                thread_name_prefix="boxwright-background" if background else "boxwright-compress",
                initializer=_yield_to_others if background else None,
            )
        return _pools[background]


def _yield_to_others() -> None:
    """Give the calling thread a low priority (Linux keeps one for each thread)."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICE)


# -- decompression -------------------------------------------------------------------------


class ByteStream(Protocol):
    """Anything with a file's ``read``."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, empty only at the end."""
        ...


def detect(head: bytes) -> str:
    """Name the compression by the first bytes of a stream (6 are enough).

    Returns:
        ``gzip``, ``zstd``, ``bzip2``, ``xz`` or ``uncompressed``.
    """
    if head.startswith(_MAGIC_GZIP):
        return "gzip"
    if head.startswith(_MAGIC_ZSTD) or _is_skippable_frame(head):
        return "zstd"
    if head.startswith(_MAGIC_BZIP2):
        return "bzip2"
    if head.startswith(_MAGIC_XZ):
        return "xz"
    return "uncompressed"


def _is_skippable_frame(head: bytes) -> bool:
    return len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def open_decompressor(stream: ByteStream) -> tuple[str, ByteStream]:
    """Detect the compression of ``stream`` and return its name and the plain stream.

    The plain stream's ``read(n)`` may return more than ``n`` bytes (at most a few MiB).

    Raises:
        CompressedDataError: (from ``read``) the data is corrupt or cut off.
    """
    head = stream.read(_INPUT)
    while 0 < len(head) < 6:
        more = stream.read(6 - len(head))
        if not more:
            break
        head += more
    kind = detect(head)
    source = _Prefixed(head, stream)
    match kind:
        case "gzip":
            return kind, _Inflater(source, kind, lambda: isal_zlib.decompressobj(wbits=31))
        case "bzip2":
            return kind, _Inflater(source, kind, bz2.BZ2Decompressor)
        case "xz":
            return kind, _Inflater(source, kind, lzma.LZMADecompressor)
        case "zstd":
            return kind, _ZstdReader(source)
        case _:
            return kind, source


_INPUT = 256 << 10
_OUTPUT = 1 << 20
_ZSTD_INPUT = 4 << 10
_IsalError = cast("type[Exception]", isal_zlib.error)
_ERRORS: tuple[type[Exception], ...] = (
    _IsalError,
    zlib.error,
    OSError,
    EOFError,
    lzma.LZMAError,
    zstandard.ZstdError,
)


class _Prefixed:
    """A stream whose first bytes were already read."""

    def __init__(self, head: bytes, stream: ByteStream) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int, /) -> bytes:
        if self._head:
            data, self._head = self._head[:size], self._head[size:]
            return data
        return self._stream.read(size)


class _Inflater:
    """Members of a gzip, bzip2 or xz stream, one after the other, as one stream."""

    def __init__(self, source: ByteStream, kind: str, factory: Callable[[], Any]) -> None:
        self._source = source
        self._kind = kind
        self._factory = factory
        self._object = factory()
        self._has_limit = kind != "gzip"
        self._pending = b""

    def read(self, size: int, /) -> bytes:
        size = max(size, _OUTPUT)
        while True:
            if self._object.eof:
                self._pending = self._object.unused_data or self._source.read(_INPUT)
                if not self._pending.strip(b"\0"):  # the end, or padding as gzip allows
                    return b""
                self._object = self._factory()
            data = self._next_input()
            try:
                out: bytes = self._object.decompress(data, size)
            except _ERRORS as error:
                raise CompressedDataError(self._kind, str(error)) from None
            if not self._has_limit:
                self._pending = b"" if self._object.eof else self._object.unconsumed_tail
            if out:
                return out
            if not data and not self._object.eof:
                raise CompressedDataError(self._kind, "the data is cut off")

    def _next_input(self) -> bytes:
        if self._pending:
            data, self._pending = self._pending, b""
            return data
        if self._has_limit and not self._object.needs_input:
            return b""
        return self._source.read(_INPUT)


class _ZstdReader:
    """Frames of a zstd stream, one after the other.

    libzstd's Python reader takes a cut-off frame for the end, so frames are fed by hand, in
    pieces so small that even a bomb's output for one of them fits into memory.
    """

    def __init__(self, source: ByteStream) -> None:
        self._source = source
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._frame = self._decompressor.decompressobj()
        self._fresh = True  # nothing of the frame has been read yet
        self._input = b""
        self._at = 0

    def read(self, size: int, /) -> bytes:
        size = max(size, _OUTPUT)
        pieces: list[bytes] = []
        pending = 0
        while pending < size:
            piece = self._next_input()
            if not piece:
                if not self._fresh:
                    raise CompressedDataError("zstd", "the data is cut off")
                break
            try:
                out = self._frame.decompress(piece)
            except _ERRORS as error:
                raise CompressedDataError("zstd", str(error)) from None
            self._fresh = False
            if out:
                pieces.append(out)
                pending += len(out)
            if self._frame.eof:
                self._at -= len(self._frame.unused_data)
                self._frame = self._decompressor.decompressobj()
                self._fresh = True
        return b"".join(pieces)

    def _next_input(self) -> bytes:
        if self._at >= len(self._input):
            self._input, self._at = self._source.read(_INPUT), 0
        piece = self._input[self._at : self._at + _ZSTD_INPUT]
        self._at += len(piece)
        return piece
