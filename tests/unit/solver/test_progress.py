"""What a job's progress says about its vertices."""

import asyncio
import itertools

from boxwright.progress.events import (
    LogEvent,
    ProgressGroup,
    StatusEvent,
    VertexEvent,
    WarningEvent,
)
from boxwright.progress.stream import ProgressStream
from boxwright.solver.jobs import Solver
from boxwright.testing.graphs import FakeGraph


class Ticks:
    """A clock that moves on at every look."""

    def __init__(self):
        self._next = itertools.count(1)

    def now_ns(self):
        return next(self._next)


class Recorder(ProgressStream):
    def __init__(self):
        super().__init__()
        self.events = []

    def write(self, event):
        self.events.append(event)
        super().write(event)

    def states(self, name):
        def state(event):
            if event.started_ns is None:
                return "known"
            if event.completed_ns is None:
                return "started"
            return "cached" if event.cached else event.error or "done"

        return [state(e) for e in self.events if isinstance(e, VertexEvent) and e.name == name]


def run(scenario):
    async def main():
        graph = FakeGraph()
        solver = Solver(graph._ops.__getitem__, graph.cache, clock=Ticks())
        await scenario(graph, solver)
        await solver.close()
        await graph.close()

    asyncio.run(asyncio.wait_for(main(), 120))


async def build(graph, solver, edge, job_id="j"):
    recorder = Recorder()
    job = solver.new_job(job_id, stream=recorder)
    try:
        await graph.build(solver, job, edge)
    finally:
        job.finish_progress()
        await job.discard()
    return recorder


def test_vertices_are_announced_then_run():
    async def scenario(graph, solver):
        top = graph.vertex("top", graph.vertex("base"))
        seen = await build(graph, solver, top)
        assert seen.states("top") == ["known", "started", "done"]
        # a source first resolves, then fetches
        assert seen.states("base") == ["known", "started", "done", "started", "done"]
        last = {v.name: v for v in seen.vertices}
        assert last["top"].inputs == (last["base"].digest,)
        assert last["base"].completed_ns <= last["top"].started_ns

    run(scenario)


def test_cached_vertices_and_what_they_stand_on_are_shown_as_cached():
    async def scenario(graph, solver):
        def top():
            return graph.vertex("top", graph.vertex("middle", graph.vertex("base")))

        await build(graph, solver, top(), "j0")
        seen = await build(graph, solver, top(), "j1")
        assert seen.states("top") == ["known", "started", "cached"]
        assert seen.states("middle") == ["known", "cached"]
        assert all(v.completed_ns for v in seen.vertices)

    run(scenario)


def test_errors_are_shown_at_their_vertex():
    async def scenario(graph, solver):
        async def fail(_ctx):
            raise ValueError("broken pipe")

        recorder = None
        try:
            top = graph.vertex("top", graph.vertex("bad", on_exec=fail))
            job = solver.new_job("j", stream=(recorder := Recorder()))
            await graph.build(solver, job, top)
        except Exception:
            pass
        await job.discard()
        assert "broken pipe" in recorder.states("bad")[-1]
        assert recorder.states("top") == ["known"]

    run(scenario)


def test_a_cancelled_vertex_is_ended():
    async def scenario(graph, solver):
        reached = asyncio.Event()

        async def wait(_ctx):
            reached.set()
            await asyncio.Event().wait()

        recorder = Recorder()
        job = solver.new_job("j", stream=recorder)
        task = asyncio.create_task(graph.build(solver, job, graph.vertex("a", on_exec=wait)))
        await reached.wait()
        task.cancel()
        await asyncio.wait([task])
        await job.discard()
        assert recorder.states("a")[-1] == "context canceled"

    run(scenario)


def test_what_an_op_reports_reaches_all_jobs():
    async def scenario(graph, solver):
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def report(ctx):
            reached.set()
            await go_on.wait()
            ctx.progress.status("layer", name="pulling", current=1, total=2)
            ctx.progress.log(1, b"hello\n")
            ctx.progress.warn("careful", detail=("more",), url="https://example.com")

        recorders = [Recorder(), Recorder()]
        jobs = [solver.new_job(f"j{i}", stream=r) for i, r in enumerate(recorders)]
        tasks = []
        for job in jobs:
            edge = graph.vertex("a", on_exec=report)
            tasks.append(asyncio.create_task(graph.build(solver, job, edge)))
            await reached.wait()
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(*tasks)
        for recorder in recorders:
            kinds = {type(e) for e in recorder.events}
            assert {StatusEvent, LogEvent, WarningEvent} <= kinds
            assert recorder.states("a")[-1] == "done"
        for job in jobs:
            await job.discard()

    run(scenario)


def test_a_merged_vertex_is_shown_to_the_job_that_brought_the_other():
    async def scenario(graph, solver):
        reached, go_on = asyncio.Event(), asyncio.Event()

        async def wait(_ctx):
            reached.set()
            await go_on.wait()

        first = asyncio.create_task(
            build(graph, solver, graph.vertex("a", key="k", on_exec=wait), "j0")
        )
        await reached.wait()
        second = asyncio.create_task(build(graph, solver, graph.vertex("b", key="k"), "j1"))
        for _ in range(10):
            await asyncio.sleep(0)
        go_on.set()
        await first
        seen = await second
        assert seen.states("a")[-1] == "done"

    run(scenario)


def test_graphs_solved_by_an_op_are_shown():
    async def scenario(graph, solver):
        outer = graph.vertex("outer", value=graph.vertex("inner"))
        seen = await build(graph, solver, outer)
        assert seen.states("inner")[-1] == "done"

    run(scenario)


def test_groups_are_passed_on():
    async def scenario(graph, solver):
        from dataclasses import replace

        from boxwright.llb.graph import Edge

        edge = graph.vertex("a")
        group = ProgressGroup("g", "group")
        vertex = replace(edge.vertex, options=replace(edge.vertex.options, progress_group=group))
        graph._ops[vertex] = graph._ops[edge.vertex]
        seen = await build(graph, solver, Edge(vertex))
        assert {v.group for v in seen.vertices} == {group}

    run(scenario)
