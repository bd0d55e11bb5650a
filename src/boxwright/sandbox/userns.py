"""Becoming root in a user namespace of one's own, without a wrapper program.

A process with threads can't enter a user namespace, and a Python process gets threads soon. So the
programs call :func:`enter` first of all, before threads, event loop and heavy imports. The process
keeps its id, terminal and signals; inside it is user 0, and the user's subordinate ids
(``/etc/subuid``, ``/etc/subgid``) are the other users. Setting up that mapping takes a helper that
is still outside, forked here where forking is safe, which runs ``newuidmap`` and ``newgidmap``.

Without subordinate ids only the user's own id is mapped: builds whose files all belong to root
still work, with a warning.

Imported before everything else: standard library and `boxwright.linux` only.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
from dataclasses import dataclass

from boxwright.errors import BoxwrightError, Code
from boxwright.linux import namespaces

_NEEDED_IDS = 65536
_GO = b"g"
_TOOLS = ("newuidmap", "newgidmap")


class UserNamespaceError(BoxwrightError):
    """An ordinary user can't build here; the hint says what an administrator must change."""

    code = Code.ENVIRONMENT


@dataclass(frozen=True, slots=True)
class Entered:
    """The process is root in its own user namespace now; ``warnings`` are for the user."""

    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that rootless builds need; ``fix`` is a command or a sentence."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` subordinate ids from ``start`` on."""

    start: int
    count: int


def enter() -> Entered:
    """Enter a user and a mount namespace. Call once, in a process with one thread.

    Raises:
        UserNamespaceError: the kernel or its policy refuses.
        RuntimeError: there are threads already.
    """
    if namespaces.thread_count() != 1:
        raise RuntimeError("userns.enter() must run before any thread is started")
    uid, gid = os.geteuid(), os.getegid()
    uids, gids = subordinate_ids("/etc/subuid"), subordinate_ids("/etc/subgid")
    tools = [shutil.which(name) for name in _TOOLS]
    if uids and gids and tools[0] and tools[1]:
        uid_map = _mapping(uid, uids)
        gid_map = _mapping(gid, gids)
        failure = _enter_with_helper([[tools[0], *uid_map], [tools[1], *gid_map]])
        if not failure:
            _become_root()
            return Entered()
        raise UserNamespaceError(
            "can't map the user's subordinate ids",
            detail=failure,
            hint="check the user's lines in /etc/subuid and /etc/subgid, and that newuidmap "
            "is set-uid root (apt-get install --reinstall uidmap)",
        )
    warning = _single_id_warning(tools, uids, gids)  # names the user: not root yet
    _unshare()
    _map_single(uid, gid)
    _become_root()
    return Entered((warning,))


def _mapping(own: int, ranges: list[IdRange]) -> list[str]:
    """Return newuidmap's arguments: 0 is the user, then the ranges one after the other."""
    arguments = ["0", str(own), "1"]
    inside = 1
    for each in ranges:
        arguments += [str(inside), str(each.start), str(each.count)]
        inside += each.count
    return arguments


def _enter_with_helper(commands: list[list[str]]) -> str:
    """Unshare while a helper stays outside, and let it run ``commands`` on this process.

    Returns:
        An empty string, or what the helper says went wrong.
    """
    target = os.getpid()
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    said_read, said_write = os.pipe2(os.O_CLOEXEC)
    helper = os.fork()
    if helper == 0:
        code = 1
        try:
            os.close(go_write)
            os.close(said_read)
            if os.read(go_read, 1) == _GO:
                code = _run_map_tools(commands, target, said_write)
        finally:
            os._exit(code)
    os.close(go_read)
    os.close(said_write)
    try:
        _unshare()
        os.write(go_write, _GO)
    finally:
        os.close(go_write)
        said = _read_all(said_read)
        _, status = os.waitpid(helper, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        return said.decode("utf-8", "replace").strip() or "the helper failed"
    return ""


def _run_map_tools(commands: list[list[str]], target: int, said: int) -> int:
    for program, *arguments in commands:
        pid = os.posix_spawn(
            program,
            [program, str(target), *arguments],
            {"PATH": os.defpath},
            file_actions=[(os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)],
        )
        _, status = os.waitpid(pid, 0)
        if status:
            return 1
    return 0


def _read_all(fd: int) -> bytes:
    chunks = []
    while chunk := os.read(fd, 4096):
        chunks.append(chunk)
    os.close(fd)
    return b"".join(chunks)


def _unshare() -> None:
    try:
        namespaces.unshare(namespaces.CLONE_NEWUSER | namespaces.CLONE_NEWNS)
    except OSError as exc:
        problems = [finding for finding in probe_policy() if not finding.ok]
        detail = "; ".join(finding.detail for finding in problems)
        hint = "; or ".join(finding.fix for finding in problems)
        raise UserNamespaceError(
            "an ordinary user can't make a user namespace here",
            detail=detail or f"unshare: {exc.strerror}",
            hint=hint or _general_hint(exc),
        ) from exc


def _general_hint(exc: OSError) -> str:
    if exc.errno == errno.ENOSPC:
        return "too many user namespaces: raise user.max_user_namespaces"
    return (
        "inside a container allow it (--security-opt seccomp=unconfined "
        "--security-opt apparmor=unconfined), or run as root"
    )


def _map_single(uid: int, gid: int) -> None:
    # Writing gid_map without privilege needs setgroups off (user_namespaces(7)).
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"0 {uid} 1"),
        ("gid_map", f"0 {gid} 1"),
    ):
        fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)


