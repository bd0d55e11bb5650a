"""Outputs that the client chooses when it has seen the result (``moby.exporter.v1.Exporter``).

A request with ``EnableSessionExporter`` has its client asked twice: with the result, for outputs that
are made after those of the request and count on from them, and at the end with what all outputs
reported, before the build succeeds. A client without an opinion changes nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from boxwright.engine.gateway import GatewayBridge
from boxwright.engine.results import FrontendResult
from boxwright.session.base import OutputRequest
from boxwright.session.manager import SessionManager


async def wanted_outputs(
    sessions: SessionManager,
    session_id: str,
    result: FrontendResult,
    gateway: GatewayBridge | None,
) -> Sequence[OutputRequest]:
    """Ask the client which outputs it wants of a result.

    Args:
        sessions: where the client is found.
        session_id: the client's.
        result: evaluated.
        gateway: where a client that runs the frontend itself reads the refs that it is told.

    Raises:
        BoxwrightError: the client has gone, or refuses the result.
    """
    refs = result.all_refs()
    ids = [gateway.ref_id(ref) if gateway is not None else uuid.uuid4().hex for ref in refs]
    session = await sessions.get(session_id)
    return await session.find_outputs(result.metadata, ids)


async def outputs_done(
    sessions: SessionManager, session_id: str, response: Mapping[str, str]
) -> None:
    """Tell the client what all outputs reported; it may still fail the build.

    Raises:
        BoxwrightError: the client has gone, or says that it failed.
    """
    session = await sessions.get(session_id)
    await session.outputs_done(response)
