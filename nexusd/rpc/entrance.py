"""Who comes in at a listening socket: one at a time, until it is closed; it knows who is still on the threshold.

asyncio's own server loses, without a word, whom it accepted in the pass of the loop in which it is closed.
"""

import asyncio
import errno
import socket
from collections.abc import Callable

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RETRY_S = 1.0


class Entrance:
    """Open from the beginning. The socket is its own from then on."""

    def __init__(self, listening: socket.socket, protocol: Callable[[], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._protocol = protocol
        self._arriving: set[asyncio.Task[object]] = set()
        self._retry: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._open()

    async def close(self) -> None:
        """Let nobody else in, and return when all who were let in are connections.

        Who waits in the backlog goes on waiting, as long as somebody else (systemd) holds the socket, too.
        """
        self.hold()
        self._listening.close()
        await self.settled()

    def hold(self) -> None:
        """Let nobody else in: they wait for somebody else who has the socket."""
        if self._retry is not None:
            self._retry.cancel()
        self._loop.remove_reader(self._listening)

    async def settled(self) -> None:
        """Returns when all who were let in are connections."""
        if self._arriving:
            await asyncio.wait(self._arriving)

    def _open(self) -> None:
        self._retry = None
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        try:
            sock, _ = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):  # it has gone again
            return
        except OSError as error:
            if error.errno not in _SHORT:
                raise
            self._pause(error)
            return
        sock.setblocking(False)
        arrival = self._loop.create_task(self._loop.connect_accepted_socket(self._protocol, sock))
        self._arriving.add(arrival)
        arrival.add_done_callback(self._arriving.discard)

    def _pause(self, error: OSError) -> None:
        """Without a free descriptor the socket stays readable: to look again at once would take all of a processor."""
        self._loop.remove_reader(self._listening)
        self._retry = self._loop.call_later(_RETRY_S, self._open)
        words = {"message": "a connection cannot be accepted", "exception": error, "socket": self._listening}
        self._loop.call_exception_handler(words)
