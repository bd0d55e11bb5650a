"""Events on their way to a client and back: nothing is lost that a stock client reads."""

from __future__ import annotations

from boxwright.client.events import from_response
from boxwright.core.digest import Digest
from boxwright.engine.bridge import definition_of
from boxwright.engine.status import to_responses
from boxwright.llb.marshal import SourceMap
from boxwright.llb.source_op import local
from boxwright.progress.events import SourceRange, WarningEvent


def test_a_warning_says_where_its_file_comes_from() -> None:
    definition = local("dockerfile").marshal()
    source = SourceMap("Dockerfile", "Dockerfile", b"FROM scratch\n", definition).to_pb()
    event = WarningEvent(
        Digest.of(b"vertex"),
        1,
        b"short",
        (b"detail",),
        "https://example.org",
        source.filename,
        source.data,
        (SourceRange(1, 0, 1, 4),),
        source.language,
        definition_of(source),
    )
    (response,) = to_responses([event])
    (warning,) = response.warnings
    assert warning.info == source
    (back,) = from_response(response)
    assert isinstance(back, WarningEvent)
    assert (back.language, bool(back.definition)) == ("Dockerfile", True)
