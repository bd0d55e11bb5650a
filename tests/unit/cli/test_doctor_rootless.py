"""What the facts of the probe mean: each cause is named, and the best mode is chosen."""

from __future__ import annotations

from typing import Any

import pytest

from boxwright.cli.doctor_rootless import judge

GOOD: dict[str, Any] = {
    "seccomp": False,
    "apparmor": "unconfined",
    "policy": [["user.max_user_namespaces", True, "user.max_user_namespaces=100", ""]],
    "fuse": "fuse-overlayfs is not installed",
    "userns": "",
    "warnings": [],
    "ids": 65537,
    "tmpfs": "",
    "overlay": "",
    "proc": "",
}


def failed(**changes: Any) -> tuple[list[str], str]:
    diagnosis = judge({**GOOD, **changes})
    for finding in diagnosis.findings:
        assert finding.ok or finding.hint, finding
    assert diagnosis.can_build == bool(diagnosis.mode)
    return [each.name for each in diagnosis.findings if not each.ok], diagnosis.mode


def test_all_is_well() -> None:
    assert failed() == ([], "user namespace with 65537 ids; overlayfs of the kernel")


@pytest.mark.parametrize(
    ("changes", "names", "mode"),
    [
        (
            {"overlay": "Operation not permitted", "fuse": ""},
            ["overlayfs"],
            "user namespace with 65537 ids; fuse-overlayfs",
        ),
        (
            {"overlay": "Operation not permitted"},
            ["overlayfs", "fuse"],
            "user namespace with 65537 ids; copies of every layer (slow, large)",
        ),
        (
            {"ids": 1, "warnings": ["no subordinate ids (fix: usermod)"]},
            ["subordinate ids"],
            "user namespace with only 1 id, so no chown to others; overlayfs of the kernel",
        ),
        # A filter that lets everything needed through blocks nothing.
        (
            {"seccomp": True, "apparmor": "docker-default"},
            [],
            "user namespace with 65537 ids; overlayfs of the kernel",
        ),
    ],
    ids=["fuse", "copies", "one id", "harmless filter"],
)
def test_what_is_left(changes: dict[str, Any], names: list[str], mode: str) -> None:
    assert failed(**changes) == (names, mode)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"userns": "Operation not permitted", "seccomp": True}, ["seccomp", "user namespace"]),
        (
            {
                "userns": "Operation not permitted",
                "policy": [["kernel.unprivileged_userns_clone", False, "reserved", "sysctl"]],
            },
            ["kernel.unprivileged_userns_clone", "user namespace"],
        ),
        (
            {"tmpfs": "Permission denied", "apparmor": "docker-default"},
            ["AppArmor", "mounts"],
        ),
        ({"proc": "Operation not permitted"}, ["process sandbox"]),
        ({"userns": "the probe failed: killed"}, ["user namespace"]),
    ],
    ids=["seccomp", "sysctl", "apparmor", "masked proc", "dead probe"],
)
def test_what_blocks_is_named(changes: dict[str, Any], names: list[str]) -> None:
    assert failed(**changes) == (names, "")


def test_a_probe_that_says_nothing() -> None:
    assert not judge({"userns": "x"}).can_build
