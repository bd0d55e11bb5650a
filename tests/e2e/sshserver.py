"""OpenSSH's server for one test, and an agent with the key that it lets in.

The server wants a folder below /run and a user of its own: it gets both in a mount namespace.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from programs import find_peer, wait_until

from boxwright.testing.peers import libraries
from boxwright.testing.ports import kept_port

_IN_NAMESPACE = """
mount -t tmpfs none /run
mkdir -p /run/sshd
mount --bind "$0/passwd" /etc/passwd
mount --bind "$0/shadow" /etc/shadow
exec "$@"
"""


class SshServer:
    """Listens on loopback and lets ``root`` in by one key."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("host", "user", "stranger"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True)
        (folder / "passwd").write_text(
            "root:x:0:0:root:/root:/bin/sh\nsshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n"
        )
        (folder / "shadow").write_text("root:*:19000:0:99999:7:::\nsshd:!:19000::::::\n")
        self._kept = ExitStack()
        self.port = self._kept.enter_context(kept_port())
        (folder / "config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nPidFile none\nUsePAM no\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nLogLevel VERBOSE\n"
        )
        helpers = Path(find_peer("sshd")).parent.parent / "lib/openssh"
        with (folder / "config").open("a") as config:  # of a server that is not installed
            for key, name in (("SshdSessionPath", "sshd-session"), ("SshdAuthPath", "sshd-auth")):
                if (helpers / name).exists():  # older ones have none, and don't know the keys
                    config.write(f"{key} {helpers / name}\n")
        self._process: subprocess.Popen[bytes] | None = None
        self._agents: list[int] = []

    def __enter__(self) -> Self:
        sshd = find_peer("sshd")
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-ec", _IN_NAMESPACE]
        command = [sshd, "-D", "-e", "-f", str(self.folder / "config")]
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [*argv, str(self.folder), *command],
                stderr=log,
                start_new_session=True,
                env={**os.environ, **libraries()},
            )
        wait_until(self._listens, what="sshd listens")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)
        self._kept.close()
        for agent in self._agents:
            os.kill(agent, signal.SIGTERM)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def log(self) -> str:
        """What the server says it did."""
        return (self.folder / "log").read_text()

    def agent(self, key: str) -> dict[str, str]:
        """Start an agent with a key; return the environment that leads to it."""
        # A socket needs a short path.
        made = subprocess.run(["ssh-agent", "-s"], capture_output=True, check=True, text=True)
        lines = [line.partition(";")[0] for line in made.stdout.splitlines() if "=" in line]
        found = dict(line.split("=", 1) for line in lines)
        self._agents.append(int(found["SSH_AGENT_PID"]))
        environment = {"SSH_AUTH_SOCK": found["SSH_AUTH_SOCK"]}
        subprocess.run(
            [shutil.which("ssh-add") or "ssh-add", "-q", str(self.folder / key)],
            env={**os.environ, **environment},
            check=True,
        )
        return environment

    def url(self, path: Path) -> str:
        """Return the remote of a repository on this machine."""
        return f"ssh://root@127.0.0.1:{self.port}{path}"
