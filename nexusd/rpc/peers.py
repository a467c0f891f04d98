"""Who is at the other end of a Unix socket: the kernel's word for uid and gid, NSS's for names and groups.

What they may do is decided in `nexusd.domain.access`.
"""

import grp
import os
import pwd
import socket
import struct
import time
from dataclasses import dataclass

from nexusd.domain.access import Caller

_CREDENTIALS = struct.Struct("iII")  # struct ucred: pid, uid, gid
_REMEMBERED = 1024


@dataclass(frozen=True, slots=True)
class _Identity:
    user: str
    groups: frozenset[int]
    group_names: frozenset[str]
    until: float


def credentials(sock: socket.socket) -> tuple[int, int, int]:
    """pid, uid and gid of the peer as of its connect() (or listen(), asked from the connecting side)."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return pid, uid, gid


class Peers:
    """Turns sockets into callers. NSS is asked once a minute per user: no storm of probes must reach it."""

    def __init__(self, *, remember_s: float = 60.0) -> None:
        self._remember_s = remember_s
        self._known: dict[tuple[int, int], _Identity] = {}

    def caller(self, sock: socket.socket) -> Caller:
        return self._named(*credentials(sock))

    def this_process(self) -> Caller:
        """Ourselves, as a socket of ours would show us."""
        return self._named(os.getpid(), os.geteuid(), os.getegid())

    def _named(self, pid: int, uid: int, gid: int) -> Caller:
        now = time.monotonic()
        known = self._known.get((uid, gid))
        if known is None or known.until <= now:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            known = self._known[uid, gid] = _look_up(uid, gid, now + self._remember_s)
        return Caller(uid, gid, known.user, known.groups, known.group_names, pid)


def _look_up(uid: int, gid: int, until: float) -> _Identity:
    try:
        user = pwd.getpwuid(uid).pw_name
        groups = frozenset(os.getgrouplist(user, gid))
    except (KeyError, OSError):  # a uid without a name, as in containers, is its number
        user, groups = str(uid), frozenset((gid,))
    names = frozenset(name for name in map(_group_name, groups) if name is not None)
    return _Identity(user, groups, names, until)


def _group_name(gid: int) -> str | None:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return None
