"""Which vertices run, and which are known from earlier builds."""

import asyncio

import pytest

from boxwright.testing.graphs import FakeGraph


def run(scenario):
    """Run a scenario on a fresh graph and check that nothing leaks."""

    async def main():
        graph = FakeGraph()
        async with graph.solver() as solver:
            await scenario(graph, solver)
        await graph.close()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_one_vertex_runs_once_and_is_cached():
    async def scenario(graph, solver):
        assert await graph.build(solver, "j0", graph.vertex("a")) == "value of a"
        assert graph.execs() == {"a": 1}
        graph.reset()
        assert await graph.build(solver, "j1", graph.vertex("a", value="other")) == "value of a"
        assert graph.execs() == {}

    run(scenario)


def test_other_key_runs_again():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("a", key="one", value=1))
        assert await graph.build(solver, "j1", graph.vertex("a", key="two", value=2)) == 2

    run(scenario)


def test_same_key_under_another_digest_is_a_hit():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("a", key="same", value=1))
        assert await graph.build(solver, "j1", graph.vertex("b", key="same", value=2)) == 1
        assert graph.execs() == {"a": 1}

    run(scenario)


def test_no_input_runs_when_the_result_is_cached():
    async def scenario(graph, solver):
        def chain():
            base = graph.vertex("base")
            middle = graph.vertex("middle", base)
            return graph.vertex("top", middle)

        await graph.build(solver, "j0", chain())
        assert graph.execs() == {"base": 1, "middle": 1, "top": 1}
        graph.reset()
        await graph.build(solver, "j1", chain())
        assert graph.execs() == {}

    run(scenario)


def test_only_descendants_of_a_change_run():
    async def scenario(graph, solver):
        def build_graph(left_key):
            left = graph.vertex("left", key=left_key)
            right = graph.vertex("right")
            steps = (graph.vertex("on-left", left), graph.vertex("on-right", right))
            return graph.vertex("top", *steps)

        await graph.build(solver, "j0", build_graph("l0"))
        graph.reset()
        await graph.build(solver, "j1", build_graph("l1"))
        assert graph.execs() == {"left": 1, "on-left": 1, "top": 1}

    run(scenario)


def test_same_content_stops_a_change():
    async def scenario(graph, solver):
        def build_graph(source_key, content):
            source = graph.vertex("source", key=source_key)
            copy = graph.vertex("copy", source, slow={0: content})
            return graph.vertex("step", copy)

        await graph.build(solver, "j0", build_graph("s0", "same"))
        graph.reset()
        await graph.build(solver, "j1", build_graph("s1", "same"))
        assert graph.execs() == {"source": 1}
        graph.reset()
        await graph.build(solver, "j2", build_graph("s2", "new"))
        assert graph.execs() == {"source": 1, "copy": 1, "step": 1}

    run(scenario)


def test_a_content_hit_gives_the_definition_key_its_hit():
    async def scenario(graph, solver):
        def build_graph(source_key, content):
            source = graph.vertex("source", key=source_key)
            return graph.vertex("copy", source, slow={0: content})

        await graph.build(solver, "j0", build_graph("s0", "same"))
        await graph.build(solver, "j1", build_graph("s1", "same"))
        graph.reset()
        # s1 was never copied itself, yet it now leads straight to the copy
        await graph.build(solver, "j2", build_graph("s1", "same"))
        assert graph.execs() == {}
        assert not graph.calls["copy"].slow

    run(scenario)


def test_content_is_not_computed_when_the_definition_key_hits():
    async def scenario(graph, solver):
        def build_graph():
            return graph.vertex("copy", graph.vertex("source"), slow={0: "x"})

        await graph.build(solver, "j0", build_graph())
        assert graph.calls["copy"].slow == {0: 1}
        graph.reset()
        await graph.build(solver, "j1", build_graph())
        assert not graph.calls["copy"].slow
        assert graph.execs() == {}

    run(scenario)


def test_content_is_not_computed_when_another_input_rules_out_a_hit():
    async def scenario(graph, solver):
        def build_graph(plain):
            inputs = (graph.vertex("content"), graph.vertex("plain", key=plain))
            return graph.vertex("step", *inputs, slow={0: "c"})

        await graph.build(solver, "j0", build_graph("p0"))
        graph.reset()
        await graph.build(solver, "j1", build_graph("p1"))
        # the run needs the input; its content key is computed for the record that is saved
        assert graph.execs() == {"plain": 1, "step": 1}

    run(scenario)


