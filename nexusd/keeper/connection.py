"""The keeper's side of its socket: who may speak, one packet after the other, and what waits to be told.

There is one nexusd at a time, the newest to connect. What the words mean is the keeper's.
"""

import errno
import os
import socket
import time
from collections.abc import Callable

from nexusd.keeper import protocol
from nexusd.keeper.loop import Loop
from nexusd.keeper.protocol import Message, Outbox

MOST_UNSENT = 20_000  # packets; a nexusd this far behind is let go, and takes the whole table when it is back
_BACKLOG = 64


class Connection:
    def __init__(
        self,
        server: socket.socket,
        loop: Loop,
        hear: Callable[[Message, list[int]], None],
        lost: Callable[[], None],
        complain: Callable[[str], None],
    ) -> None:
        self._server = server
        self._loop = loop
        self._hear = hear
        self._lost = lost
        self._complain = complain
        self._client: socket.socket | None = None
        self._outbox = Outbox()
        server.setblocking(False)
        server.listen(_BACKLOG)  # again: from now on SO_PEERCRED on the other side names this process
        loop.watch(server.fileno(), self._accept)

    def tell(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """To nexusd, in order; while it is away its table is what it will be told."""
        if self._client is None:
            return
        packet = protocol.encode(message)
        try:
            self._outbox.send(self._client, packet, fds)
        except OSError:
            self._drop()
            return
        if len(self._outbox) > MOST_UNSENT:
            self._complain("nexusd does not read: connection dropped")
            self._drop()
        elif self._outbox:
            self._loop.when_writable(self._client.fileno(), self._flush)

    def _accept(self) -> None:
        try:
            client, _ = self._server.accept()
        except OSError as error:
            self._complain(f"accept: {error.strerror}")
            if error.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(0.1)  # or we would be here again at once, and again
            return
        if protocol.peer(client)[1] not in (0, os.getuid()):
            client.close()
            return
        self._close()
        client.setblocking(False)
        self._client = client
        self._loop.watch(client.fileno(), self._read)

    def _read(self) -> None:
        assert self._client is not None
        try:
            received = protocol.receive(self._client)
        except BlockingIOError:
            return
        except ValueError as error:
            self._complain(f"nexusd said what is {error}")
            return
        except OSError as error:
            self._complain(f"nexusd's connection: {error.strerror}")
            received = None
        if received is None:
            self._drop()
        else:
            self._hear(*received)

    def _flush(self) -> None:
        assert self._client is not None
        try:
            self._outbox.flush(self._client)
        except OSError:
            self._drop()
            return
        if not self._outbox:
            self._loop.when_writable(self._client.fileno(), None)

    def _drop(self) -> None:
        self._close()
        self._lost()

    def _close(self) -> None:
        if self._client is not None:
            self._loop.unwatch(self._client.fileno())
            self._client.close()
            self._client = None
            self._outbox.clear()
