"""What the README tells a newcomer to type."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from programs import PROGRAM, run, wait_until

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.root, pytest.mark.peer("crun")]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the quickstart needs, with this environment."""
    clone = tmp_path / "clone"
    for folder in ("scripts", "examples"):
        shutil.copytree(ROOT / folder, clone / folder)
    (clone / ".venv/bin").mkdir(parents=True)
    for name in ("boxwright", "python"):
        (clone / ".venv/bin" / name).symlink_to(Path(sys.executable).with_name(name))
    own = ROOT / ".cache/busybox"
    if own.exists():
        shutil.copytree(own, clone / ".cache/busybox")
    return clone


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart_twice(checkout: Path) -> None:
    first = run([str(checkout / "scripts/quickstart")], timeout_s=280).ok()
    assert "<h1>Hello from Boxwright</h1>" in first.out
    assert re.search(r"Built, pushed, pulled by digest \(sha256:[0-9a-f]{64}\) and run", first.out)
    second = run([str(checkout / "scripts/quickstart")], timeout_s=280).ok()
    assert "CACHED" in second.text
    assert (checkout / ".venv/bin/buildctl").is_symlink()


def test_certificates_of_the_daemon_page_work(tmp_path: Path) -> None:
    """The commands that make certificates, then the daemon and a client with them."""
    page = (ROOT / "docs/daemon.md").read_text()
    making = next(b for b in re.findall(r"```sh\n(.*?)```", page, re.DOTALL) if "openssl" in b)
    subprocess.run(["bash", "-e", "-c", making], cwd=tmp_path, check=True, capture_output=True)
    certs = tmp_path / "certs"

    def files(name: str) -> list[str]:
        return [
            f"--tlscert={certs}/{name}.pem",
            f"--tlskey={certs}/{name}.key",
            f"--tlscacert={certs}/ca.pem",
        ]

    log = tmp_path / "log"
    argv = [PROGRAM, "daemon", "--root", str(tmp_path / "state"), "--addr", "tcp://127.0.0.1:0"]
    with log.open("wb") as stream:
        process = subprocess.Popen([*argv, *files("server")], stderr=stream)
    try:
        wait_until(lambda: b"tcp://" in log.read_bytes(), what="the daemon listens")
        found = re.search(r"tcp://127\.0\.0\.1:(\d+)", log.read_text())
        assert found is not None
        address = ["--addr", f"tcp://localhost:{found[1]}"]
        done = run([PROGRAM, *address, *files("client"), "debug", "workers"]).ok()
        assert "linux/" in done.out
        refused = run([PROGRAM, *address, files("client")[2], "debug", "workers"])
        assert refused.status not in {0, 70}
    finally:
        process.terminate()
        process.wait(120)


def test_a_lost_package_mirror_is_said_at_once(tmp_path: Path) -> None:
    """With a proxy that nobody answers at, and a package that is missing."""
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "scripts", clone / "scripts")
    config = tmp_path / "apt.conf"
    config.write_text(
        'Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\n'
        f'Dir::State::lists "{tmp_path}/lists";\nDir::Cache "{tmp_path}/cache";\n'
    )
    # A PATH without crun: it is what is missing.
    tools = tmp_path / "bin"
    tools.mkdir()
    hidden = {"crun"}
    for folder in ("/usr/sbin", "/sbin", "/usr/bin", "/bin"):
        for entry in os.scandir(folder):
            if entry.name not in hidden and not (tools / entry.name).exists():
                (tools / entry.name).symlink_to(entry.path)
    script = (clone / "scripts/setup").read_text().replace("PATH=$PATH:/usr/sbin:/sbin", "")
    (clone / "scripts/setup").write_text(script)
    done = run(
        [str(clone / "scripts/setup"), "run"],
        env={"PATH": str(tools), "APT_CONFIG": str(config)},
        timeout_s=120,
    )
    assert done.status == 27
    assert "error: the package mirror can't be reached" in done.err
    assert "hint: " in done.err
