"""The folders that nexusd works in: made with the right modes, and locked, so that each has one nexusd.

Where they lie is configuration's to say.
"""

import contextlib
import fcntl
import os
import stat

from nexusd.domain.errors import NotPossible


def make_folders(runtime: str, state: str, logs: str) -> None:
    """The runtime folder is passable, not readable: modules of other users reach their own sockets in it."""
    _make_runtime(runtime)
    for name in ("r", "config"):
        os.makedirs(os.path.join(runtime, name), mode=0o711, exist_ok=True)
    os.makedirs(state, mode=0o751, exist_ok=True)  # passable: copies of code lie in it
    os.makedirs(logs, mode=0o750, exist_ok=True)


def _make_runtime(folder: str) -> None:
    os.makedirs(folder, mode=0o711, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.getuid()):
        raise NotPossible(f"{folder} is not a folder of {os.getuid()} or root", hint="nexusd --runtime DIR")


def lock_path(folder: str) -> str:
    return os.path.join(folder, "nexusd.lock")


def lock_folder(folder: str, held: int | None = None) -> int:
    """One nexusd for a folder. The lock goes with the process, however it ends; held: it has it already.

    Its owner's alone: who may read the file may lock it, and keep nexusd from starting. Raises NotPossible.
    """
    descriptor = os.open(lock_path(folder), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if held is not None and os.path.samestat(os.fstat(held), os.fstat(descriptor)):
        os.close(descriptor)
        return held
    os.fchmod(descriptor, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise NotPossible(
            f"another nexusd (pid {holder}) uses {folder}",
            hint="nexusctl status, or nexusd --runtime DIR --state DIR for a second one",
        ) from None
    with contextlib.suppress(OSError):  # on a full disk it is named no longer, and locked all the same
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor
