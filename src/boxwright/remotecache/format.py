"""The cache config: which keys lead to which layers (``application/vnd.buildkit.cacheconfig.v0``).

A document has *layers* (a blob and the index of the layer below it) and *records* (the digest
of a key, the records of its inputs with selectors, and the layers of its results). Facts of the
format: BuildKit, ``cache/remotecache/v1/types``. An absent ``parent`` is 0, none is -1.
"""

from __future__ import annotations

import base64
import binascii
import functools
import json
from collections.abc import Callable
from typing import Any, Final

from boxwright.core import gojson
from boxwright.core.dataclass import dataclass, field, replace
from boxwright.core.digest import Digest
from boxwright.errors import BoxwrightError, Code

CONFIG_MEDIA_TYPE: Final = "application/vnd.buildkit.cacheconfig.v0"
INLINE_KEY: Final = "moby.buildkit.cache.v0"
MAX_CONFIG_BYTES: Final = 64 << 20
UPSTREAM_LIMIT_BYTES: Final = 1 << 20
"""BuildKit reads no larger config; a larger one of ours is only for ours."""

_NO_PARENT = -1


class CacheFormatError(BoxwrightError):
    """A remote cache that is not one, or is damaged; its import is skipped."""

    code = Code.INVALID


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """A blob on top of another layer; ``parent`` is its index, -1 for none."""

    blob: Digest
    parent: int = _NO_PARENT


@dataclass(frozen=True, slots=True)
class CacheResult:
    """A result: the layer ``layer`` with all below it. ``created_ns`` since the epoch."""

    layer: int
    created_ns: int


@dataclass(frozen=True, slots=True)
class ChainedResult:
    """A result of exactly these layers, in this order, whatever is below them."""

    layers: tuple[int, ...]
    created_ns: int


@dataclass(frozen=True, slots=True)
class CacheInput:
    """The record of an input and the selector under which it counts."""

    link: int
    selector: str = ""


@dataclass(frozen=True, slots=True)
class CacheRecord:
    """One key: its digest, per input the records that lead to it, and its results."""

    digest: str
    inputs: tuple[tuple[CacheInput, ...], ...] = ()
    results: tuple[CacheResult, ...] = ()
    chains: tuple[ChainedResult, ...] = ()


@dataclass(slots=True)
class CacheConfig:
    """A whole document."""

    layers: list[CacheLayer] = field(default_factory=list)
    records: list[CacheRecord] = field(default_factory=list)

    def encode(self) -> bytes:
        """Return the JSON bytes as Go's encoder writes them."""
        out: dict[str, Any] = {}
        if self.layers:
            out["layers"] = [_layer_json(layer) for layer in self.layers]
        if self.records:
            out["records"] = [_record_json(record) for record in self.records]
        return gojson.encode(out)

    def encode_records(self) -> bytes:
        """Return the records alone, as an image config holds them (inline cache)."""
        return gojson.encode([_record_json(record) for record in self.records])

    @classmethod
    def decode(cls, data: bytes) -> CacheConfig:
        """Read a document.

        Raises:
            CacheFormatError: it is malformed or too large.
        """
        if len(data) > MAX_CONFIG_BYTES:
            raise CacheFormatError("the cache config is too large", detail=f"{len(data)} bytes")
        value = _load(data)
        if not isinstance(value, dict):
            raise CacheFormatError("the cache config is not a JSON object")
        layers = [_read_layer(item) for item in _items(value, "layers")]
        return cls(layers, [_read_record(item) for item in _items(value, "records")])


def decode_inline(text: str) -> list[CacheRecord]:
    """Read the records in an image config: base64 of a JSON list.

    Raises:
        CacheFormatError: they are malformed.
    """
    try:
        value = _load(base64.b64decode(text, validate=True))
    except binascii.Error as error:
        raise CacheFormatError("the inline cache is not base64", detail=str(error)) from None
    if value is None:
        return []
    if not isinstance(value, list):
        raise CacheFormatError("the inline cache is not a list of records")
    return [_read_record(item) for item in value]


def sort_config(config: CacheConfig) -> CacheConfig:
    """Return the document in an order that depends on its content only."""
    by_blob = sorted(
        range(len(config.layers)),
        key=lambda i: (config.layers[i].blob, config.layers[i].parent),
    )
    new_layer = {old: new for new, old in enumerate(by_blob)}
    layers = [
        replace(config.layers[old], parent=new_layer.get(config.layers[old].parent, _NO_PARENT))
        for old in by_blob
    ]
    records = [_with_ordered_inputs(record, config) for record in config.records]

    def compare(left: int, right: int) -> int:
        return _compare(records[left], records[right], config)

    order: list[int] = sorted(range(len(records)), key=functools.cmp_to_key(compare))
    new_record = {old: new for new, old in enumerate(order)}
    moved = [
        replace(
            records[old],
            inputs=tuple(
                tuple(
                    sorted(
                        (CacheInput(new_record[i.link], i.selector) for i in inputs),
                        key=lambda i: (i.link, i.selector),
                    )
                )
                for inputs in records[old].inputs
            ),
            results=tuple(replace(r, layer=new_layer[r.layer]) for r in records[old].results),
        )
        for old in order
    ]
    return CacheConfig(layers, moved)


