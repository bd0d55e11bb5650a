"""Cache export: the records that other builders would find, against BuildKit's."""

import asyncio
import hashlib
import json
from pathlib import Path

import pytest

from boxwright.core.descriptor import Descriptor
from boxwright.core.digest import Digest
from boxwright.errors import NotFoundError
from boxwright.solver.cachemanager import CombinedCacheManager, LocalCacheManager
from boxwright.solver.exporter import ExportMode, ExportOptions, ExportWalk
from boxwright.solver.memorystorage import MemoryCacheStorage, MemoryResultStorage
from boxwright.solver.types import Remote
from boxwright.testing.graphs import FakeGraph

GOLDEN = Path(__file__).parents[2] / "golden/cachekeys/exports.json"
SCENARIOS = json.loads(GOLDEN.read_text())


def content_of(value):
    return str(int(value, 16) % 2)


class Target:
    """Names each record by all that it leads back to."""

    def __init__(self):
        self.records = {}

    def add(self, digest, deps, results):
        text = digest
        for links in deps:
            text += f"\n[{' '.join(sorted({f'{li.record}|{li.selector}' for li in links}))}]"
        name = hashlib.sha256(text.encode()).hexdigest()[:12]
        blobs = sorted(f"{r.remote.descriptors[0].digest[7:19]}@{r.index}" for r in results)
        self.records[f"{name} [{' '.join(blobs)}]"] = (digest, deps, results)
        return name

    @property
    def names(self):
        return {record.split()[0] for record in self.records}

    def blobs(self):
        return sum(len(results) for _, _, results in self.records.values())


async def make_remotes(result):
    return [Remote((Descriptor("layer", Digest.of(str(result.value).encode()), 1),))]


async def export(result, mode=ExportMode.MAX, **options):
    target = Target()
    for key in result.cache_keys:
        walk = ExportWalk(target)
        await walk.export(key.exporter, ExportOptions(make_remotes, mode=mode, **options))
    return target


async def exports(builds):
    graph, found = FakeGraph(), []
    async with graph.solver() as solver:
        for number, build in enumerate(builds):
            edges = []
            for node in build["nodes"]:
                edges.append(
                    graph.vertex(
                        node["name"],
                        *(edges[i] for i in node["inputs"]),
                        key=node["key"],
                        value=node["value"],
                        slow=dict.fromkeys(node["slow"], content_of),
                        selectors={
                            int(i): Digest.of(text.encode())
                            for i, text in node["selectors"].items()
                        },
                        preprocess=node["preprocess"],
                        ignore_cache=node["ignore"],
                    )
                )
            job = solver.new_job(str(number))
            result = await job.build(edges[-1])
            found.append(
                {
                    "max": await export(result, export_roots=True),
                    "min": await export(result, ExportMode.MIN, ignore_backlinks=True),
                    "no_backlinks": await export(result, export_roots=True, ignore_backlinks=True),
                }
            )
            await result.release()
            await job.discard()
    await graph.close()
    return found


@pytest.mark.parametrize("number", range(len(SCENARIOS)))
def test_exports_what_buildkit_exports(number):
    builds = SCENARIOS[number]
    found = asyncio.run(asyncio.wait_for(exports(builds), 120))
    for build, mine in zip(builds, found, strict=True):
        for kind, target in mine.items():
            assert sorted(target.records) == sorted(build[kind]), kind


def run(scenario):
    async def main():
        graph = FakeGraph()
        async with graph.solver() as solver:
            job = solver.new_job("j")
            await scenario(graph, job)
            await job.discard()
        await graph.close()

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize(("decision", "blobs"), [(None, 1), (True, 1), (False, 0)])
def test_a_vertex_may_refuse_the_export_of_a_cached_result(decision, blobs):
    async def main():
        graph = FakeGraph()
        async with graph.solver() as solver:
            for number in range(2):
                middle = graph.vertex("middle", graph.vertex("base"), export_cache=decision)
                job = solver.new_job(str(number))
                # new each time, so that the middle one is found and not loaded
                top = graph.vertex("top", middle, key=f"top{number}", slow={0: "same"})
                result = await job.build(top)
                await result.release()
                await job.discard()
            job = solver.new_job("last")
            result = await job.build(graph.vertex("top", middle, key="top0", slow={0: "same"}))
            target = await export(result, ignore_backlinks=True)
            of_middle = [
                r
                for d, _, r in target.records.values()
                if r and r[0].vertex == middle.vertex.digest
            ]
            assert len(of_middle) == blobs
            await result.release()
            await job.discard()
        await graph.close()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_session_keys_are_not_exported():
    async def scenario(graph, job):
        local = graph.vertex("local", key="random:aa")
        result = await job.build(graph.vertex("top", local))
        assert not (await export(result, export_roots=True)).records
        await result.release()
        copied = await job.build(graph.vertex("copy", local, slow={0: "c"}))
        target = await export(copied)
        assert len(target.names) == 2  # the content key, and the copy
        assert target.blobs() == 1
        await copied.release()

    run(scenario)


