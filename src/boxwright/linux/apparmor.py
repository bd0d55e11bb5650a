"""What the kernel says of AppArmor (Documentation/admin-guide/LSM/apparmor.rst)."""

from __future__ import annotations

from pathlib import Path

_ENABLED = Path("/sys/module/apparmor/parameters/enabled")


def is_enabled() -> bool:
    """Return whether profiles confine processes here."""
    try:
        return _ENABLED.read_text().startswith("Y")
    except OSError:
        return False
