"""Folders that a client shares by name (``context``, ``dockerfile``, named contexts)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from boxwright.session.base import ContextReadError, DirNotAllowedError


class LocalDirs:
    """Shared folders by name; nothing outside them is ever read for a daemon."""

    def __init__(self, dirs: Mapping[str, Path]) -> None:
        self._dirs = {name: Path(os.path.abspath(path)) for name, path in dirs.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names that are shared."""
        return tuple(self._dirs)

    def path(self, name: str) -> Path:
        """Return the folder of a name.

        Raises:
            DirNotAllowedError: nothing is shared under it.
        """
        try:
            return self._dirs[name]
        except KeyError:
            raise DirNotAllowedError(name) from None

    def check(self) -> None:
        """Make sure that every shared folder is one, before a build is started.

        Raises:
            ContextReadError: missing, not a folder, or not readable.
        """
        for path in self._dirs.values():
            try:
                with os.scandir(path):
                    pass
            except OSError as exc:
                raise ContextReadError(str(path), exc) from exc
