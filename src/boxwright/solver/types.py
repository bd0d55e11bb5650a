"""What the solver asks of the world: operations, results, storages.

The solver knows vertices, keys and results; it never looks into an op or into what a result
holds. Everything here that is called from the scheduling pass (``CacheKeyStorage``,
``ResultStorage.exists``) is synchronous and must answer from memory or a local database.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from boxwright.core.cacheinfo import CacheInfoLink, CacheResult
from boxwright.core.dataclass import dataclass, field
from boxwright.core.descriptor import Descriptor
from boxwright.llb.graph import Edge, Vertex

if TYPE_CHECKING:
    from boxwright.solver.cachekey import CacheKey, ExportableKey, SelectedKey
    from boxwright.solver.cachemanager import LocalCacheManager
    from boxwright.solver.progress import VertexProgress
    from boxwright.wire.pb.ops_pb2 import Definition


class Result(Protocol):
    """One output of an op. Every clone is released once; the last release frees it."""

    @property
    def id(self) -> str:
        """The id that a result storage finds it by."""
        ...

    @property
    def value(self) -> object:
        """What the ops know it to be (a snapshot reference)."""
        ...

    def clone(self) -> Result:
        """Return another owner of the same thing."""
        ...

    async def release(self) -> None:
        """Give up this owner's share. Releasing twice is an error of the caller."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CachedResult:
    """A result together with the keys that lead to it; the holder releases ``result``."""

    result: Result
    cache_keys: tuple[ExportableKey, ...]

    @property
    def id(self) -> str:
        """The id of the result."""
        return self.result.id

    @property
    def value(self) -> object:
        """What the ops know the result to be."""
        return self.result.value

    def clone(self) -> CachedResult:
        """Return another owner of the same result."""
        return CachedResult(self.result.clone(), self.cache_keys)

    async def release(self) -> None:
        """Give up this owner's share."""
        await self.result.release()


