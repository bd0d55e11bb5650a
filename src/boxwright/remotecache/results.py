"""Results of an imported cache: stacks of layers that become snapshots when they are hit."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from boxwright.core.cacheinfo import CacheResult
from boxwright.core.descriptor import Descriptor
from boxwright.errors import BoxwrightError, InvalidInputError, NotFoundError
from boxwright.fsutil.compress import Compression
from boxwright.oci import mediatypes
from boxwright.remotecache.keys import ImportedKeys
from boxwright.solver.types import Remote, Result

_log = logging.getLogger(__name__)

OpenRemote = Callable[[Remote], Awaitable[Result]]


class ImportedResults:
    """A :class:`~boxwright.solver.types.ResultStorage` over one imported graph.

    Args:
        keys: the graph.
        open_remote: makes a lazy result of layers. It raises if one of them is known to be
            gone, which is a miss.
    """

    def __init__(self, keys: ImportedKeys, open_remote: OpenRemote) -> None:
        self._keys = keys
        self._open = open_remote

    async def save(self, result: Result, created_at: int) -> CacheResult:
        """Refuse: nothing is stored in an import.

        Raises:
            InvalidInputError: always.
        """
        raise InvalidInputError("an imported cache is read-only")

    async def load(self, record: CacheResult) -> Result:
        """Return a result without fetching its layers.

        Raises:
            NotFoundError: there is no such result, or a layer of it is gone.
        """
        remote = self._keys.remote(record.id)
        if remote is None:
            raise NotFoundError("an imported cache record is gone", detail=record.id)
        return await self._open(remote)

    async def load_with_parents(self, record: CacheResult) -> dict[str, Result]:
        """Return a result and those of its ancestors whose layers are the lowest of its own.

        They cost nothing, and with them the local cache knows the steps in between.

        Raises:
            NotFoundError: there is no such result, or a layer of it is gone.
        """
        whole = self._keys.remote(record.id)
        found: dict[str, Result] = {}
        if whole is None:
            raise NotFoundError("an imported cache record is gone", detail=record.id)
        try:
            for key_id in self._keys.ids_by_result(record.id):
                for item in self._keys.entries[key_id].item.ancestors():
                    for result in item.results:
                        item_id = self._keys.id_of(item)
                        if item_id not in found and _is_below(result.remote, whole):
                            found[item_id] = await self._open(result.remote)
        except BaseException:
            for made in found.values():
                await made.release()
            raise
        return found

    def exists(self, result_id: str) -> bool:
        """Return whether the graph has the result."""
        return self._keys.remote(result_id) is not None

    async def load_remotes(self, record: CacheResult, ctx: object) -> list[Remote]:
        """Return the layers if their compression is one that the export may use."""
        remote = self._keys.remote(record.id)
        if remote is None:
            return []
        return [remote] if fits(remote, ctx) else []


def fits(remote: Remote, wanted: object) -> bool:
    """Return whether an export in the wanted form may use layers as they are."""
    if not isinstance(wanted, Compression):
        return True
    same = [_algorithm(d) == wanted.algorithm for d in remote.descriptors]
    return all(same) if wanted.force else any(same)


def _algorithm(descriptor: Descriptor) -> str:
    try:
        return mediatypes.layer_compression(descriptor.media_type)
    except BoxwrightError:
        return ""


def _is_below(part: Remote, whole: Remote) -> bool:
    count = len(part.descriptors)
    lowest = [d.digest for d in whole.descriptors[:count]]
    return [d.digest for d in part.descriptors] == lowest
