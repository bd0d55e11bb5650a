"""The small process between the engine and its containers.

The engine is threaded and may die at any moment; containers must neither outlive it nor be forked
from it. So it execs this program once. The program enters a PID and a mount namespace of its own,
becomes process 1 there, starts the OCI runtime on request and reports how each ended. When the
engine's end of the socket closes, for whatever reason, process 1 ends and the kernel kills every
process of the namespace: no process, no mount and no secret is left behind.

Two processes: the outer one only waits (it is what the engine reaps), the inner one is process 1.
Configuration, secrets and the runtime's state lie on a tmpfs that only this mount namespace sees.

Run as ``python -SI -c "…; from boxwright.sandbox.supervisor import main; main()" FD DIR``.
Single-threaded; imports nothing outside the standard library, `boxwright.linux` and this package.
"""

import array
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import sys
import termios
import time

from boxwright.linux import namespaces, process
from boxwright.linux.mount import MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_REC, MS_SLAVE, mount
from boxwright.sandbox import brake, cgroups, protocol, sharedpids

_KILL_RETRY_MS = 5
_LEFTOVERS_MS = 20
_SIZE_TRIES = 400
_PTS_MAJORS = range(136, 144)
_ORPHAN_TRIES = 1000
_ORPHAN_PAUSE_S = 0.002
_COPY_CHUNK = 1 << 20
_FDS_PER_PACKET = protocol.FD_COUNT


class _Child:
    """One runtime process that we started."""

    __slots__ = (
        "after",
        "asked",
        "cgroup",
        "has_pidfile",
        "hold",
        "id",
        "init",
        "is_stoppable",
        "is_stopped",
        "kill_signal",
        "pid",
        "size",
        "size_tries",
    )

    def __init__(self, run_id: str, pid: int, cgroup: str, *, has_pidfile: bool) -> None:
        self.id = run_id
        self.pid = pid
        self.cgroup = cgroup
        self.has_pidfile = has_pidfile
        self.kill_signal = 0
        self.size = (0, 0)
        self.size_tries = 0
        self.after = ""
        self.init = 0
        self.asked = False
        self.hold = False
        self.is_stoppable = False
        self.is_stopped = False


