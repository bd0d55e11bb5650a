"""What to do next for an edge: pure decisions over what is known.

The aim is to learn whether a result is cached while doing as little as possible:

- cache maps first, of the whole graph at once: they cost least;
- then content keys, which need an input's result. Inputs that have led to no candidate yet go
  first: if one of them can't lead to any, no hit is possible and the others need no content key;
- an input's result is wanted only for its content key or when the op must run;
- with a record in hand nothing else is done than to load it.

Each decision looks at the present state alone, so it may be taken again at any time.
"""

from __future__ import annotations

from boxwright.core.dataclass import dataclass, field
from boxwright.solver.edge import EdgeNode, InputState, Level

CACHE_MAP = "cache-map"
LOAD = "load"
EXEC = "exec"
SLOW = "slow-"


@dataclass(slots=True)
class Plan:
    """The work that an edge should have running, and how much it wants of each input."""

    work: set[str] = field(default_factory=set)
    inputs: list[Level] = field(default_factory=list)
    error: BaseException | None = None


def make_plan(node: EdgeNode) -> Plan:
    """Decide what should be going on for ``node`` right now."""
    plan = Plan(inputs=[Level.UNKNOWN] * len(node.inputs))
    demand = node.demand
    if node.finished or demand <= node.level:
        return plan
    if demand == Level.COMPLETE and node.records:
        plan.work.add(LOAD)
        return plan
    if node.cache_map is None or not (node.cache_map_done or node.records):
        plan.work.add(CACHE_MAP)
    if demand == Level.COMPLETE and ready_to_run(node):
        plan.work.add(EXEC)
        return plan
    for inp in node.inputs:
        # What was asked for stays asked for: work that has begun is not worth stopping because
        # another input became more promising.
        wanted = max(wanted_level(node, inp, demand), inp.demand)
        plan.inputs[inp.index] = wanted
        if wanted > inp.node.level and inp.node.error is not None:
            plan.error = inp.node.error
        if _wants_slow_work(node, inp):
            plan.work.add(f"{SLOW}{inp.index}")
    return plan


def ready_to_run(node: EdgeNode) -> bool:
    """Return whether all inputs are there and everything was tried to avoid running."""
    return node.cache_map_done and all(
        inp.node.level == Level.COMPLETE and not inp.work_open for inp in node.inputs
    )


def is_stuck(node: EdgeNode, plan: Plan) -> bool:
    """Return whether the plan leads nowhere although more is wanted."""
    return (
        not node.finished
        and node.demand > node.level
        and not plan.work
        and not node.work
        and plan.error is None
        and not any(
            level > inp.node.level for level, inp in zip(plan.inputs, node.inputs, strict=True)
        )
    )


def wanted_level(node: EdgeNode, inp: InputState, demand: Level) -> Level:
    """Return how much ``node`` wants to know about one input, given what is wanted of it."""
    level = inp.node.level
    if node.hopeless or node.forced:
        return Level.COMPLETE
    if level == Level.UNKNOWN:
        return Level.FAST
    if node.cache_map is None or level == Level.COMPLETE:
        return level
    if level == Level.FAST:
        return Level.SLOW if demand > Level.FAST and _go_slow(node, inp) else level
    return Level.COMPLETE if _go_complete(node, inp, demand) else level


def _go_slow(node: EdgeNode, inp: InputState) -> bool:
    """Whether an input should look for keys that cost it something."""
    if _waits_for_keys(node, inp):
        return False
    if not inp.candidates:
        return True
    all_fast = node.cache_map_done and all(i.node.level >= Level.FAST for i in node.inputs)
    return (all_fast and not node.keys) or all(_has_any_key(i) for i in node.inputs)


def _go_complete(node: EdgeNode, inp: InputState, demand: Level) -> bool:
    """Whether an input's result is wanted, for its content key or for the run."""
    has_slow = inp.dep.compute is not None
    if demand < Level.SLOW:
        return False
    if inp.candidates and _waits_for_content(node, inp):
        return False
    if demand < Level.COMPLETE:
        return has_slow
    if not inp.candidates:
        return True
    all_slow = all(i.node.level >= Level.SLOW and not i.slow_open for i in node.inputs)
    return all_slow or (has_slow and not _waits_for_keys(node, inp))


def _has_any_key(inp: InputState) -> bool:
    return bool(inp.candidates) or inp.slow_key is not None or inp.node.result is not None


def _waits_for_keys(node: EdgeNode, inp: InputState) -> bool:
    """Whether an input that has candidates should wait for those that have none yet."""
    if not inp.candidates:
        return False
    for other in node.inputs:
        if other.candidates:
            continue
        if other.dep.compute is not None:
            if not other.slow_done:
                return True
        elif other.node.level < Level.COMPLETE:
            return True
    return False


def _waits_for_content(node: EdgeNode, inp: InputState) -> bool:
    """Whether an input's content key can wait: another input may rule out any hit."""
    if inp.dep.compute is None or inp.slow_done or not inp.candidates:
        return False
    return any(
        not other.candidates
        and (
            (other.dep.compute is not None and not other.slow_done)
            or other.node.level < Level.SLOW
        )
        for other in node.inputs
    )


def _wants_slow_work(node: EdgeNode, inp: InputState) -> bool:
    if node.cache_map is None or inp.node.result is None or inp.slow_done:
        return False
    return inp.dep.compute is not None or inp.dep.preprocess is not None
