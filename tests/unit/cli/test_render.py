import io
import json

import pytest

from boxwright.cli.render import PlainRenderer, QuietRenderer, RawJsonRenderer
from boxwright.cli.render_tty import TtyRenderer
from boxwright.core.digest import Digest
from boxwright.progress.events import (
    LogEvent,
    ProgressGroup,
    SourceRange,
    StatusEvent,
    VertexEvent,
    WarningEvent,
)

S = 1_000_000_000
A, B, C = (Digest.of(name) for name in (b"a", b"b", b"c"))


def draw(renderer_type, batches):
    stream = io.StringIO()
    renderer = renderer_type(stream)
    for batch in batches:
        renderer.update(batch)
    renderer.close()
    return stream.getvalue()


def test_plain_output_is_the_known_one():
    batches = [
        [VertexEvent(A, "[internal] load build context", started_ns=S)],
        [StatusEvent("transferring context:", A, current=1234, started_ns=S, timestamp_ns=S)],
        [
            StatusEvent(
                "transferring context:", A, current=2_500_000, started_ns=S, completed_ns=2 * S
            ),
            VertexEvent(A, "[internal] load build context", started_ns=S, completed_ns=3 * S),
        ],
        [VertexEvent(B, "[1/2] COPY . .", started_ns=3 * S, completed_ns=3 * S, cached=True)],
        [VertexEvent(C, "[2/2] RUN make", started_ns=3 * S)],
        [LogEvent(C, 1, b"one\ntw", 3 * S + S // 2)],
        [LogEvent(C, 2, b"o\n", 15 * S)],
        [VertexEvent(C, "[2/2] RUN make", started_ns=3 * S, completed_ns=16 * S, error="exit 2")],
    ]
    assert draw(PlainRenderer, batches) == (
        "#1 [internal] load build context\n"
        "#1 transferring context: 1.23kB\n"
        "#1 transferring context: 2.50MB 1.0s done\n"
        "#1 DONE 2.0s\n"
        "\n#2 [1/2] COPY . .\n"
        "#2 CACHED\n"
        "\n#3 [2/2] RUN make\n"
        "#3 0.500 one\n"
        "#3 12.00 two\n"
        "#3 ERROR: exit 2\n"
        "------\n > [2/2] RUN make:\n0.500 one\n12.00 two\n------\n"
    )


def cached(origin):
    return [
        [VertexEvent(A, "[1/2] RUN", started_ns=S, completed_ns=S, cached=True, origin=origin)]
    ]


def test_plain_tells_where_a_cached_step_came_from():
    assert draw(PlainRenderer, cached("local")) == "#1 [1/2] RUN\n#1 CACHED\n"
    assert draw(PlainRenderer, cached("skipped")) == ("#1 [1/2] RUN\n#1 not needed\n#1 CACHED\n")
    assert draw(PlainRenderer, cached("import:host/cache")) == (
        "#1 [1/2] RUN\n#1 imported from host/cache\n#1 CACHED\n"
    )


def test_rawjson_tells_where_a_cached_step_came_from():
    said = json.loads(draw(RawJsonRenderer, cached("import:host/cache")))
    assert said["vertexes"][0]["origin"] == "import:host/cache"
    assert "origin" not in json.loads(draw(RawJsonRenderer, cached("")))["vertexes"][0]


@pytest.mark.parametrize(
    ("origin", "mark"),
    [("", "CACHED"), ("local", "CACHED"), ("skipped", "SKIPPED"), ("import:x", "IMPORTED")],
)
def test_a_terminal_tells_where_a_cached_step_came_from(origin, mark):
    assert f"=> {mark} [1/2] RUN" in draw(TtyRenderer, cached(origin))


def test_plain_shows_one_step_at_a_time():
    batches = [
        [VertexEvent(A, "first", started_ns=S), VertexEvent(B, "second", started_ns=S)],
        [LogEvent(A, 1, b"a1\n", S)],
        [LogEvent(B, 1, b"b1\n", S)],
        [LogEvent(A, 1, b"a2\n", S)],
        [VertexEvent(A, "first", started_ns=S, completed_ns=2 * S)],
        [VertexEvent(B, "second", started_ns=S, completed_ns=2 * S)],
    ]
    text = draw(PlainRenderer, batches)
    assert text.index("a2") < text.index("#1 DONE") < text.index("b1") < text.index("#2 DONE")


def test_an_unfinished_line_is_not_lost():
    batches = [[VertexEvent(A, "step", started_ns=S)], [LogEvent(A, 1, b"no newline", S)]]
    assert "no newline" in draw(PlainRenderer, batches)


def test_a_group_is_one_step():
    group = ProgressGroup("g", "pull image")
    batches = [
        [
            VertexEvent(A, "resolve", started_ns=S, completed_ns=2 * S, group=group),
            VertexEvent(B, "fetch", started_ns=2 * S, completed_ns=4 * S, group=group),
        ]
    ]
    assert draw(PlainRenderer, batches) == "#1 pull image\n#1 DONE 3.0s\n"


def test_cancelled_steps_are_no_failures():
    event = VertexEvent(A, "s", started_ns=S, completed_ns=S, error="x: context canceled")
    assert draw(PlainRenderer, [[event]]) == "#1 s\n#1 CANCELED\n"
    assert draw(QuietRenderer, [[event]]) == ""


def test_raw_json_has_buildkits_fields():
    warning = WarningEvent(
        A, 1, b"odd", filename="Dockerfile", source=b"FROM x", ranges=(SourceRange(1, 0, 1, 0),)
    )
    batch = [
        VertexEvent(A, "v", (B,), started_ns=S),
        StatusEvent("id", A, current=0, total=3, timestamp_ns=S + 5),
        LogEvent(A, 2, b"\xff", S),
        warning,
    ]
    (line,) = draw(RawJsonRenderer, [batch]).splitlines()
    assert json.loads(line) == {
        "vertexes": [{"digest": A, "inputs": [B], "name": "v", "started": "1970-01-01T00:00:01Z"}],
        "statuses": [
            {
                "id": "id",
                "vertex": A,
                "total": 3,
                "current": 0,
                "timestamp": "1970-01-01T00:00:01.000000005Z",
            }
        ],
        "logs": [{"vertex": A, "stream": 2, "data": "/w==", "timestamp": "1970-01-01T00:00:01Z"}],
        "warnings": [
            {
                "vertex": A,
                "level": 1,
                "short": "b2Rk",
                "sourceInfo": {"filename": "Dockerfile", "data": "RlJPTSB4"},
                "range": [
                    {"start": {"line": 1, "character": 0}, "end": {"line": 1, "character": 0}}
                ],
            }
        ],
    }
