"""Attestations as files beside the files of a result (``local`` and ``tar`` outputs)."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from boxwright.core.workers import to_worker
from boxwright.errors import InvalidInputError
from boxwright.exporters.attestation import Attestation, statements, unbundle

MODE = 0o600


async def statement_files(
    attestations: Sequence[Attestation], root: Path, *, prefix: str = "", suffix: str = ""
) -> dict[str, bytes]:
    """Return the statements about a tree by file name; all its files are their subjects.

    Args:
        attestations: What is said; those for images only are left out.
        root: The tree.
        prefix: Of the names of files.
        suffix: Comes before the extension; tells platforms apart that share a folder.

    Raises:
        InvalidInputError: an attestation is malformed, or two have one name.
    """
    wanted = await unbundle([item for item in attestations if not item.inline_only])
    if not wanted:
        return {}
    subjects = await to_worker(lambda: list(_digests(os.fsencode(root))))
    found: dict[str, bytes] = {}
    made = await statements(wanted, subjects)
    for item, statement in zip(wanted, made, strict=True):
        stem, extension = os.path.splitext(prefix + os.path.basename(item.path))
        name = f"{stem}.{suffix}{extension}" if suffix else stem + extension
        if name in found or "/" in name:
            raise InvalidInputError(f"duplicate attestation path name {name}")
        found[name] = await to_worker(statement.encode_indented)
    return found


def _digests(root: bytes) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield path and digest of all regular files, in order of their names."""
    pending = [b""]
    while pending:
        path = pending.pop()
        full = root + b"/" + path
        mode = os.lstat(full).st_mode
        if stat.S_ISDIR(mode):
            names = sorted(os.listdir(full), reverse=True)
            pending += [path + b"/" + name if path else name for name in names]
        elif stat.S_ISREG(mode):
            with os.fdopen(
                os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb"
            ) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield os.fsdecode(path), {"sha256": digest}
