#!/usr/bin/env python3
"""Make docs/configuration/README.md from src/boxwright/config/schema.py.

Usage: .venv/bin/python tools/configdoc.py [--check]
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from generated import ROOT, fill, finish

from boxwright.config import schema

TOOL = "tools/configdoc.py"
PAGE = ROOT / "docs/configuration/README.md"
NAMES = {str: "string", int: "integer", bool: "boolean"}
EXAMPLE_HOST = '"registry.example.com"'


def type_name(hint: Any) -> str:
    """Return what a user writes for a type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Union, types.UnionType}:
        return " or ".join(type_name(each) for each in arguments if each is not type(None))
    if origin is tuple:
        return f"list of {type_name(arguments[0])}s"
    if origin is dict:
        return f"table of {type_name(arguments[1])}s"
    return NAMES[hint]


def bare(name: str) -> str:
    """Return a key as TOML, quoted where it must be."""
    return name if name.replace("-", "_").isidentifier() else json.dumps(name)


def literal(value: Any) -> str:
    """Return a value as TOML."""
    if isinstance(value, dict):
        return (
            "{ "
            + ", ".join(f"{bare(key)} = {literal(each)}" for key, each in value.items())
            + " }"
        )
    if isinstance(value, tuple):
        return "[" + ", ".join(literal(each) for each in value) + "]"
    return json.dumps(value)


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    assert field.default_factory is not dataclasses.MISSING
    return field.default_factory()


def inner_table(hint: Any) -> tuple[type, str] | None:
    """Return the dataclass of a nested table, and what is added to its header."""
    if dataclasses.is_dataclass(hint):
        return typing.cast("type", hint), ""
    arguments = typing.get_args(hint)
    if arguments and dataclasses.is_dataclass(arguments[0]):
        return typing.cast("type", arguments[0]), "list"
    if len(arguments) == 2 and dataclasses.is_dataclass(arguments[1]):
        return typing.cast("type", arguments[1]), "hosts"
    return None


def section(cls: type, dotted: str, *, is_list: bool = False) -> list[str]:
    """Return the page's part for one table, then those for the tables in it."""
    brackets = f"[[{dotted}]]" if is_list else f"[{dotted}]"
    sentence = (cls.__doc__ or "").strip().partition(": ")[2].rstrip(".")
    lines = [f"## `{brackets}`" if dotted else "## Top level", ""]
    if sentence:
        lines += [sentence[0].upper() + sentence[1:] + ".", ""]
    hints = typing.get_type_hints(cls)
    rows: list[str] = []
    example: list[str] = []
    inner: list[str] = []
    for field in dataclasses.fields(cls):
        name, hint = field.metadata["key"], hints[field.name]
        nested = inner_table(hint)
        if nested is not None:
            table, kind = nested
            header = f"{dotted}.{name}".lstrip(".")
            if kind == "hosts":
                header = f"{header}.{EXAMPLE_HOST}"
            inner += section(table, header, is_list=kind == "list")
            continue
        default = default_of(field)
        shown = "" if default is None or default in ("", (), {}) else f"`{literal(default)}`"
        doc = field.metadata["doc"]
        if not field.metadata["is_effective"]:
            doc = f"{doc} *Accepted, has no effect.*"
        else:
            value = field.metadata["example"]
            value = default if value is None else value
            example.append(f"{name} = {literal(value)}")
        rows.append(f"| `{name}` | {type_name(hint)} | {shown} | {doc} |")
    if rows:
        lines += ["| key | type | default | |", "|---|---|---|---|", *rows, ""]
    if example:
        lines += ["```toml", *([brackets] if dotted else []), *example, "```", ""]
    return [*(lines if rows else []), *inner]


def main() -> int:
    body = "\n".join(section(schema.Config, ""))
    return finish({PAGE: fill(PAGE.read_text(), body, TOOL)})


if __name__ == "__main__":
    raise SystemExit(main())
