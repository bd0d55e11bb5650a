"""An ordinary user builds: embedded, as a daemon for stock clients, killed, and cleaned up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from leftovers import Process, mounts_of, processes_with, steps_that_ran
from programs import PROGRAM, Buildx, Context, Layout, Run, find_peer, run, wait_until

import boxwright

pytestmark = [
    pytest.mark.root,  # to make the user
    pytest.mark.userns,
    pytest.mark.peer("crun"),
    pytest.mark.peer("useradd"),
]
_OK_VERSION = "import sys; sys.exit(sys.version_info < (3, 11))"


@dataclass
class User:
    """A real ordinary user with subordinate ids, and a copy of the program that is his."""

    name: str
    home: Path

    @property
    def uid(self) -> int:
        """His user id."""
        return self.home.stat().st_uid

    @property
    def root(self) -> Path:
        """His state folder."""
        return self.home / ".local/share/boxwright"

    def argv(self, *argv: str | Path) -> list[str]:
        """Return the command line that runs ``boxwright`` as him."""
        return [
            *("setpriv", "--reuid", self.name, "--regid", self.name, "--init-groups"),
            *("--reset-env", "env", f"PYTHONPATH={self.home}/lib", f"HOME={self.home}"),
            *("PYTHONDONTWRITEBYTECODE=1", "NO_COLOR=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"),
            *("/usr/bin/python3", "-m", "boxwright", *map(str, argv)),
        ]

    def run(self, *argv: str | Path) -> Run:
        """Run ``boxwright`` as him."""
        return run(self.argv(*argv), cwd=Path("/"))

    def own(self, path: Path) -> None:
        """Give him a tree."""
        subprocess.run(["chown", "-hR", f"{self.name}:", str(path)], check=True)


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """Make the user; he and what is his are gone afterwards."""
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", "/usr/bin/python3", "-c", _OK_VERSION],
        check=False,
        capture_output=True,
    )
    if done.returncode:
        pytest.skip("needs a python from 3.11 on that other users can run")
    name = f"bw-e2e-{os.getpid()}"
    home = Path("/var/tmp") / name  # the kernel lets overlays be mounted there, unlike on tmpfs
    subprocess.run(["useradd", "--create-home", "--home-dir", str(home), name], check=True)
    made = User(name, home)
    try:
        caches = shutil.ignore_patterns("__pycache__")
        packages = sysconfig.get_paths()["platlib"]
        shutil.copytree(packages, home / "lib", ignore=caches)
        source = Path(boxwright.__file__).parent
        shutil.copytree(source, home / "lib/boxwright", ignore=caches, dirs_exist_ok=True)
        made.own(home)
        yield made
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def clean(user: User) -> Iterator[None]:
    """Start without a state folder and end without processes and mounts."""
    yield
    wait_until(lambda: not processes_with(str(user.root)), "all processes end")
    assert mounts_of(user.home) == []
    if user.root.exists():
        user.run("prune", "--all", "--reset").ok()


@pytest.fixture
def project(user: User) -> Iterator[Context]:
    """A context that is the user's."""
    path = user.home / "project"
    path.mkdir()
    context = Context(path)
    context.dockerfile(
        "FROM base\n"
        "RUN id -u > /id && echo other > /other && chown 12:34 /other && mkdir /only-root"
        " && chmod 700 /only-root && echo x > /only-root/x\n"
        "RUN stat -c %u:%g /other > /owner\n"
        "RUN mkdir /theirs && echo > /theirs/x && chown -R 12:34 /theirs\n"
    )
    user.own(path)
    yield context
    shutil.rmtree(path)


def test_a_build_with_steps(user: User, project: Context) -> None:
    output = user.home / "out.tar"
    user.run("build", "-o", f"type=oci,dest={output}", project.path).ok()
    assert (output.stat().st_uid, output.stat().st_gid) == (user.uid, user.uid)
    layout = Layout.unpack(output)
    files = layout.files()
    assert files["other"].split()[1] == "12/34"
    assert files["only-root/x"].split()[1] == "0/0"
    done = user.run("build", "--progress", "plain", project.path).ok()
    assert steps_that_ran(done.err) == set()
    output.unlink()


