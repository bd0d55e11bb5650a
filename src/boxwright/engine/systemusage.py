"""What the machine was doing, as provenance documents may tell (``capture-usage``).

The fields are BuildKit's (executor/resources/types): counters since the machine has started in
seconds, memory in KiB, pressure as the kernel writes it. Two samples make a rate.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from boxwright.core.gojson import time_text

_TICKS = 100  # of user space, on every architecture (USER_HZ)
_PROC = Path("/proc")
_CPU = (
    "user",
    "nice",
    "system",
    "idle",
    "iowait",
    "irq",
    "softirq",
    "steal",
    "guest",
    "guestNice",
)
_COUNTERS = {
    "ctxt": "contextSwitches",
    "processes": "processCreated",
    "procs_running": "processesRunning",
}
_MEMORY = {
    "MemTotal": "total",
    "MemFree": "free",
    "MemAvailable": "available",
    "Buffers": "buffers",
    "Cached": "cached",
    "Active": "active",
    "Inactive": "inactive",
    "SwapTotal": "swap",
    "Dirty": "dirty",
    "Writeback": "writeback",
    "Slab": "slab",
}
_PRESSURE = {"cpu": "cpuPressure", "memory": "memoryPressure", "io": "ioPressure"}


def sample(now_ns: int, proc: Path = _PROC) -> dict[str, Any]:
    """Return one sample; what the kernel does not tell is left out. Blocks for some reads.

    Args:
        now_ns: Its time, since the epoch.
        proc: The proc file system.
    """
    found: dict[str, Any] = {"timestamp": time_text(now_ns)}
    lines = [line.split() for line in _read(proc / "stat").splitlines()]
    values = {words[0]: words[1:] for words in lines if len(words) > 1}
    if "cpu" in values:
        times = (*values["cpu"], *("0" for _ in _CPU))
        found["cpuStat"] = {
            name: int(text) / _TICKS for name, text in zip(_CPU, times, strict=False)
        }
    counters = {name: int(values[key][0]) for key, name in _COUNTERS.items() if key in values}
    if counters:
        found["procStat"] = counters
    memory = _memory(_read(proc / "meminfo"))
    if memory:
        found["memoryStat"] = memory
    for name, key in _PRESSURE.items():
        pressure = _pressure(_read(proc / "pressure" / name))
        if pressure:
            found[key] = pressure
    return found


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text()
    return ""


def _memory(text: str) -> dict[str, int]:
    values = {}
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        words = rest.split()
        if words:
            values[name] = words[0]
    return {name: int(values[key]) for key, name in _MEMORY.items() if key in values}


def _pressure(text: str) -> dict[str, dict[str, float | int]]:
    """Read lines such as ``some avg10=0.00 avg60=0.00 avg300=0.00 total=0``."""
    found: dict[str, dict[str, float | int]] = {}
    for line in text.splitlines():
        kind, *pairs = line.split()
        values = dict(pair.split("=", 1) for pair in pairs)
        found[kind] = {
            name: int(value) if name == "total" else float(value) for name, value in values.items()
        }
    return found
