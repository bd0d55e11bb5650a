"""What BuildKit's own solver ran for random graphs, build after build, and what ours runs.

``tests/golden/cachekeys/solver_runs.json`` holds, per scenario, the builds in order with their
vertices and the names of those that BuildKit executed.
"""

import asyncio
import json
from pathlib import Path

import pytest

from boxwright.core.digest import Digest
from boxwright.testing.graphs import FakeGraph

GOLDEN = Path(__file__).parents[2] / "golden/cachekeys/solver_runs.json"
SCENARIOS = json.loads(GOLDEN.read_text())


def content_of(value):
    return str(int(value, 16) % 2)


async def executed(builds):
    graph = FakeGraph()
    runs = []
    async with graph.solver() as solver:
        for number, build in enumerate(builds):
            edges, ran = [], []

            def hook(name, ran=ran):
                async def on_exec(_ctx):
                    ran.append(name)

                return on_exec

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
                        on_exec=hook(node["name"]),
                    )
                )
            value = await graph.build(solver, str(number), edges[-1])
            assert value == build["nodes"][-1]["value"]
            runs.append(sorted(ran))
    await graph.close()
    return runs


@pytest.mark.parametrize("number", range(len(SCENARIOS)))
def test_runs_what_buildkit_runs(number):
    builds = SCENARIOS[number]
    runs = asyncio.run(asyncio.wait_for(executed(builds), 120))
    assert runs == [build["ran"] for build in builds]