def test_content_is_not_computed_before_all_definition_keys_are_known():
    async def scenario(graph, solver):
        def top():
            copy = graph.vertex("copy", graph.vertex("source"), slow={0: "c"})
            return graph.vertex("top", copy, graph.vertex("other"), slow={1: "d"})

        await graph.build(solver, "j0", top())
        # new results for the inputs: only their keys lead to the top now
        for result in [r for r in graph.made if r.value != "value of top"]:
            await graph.results.drop(result.id)
        graph.reset()
        await graph.build(solver, "j1", top())
        assert graph.execs() == {}
        assert not graph.calls["copy"].slow

    run(scenario)


def test_selectors_separate_uses_of_one_input():
    async def scenario(graph, solver):
        def step(selector):
            source = graph.vertex("source")
            name = f"step-{selector}"
            return graph.vertex(name, source, key="step", value=name, selectors={0: selector})

        await graph.build(solver, "j0", step("a"))
        assert await graph.build(solver, "j1", step("b")) == "step-b"
        graph.reset()
        assert await graph.build(solver, "j2", step("a")) == "step-a"
        assert graph.execs() == {}

    run(scenario)


def test_selector_with_content_key():
    async def scenario(graph, solver):
        def step(source_key, content):
            source = graph.vertex("source", key=source_key)
            return graph.vertex("step", source, selectors={0: "sel"}, slow={0: content})

        await graph.build(solver, "j0", step("s0", "c0"))
        graph.reset()
        await graph.build(solver, "j1", step("s1", "c0"))
        assert graph.execs() == {"source": 1}
        graph.reset()
        await graph.build(solver, "j2", step("s1", "c0"))
        assert graph.execs() == {}

    run(scenario)


def test_several_cache_maps_any_of_them_hits():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("a", key=("k0", "k1", "k2"), value="first"))
        for job, keys in (("j1", ("k1", "x")), ("j2", ("x", "k2")), ("j3", ("x", "y", "k0"))):
            edge = graph.vertex("b", digest=job, key=keys, value="second")
            assert await graph.build(solver, job, edge) == "first"
        assert graph.execs() == {"a": 1}

    run(scenario)


def test_later_cache_maps_are_not_asked_for_after_a_hit():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("a", key="k0"))
        await graph.build(solver, "j1", graph.vertex("b", key=("k0", "k1")))
        assert graph.calls["b"].cache_map == 1

    run(scenario)


def test_several_cache_maps_on_an_input():
    async def scenario(graph, solver):
        def top(keys):
            return graph.vertex("top", graph.vertex("source", digest=str(keys), key=keys))

        await graph.build(solver, "j0", top(("k0", "k1")))
        graph.reset()
        await graph.build(solver, "j1", top(("other", "k1")))
        assert graph.execs() == {}

    run(scenario)


def test_random_keys_hit_only_within_their_digest():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("local", key="random:aa"))
        graph.reset()
        await graph.build(solver, "j1", graph.vertex("local", key="random:bb"))
        assert graph.execs() == {"local": 1}

    run(scenario)


def test_ignore_cache_runs_again_and_replaces():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("a", value=1))
        assert await graph.build(solver, "j1", graph.vertex("a", value=2, ignore_cache=True)) == 2
        assert await graph.build(solver, "j2", graph.vertex("a", value=3)) == 2

    run(scenario)


def test_ignore_cache_on_an_input_makes_its_consumers_run():
    async def scenario(graph, solver):
        def top(**options):
            return graph.vertex("top", graph.vertex("base", **options))

        await graph.build(solver, "j0", top())
        graph.reset()
        await graph.build(solver, "j1", top(ignore_cache=True))
        assert graph.execs() == {"base": 1, "top": 1}

    run(scenario)


def test_ignore_cache_on_the_top_keeps_its_inputs_cached():
    async def scenario(graph, solver):
        def top(**options):
            return graph.vertex("top", graph.vertex("base"), **options)

        await graph.build(solver, "j0", top())
        graph.reset()
        await graph.build(solver, "j1", top(ignore_cache=True))
        assert graph.execs() == {"top": 1}

    run(scenario)


def test_ignored_input_with_the_same_content_keeps_the_consumer_cached():
    async def scenario(graph, solver):
        def top(**options):
            return graph.vertex("top", graph.vertex("base", **options), slow={0: "same"})

        await graph.build(solver, "j0", top())
        graph.reset()
        await graph.build(solver, "j1", top(ignore_cache=True))
        assert graph.execs() == {"base": 1}

    run(scenario)


