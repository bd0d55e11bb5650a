"""Write ``expected.json`` of every case in ``tests/golden/dockerfile`` anew.

Run it after a change that is meant to change definitions, and read the difference.
"""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parent / "dockerfile/test_golden_dockerfile.py"))["update"]()
