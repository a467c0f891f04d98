"""The words between nexusd and its keeper: JSON objects with descriptors, one a packet, on a SOCK_SEQPACKET socket.

It decides the framing and who may speak; what the words mean stands in `process` (the keeper) and `client`.

nexusd says            | and the keeper
-----------------------|---------------------------------------------------------------------------
adopt   run, fds       | takes over a run whose former keeper died (fds: log, notify)
hello                  | recovers what the journal knows and nobody handed over, tells its table, then `welcome`
spawn   run, launch    | forks it (fds: log to read, log to write, notify, control, listening sockets)
signal  run, signal    | signals every process of the run
kill    run            | SIGKILLs every process of the run, again until none is left
forget  run            | drops what it remembers of a run that ended
note    name, text     | remembers the text and writes it to the journal; no text: forgets it
hold    name, fd       | keeps a listening socket; `release` lets it go
ping    id             | answers `pong` with the id and its counters
leave                  | goes, with its socket and its journal; what still runs is left running

The keeper says: run, note, held (its table), welcome, spawned, running, refused, notify, exited, pong.
"""

import array
import json
import os
import socket
import struct
from typing import Any

Message = dict[str, Any]

PACKET_BYTES = 200_000  # below the default net.core.wmem_max (212,992) less the kernel's own overhead
MOST_FDS = 64
_UCRED = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7))


class TooLong(ValueError):
    """A message that no packet holds."""


def encode(message: Message) -> bytes:
    """One packet. Raises TooLong past PACKET_BYTES."""
    packet = json.dumps(message, separators=(",", ":")).encode()
    if len(packet) > PACKET_BYTES:
        raise TooLong(f"{message.get('say')}: {len(packet)} bytes, a packet takes {PACKET_BYTES}")
    return packet


def send(sock: socket.socket, packet: bytes, fds: tuple[int, ...] = ()) -> None:
    """Send whole or raise: BlockingIOError when the reader is behind, OSError when it is gone."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([packet], rights, socket.MSG_NOSIGNAL)


def receive(sock: socket.socket) -> tuple[Message, list[int]] | None:
    """The next message and its descriptors (close-on-exec); None when the other side is gone.

    Raises BlockingIOError when there is none yet, ValueError for a packet that is not a message.
    """
    packet, fds, flags, _ = socket.recv_fds(sock, PACKET_BYTES + 1, MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    if not packet:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("a packet was cut short")
        message = json.loads(packet)
        if not isinstance(message, dict):
            raise ValueError("a packet holds no object")
    except ValueError:
        close_all(fds)
        raise
    return message, list(fds)


def peer_uid(sock: socket.socket) -> int:
    """The uid that the other side had when it connected."""
    size = _UCRED.size
    return int(_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))[1])


def close_all(fds: list[int] | tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
