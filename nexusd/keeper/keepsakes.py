"""What of a run outlives nexusd and keeper both: copies of its descriptors with a third holder, and a pidfd.

It decides what is kept, under which name, and what a pidfd tells of an end. The holder is systemd, where it runs us.
"""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from typing import Protocol

from nexusd.keeper import proctable
from nexusd.keeper.protocol import close_all

_LOG, _NOTIFY, _PIDFD, _LISTENING = "log=", "notify=", "pid=", "listen="
# PIDFD_GET_INFO and PIDFD_INFO_EXIT of linux/pidfd.h (6.15), with struct pidfd_info in its first size.
_GET_INFO = 0xC040FF0B
_INFO_EXIT = 1 << 3
_INFO = struct.Struct("=QQ11Ii")


class Store(Protocol):
    """Somebody who holds descriptors by name, and had some already (`stored`)."""

    stored: dict[str, int]

    def keep(self, name: str, fd: int) -> None: ...

    def drop(self, name: str) -> None: ...


class NoStore:
    """Where there is nobody."""

    def __init__(self) -> None:
        self.stored: dict[str, int] = {}

    def keep(self, name: str, fd: int) -> None:
        pass

    def drop(self, name: str) -> None:
        pass


class Keepsakes:
    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: set[str] = set(store.stored)
        self._found = dict(store.stored)
        store.stored.clear()
        self._pidfds = self._take(_PIDFD)

    def listening(self) -> dict[str, int]:
        """The listening sockets that a former nexusd had; they are the caller's."""
        return self._take(_LISTENING)

    def runs(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Log and notify descriptor of each run that a former nexusd had. They are to be copied, then `settled`."""
        for name, log in self._found.items():
            key = name.removeprefix(_LOG)
            notify = self._found.get(_NOTIFY + key)
            if name.startswith(_LOG) and notify is not None:
                yield key, (log, notify)

    def settled(self, keys: set[str]) -> None:
        """The keeper has told its table: nothing is kept of runs that are not in it."""
        close_all(tuple(self._found.values()))
        self._found.clear()
        for name in tuple(self._kept):
            kind, _, key = name.partition("=")
            if f"{kind}=" != _LISTENING and key not in keys:
                self.forget(key)

    # What is kept

    def keep_run(self, key: str, log: int, notify: int) -> None:
        self._keep(_LOG + key, log)
        self._keep(_NOTIFY + key, notify)

    def keep_process(self, key: str, pid: int, start_ticks: int) -> None:
        """From now on its end can be told, whoever reaps it."""
        if key in self._pidfds:
            return
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:  # it is over already
            return
        found = proctable.stat(pid)
        if found is None or found.start_ticks != start_ticks:
            os.close(pidfd)
            return
        self._pidfds[key] = pidfd
        self._keep(_PIDFD + key, pidfd)

    def keep_listening(self, name: str, fd: int) -> None:
        self._keep(_LISTENING + name, fd)

    def forget_listening(self, name: str) -> None:
        self._drop(_LISTENING + name)

    def forget(self, key: str) -> None:
        if (pidfd := self._pidfds.pop(key, None)) is not None:
            os.close(pidfd)
        for kind in (_LOG, _NOTIFY, _PIDFD):
            self._drop(kind + key)

    def status(self, key: str, pid: int) -> int | None:
        """As waitpid() has it; None: the kernel can't tell, or nobody held its pidfd when it ended."""
        pidfd = self._pidfds.get(key)
        return None if pidfd is None else _wait_status(pidfd, pid)

    def close(self) -> None:
        """The third holder goes on holding."""
        close_all((*self._pidfds.values(), *self._found.values()))
        self._pidfds.clear()
        self._found.clear()

    def _keep(self, name: str, fd: int) -> None:
        if name not in self._kept:
            self._kept.add(name)
            self._store.keep(name, fd)

    def _drop(self, name: str) -> None:
        """Also what the nexusd that this process was before may have given."""
        self._kept.discard(name)
        self._store.drop(name)

    def _take(self, kind: str) -> dict[str, int]:
        names = [name for name in self._found if name.startswith(kind)]
        return {name.removeprefix(kind): self._found.pop(name) for name in names}


def _wait_status(pidfd: int, pid: int) -> int | None:
    """Before its parent has asked, it is a zombie that shows it; afterwards the pidfd does."""
    told = _told_by(pidfd)
    if told is None:
        told = proctable.zombie_status(pid)
    return _told_by(pidfd) if told is None else told


def _told_by(pidfd: int) -> int | None:
    asked = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
    with contextlib.suppress(OSError):  # a kernel that does not know the question
        fcntl.ioctl(pidfd, _GET_INFO, asked)
        mask, *_, status = _INFO.unpack(asked)
        return int(status) if mask & _INFO_EXIT else None
    return None
