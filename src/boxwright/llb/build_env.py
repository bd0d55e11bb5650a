"""The environment of a state: an ordered, immutable map that remembers the order of setting."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping


class EnvList(Mapping[str, str]):
    """Variables in the order in which they were last set.

    Setting a name again moves it to the end; that order is the order of ``Meta.env``.
    Instances share structure: :meth:`set` costs nothing until somebody looks.
    """

    __slots__ = ("_change", "_parent", "_values")

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._parent: EnvList | None = None
        self._change: tuple[str, str | None] = ("", None)
        values: dict[str, str] = {}
        for key, value in pairs:
            values.pop(key, None)
            values[key] = value
        self._values: dict[str, str] | None = values

    def _derive(self, key: str, value: str | None) -> EnvList:
        child = EnvList.__new__(EnvList)
        child._parent = self  # noqa: SLF001 - own class
        child._change = (key, value)  # noqa: SLF001 - own class
        child._values = None  # noqa: SLF001 - own class
        return child

    def set(self, key: str, value: str) -> EnvList:
        """Return a copy with ``key`` set, as the newest."""
        return self._derive(key, value)

    def set_default(self, key: str, value: str) -> EnvList:
        """Return a copy with ``key`` set, or this list where it is set already."""
        return self if key in self else self.set(key, value)

    def delete(self, key: str) -> EnvList:
        """Return a copy without ``key``."""
        return self._derive(key, None)

    def _load(self) -> dict[str, str]:
        if self._values is not None:
            return self._values
        pending: list[tuple[str, str | None]] = []
        node: EnvList = self
        while node._values is None:
            pending.append(node._change)
            assert node._parent is not None
            node = node._parent
        values = dict(node._values)  # noqa: SLF001 - own class
        for key, value in reversed(pending):
            values.pop(key, None)
            if value is not None:
                values[key] = value
        self._values = values
        self._parent = None
        return values

    def __getitem__(self, key: str) -> str:
        return self._load()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())

    def __len__(self) -> int:
        return len(self._load())

    def to_list(self) -> list[str]:
        """Return ``["key=value", …]`` in order."""
        return [f"{key}={value}" for key, value in self._load().items()]
