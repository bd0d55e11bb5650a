"""Where errors come from, as told to clients that debug."""

from __future__ import annotations

from boxwright.engine.errorstack import stacks_of


def _raise(error: Exception) -> None:
    raise error


def _fail(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        try:
            if cause is not None:
                _raise(cause)
        except Exception as exc:
            raise error from exc
        _raise(error)
    except Exception as exc:
        return exc
    raise AssertionError


def test_the_innermost_call_comes_first_and_causes_follow() -> None:
    outer, inner = stacks_of(_fail(ValueError("a"), KeyError("b")))
    assert [frame.Name.rpartition(".")[2] for frame in outer.frames] == ["_fail"]
    assert [frame.Name.rpartition(".")[2] for frame in inner.frames] == ["_raise", "_fail"]
    assert inner.frames[0].Line > 0


def test_no_values_and_no_paths_of_the_machine() -> None:
    (stack,) = stacks_of(_fail(ValueError("hunter2")))
    text = str(stack)
    assert "hunter2" not in text
    assert not any(frame.File.startswith("/") for frame in stack.frames)
    assert stack.frames[0].File.endswith("test_errorstack.py")


def test_limits() -> None:
    def deep(left: int) -> None:
        if not left:
            raise ValueError
        deep(left - 1)

    try:
        deep(300)
    except ValueError as exc:
        (stack,) = stacks_of(exc)
    assert len(stack.frames) == 100
    error: Exception = ValueError(0)
    for number in range(20):
        error = _fail(ValueError(number), error)
    assert len(stacks_of(error)) == 8


def test_an_error_that_was_never_raised_has_none() -> None:
    assert stacks_of(ValueError()) == []
