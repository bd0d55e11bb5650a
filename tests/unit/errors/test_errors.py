"""Every error class keeps the promises of the base: a code, an exit status, a docstring."""

from __future__ import annotations

import importlib
import pkgutil

import boxwright
from boxwright.errors import EXIT_CODES, BoxwrightError, Code


def all_classes() -> list[type[BoxwrightError]]:
    for module in pkgutil.walk_packages(boxwright.__path__, "boxwright."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found: list[type[BoxwrightError]] = []
    pending = [BoxwrightError]
    while pending:
        for cls in pending.pop().__subclasses__():
            found.append(cls)
            pending.append(cls)
    return [cls for cls in found if cls.__module__.startswith("boxwright.")]


def test_every_code_has_its_own_exit_status() -> None:
    assert set(EXIT_CODES) == set(Code)
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert all(0 < status < 256 for status in EXIT_CODES.values())


def test_every_error_class_is_documented() -> None:
    classes = all_classes()
    assert len(classes) > 60
    missing = [cls.__qualname__ for cls in classes if not (cls.__doc__ or "").strip()]
    assert missing == []


def test_text_holds_brief_and_detail() -> None:
    error = BoxwrightError("it failed", detail="because", hint="do this")
    assert str(error) == "it failed: because"
    assert error.exit_code == EXIT_CODES[Code.INTERNAL]
