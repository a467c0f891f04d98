"""Reads /proc: when a process started, which processes belong to a run, and how a process shows itself.

It decides which processes are members of a run; what is done to them is the keeper's.
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


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
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(b")") + 2 :].split()  # the name in parentheses may hold anything
    return Stat(pid, fields[0].decode(), int(fields[1]), int(fields[3]), int(fields[19]))


def children() -> set[int]:
    """The pids of this process's children, zombies too: one read, however many processes the host has."""
    with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
        return {int(pid) for pid in file.read().split()}


def carries_run(pid: int, run: str) -> bool:
    """Whether the process was started with NEXUS_RUN naming this run."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"NEXUS_RUN={run}".encode() in file.read().split(b"\0")
    except OSError:  # gone meanwhile, or not ours to read
        return False


def members(run: str, leader: Stat, orphans: set[int]) -> list[Stat]:
    """The living processes of a run: its leader, all descendants, and those that got away from it.

    A process that double-forked is among `orphans` (it was handed to the subreaper) and is known by the
    session it kept or by the NEXUS_RUN in its environment. One that dropped both is not found here.
    """
    table = {entry.pid: entry for entry in _processes()}
    offspring: dict[int, list[int]] = {}
    for entry in table.values():
        offspring.setdefault(entry.ppid, []).append(entry.pid)
    holder = table.get(leader.pid)
    # A pid is free again once no process and no session uses it: then its new holder is a stranger.
    ours = holder is None or holder.start_ticks == leader.start_ticks
    found: dict[int, None] = {}
    queue = [leader.pid] if ours else []
    for entry in table.values():
        stray = entry.pid in orphans or entry.ppid == 1
        if (ours and entry.session == leader.pid) or (stray and carries_run(entry.pid, run)):
            queue.append(entry.pid)
    while queue:
        pid = queue.pop()
        if pid in table and pid not in found:
            found[pid] = None
            queue.extend(offspring.get(pid, ()))
    return [table[pid] for pid in found if table[pid].state not in "ZX"]


def _processes() -> Iterator[Stat]:
    for name in os.listdir("/proc"):
        if name.isdigit() and (entry := stat(int(name))) is not None:
            yield entry


def send_signal(process: Stat, number: int) -> bool:
    """Signal this very process, never another that got its pid since; False when it is gone."""
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
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)


def become_subreaper() -> None:
    """Orphans below this process become its children, not init's (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


class Title:
    """This process's command line as ps shows it: the memory that argv lies in, which a fork inherits."""

    def __init__(self) -> None:
        with open("/proc/self/stat", "rb") as file:
            text = file.read()
        fields = text[text.rindex(b")") + 2 :].split()
        self._start, end = int(fields[45]), int(fields[46])  # arg_start, arg_end
        self._room = end - self._start

    def show(self, comm: str, title: str) -> None:
        """Set both names; a longer one is cut (comm: 15 bytes, title: the room that argv had)."""
        with open("/proc/self/comm", "w") as file:
            file.write(comm)
        line = title.encode()[: self._room - 1].ljust(self._room, b"\0")
        ctypes.memmove(self._start, line, self._room)
