"""systemd's store of descriptors (sd_notify(3), FDSTORE=1): what nexusd puts there, the next nexusd is given.

Which descriptors those are, the keeper's client decides (`keeper/keepsakes`). Without systemd nothing is kept.
"""

import array
import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import Mapping
from urllib.parse import quote, unquote

log = logging.getLogger("nexusd.systemd")

_LONGEST_NAME = 255  # FDNAME_MAX of systemd, which takes no colon, no space and ASCII only


def readable(name: str) -> str:
    """A name as it was before systemd was told it."""
    return unquote(name)


class DescriptorStore:
    """To be used from the event loop's thread. Words that systemd does not take at once wait for their turn."""

    def __init__(self, address: str, stored: Mapping[str, int]) -> None:
        """address: NOTIFY_SOCKET, empty where nobody listens. stored: what was handed over, by name."""
        self.stored = dict(stored)
        self._address = address
        self._sock: socket.socket | None = None
        self._waiting: deque[tuple[bytes, int | None]] = deque()

    def keep(self, name: str, fd: int) -> None:
        """Until `drop`, or until the service is stopped. The descriptor stays the caller's."""
        # FDPOLL=0: systemd would drop a pipe or a pidfd of a process that has ended, which is when it is needed.
        self._say(f"FDSTORE=1\nFDPOLL=0\nFDNAME={quote(name)}", fd)

    def drop(self, name: str) -> None:
        self._say(f"FDSTOREREMOVE=1\nFDNAME={quote(name)}", None)

    def close(self) -> None:
        while self._waiting:
            self._done(self._waiting.popleft()[1])
        if self._sock is not None:
            asyncio.get_running_loop().remove_writer(self._sock)
            self._sock.close()
            self._sock = None

    def _say(self, words: str, fd: int | None) -> None:
        if not self._address or len(words) > _LONGEST_NAME:
            return
        self._waiting.append((words.encode(), None if fd is None else os.dup(fd)))
        self._flush()

    def _flush(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._sock = self._sock or _connected(self._address)
            while self._waiting:
                _send(self._sock, *self._waiting[0])
                self._done(self._waiting.popleft()[1])
        except BlockingIOError:
            assert self._sock is not None
            loop.add_writer(self._sock, self._flush)
            return
        except OSError as error:
            log.warning("systemd takes no descriptors: %s", error.strerror)
            self.close()
            self._address = ""
        if self._sock is not None:
            loop.remove_writer(self._sock)

    def _done(self, fd: int | None) -> None:
        if fd is not None:
            os.close(fd)


def _connected(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.setblocking(False)
    try:
        sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError:
        sock.close()
        raise
    return sock


def _send(sock: socket.socket, words: bytes, fd: int | None) -> None:
    rights = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
    sock.sendmsg([words], rights, socket.MSG_NOSIGNAL)
