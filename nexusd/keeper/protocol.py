"""The words between nexusd and its keeper: JSON objects with descriptors, one a packet, on a SOCK_SEQPACKET socket.

It decides the framing, what a well-formed word is and who may speak; what the words mean stands in `process`
(the keeper) and `client`.

nexusd says            | and the keeper
-----------------------|---------------------------------------------------------------------------
adopt   run, fds       | takes over a run whose former keeper died (fds: log, notify)
kept    run, fds       | has them for the recovery, if that is still to come (fds: log, notify)
hello                  | recovers what the journal knows and nobody handed over, tells its table, then `welcome`
spawn   run, launch    | starts it (fds: log to read, log to write, notify, control, listening sockets); launch
                       | may have a leaf (a cgroup), and log.journal: then both log fds are journald's stream
probe   id, launch     | runs a check program, and answers `probed` when it ended or its timeout is over
signal  run, signal    | signals every process of the run
kill    run            | SIGKILLs every process of the run, again until none is left
forget  run            | drops what it remembers of a run that ended
note    name, text     | remembers the text and writes it to the journal; no text: forgets it
hold    name, fd       | keeps a listening socket; `release` lets it go
warm                   | imports what Python modules need, before the first of them is started
ping    id             | answers `pong` with the id and its counters
count                  | answers `counted`, one or more, with the bytes of each log by its path
leave                  | goes, with its socket and its journal; what still runs is left running

The keeper says: run, note, held (its table), welcome, spawned, running, refused, notify, exited, probed, pong, counted.
"""

import array
import errno
import json
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

Message = dict[str, Any]

VERSION = 6  # counts up when a word changes: a keeper of another version is replaced, its runs go on
PACKET_BYTES = 200_000  # below the default net.core.wmem_max (212,992) less the kernel's own overhead
MOST_FDS = 64
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class TooLong(ValueError):
    """A message that no packet holds."""


class Shape(NamedTuple):
    """What a word must bring: its fields with their types, and how many descriptors."""

    fields: dict[str, Any]
    fewest_fds: int = 0
    most_fds: int = 0


_LOG = {"path": str, "max_bytes": int, "files": int}
_PROGRAM = {"argv": list, "environment": dict, "directory": str}
_LAUNCH = {"log": _LOG, "notify_path": str, "control_path": str, "environment": dict, "directory": str}
ENTRY = {"key": str, "pid": int, "start_ticks": int, "log": _LOG, "notify_path": str, "control_path": str}
SHAPES = {
    "adopt": Shape({"run": str, "entry": ENTRY, "running": bool, "notices": dict}, 2, 2),
    "kept": Shape({"run": str}, 2, 2),
    "hello": Shape({}),
    "spawn": Shape({"run": str, "launch": _LAUNCH}, 4, MOST_FDS),
    "probe": Shape({"id": int, "launch": _PROGRAM, "timeout": float}),
    "signal": Shape({"run": str, "signal": int}),
    "kill": Shape({"run": str}),
    "forget": Shape({"run": str}),
    "note": Shape({"name": str}),
    "hold": Shape({"name": str}, 1, 1),
    "release": Shape({"name": str}),
    "warm": Shape({}),
    "ping": Shape({}),
    "count": Shape({}),
    "leave": Shape({}),
}


def check(message: Message, fds: list[int]) -> None:
    """Raises ValueError for a word that nexusd does not have, or one that lacks something."""
    word = message.get("say")
    shape = SHAPES.get(word) if isinstance(word, str) else None
    if shape is None:
        raise ValueError(f"unknown word: {str(word)[:60]!r}")
    check_fields(f"{word}: ", message, shape.fields)
    if not shape.fewest_fds <= len(fds) <= shape.most_fds:
        raise ValueError(f"{word}: {len(fds)} descriptors")


def check_fields(where: str, found: Message, fields: dict[str, Any]) -> None:
    """Raises ValueError, with `where` before the name of what is missing or of the wrong type."""
    for name, wanted in fields.items():
        value = found.get(name)
        if not isinstance(value, dict if isinstance(wanted, dict) else wanted):
            raise ValueError(f"{where}{name} is {value!r:.60}")
        if isinstance(wanted, dict):
            check_fields(f"{where}{name}.", value, wanted)


def as_json(message: Message) -> bytes:
    return _ENCODER.encode(message).encode()


def encode(message: Message, as_json: Callable[[Message], bytes] = as_json) -> bytes:
    """One packet. Raises TooLong past PACKET_BYTES."""
    packet = as_json(message)
    if len(packet) > PACKET_BYTES:
        raise TooLong(f"{message.get('say')}: {len(packet)} bytes, a packet takes {PACKET_BYTES}")
    return packet


def send(sock: socket.socket, packet: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send whole or raise: BlockingIOError when the reader is behind, OSError when it is gone."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], rights, socket.MSG_NOSIGNAL)


class Outbox:
    """Packets that wait for their reader, in order, each with descriptors of its own: the caller's may be
    closed, and their numbers be taken by others, before the packet's turn comes."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[bytes, tuple[int, ...]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def send(self, sock: socket.socket, packet: bytes, fds: tuple[int, ...] = ()) -> None:
        """At once, or when its turn comes. Raises OSError when the reader is gone."""
        if self._waiting or not _is_taken(sock, packet, fds):
            self._waiting.append((packet, tuple(map(os.dup, fds))))

    def flush(self, sock: socket.socket) -> None:
        """As much as the reader takes now. Raises OSError when it is gone."""
        while self._waiting and _is_taken(sock, *self._waiting[0]):
            close_all(self._waiting.popleft()[1])

    def clear(self) -> None:
        while self._waiting:
            close_all(self._waiting.popleft()[1])


def _is_taken(sock: socket.socket, packet: bytes, fds: tuple[int, ...]) -> bool:
    try:
        send(sock, packet, fds)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno == errno.ETOOMANYREFS:  # more unread descriptors than RLIMIT_NOFILE allows (unix(7))
            return False
        raise
    return True


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors (close-on-exec); None when the other side is gone.

    Raises BlockingIOError when there is none yet, ValueError for a packet that is not a message.
    """
    try:
        packet, fds, flags = _receive(sock)
    except ConnectionResetError:  # told once, before what the other side had said is read
        packet, fds, flags = _receive(sock)
    if not packet and not fds:
        return None
    try:
        if flags & _CUT:  # too long, or no descriptors are free
            raise ValueError("it was cut short")
        message = json.loads(packet)
        if not isinstance(message, dict):
            raise ValueError("it is no object")
    except (ValueError, RecursionError) as error:
        close_all(fds)
        raise ValueError(f"not a message: {error}") from error
    return message, fds


def _receive(sock: socket.socket) -> tuple[bytes, list[int], int]:
    # Not socket.recv_fds: it forgets the flags, and the descriptors would be inherited (Python 3.11).
    fds = array.array("i")
    room = socket.CMSG_SPACE(MOST_FDS * fds.itemsize)
    packet, rights, flags, _ = sock.recvmsg(PACKET_BYTES + 1, room, socket.MSG_CMSG_CLOEXEC)
    for _, _, sent in rights:  # nothing but SCM_RIGHTS was asked for
        fds.frombytes(sent[: len(sent) - len(sent) % fds.itemsize])
    return packet, list(fds), flags


def peer(sock: socket.socket) -> tuple[int, int]:
    """pid and uid of the other side: of the connecting one at that time, of a listening one when it listened."""
    pid, uid, _ = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(pid), int(uid)


def close_all(fds: list[int] | tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
