#!/usr/bin/env python3
"""Make the tables of docs/errors.md from the error classes.

Usage: .venv/bin/python tools/errordoc.py [--check]
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from generated import ROOT, fill, finish

import boxwright
from boxwright.errors import EXIT_CODES, BoxwrightError, Code

TOOL = "tools/errordoc.py"
PAGE = ROOT / "docs/errors.md"


def all_classes() -> list[type[BoxwrightError]]:
    """Import everything and return the error classes, the base too."""
    for module in pkgutil.walk_packages(boxwright.__path__, "boxwright."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[BoxwrightError]] = []
    pending: list[type[BoxwrightError]] = [BoxwrightError]
    while pending:
        cls = pending.pop()
        found.append(cls)
        pending.extend(cls.__subclasses__())
    return sorted(set(found), key=lambda cls: (cls.__module__, cls.__qualname__))


def sentence(cls: type) -> str:
    """Return the first sentence of a class's docstring, on one line."""
    paragraph = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


def main() -> int:
    classes = all_classes()
    rows = ["| exit status | code | errors |", "|---|---|---|"]
    for code in sorted(Code, key=lambda code: EXIT_CODES[code]):
        own = [f"`{cls.__name__}`" for cls in classes if cls.code is code]
        rows.append(f"| {EXIT_CODES[code]} | `{code}` | {', '.join(own) or 'none'} |")
    rows += ["", "## Classes", "", "| class | code | retried | means |", "|---|---|---|---|"]
    for cls in classes:
        if cls is BoxwrightError:
            continue
        name = f"`{cls.__module__}.{cls.__qualname__}`"
        retried = "yes" if cls.retryable else ""
        rows.append(f"| {name} | `{cls.code}` | {retried} | {sentence(cls)} |")
    return finish({PAGE: fill(PAGE.read_text(), "\n".join(rows), TOOL)})


if __name__ == "__main__":
    raise SystemExit(main())
