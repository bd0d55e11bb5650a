"""Several jobs at once: sharing, merging, cancellation, failures."""

import asyncio

import pytest

from boxwright.core import onbehalf
from boxwright.errors import BoxwrightError, InvalidInputError, NotFoundError
from boxwright.llb.graph import Edge
from boxwright.testing.graphs import FakeGraph


class StepError(BoxwrightError):
    pass


def run(scenario):
    async def main():
        graph = FakeGraph()
        async with graph.solver() as solver:
            await scenario(graph, solver)
        await graph.close()

    asyncio.run(asyncio.wait_for(main(), 120))


class Gate:
    """An op hook that reports that it was reached and waits to be opened."""

    def __init__(self):
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()
        self.sessions = ()
        self.on_behalf_of = ()

    async def __call__(self, ctx):
        self.reached.set()
        await self.opened.wait()
        self.sessions = ctx.sessions()
        self.on_behalf_of = await start(_sessions_of_this_task())


async def _sessions_of_this_task():
    return onbehalf.session_ids()


def start(coro):
    return asyncio.get_running_loop().create_task(coro)


def test_two_jobs_share_one_execution():
    async def scenario(graph, solver):
        gate = Gate()
        first = start(graph.build(solver, "j0", graph.vertex("a", on_exec=gate)))
        await gate.reached.wait()
        second = start(graph.build(solver, "j1", graph.vertex("a", value="not run")))
        await asyncio.sleep(0)
        gate.opened.set()
        assert await first == await second == "value of a"
        assert graph.execs() == {"a": 1}

    run(scenario)


def test_many_jobs_with_one_graph_run_it_once():
    async def scenario(graph, solver):
        def top():
            base = graph.vertex("base")
            sides = [graph.vertex(f"side{i}", base) for i in range(4)]
            return graph.vertex("top", *sides)

        async with asyncio.TaskGroup() as tg:
            for i in range(20):
                tg.create_task(graph.build(solver, f"j{i}", top()))
        assert set(graph.execs().values()) == {1}

    run(scenario)


def test_inputs_run_in_parallel():
    async def scenario(graph, solver):
        waiting = asyncio.Barrier(3)

        async def meet(_ctx):
            await waiting.wait()

        sides = [graph.vertex(f"side{i}", on_exec=meet) for i in range(3)]
        await graph.build(solver, "j0", graph.vertex("top", *sides))

    run(scenario)


def test_cache_maps_are_asked_for_in_parallel():
    async def scenario(graph, solver):
        waiting = asyncio.Barrier(3)

        async def meet(_ctx):
            await waiting.wait()

        base = graph.vertex("base", on_cache_map=meet)
        middle = graph.vertex("middle", base, on_cache_map=meet)
        await graph.build(solver, "j0", graph.vertex("top", middle, on_cache_map=meet))

    run(scenario)


def test_different_vertices_with_one_key_run_once():
    async def scenario(graph, solver):
        gate = Gate()
        first = start(graph.build(solver, "j0", graph.vertex("a", key="k", on_exec=gate)))
        await gate.reached.wait()
        second = start(graph.build(solver, "j1", graph.vertex("b", key="k")))
        for _ in range(10):
            await asyncio.sleep(0)
        gate.opened.set()
        assert await first == await second == "value of a"
        assert graph.execs() == {"a": 1}

    run(scenario)


def test_merged_vertices_on_merged_inputs_run_once():
    async def scenario(graph, solver):
        def top(suffix, hook=None):
            base = graph.vertex("base" + suffix, key="base", on_exec=hook)
            return graph.vertex("top" + suffix, base, key="top")

        gate = Gate()
        first = start(graph.build(solver, "j0", top("0", gate)))
        await gate.reached.wait()
        second = start(graph.build(solver, "j1", top("1")))
        for _ in range(10):
            await asyncio.sleep(0)
        gate.opened.set()
        assert await first == await second
        assert sorted(graph.execs().values()) == [1, 1]

    run(scenario)


def test_same_key_twice_in_one_graph_runs_once():
    async def scenario(graph, solver):
        sides = (graph.vertex("a", key="k"), graph.vertex("b", key="k"))
        await graph.build(solver, "j0", graph.vertex("top", *sides))
        execs = graph.execs()
        assert execs.pop("top") == 1
        assert list(execs.values()) == [1]

    run(scenario)


