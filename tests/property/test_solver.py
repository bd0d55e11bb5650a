"""Random graphs against an oracle that knows nothing of caches.

Every op is a pure function of its seed and of what its key says it depends on: the values of
its plain inputs, and the *content* (here: one bit) of the others. So two vertices with the
same effective key have the same value, and:

- whatever is cached, shared or merged, a build returns what plain evaluation returns;
- no effective key ever runs twice;
- where no input is keyed by content, exactly those run that a walk from the top needs.
"""

import asyncio
import hashlib
import random
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from boxwright.testing.graphs import FakeGraph


def digest_of(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]


def content_of(value):
    return str(int(value, 16) % 2)


@dataclass(frozen=True)
class Node:
    seed: int
    inputs: tuple["Node", ...]
    slow: tuple[bool, ...]

    @property
    def key(self):
        return f"{self.seed}-{len(self.inputs)}-{self.slow}"

    def facts(self, memo):
        """Return (value, effective key, vertex digest), as plain evaluation finds them."""
        found = memo.get(id(self))
        if found is None:
            below = [n.facts(memo) for n in self.inputs]
            pairs = list(zip(below, self.slow, strict=True))
            read = [content_of(b[0]) if slow else b[0] for b, slow in pairs]
            effective = digest_of(
                self.key, [content_of(b[0]) if slow else b[1] for b, slow in pairs]
            )
            vertex = digest_of(self.key, [b[2] for b in below])
            found = memo[id(self)] = (digest_of(self.key, read), effective, vertex)
        return found


@st.composite
def graphs(draw, *, slow=True):
    nodes = []
    for _ in range(draw(st.integers(1, 8))):
        inputs = draw(st.lists(st.sampled_from(nodes), max_size=3)) if nodes else []
        flags = draw(st.lists(st.booleans(), min_size=len(inputs), max_size=len(inputs)))
        flags = tuple(f and slow for f in flags)
        nodes.append(Node(draw(st.integers(0, 2)), tuple(inputs), flags))
    return nodes[-1]


class World:
    """Makes vertices for nodes and notes what runs."""

    def __init__(self, rng):
        self.graph = FakeGraph()
        self.rng = rng
        self.ran = []

    def edge(self, root):
        memo, edges = {}, {}
        root.facts(memo)
        order, stack = [], [(root, False)]
        while stack:
            node, expanded = stack.pop()
            if expanded:
                order.append(node)
            elif id(node) not in edges:
                edges[id(node)] = None
                stack.append((node, True))
                stack.extend((n, False) for n in node.inputs)
        for node in order:
            value, effective, vertex = memo[id(node)]
            edges[id(node)] = self.graph.vertex(
                vertex,
                *(edges[id(n)] for n in node.inputs),
                key=node.key,
                value=value,
                slow={i: content_of for i, s in enumerate(node.slow) if s},
                on_exec=self.hook(effective),
                on_cache_map=self.pause,
            )
        return edges[id(root)], memo[id(root)][0]

    def hook(self, effective):
        async def on_exec(ctx):
            self.ran.append(effective)
            await self.pause(ctx)

        return on_exec

    async def pause(self, _ctx):
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)


def run(main):
    asyncio.run(asyncio.wait_for(main, 120))


@settings(max_examples=150, deadline=None)
@given(st.lists(graphs(), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_builds_in_turn_are_right_and_run_nothing_twice(roots, rng):
    async def main():
        world = World(rng)
        async with world.graph.solver() as solver:
            for number, root in enumerate(roots):
                for again in range(2):
                    edge, expected = world.edge(root)
                    before = len(world.ran)
                    assert await world.graph.build(solver, f"{number}.{again}", edge) == expected
                    if again:
                        assert len(world.ran) == before, "an unchanged build ran something"
        assert len(world.ran) == len(set(world.ran)), "the same work was done twice"
        await world.graph.close()

    run(main())


@settings(max_examples=150, deadline=None)
@given(st.lists(graphs(slow=False), min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_without_content_keys_exactly_the_needed_runs(roots, rng):
    async def main():
        world = World(rng)
        known = set()
        async with world.graph.solver() as solver:
            for number, root in enumerate(roots):
                edge, expected = world.edge(root)
                needed, pending, memo = set(), [root], {}
                while pending:
                    node = pending.pop()
                    effective = node.facts(memo)[1]
                    if effective not in known and effective not in needed:
                        needed.add(effective)
                        pending.extend(node.inputs)
                world.ran.clear()
                assert await world.graph.build(solver, str(number), edge) == expected
                assert sorted(world.ran) == sorted(needed)
                known |= needed
        await world.graph.close()

    run(main())


@settings(max_examples=150, deadline=None)
@given(st.lists(graphs(), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_builds_at_once_share_and_survive_cancellation(roots, rng):
    async def build(world, solver, number, root):
        edge, expected = world.edge(root)
        assert await world.graph.build(solver, str(number), edge) == expected

    async def main():
        world = World(rng)
        async with world.graph.solver() as solver:
            loop = asyncio.get_running_loop()
            tasks = [
                loop.create_task(build(world, solver, i, root)) for i, root in enumerate(roots)
            ]
            cancelled = rng.randrange(len(tasks) + 1)
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            if cancelled < len(tasks):
                tasks[cancelled].cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            for i, outcome in enumerate(outcomes):
                if i != cancelled or not isinstance(outcome, asyncio.CancelledError):
                    assert outcome is None, outcome
            if cancelled == len(tasks):
                assert len(world.ran) == len(set(world.ran)), "the same work was done twice"
        await world.graph.close()

    run(main())


@settings(max_examples=60, deadline=None)
@given(graphs(), st.integers(0, 2**32))
def test_lost_results_cost_only_time(root, seed):
    rng = random.Random(seed)

    async def main():
        world = World(rng)
        async with world.graph.solver() as solver:
            edge, expected = world.edge(root)
            assert await world.graph.build(solver, "0", edge) == expected
            for result_id in list(world.graph.storage.result_ids()):
                if rng.random() < 0.5:
                    await world.graph.results.drop(result_id)
            edge, expected = world.edge(root)
            assert await world.graph.build(solver, "1", edge) == expected
        await world.graph.close()

    run(main())
