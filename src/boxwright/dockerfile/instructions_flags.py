"""The ``--name=value`` words between an instruction and its arguments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from boxwright.dockerfile.errors import DockerfileError
from boxwright.dockerfile.suggest import did_you_mean, nearest

FlagKind = Literal["bool", "text", "list"]


class Flags:
    """The parsed flags of one instruction.

    Args:
        words: As written, without quotes.
        known: What the instruction accepts.

    Raises:
        DockerfileError: unknown, given twice, or with a value of the wrong kind.
    """

    __slots__ = ("_bools", "_lists", "_texts", "used")

    def __init__(self, words: Sequence[str], known: Mapping[str, FlagKind]) -> None:
        self._bools: dict[str, bool] = {}
        self._texts: dict[str, str] = {}
        self._lists: dict[str, list[str]] = {}
        self.used: frozenset[str] = frozenset()
        used: set[str] = set()
        for word in words:
            if word == "--":
                break
            if not word.startswith("--"):
                raise DockerfileError(f"arg should start with -- : {word}", token=word)
            written, equals, value = word.partition("=")
            name = written[2:]
            kind = known.get(name)
            if kind is None:
                raise _unknown(written, known)
            if name in used and kind != "list":
                raise DockerfileError(f"duplicate flag specified: {written}", token=written)
            used.add(name)
            missing = (equals and not value) if kind == "bool" else not equals
            if missing:
                raise DockerfileError(
                    f"missing a value on flag: {written}",
                    token=written,
                    hint=f"write {written}=<value>",
                )
            self._store(name, kind, written, value)
        self.used = frozenset(used)

    def _store(self, name: str, kind: FlagKind, written: str, value: str) -> None:
        if kind == "list":
            self._lists.setdefault(name, []).append(value)
        elif kind == "text":
            self._texts[name] = value
        elif value.lower() in {"", "true", "false"}:
            self._bools[name] = value.lower() != "false"
        else:
            raise DockerfileError(
                f"expecting boolean value for flag {written}, not: {value}",
                token=f"{written}={value}",
            )

    def text(self, name: str, default: str = "") -> str:
        """The flag's value, or ``default`` when it is not given."""
        return self._texts.get(name, default)

    def truth(self, name: str) -> bool:
        """Whether the flag is given and not false."""
        return self._bools.get(name, False)

    def maybe(self, name: str) -> bool | None:
        """The flag's truth, None when it is not given."""
        return self._bools.get(name)

    def all(self, name: str) -> tuple[str, ...]:
        """Every value given, in order."""
        return tuple(self._lists.get(name, ()))


def _unknown(written: str, known: Mapping[str, FlagKind]) -> DockerfileError:
    suggestion = nearest(written[2:], known)
    options = ", ".join(f"--{name}" for name in known)
    if suggestion:
        hint = f"write --{suggestion}"
    else:
        hint = f"use one of {options}" if options else "this instruction takes no flags"
    return DockerfileError(
        did_you_mean(f"unknown flag: {written}", suggestion), token=written, hint=hint
    )
