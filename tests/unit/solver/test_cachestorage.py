"""The suite of cache storages against both of ours, and what only the durable one does."""

import asyncio
import time

import pytest

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult
from boxwright.core.digest import Digest
from boxwright.solver.memorystorage import MemoryCacheStorage
from boxwright.store.cachekeys import CacheKeyStore
from boxwright.store.database import Database
from boxwright.testing.cachestorage import CacheStorageSuite
from boxwright.testing.graphs import FakeGraph


class TestMemory(CacheStorageSuite):
    @pytest.fixture
    def storage(self):
        return MemoryCacheStorage()


class TestDatabase(CacheStorageSuite):
    @pytest.fixture
    def storage(self, tmp_path):
        database = Database(tmp_path / "state.db")
        yield CacheKeyStore(database)
        database.close()

    def test_survives_reopening(self, tmp_path):
        link = CacheInfoLink(0, 0, Digest.of(b"x"))
        database = Database(tmp_path / "state.db")
        storage = CacheKeyStore(database)
        storage.add_link("a", link, "b")
        storage.add_result("b", CacheResult("r", 7))
        database.close()
        database = Database(tmp_path / "state.db")
        storage = CacheKeyStore(database)
        assert storage.links("a", link) == ["b"]
        assert storage.results("b") == [CacheResult("r", 7)]
        database.close()

    def test_a_failed_batch_leaves_nothing(self, storage):
        def fail():
            with storage.batch():
                storage.add_result("a", CacheResult("r", 1))
                raise RuntimeError

        with pytest.raises(RuntimeError):
            fail()
        assert list(storage.ids()) == []

    def test_lookups_use_an_index(self, storage):
        link = CacheInfoLink(0, 0, Digest.of(b"x"))
        database = storage._db
        queries = []
        execute = database.execute
        database.execute = lambda sql, params=(): (
            queries.append((sql, params)),
            execute(sql, params),
        )[1]
        storage.links("a", link)
        storage.has_link("a", link, "b")
        storage.results("a")
        storage.load("a", "r")
        storage.exists("a")
        storage.ids_by_result("r")
        storage.backlinks("a")
        for sql, params in queries:
            plan = execute("EXPLAIN QUERY PLAN " + sql, params)
            assert not [
                row for row in plan if row[3].startswith("SCAN") and "CONSTANT" not in row[3]
            ], (
                sql,
                plan,
            )


def test_builds_hit_through_the_database(tmp_path):
    async def main():
        database = Database(tmp_path / "state.db")
        graph = FakeGraph()
        graph.cache.storage = CacheKeyStore(database)

        def top(source):
            base = graph.vertex("source", key=source)
            copy = graph.vertex("copy", base, slow={0: "same"}, selectors={0: Digest.of(b"p")})
            return graph.vertex("top", copy, graph.vertex("other"))

        async with graph.solver() as solver:
            await graph.build(solver, "j0", top("s0"))
            graph.reset()
            await graph.build(solver, "j1", top("s0"))
            assert graph.execs() == {}
            await graph.build(solver, "j2", top("s1"))
            assert graph.execs() == {"source": 1}
        gone = list(graph.cache.storage.result_ids())
        assert gone
        for result_id in gone:
            await graph.results.drop(result_id)
        graph.cache.release([*gone, "unknown"])
        assert list(graph.cache.storage.ids()) == []
        await graph.close()
        database.close()

    asyncio.run(main())


@pytest.mark.slow
def test_a_million_records(tmp_path):
    """Look-ups in a large cache; prints its figure, asserts only that hits are found."""
    database = Database(tmp_path / "state.db")
    storage = CacheKeyStore(database)
    count = 1_000_000
    digests = [Digest.of(str(i).encode()) for i in range(1000)]
    with database.transaction() as cursor:
        cursor.executemany(
            "INSERT INTO cache_keys (id, name) VALUES (?, ?)",
            ((i + 1, f"{i:032x}") for i in range(count)),
        )
        cursor.executemany(
            "INSERT INTO cache_links VALUES (?, ?, 0, 0, '', ?)",
            ((i + 1, bytes.fromhex(digests[i % 1000].hex), i + 2) for i in range(count - 1)),
        )
        cursor.executemany(
            "INSERT INTO cache_results (key, result, created_ns) VALUES (?, ?, 0)",
            ((i + 1, f"r{i}") for i in range(count)),
        )
    started = time.perf_counter()
    looked = range(0, count - 1, 997)
    for i in looked:
        link = CacheInfoLink(0, 0, digests[i % 1000])
        assert storage.links(f"{i:032x}", link) == [f"{i + 1:032x}"]
        assert storage.results(f"{i:032x}")
    print(f"\n{(time.perf_counter() - started) / len(looked) * 1e6:.0f} us per look-up")
    database.close()