def test_equal_content_merges_running_steps():
    async def scenario(graph, solver):
        def step(suffix, hook=None):
            source = graph.vertex("source" + suffix)
            copy = graph.vertex("copy" + suffix, source, key="copy", slow={0: "same"})
            return graph.vertex("step" + suffix, copy, key="step", on_exec=hook)

        gate = Gate()
        first = start(graph.build(solver, "j0", step("0", gate)))
        await gate.reached.wait()
        second = start(graph.build(solver, "j1", step("1")))
        await asyncio.sleep(0)
        gate.opened.set()
        assert await first == await second
        execs = graph.execs()
        assert execs.get("step0", 0) + execs.get("step1", 0) == 1
        assert execs.get("copy0", 0) + execs.get("copy1", 0) == 1

    run(scenario)


def test_an_edge_is_not_merged_into_what_it_stands_on():
    async def scenario(graph, solver):
        base = graph.vertex("a", key="k", value=1)
        same = graph.vertex("b", base, key="k", value=2, slow={0: "c"})
        assert await graph.build(solver, "j0", graph.vertex("c", same, value=sum)) == 2

    run(scenario)


def test_two_outputs_merging_crosswise_do_not_deadlock():
    async def scenario(graph, solver):
        def pair(name):
            return graph.vertex(name, key="pair", outputs=2, value="v").vertex

        left, right = pair("left"), pair("right")
        top = graph.vertex("top", Edge(left, 0), Edge(right, 1), Edge(right, 0), Edge(left, 1))
        await graph.build(solver, "j0", top)
        assert graph.execs().get("left", 0) + graph.execs().get("right", 0) == 1

    run(scenario)


def test_both_outputs_come_from_one_execution():
    async def scenario(graph, solver):
        vertex = graph.vertex("a", outputs=2, value="v").vertex
        top = graph.vertex("top", Edge(vertex, 0), Edge(vertex, 1), value=lambda v: v)
        assert await graph.build(solver, "j0", top) == [("v", 0), ("v", 1)]
        assert graph.calls["a"].exec == 1

    run(scenario)


def test_missing_output_is_an_error():
    async def scenario(graph, solver):
        vertex = graph.vertex("a").vertex
        with pytest.raises(BoxwrightError, match="but 1 results received"):
            await graph.build(solver, "j0", Edge(vertex, 1))

    run(scenario)


def test_merged_edge_outlives_the_job_that_brought_it():
    async def scenario(graph, solver):
        def top(suffix):
            return graph.vertex("top" + suffix, graph.vertex("dep" + suffix, key="d"), key="t")

        jobs = [solver.new_job(f"j{i}") for i in range(3)]
        for i, job in enumerate(jobs):
            await graph.build(solver, job, top(str(i)))
            if i:
                await jobs[i - 1].discard()
        assert graph.execs() == {"dep0": 1, "top0": 1}
        active = {a.vertex.name for a in solver.active_vertices}
        assert {"dep2", "top2"} <= active
        assert {"dep1", "top1"}.isdisjoint(active)
        await jobs[2].discard()
        assert not solver.active_vertices

    run(scenario)


def test_a_late_job_keeps_the_edge_that_stands_in():
    async def scenario(graph, solver):
        first, second, third = (solver.new_job(f"j{i}") for i in range(3))
        gate = Gate()
        running = start(graph.build(solver, first, graph.vertex("a", key="k", on_exec=gate)))
        await gate.reached.wait()
        merged = start(graph.build(solver, second, graph.vertex("b", key="k")))
        for _ in range(10):
            await asyncio.sleep(0)
        late = start(graph.build(solver, third, graph.vertex("b", key="k")))
        await asyncio.sleep(0)
        for task, job in ((running, first), (merged, second)):
            task.cancel()
            await asyncio.wait([task])
            await job.discard()
        gate.opened.set()
        assert await late == "value of a"
        await third.discard()

    run(scenario)


def test_cancelling_the_only_job_cancels_the_op():
    async def scenario(graph, solver):
        gate = Gate()
        task = start(graph.build(solver, "j0", graph.vertex("a", on_exec=gate)))
        await gate.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert graph.calls["a"].cancelled == 1

    run(scenario)


