"""The order in which what takes space is listed."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from boxwright.client.client import Client
from boxwright.wire.pb import control_pb2


class _Transport:
    """A daemon's answer, in the order of making."""

    async def disk_usage(self, request: control_pb2.DiskUsageRequest) -> Any:
        assert list(request.filter) == ["type==regular"]
        records = [("b", 7), ("c", 5), ("a", 7)]
        return control_pb2.DiskUsageResponse(
            record=[control_pb2.UsageRecord(ID=name, Size=size) for name, size in records]
        )


def test_the_smallest_record_is_first() -> None:
    found = asyncio.run(Client(cast("Any", _Transport())).disk_usage(["type==regular"]))
    assert [record.ID for record in found] == ["c", "a", "b"]
