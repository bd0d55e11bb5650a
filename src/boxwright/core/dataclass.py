"""``dataclasses.dataclass`` whose methods are made when they are first called.

The standard decorator writes and compiles the source of six methods for every class while a
module is imported. Of our hundreds of classes a build instantiates some, compares few and
prints hardly any, and all of that compiling was 40 % of the processor time of a short build.
Here the methods are stand-ins that replace themselves on their first call; what a class is
(fields, slots, ``fields()``, ``replace()``, ``asdict()``) is the standard library's as ever.

Not supported, since nothing here needs it: ``InitVar``, ``unsafe_hash``, pickling of frozen
classes with slots. A subclass of a frozen class must say ``frozen=True`` itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import field, replace
from types import MemberDescriptorType
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

__all__ = ["dataclass", "field", "replace"]

ClassT = TypeVar("ClassT", bound=type[Any])
_Method = Callable[..., object]
_Generate = Callable[[type[Any], str], _Method]
_ORDER: Final = {"__lt__": "<", "__le__": "<=", "__gt__": ">", "__ge__": ">="}


def _dataclass(
    cls: ClassT | None = None,
    /,
    *,
    repr: bool = True,  # noqa: A002 - the standard library's name
    eq: bool = True,
    order: bool = False,
    frozen: bool = False,
    kw_only: bool = False,
    slots: bool = False,
) -> ClassT | Callable[[ClassT], ClassT]:
    """Make a data class; the arguments mean what ``dataclasses.dataclass`` says they do."""

    def wrap(cls: ClassT) -> ClassT:
        standard = dataclasses.dataclass(
            init=False, repr=False, eq=False, kw_only=kw_only, slots=slots
        )
        made = cast("ClassT", standard(cls))
        _add(made, "__init__", _frozen_init if frozen else _init)
        if repr:
            _add(made, "__repr__", _repr)
        if eq:
            _add_comparison(made, frozen=frozen)
        if order:
            for name in _ORDER:
                _add(made, name, _ordering)
        if frozen:
            setattr(made, "__setattr__", _refuse_to_set)  # noqa: B010 - else no type fits
            setattr(made, "__delattr__", _refuse_to_delete)  # noqa: B010
        return made

    return wrap if cls is None else wrap(cls)


if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    dataclass = _dataclass


def _add(cls: type[Any], name: str, generate: _Generate) -> None:
    """Install a stand-in for a method, except where the class has one of its own."""
    if name in cls.__dict__:
        return

    def stand_in(self: object, *args: object, **kwargs: object) -> object:
        method = generate(cls, name)
        setattr(cls, name, method)
        return method(self, *args, **kwargs)

    stand_in.__name__ = name
    setattr(cls, name, stand_in)


def _add_comparison(cls: type[Any], *, frozen: bool) -> None:
    own = cls.__dict__
    # Python itself puts __hash__ = None into a class that has __eq__ alone.
    if "__hash__" not in own or (own["__hash__"] is None and "__eq__" in own):
        if not frozen:
            cls.__hash__ = None  # type: ignore[assignment]
        else:
            if "__hash__" in own:
                del cls.__hash__
            _add(cls, "__hash__", _hash)
    _add(cls, "__eq__", _eq)


def _refuse_to_set(self: object, name: str, value: object) -> None:
    del self, value
    raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")


def _refuse_to_delete(self: object, name: str) -> None:
    del self
    raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")


def _compile(
    cls: type[Any],
    name: str,
    parameters: Sequence[str],
    body: Sequence[str],
    names: dict[str, Any],
) -> _Method:
    source = f"def {name}({', '.join(parameters)}):\n" + "".join(f"  {line}\n" for line in body)
    scope: dict[str, _Method] = {}
    exec(source, names, scope)  # noqa: S102 - names of fields, as in the standard library
    method = scope[name]
    method.__qualname__ = f"{cls.__qualname__}.{name}"
    method.__module__ = cls.__module__
    return method


def _init(cls: type[Any], name: str) -> _Method:
    return _compile_init(cls, name, frozen=False)


def _frozen_init(cls: type[Any], name: str) -> _Method:
    return _compile_init(cls, name, frozen=True)


def _compile_init(cls: type[Any], name: str, *, frozen: bool) -> _Method:
    names: dict[str, Any] = {"_absent": object(), "_set": object.__setattr__}
    positional, body = ["self"], list[str]()
    keywords: list[str] = []
    for each in dataclasses.fields(cls):
        key = value = each.name
        default = ""
        if each.default is not dataclasses.MISSING:
            names[f"_default_{key}"] = each.default
            default = f"=_default_{key}"
            value = key if each.init else f"_default_{key}"
        elif each.default_factory is not dataclasses.MISSING:
            names[f"_make_{key}"] = each.default_factory
            default = "=_absent"
            value = f"_make_{key}()" + (f" if {key} is _absent else {key}" if each.init else "")
        elif not each.init:
            continue  # __post_init__ sets it
        if each.init:
            (keywords if each.kw_only else positional).append(key + default)
        body.append(_assignment(cls, key, value, names) if frozen else f"self.{key} = {value}")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    parameters = [*positional, "*", *keywords] if keywords else positional
    return _compile(cls, name, parameters, body or ["pass"], names)


def _assignment(cls: type[Any], key: str, value: str, names: dict[str, Any]) -> str:
    """Return the line that sets a field of a frozen class: straight into its slot, if any."""
    slot = getattr(cls, key, None)
    if isinstance(slot, MemberDescriptorType):
        names[f"_set_{key}"] = slot.__set__
        return f"_set_{key}(self, {value})"
    return f"_set(self, {key!r}, {value})"


def _tuple(of: str, keys: Sequence[str]) -> str:
    return "(" + "".join(f"{of}.{key}, " for key in keys) + ")"


def _compare(cls: type[Any], name: str, operator: str) -> _Method:
    keys = [each.name for each in dataclasses.fields(cls) if each.compare]
    body = (
        "if other.__class__ is not self.__class__: return NotImplemented",
        f"return {_tuple('self', keys)} {operator} {_tuple('other', keys)}",
    )
    return _compile(cls, name, ["self", "other"], body, {})


def _eq(cls: type[Any], name: str) -> _Method:
    return _compare(cls, name, "==")


def _ordering(cls: type[Any], name: str) -> _Method:
    return _compare(cls, name, _ORDER[name])


def _hash(cls: type[Any], name: str) -> _Method:
    keys = [
        each.name
        for each in dataclasses.fields(cls)
        if (each.compare if each.hash is None else each.hash)
    ]
    return _compile(cls, name, ["self"], [f"return hash({_tuple('self', keys)})"], {})


def _repr(cls: type[Any], name: str) -> _Method:
    from reprlib import recursive_repr

    shown = ", ".join(
        f"{each.name}={{self.{each.name}!r}}" for each in dataclasses.fields(cls) if each.repr
    )
    body = (f'return f"{{self.__class__.__qualname__}}({shown})"',)
    return recursive_repr()(cast("Callable[[Any], str]", _compile(cls, name, ["self"], body, {})))