def test_cancelling_during_the_cache_map():
    async def scenario(graph, solver):
        gate = Gate()
        task = start(graph.build(solver, "j0", graph.vertex("a", on_cache_map=gate)))
        await gate.reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert graph.calls["a"].cancelled == 1
        assert await graph.build(solver, "j1", graph.vertex("a")) == "value of a"

    run(scenario)


def test_a_shared_vertex_goes_on_while_one_job_wants_it():
    async def scenario(graph, solver):
        gate = Gate()
        first = start(graph.build(solver, "j0", graph.vertex("a", on_exec=gate)))
        await gate.reached.wait()
        second = start(graph.build(solver, "j1", graph.vertex("a")))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.opened.set()
        assert await second == "value of a"
        assert graph.calls["a"].cancelled == 0
        assert graph.calls["a"].exec == 1

    run(scenario)


def test_a_cancelled_vertex_can_be_built_again():
    async def scenario(graph, solver):
        gate = Gate()
        job = solver.new_job("j0")
        edge = graph.vertex("a", on_exec=gate)
        task = start(graph.build(solver, job, edge))
        await gate.reached.wait()
        task.cancel()
        await asyncio.wait([task])
        gate.opened.set()
        assert await graph.build(solver, job, edge) == "value of a"
        assert graph.calls["a"].exec == 2
        await job.discard()

    run(scenario)


def test_wanting_it_again_while_it_is_being_cancelled():
    async def scenario(graph, solver):
        stopping, may_stop = asyncio.Event(), asyncio.Event()
        gate = Gate()

        async def slow_to_stop(ctx):
            try:
                await gate(ctx)
            except asyncio.CancelledError:
                stopping.set()
                await may_stop.wait()
                raise

        job = solver.new_job("j0")
        edge = graph.vertex("a", on_exec=slow_to_stop)
        first = start(graph.build(solver, job, edge))
        await gate.reached.wait()
        first.cancel()
        await stopping.wait()
        second = start(graph.build(solver, job, edge))
        await asyncio.sleep(0)
        assert graph.calls["a"].exec == 1  # never two at once
        gate.opened.set()
        may_stop.set()
        assert await second == "value of a"
        assert graph.calls["a"].exec == 2
        await job.discard()

    run(scenario)


def test_discard_waits_for_what_it_cancels():
    async def scenario(graph, solver):
        gate, stopped = Gate(), []

        async def hook(ctx):
            try:
                await gate(ctx)
            finally:
                await asyncio.sleep(0)
                stopped.append(True)

        job = solver.new_job("j0")
        task = start(graph.build(solver, job, graph.vertex("a", on_exec=hook)))
        await gate.reached.wait()
        task.cancel()
        await asyncio.wait([task])
        await job.discard()
        assert stopped == [True]

    run(scenario)


def test_a_failure_names_its_vertex_and_reaches_the_top():
    async def scenario(graph, solver):
        async def fail(_ctx):
            raise StepError("no luck")

        bad = graph.vertex("bad", on_exec=fail)
        with pytest.raises(StepError, match="no luck") as caught:
            await graph.build(solver, "j0", graph.vertex("top", bad))
        assert caught.value.vertex == bad.vertex.digest
        assert graph.execs() == {"bad": 1}

    run(scenario)


def test_an_unexpected_exception_is_an_internal_error():
    async def scenario(graph, solver):
        async def fail(_ctx):
            raise ZeroDivisionError("oops")

        with pytest.raises(BoxwrightError, match="internal error") as caught:
            await graph.build(solver, "j0", graph.vertex("bad", on_exec=fail))
        assert caught.value.code == "internal"
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    run(scenario)


@pytest.mark.parametrize("where", ["cache map", "content digest"])
def test_failures_before_the_run(where):
    async def scenario(graph, solver):
        async def fail(_ctx):
            raise StepError("early")

        if where == "cache map":
            edge = graph.vertex("bad", on_cache_map=fail)
        else:
            edge = graph.vertex("bad", graph.vertex("base"), slow={0: StepError("early")})
        with pytest.raises(StepError) as caught:
            await graph.build(solver, "j0", edge)
        assert caught.value.vertex == edge.vertex.digest
        assert "bad" not in graph.execs()

    run(scenario)


