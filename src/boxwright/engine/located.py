"""Give a failed step its place: which vertex, and which lines of which file made it.

Clients print the excerpt from the typed details ``errdefs.Vertex`` and ``errdefs.Source``
(BuildKit: solver/errdefs), which travel with the error over the wire.
"""

from __future__ import annotations

from collections.abc import Mapping

from boxwright.errors import BoxwrightError
from boxwright.wire import errdetails
from boxwright.wire.pb import errdefs_pb2, ops_pb2


def locate(
    error: BoxwrightError,
    definition: ops_pb2.Definition,
    renamed: Mapping[str, str] | None = None,
) -> None:
    """Add the details to an error of a step of ``definition``, unless it has them.

    Args:
        error: Its ``vertex`` names the step.
        definition: Holds the places.
        renamed: For steps that a source policy has changed: their digests in ``definition``.
    """
    vertex = getattr(error, "vertex", None)
    if not vertex:
        return
    details = error.__dict__.setdefault("rpc_details", [])
    known = [errdetails.unpack(detail) for detail in details]
    if not any(isinstance(item, errdefs_pb2.Vertex) for item in known):
        details.append(errdetails.pack(errdefs_pb2.Vertex(digest=str(vertex))))
    if any(isinstance(item, errdefs_pb2.Source) for item in known):
        return
    places = definition.Source.locations.get((renamed or {}).get(vertex, str(vertex)))
    if places is None:
        return
    # The last one is the outermost: BuildKit wraps the error in them one after the other.
    for place in reversed(places.locations):
        if 0 <= place.sourceIndex < len(definition.Source.infos):
            info = definition.Source.infos[place.sourceIndex]
            source = errdefs_pb2.Source(info=info, ranges=place.ranges)
            details.append(errdetails.pack(source))
