"""The OCI configuration as data."""

from __future__ import annotations

from pathlib import Path

import pytest

from boxwright.errors import InvalidInputError
from boxwright.executor import capabilities, seccomp
from boxwright.executor.errors import RuntimeFailedError
from boxwright.executor.process import (
    BindMount,
    NetworkMode,
    ProcessSpec,
    Resources,
    SecurityMode,
    TmpfsMount,
    Ulimit,
)
from boxwright.executor.spec import (
    HostFacts,
    PlannedMount,
    SpecInputs,
    bind_sources,
    dedupe_env,
    plan_spec,
)
from boxwright.executor.users import User


def plan(process: ProcessSpec, host: HostFacts | None = None, **changes: object) -> dict:
    binds = {
        place: PlannedMount(mount.dest, str(mount.source), mount.read_only)
        for place, mount in bind_sources(process)
    }
    values: dict = {
        "process": process,
        "rootfs": Path("/roots/1"),
        "user": User(1, 2, (2, 3)),
        "binds": binds,
        "resolv_conf": "/run/x/resolv.conf",
        "hosts": "/run/x/hosts",
        "cgroup_path": "/bw/1/c",
        "seccomp": seccomp.plan_seccomp(capabilities.DEFAULT, "x86_64"),
        "annotations": {"a": "b"},
        "host": host or HostFacts(),
    }
    return plan_spec(SpecInputs(**(values | changes)))


def mounts_of(spec: dict) -> dict[str, dict]:
    return {mount["destination"]: mount for mount in spec["mounts"]}


def test_plain_step() -> None:
    spec = plan(ProcessSpec(("true",), env=("A=1",), cwd="/work"))
    assert spec["ociVersion"] == "1.0.2"
    assert spec["root"] == {"path": "/roots/1", "readonly": False}
    assert spec["hostname"] == "buildkitsandbox"
    assert spec["process"]["args"] == ["true"]
    assert spec["process"]["cwd"] == "/work"
    assert spec["process"]["user"] == {"uid": 1, "gid": 2, "additionalGids": [2, 3]}
    assert spec["process"]["capabilities"] == {
        name: list(capabilities.DEFAULT) for name in ("bounding", "permitted", "effective")
    }
    assert "rlimits" not in spec["process"]
    assert spec["linux"]["namespaces"] == [
        {"type": name} for name in ("pid", "ipc", "uts", "mount")
    ]
    assert spec["linux"]["cgroupsPath"] == "/bw/1/c"
    assert spec["linux"]["resources"] == {"devices": [{"allow": False, "access": "rwm"}]}
    assert spec["annotations"] == {"a": "b"}


def test_mounts_as_a_step_sees_them() -> None:
    mounts = mounts_of(plan(ProcessSpec(("true",))))
    assert list(mounts) == [
        "/proc",
        "/dev",
        "/dev/pts",
        "/dev/shm",
        "/dev/mqueue",
        "/sys",
        "/etc/resolv.conf",
        "/etc/hosts",
        "/sys/fs/cgroup",
    ]
    assert "/run" not in mounts
    assert mounts["/sys"]["options"] == ["nosuid", "noexec", "nodev", "ro"]
    assert mounts["/etc/hosts"]["options"] == ["nosuid", "noexec", "nodev", "rbind", "ro"]


def test_a_mount_of_the_step_replaces_ours_in_its_place() -> None:
    process = ProcessSpec(("true",), mounts=(BindMount("/etc/hosts", Path("/mine")),))
    mounts = mounts_of(plan(process))
    assert mounts["/etc/hosts"]["source"] == "/mine"
    assert list(mounts).index("/etc/hosts") == 7


@pytest.mark.parametrize(
    ("mode", "has_own"),
    [(NetworkMode.DEFAULT, False), (NetworkMode.HOST, False), (NetworkMode.NONE, True)],
)
def test_network_namespace(mode: NetworkMode, has_own: bool) -> None:
    spec = plan(ProcessSpec(("true",), network=mode))
    assert ({"type": "network"} in spec["linux"]["namespaces"]) is has_own


def test_insecure_step() -> None:
    host = HostFacts(capabilities=("CAP_SYS_ADMIN", "CAP_CHOWN"))
    spec = plan(ProcessSpec(("true",), security=SecurityMode.INSECURE), host)
    granted = spec["process"]["capabilities"]
    assert set(granted) == {"bounding", "permitted", "effective", "inheritable", "ambient"}
    assert granted["ambient"] == [*capabilities.DEFAULT, "CAP_SYS_ADMIN"]
    assert "seccomp" not in spec["linux"]
    assert "annotations" not in spec
    assert spec["linux"]["maskedPaths"] == spec["linux"]["readonlyPaths"] == []
    assert mounts_of(spec)["/sys"]["options"] == ["nosuid", "noexec", "nodev"]
    assert {"allow": True, "type": "b", "access": "rwm"} in spec["linux"]["resources"]["devices"]
    assert "/dev/fuse" in {device["path"] for device in spec["linux"]["devices"]}


