"""The spans of a build that are made from its record."""

from __future__ import annotations

import json
from typing import Any

from boxwright.engine.buildspans import build_spans
from boxwright.wire.pb import control_pb2

SECOND = 1_000_000_000


def moment(message: Any, field: str, second: float) -> None:
    getattr(message, field).FromNanoseconds(int(second * SECOND))


def record(**fields: Any) -> control_pb2.BuildHistoryRecord:
    made = control_pb2.BuildHistoryRecord(Ref="some-build", Frontend="dockerfile.v0", **fields)
    moment(made, "CreatedAt", 10)
    moment(made, "CompletedAt", 20.5)
    return made


def progress() -> control_pb2.StatusResponse:
    message = control_pb2.StatusResponse()

    def step(name: str, begin: float, end: float | None, **fields: Any) -> None:
        vertex = message.vertexes.add(digest=f"sha256:{name}", name=name, **fields)
        moment(vertex, "started", begin)
        if end is not None:
            moment(vertex, "completed", end)

    step("one", 11, None)
    step("one", 11, 12)
    step("two", 11, 11, cached=True)
    step("one", 15, 16, error="exit code: 1")
    message.vertexes.add(digest="sha256:three", name="never ran")
    for begin in (11.25, 15.25):
        part = message.statuses.add(vertex="sha256:one", ID="transferring", current=7)
        moment(part, "started", begin)
        moment(part, "completed", begin + 0.5)
    message.statuses.add(vertex="sha256:one", ID="not done")
    return message


def spans(made: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made.splitlines()]


def test_steps_and_their_parts_lie_in_the_build() -> None:
    root, *found = spans(build_spans(record(), [progress()]))
    assert root["Name"] == "moby.buildkit.v1.Control/Solve"
    assert root["Parent"]["SpanID"] == "0" * 16
    assert (root["StartTime"], root["EndTime"]) == (
        "1970-01-01T00:00:10Z",
        "1970-01-01T00:00:20.5Z",
    )
    names = {each["SpanContext"]["SpanID"]: each["Name"] for each in (root, *found)}
    assert len(names) == len(found) + 1
    tree = [
        (each["Name"], each["StartTime"][-6:], names[each["Parent"]["SpanID"]]) for each in found
    ]
    assert tree == [
        ("one", "00:11Z", root["Name"]),
        ("two", "00:11Z", root["Name"]),
        ("one", "00:15Z", root["Name"]),
        ("transferring", "11.25Z", "one"),
        ("transferring", "15.25Z", "one"),
    ]
    first, second = (each["Parent"]["SpanID"] for each in found[3:])
    assert (first, second) == (
        found[0]["SpanContext"]["SpanID"],
        found[2]["SpanContext"]["SpanID"],
    )


def test_how_it_ended() -> None:
    failed = record()
    failed.error.message = "a step failed"
    root, one, two, again, *_ = spans(build_spans(failed, [progress()]))
    assert root["Status"] == {"Code": "Error", "Description": "a step failed"}
    assert again["Status"] == {"Code": "Error", "Description": "exit code: 1"}
    assert one["Status"] == {"Code": "Ok", "Description": ""}
    assert {"Key": "cached", "Value": {"Type": "BOOL", "Value": True}} in two["Attributes"]


def test_the_same_record_gives_the_same_bytes() -> None:
    assert build_spans(record(), [progress()]) == build_spans(record(), [progress()])
    other = record()
    other.Ref = "another-build"
    assert build_spans(other, []) != build_spans(record(), [])


def test_parts_are_limited_and_steps_are_not() -> None:
    message = control_pb2.StatusResponse()
    for number in range(10_100):
        part = message.statuses.add(vertex="sha256:one", ID=str(number))
        moment(part, "started", 1)
        moment(part, "completed", 2)
    assert len(spans(build_spans(record(), [message, progress()]))) == 10_000 + 3
