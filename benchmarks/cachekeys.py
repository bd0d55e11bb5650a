"""How long a cache database of many records takes to open and to answer.

    python benchmarks/cachekeys.py --records 1000000

The records are those of projects of twenty steps each: a source key, a content key, and a chain of
steps above them, every step with a result.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult, root_key
from boxwright.core.digest import Digest
from boxwright.store.cachekeys import CacheKeyStore
from boxwright.store.store import Store

CHAIN = 20
SAMPLES = 2000


def raw(text: str) -> bytes:
    """Return the bytes of a digest made from ``text``."""
    return hashlib.sha256(text.encode()).digest()


def digest(text: str) -> str:
    """Return a digest made from ``text``."""
    return Digest.from_hex(raw(text).hex())


def keys(records: int) -> Iterator[tuple[int, bytes | str]]:
    """Yield the rows of all keys; the first of each chain is a root key."""
    for number in range(records):
        if number % CHAIN:
            yield number + 1, hashlib.md5(b"%d" % number).hexdigest()
        else:
            yield number + 1, bytes.fromhex(root_key(digest(f"source {number}"), 0)[7:])


def fill(store: Store, records: int) -> None:
    """Write the records."""
    with store.db.transaction() as cursor:
        cursor.executemany("INSERT INTO cache_keys VALUES (?, ?)", keys(records))
        cursor.executemany(
            "INSERT INTO cache_results VALUES (?, ?, ?, '', '')",
            ((n + 1, f"{raw(f'result {n}').hex()[:16]}", n) for n in range(records)),
        )
        cursor.executemany(
            "INSERT INTO cache_links VALUES (?, ?, 0, 0, '', ?)",
            ((n, raw(f"step {n}"), n + 1) for n in range(1, records) if n % CHAIN),
        )


def timed(run: Callable[[int], object], numbers: list[int]) -> tuple[float, float]:
    """Return median and 99th percentile in milliseconds."""
    took = []
    for number in numbers:
        began = time.perf_counter()
        run(number)
        took.append((time.perf_counter() - began) * 1e3)
    return statistics.median(took), sorted(took)[len(took) * 99 // 100]


def report(what: str, figures: tuple[float, float]) -> None:
    """Print one line."""
    print(f"{what:28} {figures[0]:10.3f} ms median {figures[1]:10.3f} ms 99 %")


def main() -> None:
    """Fill a database, open it again, and ask."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--work", default=None, help="a folder on the disk to measure")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        root = Path(folder)
        store = Store.open(root)
        CacheKeyStore(store.db)
        fill(store, options.records)
        store.close()
        size = (root / "state.db").stat().st_size
        print(f"{options.records} records, {size / options.records:.0f} bytes each")
        began = time.perf_counter()
        store = Store.open(root)
        cache = CacheKeyStore(store.db)
        took = (time.perf_counter() - began) * 1e3
        report("start", (took, took))
        ask(cache, options.records)
        store.close()


def ask(cache: CacheKeyStore, records: int) -> None:
    """Measure look-ups at random places, then a few writes."""
    numbers = random.Random(1).sample(range(1, records - 1), SAMPLES)

    def follow(number: int) -> None:
        number -= number % CHAIN
        found = root_key(digest(f"source {number}"), 0)
        assert cache.exists(found)
        link = CacheInfoLink(0, 0, digest(f"step {number + 1}"))
        (target,) = cache.links(found, link)
        assert cache.results(target)

    def miss(number: int) -> None:
        assert not cache.exists(digest(f"nowhere {number}"))

    def save(number: int) -> None:
        with cache.batch():
            cache.add_result(digest(f"new {number}"), CacheResult(f"result {number}", number))

    report("look-up: key, link, results", timed(follow, numbers))
    report("look-up of nothing", timed(miss, numbers))
    report("save", timed(save, numbers[:200]))
    report("release", timed(lambda n: cache.release(f"result {n}"), numbers[:200]))


if __name__ == "__main__":
    main()