class Supervisor:
    """Process 1 of the sandbox: starts, kills and reaps; owned by :func:`main`.

    With ``is_shared`` it is not process 1, and steps see the engine's processes.
    """

    def __init__(self, sock: socket.socket, base: str, *, is_shared: bool = False) -> None:
        self._sock = sock
        self._base = base
        self._is_shared = is_shared
        self._children: dict[int, _Child] = {}
        self._waiting: list[tuple[dict[str, object], list[int]]] = []
        self._brake = brake.Brake()
        self._passing: set[object] | None = None  # who may run while the disk is low; None: all

    def serve(self) -> None:
        """Answer requests until the engine's end of the socket is gone."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        poll.register(self._sock, select.POLLIN)
        poll.register(read_fd, select.POLLIN)
        self._send({"ev": "ready"})
        while True:
            events = poll.poll(self._patience_ms())
            for fd, _ in events:
                if fd == read_fd:
                    os.read(read_fd, 4096)
                    self._reap()
                elif not self._receive():
                    self._let_go()
                    return
            if self._waiting:
                self._start_waiting()
            if self._is_shared:
                self._end_leftovers()
            if self._brake.is_armed and self._children:
                self._look()
            for child in list(self._children.values()):
                if child.kill_signal:
                    self._kill_now(child)
                if any(child.size):
                    self._resize_now(child)
                if child.hold and not child.is_stopped:
                    self._stop_now(child)

    def _patience_ms(self) -> int | None:
        """Return how long nothing but a message or a signal has to be waited for."""
        children = self._children.values()
        unsettled = any(
            c.kill_signal or any(c.size) or (c.hold and not c.is_stopped) for c in children
        )
        coming_up = any(message["after"] for message, _ in self._waiting)
        waits = [_KILL_RETRY_MS] if unsettled or coming_up else []
        if self._brake.is_armed and children:
            waits.append(self._brake.wait_ms)
        if self._is_shared and children:
            waits.append(_LEFTOVERS_MS)
        return min(waits) if waits else None

    def _look(self) -> None:
        """Stop what is stoppable if the disk has too little room."""
        free = self._brake.look()
        if free < 0:
            return
        self._passing = set()
        for child in self._children.values():
            if child.is_stoppable and not child.kill_signal:
                child.hold = True
                self._stop_now(child)
        self._send({"ev": "low", "free": free})

    def _stop_now(self, child: _Child) -> None:
        pid = self._container_pid(child.id) if child.has_pidfile else 0
        child.is_stopped = brake.stop(child.cgroup, pid)

    def _let_pass(self, ids: list[object] | None) -> None:
        """Resume these, or everybody; whoever else is started later waits until it is named."""
        if ids is None:
            self._passing = None
        elif self._passing is not None:
            self._passing.update(ids)
        for child in self._children.values():
            if ids is None or child.id in ids:
                self._resume(child)

    def _resume(self, child: _Child) -> None:
        was_stopped, child.hold, child.is_stopped = child.is_stopped, False, False
        if was_stopped:
            brake.resume(child.cgroup, self._container_pid(child.id))

    def _let_go(self) -> None:
        """Kill and resume everybody: a frozen process does not notice that it was killed."""
        for child in self._children.values():
            if child.is_stopped:
                _signal(self._container_pid(child.id) or child.pid, signal.SIGKILL)
                self._resume(child)

    def _send(self, message: dict[str, object]) -> None:
        self._sock.send(protocol.encode(message))

    def _receive(self) -> bool:
        # Runtimes that are started while a run waits must not inherit its pipes: nobody would see
        # their end before those have ended, too.
        data, ancillary, flags, _ = self._sock.recvmsg(
            protocol.MAX_PACKET_BYTES + 1,
            socket.CMSG_SPACE(_FDS_PER_PACKET * 4),
            socket.MSG_CMSG_CLOEXEC,
        )
        fds = array.array("i")
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        try:
            if not data or flags & socket.MSG_TRUNC:
                return False
            message = protocol.decode(data)
            if message["op"] == "run" and self._must_wait(message):
                self._waiting.append((message, list(fds)))
                del fds[:]  # closed when it is started
            elif message["op"] == "run":
                self._run(message, list(fds))
            elif message["op"] == "kill":
                self._kill(str(message["id"]), _integer(message["signal"]))
            elif message["op"] == "watch":
                brake.hurry()
                self._brake.arm(str(message["path"]), _integer(message["free"]))
                if "ids" in message:
                    self._let_pass(None if message["ids"] is None else _items(message["ids"]))
            elif message["op"] == "resize":
                size = _integer(message["rows"]), _integer(message["columns"])
                self._resize(str(message["id"]), size)
            return True
        finally:
            for fd in fds:
                os.close(fd)

    def _run(self, message: dict[str, object], fds: list[int]) -> None:
        run_id = str(message["id"])
        cgroup = str(message["cgroup"] or "")
        stage = "bundle"
        try:
            payload, stdin, stdout, stderr = fds
            self._write_files(run_id, payload, message["files"])
            if cgroup:
                stage = "cgroup"
                cgroups.create(cgroup, _integer(message["memory"]))
            stage = "exec"
            argv = [str(arg) for arg in _items(message["argv"])]
            pid = os.posix_spawn(
                argv[0],
                argv,
                {"PATH": os.defpath + ":/usr/sbin:/sbin", "LANG": "C.UTF-8"},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, stdout, 1),
                    (os.POSIX_SPAWN_DUP2, stderr, 2),
                ],
                setsid=True,
                setsigmask=(),
                setsigdef=(signal.SIGINT, signal.SIGPIPE, signal.SIGCHLD),
            )
        except (OSError, TypeError, ValueError) as exc:
            self._forget(run_id, cgroup)
            number = exc.errno if isinstance(exc, OSError) else errno.EINVAL
            self._send(
                {
                    "ev": "failed",
                    "id": run_id,
                    "stage": stage,
                    "errno": number,
                    "path": str(getattr(exc, "filename", "") or ""),
                }
            )
            return
        child = _Child(run_id, pid, cgroup, has_pidfile=bool(message["pidfile"]))
        child.is_stoppable = bool(message["stoppable"])
        child.after = str(message["after"] or "")
        self._children[pid] = child
        self._send({"ev": "started", "id": run_id})

    def _end_leftovers(self) -> None:
        """Kill what is left of containers whose first process has ended.

        Their runtime is the parent of all of it, and would wait.
        """
        for child in self._children.values():
            child.init = child.init or self._container_pid(child.id)
            if child.init and sharedpids.has_ended(child.init):
                sharedpids.end_children(child.pid)

    def _must_wait(self, message: dict[str, object]) -> bool:
        """Whether a run can't start yet: its container is not up, or the disk is low."""
        if message["stoppable"] and self._passing is not None:
            return message["id"] not in self._passing
        return self._is_coming_up(message["after"])

    def _is_coming_up(self, run_id: object) -> bool:
        """Whether this is a container of ours that has no process yet."""
        own = any(child.id == run_id for child in self._children.values())
        return own and not self._container_pid(str(run_id))

    def _start_waiting(self) -> None:
        """Start what need not wait any more (its container has come up by now, or never will)."""
        waiting, self._waiting = self._waiting, []
        for message, fds in waiting:
            if self._must_wait(message):
                self._waiting.append((message, fds))
                continue
            self._run(message, fds)
            for fd in fds:
                os.close(fd)

    def _write_files(self, run_id: str, payload: int, files: object) -> None:
        """Write the payload's parts below the bundle folder, with owner and mode."""
        bundle = f"{self._base}/{run_id}"
        os.mkdir(bundle, 0o711)
        offset = 0
        for item in _items(files):
            name, mode, uid, gid, size = _items(item)
            if os.path.basename(str(name)) != name:
                raise OSError(errno.EINVAL, "not a plain name", str(name))
            target = os.open(
                f"{bundle}/{name}",
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC,
                0o600,
            )
            try:
                end = offset + _integer(size)
                while offset < end:
                    sent = os.sendfile(target, payload, offset, min(end - offset, _COPY_CHUNK))
                    if not sent:
                        raise OSError(errno.EIO, "payload is too short", str(name))
                    offset += sent
                if uid or gid:
                    os.fchown(target, _integer(uid), _integer(gid))
                os.fchmod(target, _integer(mode))
            finally:
                os.close(target)

    def _kill(self, run_id: str, number: int) -> None:
        for entry in self._waiting:
            if entry[0]["id"] == run_id:
                self._waiting.remove(entry)
                for fd in entry[1]:
                    os.close(fd)
                self._send(_exited(run_id, -1, number))
                return
        for child in self._children.values():
            if child.id == run_id:
                child.asked = True
                child.kill_signal = number
                self._kill_now(child)

    def _resize(self, run_id: str, size: tuple[int, int]) -> None:
        for child in self._children.values():
            if child.id == run_id:
                if any(child.size):  # a size that is out of date before it was set
                    self._send({"ev": "sized", "id": run_id})
                child.size, child.size_tries = size, _SIZE_TRIES if any(size) else 1
                self._resize_now(child)
                return
        self._send({"ev": "sized", "id": run_id})

    def _resize_now(self, child: _Child) -> None:
        """Set the size of a process's terminal, or wait until it has one.

        Not every runtime passes the size of its own terminal on, so the container's is set.
        """
        pid = self._container_pid(child.id)
        child.size_tries -= 1
        if (pid and _set_terminal_size(pid, child.size)) or not child.size_tries:
            child.size = (0, 0)
            self._send({"ev": "sized", "id": child.id})

    def _kill_now(self, child: _Child) -> None:
        """Signal the container's first process, or wait until the runtime has written its id."""
        if not child.has_pidfile:
            child.kill_signal = 0
            _signal(child.pid, signal.SIGKILL)
            return
        pid = self._container_pid(child.id)
        if not pid and child.hold:
            self._resume(child)  # stopped before its id was written: let it come up to be killed
        if pid:
            number, child.kill_signal = child.kill_signal, 0
            _signal(pid, number)
            if number == signal.SIGKILL:
                self._resume(child)

    def _container_pid(self, run_id: str) -> int:
        text = _read_small(f"{self._base}/{run_id}/{protocol.PIDFILE}", 32).strip()
        return int(text) if text.isdigit() else 0

    def _reap(self) -> None:
        """Collect every process that has ended, ours and the orphans that process 1 inherits."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            child = self._children.pop(pid, None)
            if child is not None:
                self._ended(child, status)

    def _ended(self, child: _Child, status: int) -> None:
        if os.WIFSIGNALED(status):
            # The runtime itself was killed: nobody else watches its container any more.
            pid = self._container_pid(child.id)
            if pid:
                _signal(pid, signal.SIGKILL)
        if os.WIFSIGNALED(status) or self._is_shared:
            self._kill_orphans()
        if self._is_shared:
            for other in self._children.values():
                if other.after == child.id:
                    self._kill(other.id, signal.SIGKILL)
        usage: dict[str, int] = {}
        if child.cgroup:
            usage = cgroups.usage(child.cgroup)
        log = _read_small(f"{self._base}/{child.id}/{protocol.LOG}", protocol.MAX_LOG_BYTES)
        self._forget(child.id, child.cgroup)
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        self._send(_exited(child.id, code, number, asked=child.asked, log=log, usage=usage))

    def _kill_orphans(self) -> None:
        """Kill children that we did not start, containers whose runtime is gone, and reap them.

        Their root file systems are unmounted next, so this waits for their end; not for ever, as
        a process may hang in the kernel.
        """
        for _ in range(_ORPHAN_TRIES):
            orphans = self._orphans()
            if not orphans:
                return
            for pid in orphans:
                _signal(pid, signal.SIGKILL)
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass
            time.sleep(_ORPHAN_PAUSE_S)

    def _orphans(self) -> list[int]:
        found = [pid for pid in sharedpids.children() if pid not in self._children]
        if not self._is_shared:
            return found
        pids = (self._container_pid(child.id) for child in self._children.values())
        alive = {sharedpids.world(pid) for pid in pids if pid} - {""}
        return [pid for pid in found if sharedpids.world(pid) not in alive]

    def _forget(self, run_id: str, cgroup: str) -> None:
        _remove_tree(f"{self._base}/{run_id}")
        state = f"{self._base}/{protocol.RUNTIME_ROOT}/{run_id}"
        if os.path.isdir(state):
            _remove_tree(state)
        if cgroup:
            cgroups.remove(cgroup)


def _exited(
    run_id: str,
    code: int,
    number: int,
    *,
    asked: bool = True,
    log: str = "",
    usage: dict[str, int] | None = None,
) -> dict[str, object]:
    """Return the event of a process that ended, or of one that was killed before it began."""
    return {
        "ev": "exited",
        "id": run_id,
        "code": code,
        "signal": number,
        "asked": asked,
        "log": log,
        "usage": usage or {},
    }


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"not a number: {value!r}")
    return value


def _items(value: object) -> list[object]:
    if not isinstance(value, list):
        raise TypeError(f"not a list: {value!r}")
    return value


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _set_terminal_size(pid: int, size: tuple[int, int]) -> bool:
    """Set the size of the terminal that is a process's standard input, if it is one.

    The process may swap its input at any time: what is looked at is what is opened.
    """
    found = -1
    try:
        found = os.open(f"/proc/{pid}/fd/0", os.O_PATH | os.O_CLOEXEC)
        info = os.fstat(found)
        if not stat.S_ISCHR(info.st_mode) or os.major(info.st_rdev) not in _PTS_MAJORS:
            return False
        flags = os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        terminal = os.open(f"/proc/self/fd/{found}", flags)
        try:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        finally:
            os.close(terminal)
    except (OSError, struct.error):
        return False
    finally:
        if found >= 0:
            os.close(found)
    return True


def _read_small(path: str, limit: int) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        return os.read(fd, limit).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(fd)


def _remove_tree(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _remove_tree(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(path)
    except OSError:
        pass  # a tmpfs of our own: it goes with us at the latest


def _enter_namespaces(base: str, *, is_shared: bool) -> None:
    """Set up what process 1 sees: mounts of the engine as they come, a /proc of its own.

    A hybrid cgroup host is shown to the runtime as a v1 host: crun before 1.9 refuses to run on
    hybrid ones, and nothing that we ask for needs the second hierarchy.
    """
    mount(None, "/", None, MS_REC | MS_SLAVE)
    if not is_shared:
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0711")
    if cgroups.mode() == "hybrid":
        mount("tmpfs", f"{cgroups.ROOT}/unified", "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    os.mkdir(f"{base}/{protocol.RUNTIME_ROOT}", 0o700)


def _serve(sock: socket.socket, base: str, *, is_shared: bool) -> None:
    if is_shared:
        process.set_subreaper()
    else:
        process.set_pdeathsig(signal.SIGKILL)
    stage = "namespace"
    try:
        _enter_namespaces(base, is_shared=is_shared)
        stage = "serve"
        Supervisor(sock, base, is_shared=is_shared).serve()
    except BrokenPipeError:
        return
    except OSError as exc:
        message = {"ev": "failed", "id": "", "stage": stage, "errno": exc.errno or 0}
        sock.send(protocol.encode({**message, "path": str(exc.filename or "")}))
        raise
    finally:
        if is_shared:
            sharedpids.end_descendants()


def main() -> None:
    """Start the supervisor; arguments: descriptor of the socket, folder for the tmpfs.

    A third one, ``shared``: without a PID namespace.
    """
    sock = socket.socket(fileno=int(sys.argv[1]))
    base = sys.argv[2]
    is_shared = sys.argv[3:] == ["shared"]
    sock.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to handle
    try:
        own_pids = 0 if is_shared else namespaces.CLONE_NEWPID
        namespaces.unshare(own_pids | namespaces.CLONE_NEWNS)
    except OSError as exc:
        failure = {"ev": "failed", "id": "", "stage": "unshare", "errno": exc.errno or 0}
        sock.send(protocol.encode({**failure, "path": ""}))
        sys.exit(1)
    if is_shared:
        process.set_subreaper()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            _serve(sock, base, is_shared=is_shared)
            code = 0
        finally:
            os._exit(code)
    sock.close()
    os.closerange(3, 64)
    _, status = os.waitpid(pid, 0)
    if is_shared:
        sharedpids.end_descendants()  # the inner one was killed
    sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)
