"""What the kernel says a replica uses: of its first process (proc(5)), of its cgroup where it has one."""

import os
from typing import NamedTuple

from nexusd.system import cgroups

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    cpu_s: float
    resident_bytes: int
    threads: int
    open_fds: int | None  # None: not ours to see


def usage(pid: int, start_ticks: int, leaf: str | None = None) -> Usage | None:
    """Of the process that began then; None when it is gone, a zombie or not ours to see, or another has its pid."""
    try:
        fields = _stat(pid)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    if int(fields[19]) != start_ticks or fields[0] in b"ZX":
        return None
    cpu_s, memory = (int(fields[11]) + int(fields[12])) / _TICKS, int(fields[21]) * _PAGE
    if leaf is not None and (all_of_it := cgroups.used(leaf)) is not None:
        cpu_s = all_of_it.cpu_s
        memory = memory if all_of_it.memory_bytes is None else all_of_it.memory_bytes
    return Usage(cpu_s, memory, int(fields[17]), _open_fds(pid))


def _stat(pid: int) -> list[bytes]:
    """/proc/PID/stat from its third field on: the name before it may hold anything."""
    # Not open(): a file object costs more than all the rest, and there may be a thousand processes.
    descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = os.read(descriptor, 4096)
    finally:
        os.close(descriptor)
    return text[text.rindex(b")") + 2 :].split()


def _open_fds(pid: int) -> int | None:
    """Since Linux 6.2 the folder's size is their number (proc(5)); before that it is 0, and they have to be listed."""
    folder = f"/proc/{pid}/fd"
    try:
        return os.stat(folder).st_size or len(os.listdir(folder))
    except OSError:
        return None
