"""Did you mean …? — the nearest of the words that would have been right."""

from __future__ import annotations

from collections.abc import Iterable

_FARTHEST = 2
"""A suggestion is at most this many edits away, as in upstream's messages."""


def edit_distance(left: str, right: str, limit: int) -> int:
    """Return the Levenshtein distance of two words, or ``limit + 1`` once it is larger."""
    if abs(len(left) - len(right)) > limit:
        return limit + 1
    previous = list(range(len(right) + 1))
    for row, a in enumerate(left, 1):
        current = [row]
        for column, b in enumerate(right, 1):
            cost = previous[column - 1] + (a != b)
            current.append(min(cost, previous[column] + 1, current[-1] + 1))
        if min(current) > limit:
            return limit + 1
        previous = current
    return previous[-1]


def nearest(word: str, options: Iterable[str], *, case_sensitive: bool = True) -> str:
    """Return the option within two edits of ``word``; "" if there is none.

    Of several as near, the one that begins most like ``word`` wins, then the first.
    An exact match gives "" as well: whatever was wrong, it was not the spelling. Without
    ``case_sensitive`` the answer takes on the case of ``word``.
    """
    wanted = word if case_sensitive else word.lower()
    best = ""
    best_rank = (_FARTHEST + 1, 0)
    for option in options:
        candidate = option if case_sensitive else option.lower()
        if candidate == wanted:
            return ""
        rank = (edit_distance(wanted, candidate, _FARTHEST), -_shared(wanted, candidate))
        if rank[0] <= _FARTHEST and rank < best_rank:
            best, best_rank = candidate, rank
    if best and not case_sensitive and word == word.upper() and word != word.lower():
        return best.upper()
    return best


def _shared(left: str, right: str) -> int:
    """Return how many characters two words begin with in common."""
    pairs = zip(left, right, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(left), len(right)))


def did_you_mean(message: str, suggestion: str) -> str:
    """Append the suggestion to a message, if there is one."""
    return f"{message} (did you mean {suggestion}?)" if suggestion else message
