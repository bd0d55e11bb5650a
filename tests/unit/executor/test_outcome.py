"""From how a runtime ended to what the user is told."""

from __future__ import annotations

import json

import pytest

from boxwright.executor.errors import (
    ExecFailedError,
    OutOfMemoryError,
    RuntimeFailedError,
    go_quote,
)
from boxwright.executor.link import Outcome
from boxwright.executor.outcome import interpret
from boxwright.executor.process import ProcessSpec
from boxwright.executor.runtime import choices, message_of

STEP = ProcessSpec(("sh", "-c", 'echo "x"'), env=("TOKEN=hush",))


def ended(code: int = 0, *, signal: int = 0, log: str = "", **usage: int) -> Outcome:
    text = json.dumps({"level": "error", "msg": log}) if log else ""
    return Outcome(code, signal, asked=False, log=text, usage=usage)


def test_success_carries_what_was_used() -> None:
    status = interpret(STEP, ended(peak=5, cpu_usec=7))
    assert (status.code, status.memory_peak_bytes, status.cpu_usec) == (0, 5, 7)


def test_failure_has_upstreams_words() -> None:
    with pytest.raises(ExecFailedError) as caught:
        interpret(STEP, ended(2))
    assert str(caught.value) == (
        'process "sh -c echo \\"x\\"" did not complete successfully: exit code: 2'
    )
    assert caught.value.process_exit_code == 2


def test_a_kill_for_memory() -> None:
    with pytest.raises(OutOfMemoryError) as caught:
        interpret(STEP, ended(137, oom_kills=1, limit=100, peak=99))
    assert (caught.value.limit_bytes, caught.value.peak_bytes) == (100, 99)
    assert str(caught.value).endswith("cannot allocate memory")


def test_a_memory_kill_that_the_step_survived_is_no_failure() -> None:
    assert interpret(STEP, ended(0, oom_kills=1)).code == 0


@pytest.mark.parametrize(
    ("log", "kind"),
    [
        ("executable file `x` not found in $PATH: No such file or directory", ExecFailedError),
        ('runc run failed: exec: "x": permission denied', ExecFailedError),
        ("mount `proc` to `proc`: Operation not permitted", RuntimeFailedError),
    ],
)
def test_whose_fault_a_failed_start_is(log: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        interpret(STEP, ended(1, log=log))


def test_a_killed_runtime_is_not_the_steps_failure() -> None:
    with pytest.raises(RuntimeFailedError):
        interpret(STEP, ended(-1, signal=9))


def test_secrets_are_in_no_message() -> None:
    assert "hush" not in repr(STEP)
    with pytest.raises(ExecFailedError) as caught:
        interpret(STEP, ended(2))
    assert "hush" not in f"{caught.value!r}{caught.value.detail}{caught.value.hint}"


def test_last_error_of_a_runtime_log() -> None:
    lines = [
        {"level": "warning", "msg": "no"},
        {"level": "error", "msg": "first"},
        {"level": "error", "msg": "second"},
        {"level": "debug", "msg": "later"},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\nnot json\n[1]\n"
    assert message_of(text) == "second"
    assert message_of("") == ""


def test_runtimes_with_groups_come_before_those_without() -> None:
    from pathlib import Path

    order = choices([Path("/b/crun"), Path("/b/runc")], cgroups_allowed=True)
    assert [(each.name, each.uses_cgroups) for each in order] == [
        ("crun", True),
        ("runc", True),
        ("crun", False),
        ("runc", False),
    ]


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a", '"a"'),
        ('"\\', '"\\"\\\\"'),
        ("\n\t\x00\x7f", '"\\n\\t\\x00\\x7f"'),
        ("é世", '"é世"'),
        ("\u200b", '"\\u200b"'),
    ],
)
def test_quoting_is_gos(text: str, quoted: str) -> None:
    assert go_quote(text) == quoted