def test_a_folder_output_belongs_to_the_user(user: User, project: Context) -> None:
    folder = user.home / "out"
    user.run("build", "-o", folder, project.path).ok()
    assert (folder / "id").read_text() == "0\n"
    assert (folder / "owner").read_text() == "12:34\n"
    assert {path.lstat().st_uid for path in folder.rglob("*")} == {user.uid}
    shutil.rmtree(folder)


def test_reset_removes_what_rm_cannot(user: User, project: Context) -> None:
    user.run("build", project.path).ok()
    refused = subprocess.run(
        ["setpriv", "--reuid", user.name, "--clear-groups", "rm", "-rf", str(user.root)],
        check=False,
        capture_output=True,
    )
    assert refused.returncode != 0
    user.run("prune", "--all", "--reset").ok()
    assert not user.root.exists()


def test_killing_it_leaves_nothing(user: User, project: Context, tmp_path: Path) -> None:
    project.dockerfile(
        "FROM base\nRUN echo one > /one\n"
        "RUN --mount=type=cache,target=/c test -e /c/again || "
        "{ echo > /c/again; echo begun-$((1+1)); sleep 3600; }\n"
    )
    build = Process(
        user.argv("--root", user.root, "build", "--progress", "plain", project.path),
        tmp_path / "build.log",
    )
    try:
        build.wait_for_text("begun-2")
        build.end(signal.SIGKILL)
    finally:
        build.close()
    wait_until(lambda: not processes_with(str(user.root)), "all processes end")
    assert mounts_of(user.root) == []
    done = user.run("build", "--progress", "plain", project.path).ok()
    assert not any("RUN echo one" in name for name in steps_that_ran(done.err))


@pytest.mark.peer("docker-buildx")
def test_a_stock_client_drives_the_user_s_daemon(
    user: User, project: Context, tmp_path: Path
) -> None:
    address = f"unix://{user.home}/d.sock"
    argv = user.argv("daemon", "--root", user.root, "--addr", address)
    daemon = Process(argv, tmp_path / "daemon.log")
    try:
        daemon.wait_for((user.home / "d.sock").exists, "the daemon listens")
        buildx = Buildx(find_peer("docker-buildx"), tmp_path / "buildx", address)
        buildx.config.mkdir()
        buildx("create", "--name", "remote", "--driver", "remote", address).ok()
        target = tmp_path / "out"
        buildx.build("-o", f"type=local,dest={target}", project.path).ok()
        assert (target / "owner").read_text() == "12:34\n"
        assert daemon.end(signal.SIGTERM) == 0
    finally:
        daemon.close()


def test_the_doctor_tries_what_builds_need(user: User) -> None:
    done = user.run("doctor", "rootless").ok()
    assert "builds run: user namespace with" in done.out
    assert "overlayfs of the kernel" in done.out
    found = json.loads(user.run("doctor", "rootless", "--json").ok().out)
    assert {each["name"] for each in found["findings"]} >= {
        "seccomp",
        "AppArmor",
        "subordinate ids",
        "overlayfs",
        "fuse",
        "process sandbox",
    }
    assert not list(user.home.glob(".boxwright-doctor-*"))


def test_the_doctor_names_what_blocks(user: User) -> None:
    # util-linux's filter-free way to forbid it: no more user namespaces below this one.
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces; exec "$@"'
    inner = ["/usr/bin/python3", "-m", "boxwright", "doctor", "rootless"]
    argv = [
        *("setpriv", "--reuid", user.name, "--regid", user.name, "--init-groups", "--reset-env"),
        *("env", f"PYTHONPATH={user.home}/lib", f"HOME={user.home}", "PATH=/usr/bin:/bin"),
        *("unshare", "--user", "--map-current-user", "--keep-caps"),
        *("/bin/sh", "-c", forbid, "sh", *inner),
    ]
    done = run(argv, cwd=Path("/"))
    assert done.status == 27, done.text
    assert "FAIL user namespace" in done.out
    assert "user.max_user_namespaces=0" in done.out
    assert "builds can't run" in done.out


