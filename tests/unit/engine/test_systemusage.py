"""What documents tell of the machine."""

from __future__ import annotations

from pathlib import Path

from boxwright.engine.systemusage import sample

STAT = """cpu  100 200 300 400 500 0 60 70 80 90
cpu0 1 2 3 4 5 6 7 8 9 10
intr 5 0 0
ctxt 1234
btime 1700000000
processes 56
procs_running 7
"""
MEMINFO = """MemTotal:        4000 kB
MemFree:          100 kB
HugePages_Total:       0
SwapTotal:          0 kB
"""
PRESSURE = """some avg10=0.50 avg60=1.00 avg300=0.00 total=99
full avg10=0.00 avg60=0.00 avg300=0.00 total=0
"""


def test_fields_are_those_of_buildkit(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text(STAT)
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure/io").write_text(PRESSURE)
    found = sample(1_500_000_000_250_000_000, tmp_path)
    assert found["timestamp"] == "2017-07-14T02:40:00.25Z"
    assert found["cpuStat"]["user"] == 1.0
    assert list(found["cpuStat"]) == [
        *("user", "nice", "system", "idle", "iowait"),
        *("irq", "softirq", "steal", "guest", "guestNice"),
    ]
    assert found["procStat"] == {
        "contextSwitches": 1234,
        "processCreated": 56,
        "processesRunning": 7,
    }
    assert found["memoryStat"] == {"total": 4000, "free": 100, "swap": 0}
    assert found["ioPressure"]["some"] == {"avg10": 0.5, "avg60": 1.0, "avg300": 0.0, "total": 99}
    assert "cpuPressure" not in found


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    assert sample(0, tmp_path) == {"timestamp": "1970-01-01T00:00:00Z"}


def test_this_machine() -> None:
    found = sample(0)
    assert found["memoryStat"]["total"] > found["memoryStat"]["free"] > 0
    assert found["cpuStat"]["idle"] > 0
    assert found["procStat"]["processesRunning"] >= 1
