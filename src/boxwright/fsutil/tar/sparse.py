"""Maps of sparse files: where an entry's stored bytes go (GNU tar manual, "Sparse Formats")."""

from __future__ import annotations

from boxwright.fsutil.tar.header import Entry

MAX_RUNS = 1 << 18


def parse_decimal(text: bytes) -> int:
    """Read an unsigned decimal number of at most 63 bits.

    Raises:
        ValueError: anything else.
    """
    if not text.isdigit() or len(text) > 19:
        raise ValueError(f"not a number: {text[:40]!r}")
    value = int(text)
    if value >= 1 << 63:
        raise ValueError("number over 63 bits")
    return value


def check_runs(
    runs: list[tuple[int, int]], size: int, stored: int | None
) -> list[tuple[int, int]]:
    """Return ``runs`` without empty ones if they are ascending and inside the file.

    Raises:
        ValueError: runs overlap, leave the file of ``size`` bytes, or do not add up to
            ``stored`` bytes (when given).
    """
    end = 0
    for offset, length in runs:
        if offset < end or length < 0 or offset + length > size:
            raise ValueError("sparse map overlaps or leaves the file")
        end = offset + length
    if stored is not None and sum(length for _, length in runs) != stored:
        raise ValueError("sparse map does not fit the stored content")
    return [run for run in runs if run[1]]


def runs_from_pax(entry: Entry, pairs: list[bytes]) -> None:
    """Turn the PAX records of forms 0.0, 0.1 and 1.0 into ``entry.sparse`` and real size.

    Form 1.0 keeps its map in the content: ``entry.sparse`` is then an empty list and
    ``entry.size`` still the stored size, until the reader has read the map.

    Raises:
        ValueError: malformed records.
    """
    pax = entry.pax
    name = pax.pop(b"GNU.sparse.name", b"")
    if name:
        entry.name = name
    major = pax.get(b"GNU.sparse.major")
    if major is not None:
        if major == b"1":
            entry.sparse = []
            return
        if major != b"0":
            raise ValueError(f"unknown sparse form {major[:10]!r}")
        del pax[b"GNU.sparse.major"]
    if b"GNU.sparse.map" in pax:
        pairs = pax.pop(b"GNU.sparse.map").split(b",")
        if pairs == [b""]:
            pairs = []
    elif not pairs and b"GNU.sparse.numblocks" not in pax:
        return
    if len(pairs) % 2 or len(pairs) > 2 * MAX_RUNS:
        raise ValueError("odd or oversized sparse map")
    numbers = [parse_decimal(text) for text in pairs]
    size = pax.get(b"GNU.sparse.size") or pax.get(b"GNU.sparse.realsize")
    stored = entry.size
    if size is not None:
        entry.size = parse_decimal(size)
    runs = list(zip(numbers[::2], numbers[1::2], strict=True))
    entry.sparse = check_runs(runs, entry.size, stored)
