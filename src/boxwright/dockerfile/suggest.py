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
    """Return the option within two edits of ``word``, the first of the nearest; "" if none.

    An exact match gives "" as well: whatever was wrong, it was not the spelling. Without
    ``case_sensitive`` the answer takes on the case of ``word``.
    """
    wanted = word if case_sensitive else word.lower()
    best, best_distance = "", _FARTHEST + 1
    for option in options:
        candidate = option if case_sensitive else option.lower()
        if candidate == wanted:
            return ""
        distance = edit_distance(wanted, candidate, _FARTHEST)
        if distance < best_distance:
            best, best_distance = candidate, distance
    if best and not case_sensitive and word == word.upper() and word != word.lower():
        return best.upper()
    return best


def did_you_mean(message: str, suggestion: str) -> str:
    """Append the suggestion to a message, if there is one."""
    return f"{message} (did you mean {suggestion}?)" if suggestion else message
