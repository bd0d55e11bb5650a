"""The build graph as the solver sees it: vertices, their options, and edges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from boxwright.core.dataclass import dataclass, field
from boxwright.core.digest import Digest
from boxwright.core.platform import Platform
from boxwright.progress.events import ProgressGroup

if TYPE_CHECKING:
    from boxwright.wire.pb import ops_pb2

CUSTOM_NAME = "llb.customname"


@dataclass(frozen=True, slots=True)
class VertexOptions:
    """What comes with a vertex and is hashed neither into its digest nor its cache key."""

    ignore_cache: bool = False
    description: Mapping[str, str] = field(default_factory=dict)
    export_cache: bool | None = None
    progress_group: ProgressGroup | None = None
    caps: frozenset[str] = frozenset()
    linux_resources: ops_pb2.LinuxResources | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Vertex:
    """One operation of the graph.

    ``digest`` is the sha256 of the marshalled op, inputs included: it names the vertex, and
    only deduplicates work in flight. It is *not* the cache key.
    """

    digest: Digest
    op: ops_pb2.Op
    inputs: tuple[Edge, ...] = ()
    options: VertexOptions = VertexOptions()
    platform: Platform | None = None
    default_name: str = ""

    @property
    def name(self) -> str:
        """What progress shows: the client's own name for it, else one made from the op."""
        return self.options.description.get(CUSTOM_NAME) or self.default_name


@dataclass(frozen=True, slots=True)
class Edge:
    """Output ``index`` of ``vertex``."""

    vertex: Vertex
    index: int = 0
