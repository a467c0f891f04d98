"""Reads /proc: when a process started, which processes belong to a run, and how a process shows itself.

It decides which processes are members of a run; what is done to them is the keeper's.
"""

import ctypes
import errno
import os
import signal
import socket
from collections.abc import Callable, Iterator
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
SYS_PIDFD_GETFD = 438  # the same on all architectures (asm-generic/unistd.h); Python has no name for it
RUN_ROOM = "-" * 200  # the keeper's own NEXUS_RUN, to be written over in whom it forks


class Stat(NamedTuple):
    pid: int
    state: str
    ppid: int
    session: int
    start_ticks: int  # clock ticks since boot: with the pid and the boot id, a process's identity


def boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def stat(pid: int) -> Stat | None:
    """What the kernel says of the process, None when there is none (proc(5), /proc/pid/stat)."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name in parentheses may hold anything
    state = fields[0].decode()
    if state == "Z" and fields[17] != b"1":  # its main thread has ended, others go on
        state = "S"
    return Stat(pid, state, int(fields[1]), int(fields[3]), int(fields[19]))


def _read(path: str) -> bytes:
    """A file of one line. Without Python's buffers, which take longer than the kernel does."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 4096)
    finally:
        os.close(descriptor)


def zombie_status(pid: int) -> int | None:
    """The wait status of a process that has ended and that its parent has not asked for; None: it is none of these."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return int(fields[49]) if fields[0] == b"Z" and fields[17] == b"1" else None


def children(pid: int) -> list[int]:
    """The pids of a process's children, zombies too; [] when it is gone. Each of its threads has a list."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found.extend(map(int, file.read().split()))
    except (FileNotFoundError, ProcessLookupError):
        pass
    return found


class Stray(NamedTuple):
    """A process that has lost its parent, and the run that the NEXUS_RUN in its environment names."""

    process: Stat
    run: str | None


def stray(process: Stat) -> Stray:
    return Stray(process, _run_in_environment(process.pid))


def _run_in_environment(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            variables = file.read().split(b"\0")
    except OSError:  # gone meanwhile, or not ours to read
        return None
    named = (entry for entry in variables if entry.startswith(b"NEXUS_RUN="))
    return next(named, b"").partition(b"=")[2].decode(errors="replace") or None


def members(run: str, leader: Stat, strays: Callable[[], list[Stray]]) -> list[Stat]:
    """The living processes of a run: its leader, all descendants, and those that got away from it.

    The strays of the run are known by the session they kept or by the NEXUS_RUN in their environment; one that
    dropped both is not found here. They are asked for after the descendants: who dies between the two leaves
    its children among them.
    """
    holder = stat(leader.pid)
    # A pid is free again once no process and no session uses it: then its new holder is a stranger.
    is_ours = holder is None or holder.start_ticks == leader.start_ticks
    found: dict[int, Stat] = {}
    if is_ours:
        _add_with_descendants(leader.pid, found)
    for process, named in strays():
        if named == run or (is_ours and process.session == leader.pid):
            _add_with_descendants(process.pid, found)
    return [process for process in found.values() if process.state not in "ZX"]


def is_any_stopped(pid: int) -> bool:
    """Whether the process or one of its descendants is held by a SIGSTOP (T in /proc/pid/stat)."""
    found: dict[int, Stat] = {}
    _add_with_descendants(pid, found)
    return any(process.state == "T" for process in found.values())


def _add_with_descendants(pid: int, found: dict[int, Stat]) -> None:
    queue = [pid]
    while queue:
        pid = queue.pop()
        if pid not in found and (process := stat(pid)) is not None:
            found[pid] = process
            queue.extend(children(pid))


def parentless() -> list[Stray]:
    """Processes whose parent is init or one above this one: to whom the kernel hands orphans (prctl(2))."""
    foster = {1, *_ancestors()}
    everybody = (stat(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return [stray(process) for process in everybody if process is not None and process.ppid in foster]


def _ancestors() -> Iterator[int]:
    pid = os.getppid()
    while pid > 1 and (process := stat(pid)) is not None:
        yield pid
        pid = process.ppid


def send_signal(process: Stat, number: int) -> bool:
    """Signal this very process, never another that got its pid since; False: it is gone, or not ours to end."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        now = stat(process.pid)
        if now is None or now.start_ticks != process.start_ticks:
            return False
        signal.pidfd_send_signal(pidfd, number)
        return True
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)


def reap() -> Iterator[tuple[int, int]]:
    """Each child of this process that has ended, with its wait status."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, status


def take_listening_socket(pid: int, number: int) -> int:
    """A duplicate of another process's listening socket (pidfd_getfd(2)). Raises OSError when it can't be had."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        taken = libc.syscall(SYS_PIDFD_GETFD, pidfd, number, 0)
        if taken < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(pidfd)
    with socket.socket(fileno=taken) as sock:
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(errno.ENOTSOCK, f"descriptor {number} listens no more")
        return sock.detach()


def become_subreaper() -> None:
    """Orphans below this process become its children, not init's (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Title:
    """This process as /proc shows it: the memory that argv and the environment lie in, which a fork inherits."""

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:
            text = file.read()
        fields = text[text.rindex(b")") + 2 :].split()
        self._start, end, env_start, env_end = map(int, fields[45:49])  # arg_start and so on, proc(5)
        self._room = end - self._start
        free = f"NEXUS_RUN={RUN_ROOM}".encode()
        self._run_room = len(free)
        place = ctypes.string_at(env_start, env_end - env_start).find(free)
        self._run_start = env_start + place if place >= 0 else None

    def show(self, comm: str, title: str) -> None:
        """Set both names; a longer one is cut (comm: 15 bytes, title: the room that argv had)."""
        descriptor = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, comm.encode())
        os.close(descriptor)
        line = title.encode()[: self._room - 1].ljust(self._room, b"\0")
        ctypes.memmove(self._start, line, self._room)

    def carry(self, run: str) -> None:
        """Have `stray` know this process, and all that it forks without exec, by its run."""
        mark = f"NEXUS_RUN={run}".encode()
        if self._run_start is not None and len(mark) <= self._run_room:
            ctypes.memmove(self._run_start, mark.ljust(self._run_room, b"\0"), self._run_room)
