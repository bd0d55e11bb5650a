"""Write down what a build's cache keys were made of, when it ends.

Everything is read from what the solver still holds; files are not touched. Of a build that
changed nothing, a few rows of metadata are all that is new.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from hashlib import sha256

from boxwright.core.dataclass import dataclass, field
from boxwright.core.workers import to_worker
from boxwright.engine.contenttables import StatOf, Table, subtable, table_name
from boxwright.engine.keyrecords import KeyRecord, KeyRecords
from boxwright.llb.graph import Vertex
from boxwright.ops.keys import ContentKey, selection_of
from boxwright.ops.result import ref_of
from boxwright.snapshots.content_tree import TreeNode
from boxwright.snapshots.contenthash import content_hashes
from boxwright.snapshots.refs import ImmutableRef
from boxwright.solver.facts import InputFacts, Outcome, VertexFacts, facts_of
from boxwright.solver.jobs import Job
from boxwright.sources.local import LocalSources
from boxwright.wire.pb import explain_pb2, ops_pb2

_log = logging.getLogger(__name__)

_MAX_OP_BYTES = 256 << 10
_PROJECT_OPTIONS = ("filename", "target", "context", "contextsubdir", "cmdline", "source")
_OUTCOMES = {
    Outcome.UNKNOWN: explain_pb2.UNKNOWN,
    Outcome.RAN: explain_pb2.RAN,
    Outcome.LOCAL: explain_pb2.LOCAL,
    Outcome.IMPORTED: explain_pb2.IMPORTED,
    Outcome.SKIPPED: explain_pb2.SKIPPED,
    Outcome.FAILED: explain_pb2.FAILED,
}


@dataclass(slots=True)
class FrontendRuns:
    """The frontends that made a build's graphs, in the order in which they were asked.

    One hands over to another where a Dockerfile names its syntax.
    """

    names: list[str] = field(default_factory=list)
    options: Mapping[str, str] = field(default_factory=dict)

    def add(self, name: str, options: Mapping[str, str]) -> None:
        """Note a run; the options of the first are what the user said."""
        if not self.names:
            self.options = dict(options)
        self.names.append(name)


def project_of(options: Mapping[str, str], shared_key: str) -> bytes:
    """Return what is equal for builds that are worth comparing: of one folder and one target.

    Platform, build arguments, outputs and frontend are no part of it: those may change.
    """
    named = {key: value for key, value in options.items() if key.startswith("context:")}
    document = [[options.get(key, "") for key in _PROJECT_OPTIONS], named, shared_key]
    return sha256(json.dumps(document, sort_keys=True).encode()).digest()[:16]


class KeyCollector:
    """Reads the keys of builds off the solver."""

    def __init__(self, records: KeyRecords, local: LocalSources) -> None:
        self.records = records
        self._local = local

    async def collect(
        self,
        job: Job,
        frontends: FrontendRuns,
        imports: Sequence[tuple[str, str]],
        shared_key: str,
    ) -> KeyRecord:
        """Return the keys of a job that has not been discarded yet."""
        facts = facts_of(job)
        keys = explain_pb2.BuildKeys(
            frontend=frontends.names[-1] if frontends.names else "", options=frontends.options
        )
        keys.imports.extend(explain_pb2.ImportState(name=n, error=e) for n, e in imports)
        numbers = {each.digest: number for number, each in enumerate(facts)}
        wanted: dict[bytes, InputFacts] = {}
        for each in facts:
            step = _fill(keys.steps.add(), each)
            for fact in each.inputs:
                name = _table_of(fact)
                if name:
                    wanted[name] = fact
                step.inputs.add(
                    step=numbers[fact.digest],
                    output=fact.output,
                    selector=fact.dep.selector,
                    content=fact.content,
                    table=name,
                )
        tables: list[Table] = []
        for name in self.records.tables.missing(wanted):
            tables += await self._tables(name, wanted[name])
        project = project_of(frontends.options, shared_key)
        return KeyRecord(project, keys, tuple(tables))

    async def _tables(self, name: bytes, fact: InputFacts) -> list[Table]:
        """Return the tables of an input; none if what is known does not suffice."""
        compute = fact.dep.compute
        ref = ref_of(fact.result)
        if ref is None or not isinstance(compute, ContentKey):
            return []
        entries: dict[bytes, tuple[bytes, TreeNode, bytes]] = {}
        hashes = content_hashes(ref.manager)
        for selector in compute.selectors:
            selection = selection_of(selector)
            found = await hashes.entries(ref.id, selector.path, selection)
            if found is None:
                return []
            for path, node in found:
                entries[path] = (path, node, subtable(node) if selection.is_plain else b"")
        make = self.records.tables.make
        return await to_worker(make, name, list(entries.values()), self._stats(ref))

    def _stats(self, ref: ImmutableRef) -> StatOf:
        index = self._local.index_of(ref.id)

        def stat_of(path: bytes) -> bytes:
            entry = index.entries.get(path[1:]) if index is not None else None
            return entry.rest if entry is not None else b""

        return stat_of


def _fill(step: explain_pb2.StepKeys, facts: VertexFacts) -> explain_pb2.StepKeys:
    step.digest = facts.digest
    step.name = facts.vertex.name
    step.op = _op_bytes(facts.vertex)
    step.cache_maps.extend(facts.cache_maps)
    step.outcome = _OUTCOMES[facts.outcome]
    step.origin = facts.origin
    step.ignore_cache = facts.vertex.options.ignore_cache
    step.pin = getattr(facts.op, "pin", "")
    step.load_failures.extend(facts.load_failures)
    return step


def _op_bytes(vertex: Vertex) -> bytes:
    """Return the op without its inputs, whose digests change with everything below them."""
    if not vertex.op.inputs:
        data = vertex.op.SerializeToString()
    else:
        op = ops_pb2.Op()
        op.CopyFrom(vertex.op)
        op.ClearField("inputs")
        data = op.SerializeToString()
    return data if len(data) <= _MAX_OP_BYTES else b""


def _table_of(fact: InputFacts) -> bytes:
    compute = fact.dep.compute
    if not fact.content or fact.result is None or not isinstance(compute, ContentKey):
        return b""
    return table_name(fact.content, *map(repr, compute.selectors))
