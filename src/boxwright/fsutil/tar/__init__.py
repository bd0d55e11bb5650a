"""Streaming tar archives: ustar, PAX and GNU for reading, ustar and PAX for writing.

The writer's bytes are those that Go's ``archive/tar`` makes of the same entries, because the
digest of an uncompressed layer is its identity in every registry. The reader takes hostile
archives: every size is bounded and every malformed field is a typed error.
"""

from boxwright.fsutil.tar.header import (
    Entry,
    EntryType,
    TarFormatError,
    TarLimitError,
    pack_entry,
)
from boxwright.fsutil.tar.reader import TarReader, TarStream, read_entries
from boxwright.fsutil.tar.writer import FileChangedError, TarWriter

__all__ = [
    "Entry",
    "EntryType",
    "FileChangedError",
    "TarFormatError",
    "TarLimitError",
    "TarReader",
    "TarStream",
    "TarWriter",
    "pack_entry",
    "read_entries",
]
