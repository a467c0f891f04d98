"""How connections come from a replica to the one that succeeds it: over the control socket, with descriptors.

The successor asks `take_over` and keeps the connection open; the predecessor, told to stop, sends on it a line
and a descriptor for each connection that is at rest. When that is and what is served stands in the SDK.
"""

import asyncio
import base64
import contextlib
import json
import os
import socket
from collections.abc import Callable

_REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"take_over"}\n'
_SEND_PATIENCE_S = 1.0  # the successor runs and reads; longer means that it does not
_ANSWER_PATIENCE_S = 1.0
_END_PATIENCE_S = 0.2
_MOST_FDS = 16

Taken = Callable[
    [str, socket.socket, bytes], None
]  # the listening socket's name, a connection, what was read


class Successor:
    """The way to the process that goes on with our connections."""

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._socket.settimeout(_SEND_PATIENCE_S)
        self._is_there = True

    def hand_over(self, name: str, connection: socket.socket, begun: bytes) -> bool:
        """False when it is not there any more."""
        told = {"socket": name, "begun": base64.b64encode(begun).decode()}
        line = json.dumps(told).encode() + b"\n"
        if not self._is_there:
            return False
        try:
            sent = socket.send_fds(self._socket, [line], [connection.fileno()])
            self._socket.sendall(line[sent:])
        except OSError:
            self._is_there = False
        return self._is_there

    def close(self) -> None:
        self._socket.close()


class Predecessor:
    """Asks the process that is being replaced for its connections, and takes them as they come."""

    def __init__(self, path: str, taken: Taken) -> None:
        """Raises OSError when it is not there, or may not be asked."""
        self._taken = taken
        self._said = b""
        self._fds: list[int] = []
        self._knows_us = asyncio.Event()
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(_SEND_PATIENCE_S)
        try:
            self._socket.connect(path)
            self._socket.sendall(_REQUEST)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._read)

    async def knows_us(self) -> None:
        """Returns when it will hand its connections to us, or after a while when it does not answer."""
        await _for_a_while(self._knows_us, _ANSWER_PATIENCE_S)

    async def ended(self) -> None:
        """Returns when it has handed over what it had, or after a moment when it goes on."""
        await _for_a_while(self._ended, _END_PATIENCE_S)

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._socket, 1 << 16, _MOST_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds += fds
        self._said += data
        *lines, self._said = self._said.split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        if not data:
            self._end()

    def _take(self, said: dict[str, str]) -> None:
        """The first line is the answer to our request: it has no socket."""
        self._knows_us.set()
        if "socket" in said and self._fds:
            connection = socket.socket(fileno=self._fds.pop(0))
            self._taken(said["socket"], connection, base64.b64decode(said["begun"]))

    def _end(self) -> None:
        self._loop.remove_reader(self._socket)
        self._socket.close()
        for fd in self._fds:
            os.close(fd)
        self._knows_us.set()
        self._ended.set()


async def _for_a_while(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