def _become_root() -> None:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _single_id_warning(tools: list[str | None], uids: list[IdRange], gids: list[IdRange]) -> str:
    if not (tools[0] and tools[1]):
        why, fix = "newuidmap is not installed", "apt-get install uidmap"
    elif not uids or not gids:
        why = "the user has no subordinate ids"
        fix = _subid_fix()
    else:
        why, fix = "subordinate ids can't be used", _subid_fix()
    return f"{why}: only one user exists inside builds, so chown to others fails (fix: {fix})"


def _subid_fix() -> str:
    return f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {_user_name()}"


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def subordinate_ids(path: str) -> list[IdRange]:
    """Return the current user's ranges in ``path`` (subuid(5)), by name or by number."""
    names = {_user_name(), str(os.geteuid())}
    found: list[IdRange] = []
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(1 << 20).splitlines()
    except OSError:
        return []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in names and fields[1].isdigit() and fields[2].isdigit():
            found.append(IdRange(int(fields[1]), int(fields[2])))
    return found


def probe() -> list[Finding]:
    """Return everything that rootless builds need, with what is missing and how to fix it."""
    findings = probe_policy()
    missing = [name for name in _TOOLS if shutil.which(name) is None]
    findings.append(
        Finding(
            "uidmap",
            not missing,
            f"{', '.join(missing)} not installed" if missing else "newuidmap, newgidmap",
            "sudo apt-get install uidmap" if missing else "",
        )
    )
    for path in ("/etc/subuid", "/etc/subgid"):
        count = sum(each.count for each in subordinate_ids(path))
        enough = count >= _NEEDED_IDS
        detail = f"{count} ids for {_user_name()} in {path}"
        findings.append(Finding(path, enough, detail, "" if enough else _subid_fix()))
    return findings


def probe_policy() -> list[Finding]:
    """Return what the kernel's settings say about user namespaces of ordinary users."""
    findings = []
    for name, bad, problem, fix in (
        (
            "user.max_user_namespaces",
            "0",
            "user namespaces are switched off",
            "sudo sysctl -w user.max_user_namespaces=28633",
        ),
        (
            "kernel.unprivileged_userns_clone",
            "0",
            "user namespaces are reserved to root",
            "sudo sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            "kernel.apparmor_restrict_unprivileged_userns",
            "1",
            "AppArmor forbids user namespaces to programs without a profile",
            _apparmor_fix(),
        ),
    ):
        value = _read_setting(name)
        if value is None:
            continue
        if value == bad:
            findings.append(Finding(name, ok=False, detail=f"{name}={value}: {problem}", fix=fix))
        else:
            findings.append(Finding(name, ok=True, detail=f"{name}={value}"))
    return findings


def _apparmor_fix() -> str:
    program = os.path.realpath("/proc/self/exe")
    profile = (
        "abi <abi/4.0>,\\ninclude <tunables/global>\\n"
        f"profile boxwright {program} flags=(unconfined) {{ userns, }}\\n"
    )
    target = "/etc/apparmor.d/boxwright"
    return (
        f"allow it for this program: printf '{profile}' | sudo tee {target} && "
        f"sudo apparmor_parser -r {target}; "
        "or for all: sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
    )


def _read_setting(name: str) -> str | None:
    """Return a sysctl's value, ``None`` where this kernel does not have it."""
    try:
        with open(f"/proc/sys/{name.replace('.', '/')}", encoding="ascii") as file:
            return file.read(64).strip()
    except OSError:
        return None
