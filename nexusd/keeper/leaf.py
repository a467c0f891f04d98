"""One leaf of the cgroup tree (cgroups(7), version 2): made for a run, given its limits, killed, taken away.

Which leaf a run gets, and whether it gets one, is nexusd's to say (nexusd/system/cgroups.py).
"""

import os
from collections.abc import Iterator
from typing import Any


def make(leaf: dict[str, Any]) -> None:
    """leaf: its path and `limits`, what to write to which of the kernel's files. Raises OSError."""
    os.mkdir(leaf["path"])
    try:
        for name, text in leaf["limits"].items():
            write(os.path.join(leaf["path"], name), text)
    except OSError:
        os.rmdir(leaf["path"])
        raise


def move(path: str, pid: int) -> None:
    """Raises OSError. What the process forks from then on is born in the leaf."""
    write(os.path.join(path, "cgroup.procs"), str(pid))


def write(path: str, text: str) -> None:
    """To one of the kernel's files: each write is one command. Raises OSError that names the file."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from error


def pids(path: str) -> list[int]:
    """The processes in it and in what it has made below itself; [] when it is gone."""
    return [
        int(pid) for folder in _folders(path) for pid in _read(os.path.join(folder, "cgroup.procs")).split()
    ]


def is_populated(path: str) -> bool:
    """Whether any process lives in it, or below."""
    return b"populated 1" in _read(os.path.join(path, "cgroup.events"))


def kill(path: str) -> None:
    """SIGKILL to all in it at once: none of them can fork faster than that (Linux 5.14)."""
    try:
        write(os.path.join(path, "cgroup.kill"), "1")
    except FileNotFoundError:
        pass  # the leaf is gone, and so is what lived in it


def remove(path: str) -> bool:
    """Whether it is gone. A process that has ended, but is not reaped yet, still holds it for a moment."""
    for folder in _folders(path):
        try:
            os.rmdir(folder)
        except FileNotFoundError:
            continue
        except OSError:
            return False
    return True


def _folders(path: str) -> Iterator[str]:
    """Those below come first."""
    for folder, _, _ in os.walk(path, topdown=False):
        yield folder


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except (FileNotFoundError, OSError):  # ENODEV: it went away while it was open
        return b""
