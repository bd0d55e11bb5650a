"""Booleans as Go's ``strconv.ParseBool`` reads them: what BuildKit's attributes and labels hold."""

TRUE = frozenset(("1", "t", "T", "TRUE", "true", "True"))
FALSE = frozenset(("0", "f", "F", "FALSE", "false", "False"))


def parse(text: str) -> bool | None:
    """Return what ``text`` spells, or None if that is no boolean."""
    if text in TRUE:
        return True
    return False if text in FALSE else None