def test_all_keys_of_a_source_are_exported():
    async def scenario(graph, job):
        result = await job.build(graph.vertex("a", key=("k0", "k1", "k2")))
        target = await export(result, export_roots=True)
        assert len(target.names) == 3
        await result.release()

    run(scenario)


def test_a_lost_input_result_is_left_out_but_its_key_is_not():
    async def scenario(graph, job):
        middle = graph.vertex("middle", graph.vertex("base"))
        result = await job.build(graph.vertex("top", middle))
        lost = next(r.id for r in graph.made if r.value == "value of middle")
        await graph.results.drop(lost)
        target = await export(result, export_roots=True)
        assert len(target.names) == 3
        assert target.blobs() == 2
        await result.release()

    run(scenario)


def test_failing_to_make_the_blobs_of_the_result_is_an_error():
    async def scenario(graph, job):
        async def fail(_result):
            raise NotFoundError("no layer")

        result = await job.build(graph.vertex("top", graph.vertex("base")))
        (key,) = result.cache_keys
        with pytest.raises(NotFoundError):
            await ExportWalk(Target()).export(
                key.exporter, ExportOptions(fail, mode=ExportMode.MAX)
            )
        await result.release()

    run(scenario)


def test_graphs_solved_by_an_op_are_exported_with_it():
    async def scenario(graph, job):
        inner = graph.vertex("inner", graph.vertex("deep"))
        result = await job.build(graph.vertex("outer", value=inner))
        names = {d for d, _, _ in (await export(result, export_roots=True)).records.values()}
        assert len(names) == 3
        await result.release()

    run(scenario)


def test_a_long_chain_is_exported_without_recursion():
    async def scenario(graph, job):
        edge = graph.vertex("v0")
        for i in range(1, 1500):
            edge = graph.vertex(f"v{i}", edge)
        result = await job.build(edge)
        target = await export(result, export_roots=True)
        assert len(target.names) == 1500
        await result.release()

    run(scenario)


def test_an_imported_cache_is_used_and_copied_to_the_main_one():
    async def main():
        remote = FakeGraph()
        async with remote.solver() as solver:
            top = remote.vertex("top", remote.vertex("base"), value="from afar")
            await remote.build(solver, "j", top)
        imported = LocalCacheManager("imported", remote.storage, remote.results)
        local = FakeGraph()
        async with local.solver() as solver:
            for number, caches in enumerate(([imported], [])):
                top = local.vertex("top", local.vertex("base"), value="run here")
                value = await local.build(solver, f"j{number}", top, caches=caches)
                assert value == "from afar"
        assert local.execs() == {}
        await local.close()
        await remote.close()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_combined_caches_prefer_the_main_one():
    async def main():
        graph = FakeGraph()
        other_storage, other_results = MemoryCacheStorage(), MemoryResultStorage()
        other = LocalCacheManager("other", other_storage, other_results)
        combined = CombinedCacheManager(graph.cache, [other])
        async with graph.solver() as solver:
            job = solver.new_job("j")
            result = await job.build(graph.vertex("a"))
            (key,) = result.cache_keys
            await other.save(key.key, result.result, 1)
            found = combined.query((), 0, key.key.digest, 0)
            assert [k.id for k in found] == [key.key.id]
            (record,) = combined.records(found[0])
            assert record.manager is graph.cache
            await result.release()
            await job.discard()
        await other_results.close()
        await graph.close()

    asyncio.run(asyncio.wait_for(main(), 120))