def test_a_failure_cancels_what_only_the_failed_build_wanted():
    async def scenario(graph, solver):
        gate = Gate()

        async def fail(_ctx):
            await gate.reached.wait()
            raise StepError("no luck")

        sides = (graph.vertex("bad", on_exec=fail), graph.vertex("slow", on_exec=gate))
        with pytest.raises(StepError):
            await graph.build(solver, "j0", graph.vertex("top", *sides))
        assert graph.calls["slow"].cancelled == 1

    run(scenario)


def test_a_failure_is_shared_by_those_who_wait():
    async def scenario(graph, solver):
        gate = Gate()

        async def fail(ctx):
            await gate(ctx)
            raise StepError("no luck")

        edges = [graph.vertex("bad", on_exec=fail) for _ in range(3)]
        tasks = [start(graph.build(solver, f"j{i}", e)) for i, e in enumerate(edges)]
        await gate.reached.wait()
        await asyncio.sleep(0)
        gate.opened.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(o) for o in outcomes] == [StepError] * 3
        assert graph.calls["bad"].exec == 1

    run(scenario)


def test_a_failure_is_final_for_its_job_but_not_for_a_later_one():
    async def scenario(graph, solver):
        fails = [True]

        async def fail_once(_ctx):
            if fails:
                raise StepError("no luck")

        edge = graph.vertex("bad", on_exec=fail_once)
        job = solver.new_job("j0")
        for _ in range(2):
            with pytest.raises(StepError):
                await graph.build(solver, job, edge)
        assert graph.calls["bad"].exec == 1
        fails.clear()
        assert await graph.build(solver, "j1", edge) == "value of bad"
        await job.discard()

    run(scenario)


def test_an_input_that_failed_does_not_hurt_a_hit():
    async def scenario(graph, solver):
        await graph.build(solver, "j0", graph.vertex("top", graph.vertex("base")))

        async def fail(_ctx):
            raise StepError("no luck")

        base = graph.vertex("base", on_exec=fail, value="broken", ignore_cache=True)
        job = solver.new_job("j1")
        with pytest.raises(StepError):
            await graph.build(solver, job, base)
        assert await graph.build(solver, "j2", graph.vertex("top", graph.vertex("x", key="base")))
        await job.discard()

    run(scenario)


def test_an_op_that_cancels_itself_is_an_error_not_a_hang():
    async def scenario(graph, solver):
        async def cancel(_ctx):
            raise asyncio.CancelledError

        with pytest.raises(BoxwrightError, match="cancelled"):
            await graph.build(solver, "j0", graph.vertex("odd", on_exec=cancel))

    run(scenario)


def test_sessions_of_all_jobs_are_seen_while_running():
    async def scenario(graph, solver):
        gate = Gate()
        jobs = [solver.new_job(f"j{i}", session_id=f"s{i}") for i in range(3)]
        edges = [graph.vertex("a", on_exec=gate) for _ in jobs]
        tasks = [start(graph.build(solver, j, e)) for j, e in zip(jobs, edges, strict=True)]
        await gate.reached.wait()
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
        await jobs[0].discard()
        gate.opened.set()
        await asyncio.gather(*tasks[1:])
        assert gate.sessions == gate.on_behalf_of == ("s1", "s2")
        assert onbehalf.session_ids() == ()
        for job in jobs[1:]:
            await job.discard()

    run(scenario)


def test_sessions_of_merged_vertices_are_joined():
    async def scenario(graph, solver):
        gate = Gate()
        jobs = [solver.new_job(f"j{i}", session_id=f"s{i}") for i in range(2)]
        first = start(graph.build(solver, jobs[0], graph.vertex("a", key="k", on_exec=gate)))
        await gate.reached.wait()
        second = start(graph.build(solver, jobs[1], graph.vertex("b", key="k")))
        for _ in range(10):
            await asyncio.sleep(0)
        gate.opened.set()
        await asyncio.gather(first, second)
        assert gate.sessions == ("s0", "s1")
        for job in jobs:
            await job.discard()

    run(scenario)