def test_user_namespace() -> None:
    host = HostFacts(has_cgroups=False, user_namespace=True, maps_tty_group=False)
    spec = plan(ProcessSpec(("true",), security=SecurityMode.INSECURE), host)
    assert "cgroupsPath" not in spec["linux"]
    assert "resources" not in spec["linux"]
    assert "devices" not in spec["linux"]
    mounts = mounts_of(spec)
    assert not [dest for dest in mounts if dest.startswith("/sys")]
    assert "gid=5" not in mounts["/dev/pts"]["options"]


def test_shared_processes() -> None:
    spec = plan(ProcessSpec(("true",)), HostFacts(shares_processes=True))
    assert {"type": "pid"} not in spec["linux"]["namespaces"]
    assert {"type": "mount"} in spec["linux"]["namespaces"]
    assert mounts_of(spec)["/proc"] == {
        "destination": "/proc",
        "type": "bind",
        "source": "/proc",
        "options": ["rbind"],
    }
    covered = spec["linux"]["maskedPaths"] + spec["linux"]["readonlyPaths"]
    assert "/sys/firmware" in covered
    assert not [path for path in covered if path.startswith("/proc")]


def test_without_a_device_filter_a_step_can_make_no_devices() -> None:
    spec = plan(ProcessSpec(("true",)), HostFacts(has_cgroups=False))
    assert "CAP_MKNOD" not in spec["process"]["capabilities"]["effective"]
    assert "CAP_MKNOD" in capabilities.DEFAULT


def test_limits_and_resources() -> None:
    process = ProcessSpec(
        ("true",),
        ulimits=(Ulimit("nofile", 1, 2), Ulimit("core", -1, -1)),
        resources=Resources(
            memory_bytes=5, memory_swap_bytes=9, cpu_shares=2, cpu_quota_us=3, cpuset_cpus="0-1"
        ),
    )
    spec = plan(process)
    assert spec["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2},
        {"type": "RLIMIT_CORE", "soft": 2**64 - 1, "hard": 2**64 - 1},
    ]
    assert spec["linux"]["resources"]["cpu"] == {"shares": 2, "quota": 3, "cpus": "0-1"}
    assert spec["linux"]["resources"]["memory"] == {"swap": 9, "limit": 5}


def test_an_impossible_limit_is_refused() -> None:
    with pytest.raises(InvalidInputError):
        plan(ProcessSpec(("true",), ulimits=(Ulimit("nofile", -2, 1),)))


def test_tmpfs() -> None:
    process = ProcessSpec(("true",), mounts=(TmpfsMount("t", size_bytes=7),))
    assert mounts_of(plan(process))["/t"] == {
        "destination": "/t",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "size=7"],
    }


def test_later_variables_win_in_the_earlier_place() -> None:
    assert dedupe_env(["A=1", "B=2", "A=3=4", "C"]) == ["A=3=4", "B=2", "C"]
    with pytest.raises(RuntimeFailedError, match="can't be empty") as caught:
        dedupe_env(["A=1", "=hidden"])
    assert "hidden" not in str(caught.value)


def test_filter_by_capabilities_and_machine() -> None:
    def names(*held: str, machine: str = "x86_64") -> set[str]:
        profile = seccomp.plan_seccomp(held, machine)
        assert profile is not None
        rules = profile["syscalls"]
        assert isinstance(rules, list)
        allowed = [r for r in rules if r["action"] == "SCMP_ACT_ALLOW" and not r.get("args")]
        return {name for rule in allowed for name in rule["names"]}

    assert "mount" not in names()
    assert "clone3" not in names()
    assert {"mount", "clone3", "unshare"} <= names("CAP_SYS_ADMIN")
    assert "chroot" in names("CAP_SYS_CHROOT")
    assert "arch_prctl" in names()
    assert "arch_prctl" not in names(machine="aarch64")
    assert {"socket", "personality"} & names() == set()
    assert seccomp.plan_seccomp((), "m68k") is None


def test_an_apparmor_profile_confines_all_but_insecure_steps() -> None:
    assert "apparmorProfile" not in plan(ProcessSpec(("true",)))["process"]
    confined = plan(ProcessSpec(("true",)), apparmor_profile="steps")
    assert confined["process"]["apparmorProfile"] == "steps"
    insecure = ProcessSpec(("true",), security=SecurityMode.INSECURE)
    assert "apparmorProfile" not in plan(insecure, apparmor_profile="steps")["process"]
