"""Which step of an earlier build is which step of a later one. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

from boxwright.engine.keyparts import IMAGE, op_of
from boxwright.wire.pb import explain_pb2

Steps = Sequence[explain_pb2.StepKeys]

_NAME = re.compile(r"\[(?P<stage>[^\]]*?)(?P<number>\d+)/\d+\] (?P<text>.*)\Z", re.DOTALL)
_PLATFORM = re.compile(r"\A(?:linux|windows|darwin|freebsd|wasip1|js)/\S+ ")


def match_steps(old: Steps, new: Steps) -> list[int | None]:
    """Return for each step of ``new`` the number of its counterpart in ``old``, if it has one.

    Equal names first, then the same instruction elsewhere in its stage, then the same place in
    its stage, and at last steps of a kind in their order, if there are as many as there were.
    """
    found: list[int | None] = [None] * len(new)
    old_kinds, new_kinds = [_kind(each) for each in old], [_kind(each) for each in new]
    for identify in (_by_name, _by_text, _by_place, _by_image):
        _pair(
            [(kind, identify(each)) for kind, each in zip(old_kinds, old, strict=True)],
            [(kind, identify(each)) for kind, each in zip(new_kinds, new, strict=True)],
            found,
        )
    if sorted(old_kinds) == sorted(new_kinds):
        _pair([(kind, "") for kind in old_kinds], [(kind, "") for kind in new_kinds], found)
    return found


def overlap(old: Steps, new: Steps) -> float:
    """Return which share of the steps of both builds have equal names, from 0 to 1."""
    mine, theirs = {each.name for each in new}, {each.name for each in old}
    return len(mine & theirs) / max(1, len(mine | theirs))


def _pair(
    old: Sequence[tuple[Hashable, Hashable | None]],
    new: Sequence[tuple[Hashable, Hashable | None]],
    found: list[int | None],
) -> None:
    """Fill ``found`` with steps of equal identity, in order, each used once."""
    taken = {number for number in found if number is not None}
    free: defaultdict[object, list[int]] = defaultdict(list)
    for number, identity in enumerate(old):
        if number not in taken and identity[1] is not None:
            free[identity].append(number)
    for number, identity in enumerate(new):
        if found[number] is None and free.get(identity):
            found[number] = free[identity].pop(0)


def _kind(step: explain_pb2.StepKeys) -> str:
    op = op_of(step.op)
    if op is None:
        return ""
    kind = str(op.WhichOneof("op"))
    return f"{kind} {op.source.identifier.partition('://')[0]}" if kind == "source" else kind


def _by_name(step: explain_pb2.StepKeys) -> Hashable | None:
    return step.name


def _named(make: Callable[[str, str, str], Hashable], step: explain_pb2.StepKeys) -> Hashable:
    match = _NAME.match(step.name)
    if match is None:
        return None
    return make(_PLATFORM.sub("", match["stage"]), match["number"], match["text"])


def _by_text(step: explain_pb2.StepKeys) -> Hashable | None:
    return _named(lambda stage, _number, text: (stage, text), step)


def _by_place(step: explain_pb2.StepKeys) -> Hashable | None:
    return _named(lambda stage, number, _text: (stage, number), step)


def _by_image(step: explain_pb2.StepKeys) -> Hashable | None:
    op = op_of(step.op)
    if op is None or not op.source.identifier.startswith(IMAGE):
        return None
    return op.source.identifier.partition("@")[0]