def test_a_graph_solved_by_an_op():
    async def scenario(graph, solver):
        gate = Gate()
        gate.opened.set()
        inner = graph.vertex("inner", graph.vertex("deep", on_exec=gate), value="found")
        job = solver.new_job("j0", session_id="s")
        assert await graph.build(solver, job, graph.vertex("outer", value=inner)) == "found"
        assert gate.sessions == ("s",)
        assert graph.execs() == {"outer": 1, "inner": 1, "deep": 1}
        await job.discard()
        graph.reset()
        outer = graph.vertex("outer", value=graph.vertex("inner"))
        assert await graph.build(solver, "j1", outer) == "found"
        assert graph.execs() == {}

    run(scenario)


def test_a_solved_graph_is_not_merged_into_its_own_op():
    async def scenario(graph, solver):
        inner = graph.vertex("inner", key="k", value=7)
        outer = graph.vertex("outer", key="k", value=inner)
        assert await graph.build(solver, "j0", outer) == 7

    run(scenario)


def test_cached_beside_ignoring_job():
    async def scenario(graph, solver):
        gate = Gate()
        cached = start(graph.build(solver, "j0", graph.vertex("a", value=1, on_exec=gate)))
        await gate.reached.wait()
        ignoring = graph.vertex("a", value=2, ignore_cache=True)
        assert await graph.build(solver, "j1", ignoring) == 2
        gate.opened.set()
        assert await cached == 1

    run(scenario)


def test_a_job_joins_a_running_one_that_ignores_the_cache():
    async def scenario(graph, solver):
        gate = Gate()
        edge = graph.vertex("a", value=1, ignore_cache=True, on_exec=gate)
        ignoring = start(graph.build(solver, "j0", edge))
        await gate.reached.wait()
        joined = start(graph.build(solver, "j1", graph.vertex("a", value=2)))
        await asyncio.sleep(0)
        gate.opened.set()
        assert await ignoring == await joined == 1

    run(scenario)


def test_an_input_held_complete_by_another_job_still_leads_to_the_cache():
    async def scenario(graph, solver):
        def step(name):
            return graph.vertex(name, graph.vertex("base"), key="step")

        first = solver.new_job("a1")
        await graph.build(solver, first, step("step"))
        holder = solver.new_job("b")
        await graph.build(solver, holder, graph.vertex("base"))
        await first.discard()
        graph.reset()
        for name in ("step", "step-other"):
            await graph.build(solver, f"again-{name}", step(name))
        assert graph.execs() == {}
        await holder.discard()

    run(scenario)


def test_a_held_input_that_ignores_the_cache_makes_the_step_run():
    async def scenario(graph, solver):
        def base():
            return graph.vertex("base", ignore_cache=True)

        first = solver.new_job("a1")
        await graph.build(solver, first, graph.vertex("step", base()))
        holder = solver.new_job("b")
        await graph.build(solver, holder, base())
        await first.discard()
        graph.reset()
        await graph.build(solver, "a2", graph.vertex("step", base()))
        assert graph.execs() == {"step": 1}
        await holder.discard()

    run(scenario)


def test_cleanups_run_when_nobody_wants_the_vertex():
    async def scenario(graph, solver):
        ended = []

        async def hook(ctx):
            async def clean():
                ended.append(ctx.vertex.name)

            ctx.on_cleanup(clean)

        jobs = [solver.new_job(f"j{i}") for i in range(2)]
        for job in jobs:
            await graph.build(solver, job, graph.vertex("a", on_exec=hook))
        await jobs[0].discard()
        assert ended == []
        await jobs[1].discard()
        assert ended == ["a"]

    run(scenario)


def test_cache_opts_are_found_on_inputs():
    async def scenario(graph, solver):
        found = []

        async def hook(ctx):
            found.extend(
                [ctx.cache_opts("k"), ctx.cache_opts("k", include_inputs=False)],
            )

        base = graph.vertex("base", opts={"k": "provider"})
        await graph.build(solver, "j0", graph.vertex("top", base, on_exec=hook))
        assert found == ["provider", None]

    run(scenario)


def test_job_ids_are_unique_and_findable():
    async def scenario(graph, solver):
        async def late():
            return await solver.job("j0")

        task = start(late())
        await asyncio.sleep(0)
        job = solver.new_job("j0")
        assert await task is job
        with pytest.raises(InvalidInputError):
            solver.new_job("j0")
        with pytest.raises(NotFoundError):
            await solver.job("other", timeout_s=0)
        await job.discard()
        with pytest.raises(InvalidInputError):
            await job.build(graph.vertex("a"))

    run(scenario)