class JobContext(Protocol):
    """What a running op learns about those who want it."""

    @property
    def vertex(self) -> Vertex:
        """The vertex that runs."""
        ...

    @property
    def progress(self) -> VertexProgress:
        """Where the vertex's statuses, logs and warnings go, for all jobs that want it."""
        ...

    def sessions(self) -> tuple[str, ...]:
        """Ids of the sessions of all jobs that want the vertex *now*, oldest first."""
        ...

    def job_values(self) -> tuple[dict[str, Any], ...]:
        """What is remembered with each of the jobs that want the vertex *now*, oldest first."""
        ...

    def on_cleanup(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Keep something until no job wants the vertex any more."""
        ...

    def cache_opts(self, key: str, *, include_inputs: bool = True) -> object | None:
        """Return the nearest ``CacheMap.opts[key]`` of this vertex or of those it stands on."""
        ...

    async def admit(self, definition: Definition) -> Edge:
        """Return the graph of a definition, checked as those of the build are."""
        ...

    async def build(self, edge: Edge) -> CachedResult:
        """Solve another graph on behalf of this vertex; the caller releases the result."""
        ...


Admit = Callable[["Definition"], Awaitable[Edge]]
"""How a job turns a definition into a graph: with its policy, privileges and capabilities."""

Watch = Callable[[Edge, Result], None]
"""Told of every result that a job's edges get, which it borrows during the call only."""

SlowKeyFunc = Callable[[Result, JobContext], Awaitable[str]]
PreprocessFunc = Callable[[Result, JobContext], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class CacheMapDep:
    """How one input enters the cache key.

    Attributes:
        selector: Digest merged with the input's definition keys; empty for the whole input.
        compute: Digest of the input's content, used in place of key and selector.
        preprocess: Runs on the input before the op and before ``compute`` (fetch a lazy one).
    """

    selector: str = ""
    compute: SlowKeyFunc | None = None
    preprocess: PreprocessFunc | None = None


@dataclass(frozen=True, slots=True)
class CacheMap:
    """The op's share of its cache key, and how each input enters it.

    ``opts`` are handed to cache loads for this vertex; they never change the key.
    """

    digest: str
    deps: tuple[CacheMapDep, ...] = ()
    opts: Mapping[str, object] = field(default_factory=dict)


class OpSlot(Protocol):
    """A share of a limited resource that an op holds while it runs."""

    def release(self) -> None:
        """Give the share back."""
        ...


class Op(Protocol):
    """An operation that the solver can key and run."""

    async def cache_map(self, ctx: JobContext, index: int) -> tuple[CacheMap, bool]:
        """Return the ``index``-th cache map and whether it is the last.

        Only ops without inputs may have more than one: equivalent keys, cheapest first.
        """
        ...

    async def exec(self, ctx: JobContext, inputs: Sequence[Result]) -> list[Result]:
        """Run on borrowed inputs and return all outputs, owned by the caller."""
        ...

    async def acquire(self) -> OpSlot | None:
        """Wait for what the op needs in order to run (parallelism)."""
        ...


class CacheKeyStorage(Protocol):
    """Keys, links between them, and the ids of their results. Synchronous and fast."""

    def batch(self) -> AbstractContextManager[object]:
        """Make all writes of a block one transaction."""
        ...

    def exists(self, key_id: str) -> bool:
        """Return whether the key has a result or leads to another key."""
        ...

    def ids(self) -> Iterable[str]:
        """Return the ids of all keys."""
        ...

    def results(self, key_id: str) -> list[CacheResult]:
        """Return the results of a key; none if there is no such key."""
        ...

    def load(self, key_id: str, result_id: str) -> CacheResult | None:
        """Return one result of a key."""
        ...

    def add_result(self, key_id: str, result: CacheResult) -> None:
        """Store a result under a key, replacing one with the same id."""
        ...

    def release(self, result_id: str) -> None:
        """Forget a result under all keys, and every key that then leads nowhere."""
        ...

    def result_ids(self) -> Iterable[str]:
        """Return the ids of all results."""
        ...

    def ids_by_result(self, result_id: str) -> list[str]:
        """Return the keys that have this result."""
        ...

    def add_link(self, key_id: str, link: CacheInfoLink, target: str) -> None:
        """Make ``key_id`` lead to ``target`` under the condition ``link``."""
        ...

    def links(self, key_id: str, link: CacheInfoLink) -> list[str]:
        """Return where the key leads under exactly this condition."""
        ...

    def has_link(self, key_id: str, link: CacheInfoLink, target: str) -> bool:
        """Return whether :meth:`add_link` was called with these and nothing released it."""
        ...

    def backlinks(self, key_id: str) -> list[tuple[str, CacheInfoLink]]:
        """Return the keys that lead here, with ``link.digest`` already a root key."""
        ...


@dataclass(frozen=True, slots=True)
class Remote:
    """A stack of layer blobs, lowest first, that some provider can deliver."""

    descriptors: tuple[Descriptor, ...]
    provider: object = None


class ResultStorage(Protocol):
    """From the id in a cache record to the result itself."""

    async def save(self, result: Result, created_at: int) -> CacheResult:
        """Make the result outlive the build; ``created_at`` in ns since the epoch."""
        ...

    async def load(self, record: CacheResult) -> Result:
        """Return the result, owned by the caller. Any error counts as a cache miss."""
        ...

    def exists(self, result_id: str) -> bool:
        """Return whether :meth:`load` can be expected to work. Local and fast."""
        ...

    async def load_remotes(self, record: CacheResult, ctx: object) -> list[Remote]:
        """Return the blobs that already hold this result; none if there are none."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class CacheRecord:
    """A stored result that a key leads to. ``priority`` orders those of one age."""

    id: str
    created_at: int
    key: CacheKey
    manager: LocalCacheManager
    priority: int = 0


class CacheManager(Protocol):
    """Finds, loads and saves results by key."""

    @property
    def id(self) -> str:
        """Tells managers over the same storage apart from others."""
        ...

    def query(
        self, keys: Sequence[SelectedKey], input_index: int, digest: str, output: int
    ) -> list[CacheKey]:
        """Return the keys that ``keys`` of one input lead to; without any, the root key."""
        ...

    def records(self, key: CacheKey) -> list[CacheRecord]:
        """Return the results that exist for a key."""
        ...

    async def load(self, record: CacheRecord) -> Result:
        """Return the result of a record, owned by the caller."""
        ...

    async def save(self, key: CacheKey, result: Result, created_at: int) -> ExportableKey:
        """Store a result under a key and make the key findable from its inputs."""
        ...
