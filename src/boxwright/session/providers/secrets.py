"""Secrets of a client: files, environment variables or bytes, read when asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from boxwright.core.dataclass import dataclass
from boxwright.errors import InvalidInputError, LimitExceededError
from boxwright.session.base import ContextReadError, SecretNotFoundError

MAX_SECRET_BYTES = 500 * 1024


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where one secret comes from; with neither path nor variable, its id names either."""

    id: str
    path: str = ""
    variable: str = ""
    value: bytes | None = None

    def __repr__(self) -> str:
        """Never show the value."""
        return f"SecretSource(id={self.id!r}, path={self.path!r}, variable={self.variable!r})"


class SecretsProvider:
    """The secrets of one client.

    Args:
        sources: What is offered.
        environ: The client's environment.

    Raises:
        InvalidInputError: a source without id.
        ContextReadError: a file that is not there, told before the build starts.
        LimitExceededError: a file over 500 KiB.
    """

    def __init__(
        self, sources: Iterable[SecretSource], environ: Mapping[str, str] = os.environ
    ) -> None:
        self._environ = environ
        self._sources: dict[str, SecretSource] = {}
        for source in sources:
            if not source.id:
                raise InvalidInputError("a secret needs an id", hint="write id=NAME,src=FILE")
            self._sources[source.id] = self._locate(source)

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that are offered."""
        return tuple(self._sources)

    def _locate(self, source: SecretSource) -> SecretSource:
        if source.value is not None or source.variable:
            return source
        if not source.path and source.id in self._environ:
            return SecretSource(source.id, variable=source.id)
        path = source.path or source.id
        try:
            size = os.stat(path).st_size
        except OSError as exc:
            raise ContextReadError(path, exc) from exc
        if size > MAX_SECRET_BYTES:
            raise LimitExceededError(
                f"secret {source.id} is too big",
                detail=f"{path} has {size} bytes, the limit is {MAX_SECRET_BYTES}",
            )
        return SecretSource(source.id, path=path)

    def get(self, secret_id: str) -> bytes:
        """Return a secret's bytes (blocking).

        Raises:
            SecretNotFoundError: it is not offered.
            ContextReadError: its file can't be read.
            LimitExceededError: it has grown over the limit.
        """
        source = self._sources.get(secret_id)
        if source is None:
            raise SecretNotFoundError(secret_id)
        if source.value is not None:
            data = source.value
        elif source.variable:
            data = os.fsencode(self._environ.get(source.variable, ""))
        else:
            try:
                with open(source.path, "rb") as file:
                    data = file.read(MAX_SECRET_BYTES + 1)
            except OSError as exc:
                raise ContextReadError(source.path, exc) from exc
        if len(data) > MAX_SECRET_BYTES:
            raise LimitExceededError(f"secret {secret_id} is too big")
        return data
