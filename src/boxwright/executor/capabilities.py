"""Linux capabilities: Docker's default set, and what this process could hand out."""

from __future__ import annotations

from pathlib import Path

DEFAULT = tuple(
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP "
        "NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE"
    ).split()
)
"""What a step holds without ``security.insecure``."""

# In the order of their numbers, include/uapi/linux/capability.h.
_BY_NUMBER = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP "
    "LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER "
    "SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE "
    "SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF "
    "CHECKPOINT_RESTORE"
).split()


def names(mask: int) -> tuple[str, ...]:
    """Return the known capabilities whose bits are set in ``mask``."""
    return tuple(f"CAP_{name}" for bit, name in enumerate(_BY_NUMBER) if mask >> bit & 1)


def current() -> tuple[str, ...]:
    """Return the effective capabilities of this process."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        key, _, value = line.partition(":")
        if key == "CapEff":
            return names(int(value, 16))
    return ()