def test_a_lost_result_is_a_miss():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("top", graph.vertex("base")))
        for result in [r for r in graph.made if r.value == "value of top"]:
            await graph.results.drop(result.id)
        graph.reset()
        await graph.build(solver, "j1", graph.vertex("top", graph.vertex("base")))
        assert graph.execs() == {"top": 1}

    run(scenario)


def test_a_result_that_fails_to_load_is_a_miss(monkeypatch):
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("top", graph.vertex("base")))
        broken = next(r.id for r in graph.made if r.value == "value of top")
        load = graph.results.load

        async def failing_load(record):
            if record.id == broken:
                raise OSError("corrupt")
            return await load(record)

        monkeypatch.setattr(graph.results, "load", failing_load)
        graph.reset()
        await graph.build(solver, "j1", graph.vertex("top", graph.vertex("base")))
        assert graph.execs() == {"top": 1}

    run(scenario)


@pytest.mark.parametrize("broken", ["links", "results", "exists", "add_link", "add_result"])
def test_a_broken_storage_costs_time_not_builds(monkeypatch, broken):
    async def scenario(graph, solver):
        def top():
            return graph.vertex("top", graph.vertex("base"), slow={0: "c"})

        def fail(*_args):
            raise OSError("disk I/O error")

        await graph.build(solver, "j0", top())
        monkeypatch.setattr(graph.storage, broken, fail)
        assert await graph.build(solver, "j1", top()) == "value of top"
        assert await graph.build(solver, "j2", graph.vertex("new", top())) == "value of new"

    run(scenario)


def test_newest_of_several_records_is_loaded():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("a", value="old"))
        await graph.build(solver, "j1", graph.vertex("a", value="new", ignore_cache=True))
        assert await graph.build(solver, "j2", graph.vertex("a", value="x")) == "new"

    run(scenario)


def test_older_record_is_used_when_the_newer_is_gone():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("a", value="old"))
        await graph.build(solver, "j1", graph.vertex("a", value="new", ignore_cache=True))
        await graph.results.drop(graph.made[-1].id)
        assert await graph.build(solver, "j2", graph.vertex("a", value="x")) == "old"

    run(scenario)


def test_outputs_of_one_vertex_are_cached_apart():
    async def scenario(graph, solver):
        from boxwright.llb.graph import Edge

        def vertex():
            return graph.vertex("a", outputs=2, value="v").vertex

        assert await graph.build(solver, "j0", Edge(vertex(), 0)) == ("v", 0)
        assert await graph.build(solver, "j1", Edge(vertex(), 1)) == ("v", 1)
        assert graph.calls["a"].exec == 2
        graph.reset()
        assert await graph.build(solver, "j2", Edge(vertex(), 1)) == ("v", 1)
        assert graph.execs() == {}

    run(scenario)


def test_preprocessing_runs_before_the_op_but_not_for_a_hit():
    async def scenario(graph, solver):
        def step():
            return graph.vertex("step", graph.vertex("base"), preprocess=[0])

        await graph.build(solver, "j0", step())
        assert graph.calls["step"].preprocess == {0: 1}
        graph.reset()
        await graph.build(solver, "j1", step())
        assert not graph.calls["step"].preprocess

    run(scenario)


def test_unneeded_branch_is_not_loaded():
    async def scenario(graph, solver):
        def top(name):
            branch = graph.vertex("branch")
            return graph.vertex(name, graph.vertex("base"), branch)

        await graph.build(solver, "j0", top("top"))
        loads = []
        load = graph.results.load

        async def counting_load(record):
            loads.append(record.id)
            return await load(record)

        graph.results.load = counting_load
        await graph.build(solver, "j1", top("top"))
        assert len(loads) == 1

    run(scenario)


def test_diamond_runs_each_vertex_once():
    async def scenario(graph, solver):
        base = graph.vertex("base", value=2)
        left = graph.vertex("left", base, value=lambda v: v[0] + 1)
        right = graph.vertex("right", base, value=lambda v: v[0] * 10)
        top = graph.vertex("top", left, right, value=sum)
        assert await graph.build(solver, "j0", top) == 23
        assert graph.execs() == {"base": 1, "left": 1, "right": 1, "top": 1}

    run(scenario)


def test_long_chain_does_not_recurse():
    async def scenario(graph, solver):
        edge = graph.vertex("v0", value=0)
        for i in range(1, 3000):
            edge = graph.vertex(f"v{i}", edge, value=lambda v: v[0] + 1)
        assert await graph.build(solver, "j0", edge) == 2999

    run(scenario)
