"""The examples and what the documentation tells people to type, run as they stand."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from programs import Daemon, run

pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"


def is_static(program: str) -> bool:
    """Return whether a program needs no libraries, as the examples' busybox must."""
    if not Path(program).exists():
        return False
    return subprocess.run(["ldd", program], capture_output=True, check=False).returncode != 0


needs_busybox = pytest.mark.skipif(
    not is_static("/bin/busybox"), reason="needs a static /bin/busybox"
)


def example(name: str, *arguments: str, state: Path):
    """Run one of the Python examples."""
    argv = [sys.executable, str(EXAMPLES / "python" / name), *arguments]
    return run(argv, env={"BOXWRIGHT_ROOT": str(state)})


@needs_busybox
def test_graph_on_an_engine_of_its_own(tmp_path: Path) -> None:
    first = example("graph.py", state=tmp_path).ok()
    assert "read out of the result: hello from a graph" in first.out
    assert "wrote /greeting" in first.out
    second = example("graph.py", state=tmp_path).ok()
    assert re.search(r"cached\s+greet", second.out)


@needs_busybox
def test_graph_on_a_daemon(daemon: Daemon, tmp_path: Path) -> None:
    done = example("graph.py", daemon.address, state=tmp_path / "unused").ok()
    assert "read out of the result: hello from a graph" in done.out
    assert not (tmp_path / "unused").exists()


@needs_busybox
def test_failures_have_codes(tmp_path: Path) -> None:
    done = example("failure.py", state=tmp_path).ok()
    assert "exec-failed: " in done.out
    assert "exit code: 3" in done.out
    assert "source-not-found: " in done.out


@needs_busybox
def test_a_dockerfile_becomes_an_archive(tmp_path: Path) -> None:
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    done = example("dockerfile.py", str(context), state=tmp_path / "state").ok()
    assert re.search(r"^sha256:[0-9a-f]{64}, \d+ bytes as an archive$", done.out, re.MULTILINE)


def test_the_engine_ends_with_a_killed_program(tmp_path: Path) -> None:
    """Standard input of the engine's process ends however the program ended."""
    text = (
        "import asyncio, os, signal\n"
        "from pathlib import Path\n"
        "from boxwright.client import local_engine\n"
        "async def main():\n"
        f"    async with local_engine(Path({str(tmp_path)!r})) as client:\n"
        "        await client.info()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    assert run([sys.executable, "-c", text]).status == -9
    # The next one waits for the lock's release or shares the engine that is about to leave; both
    # must end in an answer.
    again = text.replace("os.kill(os.getpid(), signal.SIGKILL)", "print('answered')")
    assert "answered" in run([sys.executable, "-c", again]).ok().out


@pytest.mark.parametrize("program", sorted(p.name for p in (EXAMPLES / "llb").glob("*.py")))
def test_definitions_are_well_formed(program: str) -> None:
    made = subprocess.run(
        [sys.executable, EXAMPLES / "llb" / program], capture_output=True, check=True
    )
    done = run(
        [str(Path(sys.executable).with_name("boxwright")), "debug", "dump-llb"], stdin=made.stdout
    ).ok()
    ops = [json.loads(line) for line in done.out.splitlines()]
    assert len(ops) > 1
