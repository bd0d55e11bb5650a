"""Our data classes against the standard library's: the same classes made by both decorators."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from boxwright.core import dataclass as ours

KINDS = (
    {},
    {"frozen": True},
    {"slots": True},
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "kw_only": True},
    {"frozen": True, "order": True},
    {"slots": True, "eq": False},
    {"frozen": True, "slots": True, "eq": False},
    {"repr": False},
)
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind) or "plain")
Decorate = Callable[..., Any]


def both(make: Callable[[Decorate], Any]) -> tuple[Any, Any]:
    """Return what ``make`` makes of our decorator and of the standard one."""
    return make(ours.dataclass), make(dataclasses.dataclass)


def point(kind: dict[str, bool]) -> Callable[[Decorate], Any]:
    def make(decorate: Decorate) -> Any:
        class Point:
            """A point."""

            label: ClassVar[str] = "p"
            x: int
            y: int = 2
            seen: list[int] = dataclasses.field(default_factory=list, compare=False)
            hidden: int = dataclasses.field(default=5, repr=False, init=False)

        Point.__qualname__ = "Point"
        return decorate(**kind)(Point)

    return make


@kinds
def test_values_are_what_the_standard_library_makes(kind: dict[str, bool]) -> None:
    for cls in both(point(kind)):
        value = cls(x=1, seen=[3])
        assert (value.x, value.y, value.seen, value.hidden) == (1, 2, [3], 5)
        assert cls(x=1).seen is not cls(x=1).seen
        assert dataclasses.asdict(value) == {"x": 1, "y": 2, "seen": [3], "hidden": 5}
        changed = dataclasses.replace(value, y=7)
        assert (changed.x, changed.y, changed.seen) == (1, 7, [3])
        assert [each.name for each in dataclasses.fields(cls)] == ["x", "y", "seen", "hidden"]
        assert hasattr(value, "__dict__") is ("slots" not in kind)


@kinds
def test_text_equality_and_hash(kind: dict[str, bool]) -> None:
    mine, standard = both(point(kind))
    if kind.get("repr", True):
        assert repr(mine(x=1)) == repr(standard(x=1)) == "Point(x=1, y=2, seen=[])"
    else:
        assert repr(mine(x=1)).startswith("<")
    for cls in (mine, standard):
        first, second, other = cls(x=1, seen=[1]), cls(x=1), cls(x=2)
        assert (first == second) is kind.get("eq", True)
        assert first != other
        assert first != "text"
        assert (cls.__hash__ is None) is (standard.__hash__ is None)
        if cls.__hash__ is not None:
            assert (hash(first) == hash(second)) is kind.get("eq", True)
    assert mine(x=1) != standard(x=1)


@kinds
def test_wrong_arguments_are_refused(kind: dict[str, bool]) -> None:
    for cls in both(point(kind)):
        with pytest.raises(TypeError):
            cls()
        with pytest.raises(TypeError):
            cls(x=1, hidden=2)
        if "kw_only" in kind:
            with pytest.raises(TypeError):
                cls(1)
        else:
            assert cls(1, 3).y == 3


def test_frozen_classes_refuse_changes() -> None:
    for cls in both(point({"frozen": True, "slots": True})):
        value = cls(1)
        with pytest.raises(dataclasses.FrozenInstanceError):
            value.x = 3
        with pytest.raises((dataclasses.FrozenInstanceError, TypeError)):
            value.unknown = 3  # CPython's own stumbles over slots here
        with pytest.raises(dataclasses.FrozenInstanceError):
            del value.x
        assert value.x == 1


def test_order_compares_fields_in_turn() -> None:
    for cls in both(point({"frozen": True, "order": True})):
        assert sorted([cls(2, 1), cls(1, 9), cls(1, 3)]) == [cls(1, 3), cls(1, 9), cls(2, 1)]
        assert cls(1) <= cls(1)
        assert cls(1) >= cls(1)
        assert not cls(1) > cls(1)
        with pytest.raises(TypeError):
            assert cls(1) < 1


def test_methods_of_the_class_are_kept() -> None:
    def make(decorate: Decorate) -> Any:
        @decorate(frozen=True)
        class Own:
            """Has methods of its own."""

            x: int

            def __repr__(self) -> str:
                return "own"

            def __eq__(self, other: object) -> bool:
                return True

            def __hash__(self) -> int:
                return 7

        @decorate(frozen=True, slots=True)
        class OwnEquality:
            """Its hash is still that of its fields."""

            x: int

            def __eq__(self, other: object) -> bool:
                return True

        return Own, OwnEquality

    for own, own_equality in both(make):
        assert (repr(own(1)), hash(own(1)), own(1) == own(2)) == ("own", 7, True)
        assert own_equality(1) == own_equality(2)
        assert hash(own_equality(1)) == hash((1,))


def test_a_subclass_adds_fields_and_has_methods_of_its_own() -> None:
    def make(decorate: Decorate) -> Any:
        @decorate(frozen=True, slots=True)
        class Base:
            """A base."""

            x: int
            y: int = 2

        @decorate(frozen=True, slots=True)
        class Sub(Base):
            """More."""

            z: int = 3

        return Base, Sub

    for base, sub in both(make):
        value = sub(1)  # before any value of the base is made
        assert (value.x, value.y, value.z) == (1, 2, 3)
        assert base(1) != value
        assert base(1) == base(1, 2)
        assert repr(value).endswith("Sub(x=1, y=2, z=3)")


def test_a_plain_subclass_shares_the_methods_of_its_base() -> None:
    for cls in both(point({})):

        class Sub(cls):  # type: ignore[misc, valid-type]
            """No data class itself."""

            def __init__(self, x: int) -> None:
                super().__init__(x, y=9)

        assert Sub(1).y == 9
        assert cls(1).y == 2
        assert Sub(1) == Sub(1)


def test_post_init_runs_and_may_set_fields_that_are_no_arguments() -> None:
    def make(decorate: Decorate) -> Any:
        @decorate
        class Area:
            """An area."""

            width: int
            height: int
            size: int = dataclasses.field(init=False)

            def __post_init__(self) -> None:
                self.size = self.width * self.height

        return Area

    for cls in both(make):
        assert cls(2, 3).size == 6


def test_a_value_that_holds_itself_can_be_printed() -> None:
    for cls in both(point({})):
        value = cls(1)
        value.seen.append(value)
        assert repr(value) == "Point(x=1, y=2, seen=[...])"


def test_stand_ins_are_replaced_on_first_use() -> None:
    cls = ours.dataclass(frozen=True, slots=True)(
        type("Seen", (), {"__annotations__": {"x": int}, "__doc__": "A class."})
    )
    before = cls.__init__
    value = cls(1)
    assert cls.__init__ is not before
    assert cls(2).x == 2
    assert hash(value) == hash((1,))
    gc.collect()
    assert value == cls(1)