@pytest.fixture
def shared(user: User) -> Iterator[Path]:
    """A configuration in which steps share the engine's processes."""
    config = user.home / "shared.toml"
    config.write_text("[worker.oci]\nnoProcessSandbox = true\n")
    user.own(config)
    yield config
    config.unlink()


def masked(user: User, argv: list[str]) -> Run:
    """Run a command of his where parts of ``/proc`` are covered, as containers have it."""
    script = 'mount -t tmpfs none /proc/fs && exec "$@"'
    return run(["unshare", "--mount", "sh", "-c", script, "sh", *argv], cwd=Path("/"))


def test_where_proc_is_masked_steps_share_the_engine_s_processes(
    user: User, project: Context, shared: Path
) -> None:
    project.dockerfile(
        "FROM base\n"
        "RUN id -u && (sleep 7781 & sleep 7781 &) && echo see-$(ls /proc | grep -c '^[0-9]')\n"
        "RUN echo own >/dev/shm/x && cat /proc/self/status >/dev/null && cat /dev/shm/x\n"
    )
    build = ["build", "--progress", "plain", str(project.path)]
    refused = masked(user, user.argv(*build))
    assert refused.status != 0
    done = masked(user, user.argv("--config", shared, *build)).ok()
    assert "noProcessSandbox: steps can see and kill" in done.err
    (seen,) = (line for line in done.err.splitlines() if " see-" in line and "echo" not in line)
    assert int(seen.rpartition("-")[2]) > 5
    assert not processes_with("sleep\0007781")  # what a step leaves ends with it


def test_killing_it_leaves_nothing_of_shared_processes(
    user: User, project: Context, shared: Path, tmp_path: Path
) -> None:
    project.dockerfile("FROM base\nRUN (sleep 7782 &) && echo begun-$((1+1)) && sleep 7782\n")
    build = Process(
        user.argv("--config", shared, "build", "--progress", "plain", project.path),
        tmp_path / "build.log",
    )
    try:
        build.wait_for_text("begun-2")
        build.wait_for(lambda: len(processes_with("sleep\0007782")) == 2, "both commands run")
        build.end(signal.SIGKILL)
    finally:
        build.close()
    wait_until(lambda: not processes_with("sleep\0007782"), "all processes end")
    wait_until(lambda: not mounts_of(user.root), "nothing is mounted")


def test_a_killed_supervisor_takes_shared_processes_along(
    user: User, project: Context, shared: Path, tmp_path: Path
) -> None:
    project.dockerfile("FROM base\nRUN (sleep 7783 &) && echo begun-$((1+1)) && sleep 7783\n")
    build = Process(
        user.argv("--config", shared, "build", "--progress", "plain", project.path),
        tmp_path / "build.log",
    )
    try:
        build.wait_for_text("begun-2")
        build.wait_for(lambda: len(processes_with("sleep\0007783")) == 2, "both commands run")
        # Of the two the inner one, which started the steps.
        inner = max(processes_with(f"{user.root}/run/sandbox\0shared"))
        os.kill(inner, signal.SIGKILL)
        assert build.wait() != 0
    finally:
        build.close()
    wait_until(lambda: not processes_with("sleep\0007783"), "all processes end")
    assert "sandbox supervisor ended" in build.text


def test_root_keeps_the_process_sandbox(user: User, shared: Path, tmp_path: Path) -> None:
    del user
    config = tmp_path / "c.toml"
    config.write_text(shared.read_text())
    done = run([PROGRAM, "--config", str(config), "--root", str(tmp_path / "state"), "du"])
    assert done.status != 0
    assert "noProcessSandbox is not allowed for root" in done.err
