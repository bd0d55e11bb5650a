"""Inline caches: the records of an image's own layers, inside its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from boxwright.core.digest import Digest
from boxwright.oci.annotations import UNCOMPRESSED
from boxwright.remotecache.chains import Blob, CacheChains, build_chains
from boxwright.remotecache.format import CacheConfig, CacheLayer, CacheRecord, ChainedResult


def records_for_image(
    chains: CacheChains, layers: Sequence[tuple[Digest, Digest]]
) -> bytes | None:
    """Return the records whose results consist of an image's layers, as JSON; None if none.

    In an inline cache there is no list of layers: numbers mean the layers of the image. Results
    in the image's order from its base name their top layer, others list all of theirs.

    Args:
        chains: what was exported.
        layers: digest and diff id of the image's layers, from the base up.
    """
    config, blobs = chains.marshal()
    places: list[set[Digest]] = []
    kept: dict[Digest, Blob] = {}
    for digest, diff_id in layers:
        same = {
            known
            for known, blob in blobs.items()
            if known == digest or blob.descriptor.annotations.get(UNCOMPRESSED) == diff_id
        }
        places.append(same)
        kept.update((known, blobs[known]) for known in same)
    narrowed, _ = build_chains(config, kept).marshal()
    if not narrowed.layers:
        return None
    position = {digest: number for number, same in enumerate(places) for digest in same}
    records = [
        _renumbered(record, narrowed.layers, places, position) for record in narrowed.records
    ]
    return CacheConfig(records=records).encode_records()


def _renumbered(
    record: CacheRecord,
    known: Sequence[CacheLayer],
    places: Sequence[set[Digest]],
    position: dict[Digest, int],
) -> CacheRecord:
    results, chains = [], list(record.chains)
    for result in record.results:
        blobs = _stack(result.layer, known)
        in_order = len(blobs) <= len(places) and all(
            blob in places[number] for number, blob in enumerate(blobs)
        )
        if in_order:
            results.append(replace(result, layer=len(blobs) - 1))
        else:
            numbers = tuple(position[blob] for blob in blobs)
            chains.append(ChainedResult(numbers, result.created_ns))
    return replace(record, results=tuple(results), chains=tuple(chains))


def _stack(index: int, known: Sequence[CacheLayer]) -> list[Digest]:
    found = []
    while index != -1:
        found.append(known[index].blob)
        index = known[index].parent
    return found[::-1]