def _with_ordered_inputs(record: CacheRecord, config: CacheConfig) -> CacheRecord:
    def key(item: CacheInput) -> tuple[str, str]:
        return item.selector, config.records[item.link].digest

    return replace(record, inputs=tuple(tuple(sorted(i, key=key)) for i in record.inputs))


def _compare(left: CacheRecord, right: CacheRecord, config: CacheConfig) -> int:
    def shape(record: CacheRecord) -> tuple[Any, ...]:
        parts: list[Any] = [record.digest, len(record.inputs)]
        for inputs in record.inputs:
            parts.append(len(inputs))
            for item in inputs:
                parts += [item.selector, config.records[item.link].digest]
        return tuple(parts)

    a, b = shape(left), shape(right)
    return (a > b) - (a < b)


# --- writing -------------------------------------------------------------------------------


def _layer_json(layer: CacheLayer) -> dict[str, Any]:
    out: dict[str, Any] = {"blob": str(layer.blob)}
    if layer.parent:
        out["parent"] = layer.parent
    return out


def _record_json(record: CacheRecord) -> dict[str, Any]:
    out: dict[str, Any] = {}
    if record.results:
        out["layers"] = [
            {"layer": r.layer, "createdAt": gojson.time_text(r.created_ns)} for r in record.results
        ]
    if record.chains:
        out["chains"] = [
            {"layers": list(c.layers), "createdAt": gojson.time_text(c.created_ns)}
            for c in record.chains
        ]
    out["digest"] = record.digest
    if record.inputs:
        out["inputs"] = [[_input_json(item) for item in items] for items in record.inputs]
    return out


def _input_json(item: CacheInput) -> dict[str, Any]:
    if item.selector:
        return {"selector": item.selector, "link": item.link}
    return {"link": item.link}


# --- reading -------------------------------------------------------------------------------


def read_time(text: str) -> int:
    """Return nanoseconds since the epoch; what can't be read is the epoch, hence the oldest."""
    try:
        return gojson.parse_time(text)
    except ValueError:
        return 0


def _load(data: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CacheFormatError("the cache config is not JSON", detail=str(error)) from None


def _items(value: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = value.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise CacheFormatError("the cache config is malformed", detail=f"{key} is {found!r:.80}")
    return found


def _read_layer(item: dict[str, Any]) -> CacheLayer:
    return CacheLayer(_read(Digest, item.get("blob")), _index(item.get("parent")))


def _read(convert: Callable[[str], Digest], value: object) -> Digest:
    try:
        return convert(str(value))
    except BoxwrightError as error:
        raise CacheFormatError("the cache config has a bad digest", detail=str(error)) from None


def _read_record(item: object) -> CacheRecord:
    if not isinstance(item, dict):
        raise CacheFormatError("the cache config is malformed", detail="a record is no object")
    inputs = item.get("inputs") or ()
    if not isinstance(inputs, (list, tuple)):
        raise CacheFormatError("the cache config is malformed", detail=f"inputs {inputs!r:.80}")
    return CacheRecord(
        digest=str(item.get("digest") or ""),
        inputs=tuple(_read_inputs(entry) for entry in inputs),
        results=tuple(
            CacheResult(_index(r.get("layer")), read_time(str(r.get("createdAt"))))
            for r in _items(item, "layers")
        ),
        chains=tuple(
            ChainedResult(_indexes(c.get("layers")), read_time(str(c.get("createdAt"))))
            for c in _items(item, "chains")
        ),
    )


def _read_inputs(entry: object) -> tuple[CacheInput, ...]:
    if not isinstance(entry, list) or not all(isinstance(item, dict) for item in entry):
        raise CacheFormatError("the cache config is malformed", detail=f"inputs {entry!r:.80}")
    return tuple(
        CacheInput(_index(item.get("link")), str(item.get("selector") or "")) for item in entry
    )


def _indexes(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise CacheFormatError("the cache config is malformed", detail=f"layers {value!r:.80}")
    return tuple(_index(item) for item in value)


def _index(value: object) -> int:
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool):
        raise CacheFormatError("the cache config is malformed", detail=f"index {value!r:.80}")
    return value
