"""Connections of a module that answers line by line, and what becomes of them when the module stops.

A connection at rest, between two lines, can go on in another process: it is handed over with what was read of
the next line. Who that other process is, is the host's to find out.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

Answer = Callable[[bytes], Awaitable[bytes]]
HandOver = Callable[[socket.socket, bytes], bool]  # a connection and what was read of its next line

_ACCEPT_RETRY_S = 1.0


class LineServer:
    """Accepts on a listening socket and has each line answered, of one connection one after the other."""

    def __init__(self, listening: socket.socket, answer: Answer, log: logging.Logger, limit: int) -> None:
        self.answer = answer
        self.log = log
        self.limit = limit
        self.peers: set[Peer] = set()
        self.leaving: HandOver | None = None  # set once the server is closing
        self._loop = asyncio.get_running_loop()
        self._listening = listening
        self._connecting: set[asyncio.Task[object]] = set()
        self._empty = asyncio.Event()
        listening.setblocking(False)
        self._listen()

    async def close(self, hand_over: HandOver, patience_s: float) -> None:
        """Answer what is being answered, and hand each connection over when it is at rest; close it if that
        can't be done. Who connects from here on waits in the socket's queue for the next generation.
        """
        self._loop.remove_reader(self._listening)
        if self._connecting:
            await asyncio.wait(self._connecting)  # accepted is accepted
        self.leaving = hand_over
        for peer in tuple(self.peers):
            peer.rest()
        try:
            async with asyncio.timeout(patience_s):
                while self.peers:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            self.log.warning("%d connections were cut off in the middle of an answer", len(self.peers))
            for peer in tuple(self.peers):
                peer.cut_off()

    def take(self, connection: socket.socket, begun: bytes = b"") -> None:
        """Serve a connection that was accepted, here or in the generation before."""
        connecting = self._loop.connect_accepted_socket(lambda: Peer(self, begun), connection)
        task = self._loop.create_task(connecting)
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def gone(self, peer: "Peer") -> None:
        self.peers.discard(peer)
        if not self.peers:
            self._empty.set()

    def _listen(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listening.accept()
        except (
            BlockingIOError,
            ConnectionAbortedError,
        ):  # another replica was quicker, or the client is gone
            return
        except OSError as error:  # out of descriptors: the socket stays readable, so look again later
            self.log.error("cannot accept: %s", error)
            self._loop.remove_reader(self._listening)
            self._loop.call_later(_ACCEPT_RETRY_S, self._listen_again)
            return
        self.take(connection)

    def _listen_again(self) -> None:
        if self.leaving is None:
            self._listen()


class Peer(asyncio.Protocol):
    """One connection. At rest nothing is being answered, nothing unsent, and no whole line has been read."""

    def __init__(self, server: LineServer, begun: bytes) -> None:
        self._server = server
        self._received = bytearray(begun)
        self._answering: asyncio.Task[None] | None = None
        self._said_all = False
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # `_writable` is then: all has been sent
        self._server.peers.add(self)
        self._go_on()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._go_on()

    def eof_received(self) -> bool:
        """The client has said all; what it asked is still answered."""
        self._said_all = True
        self._go_on()
        return True

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._server.gone(self)

    def rest(self) -> None:
        """Nothing is left to be done: leave, if it is time to."""
        if self._answering is not None or self._transport.is_closing():
            return
        if self._said_all:
            self._transport.close()
        elif self._server.leaving is not None:
            self._leave(self._server.leaving)

    def cut_off(self) -> None:
        if self._answering is not None:
            self._answering.cancel()
        self._transport.abort()

    def _leave(self, hand_over: HandOver) -> None:
        self._transport.pause_reading()
        connection = self._transport.get_extra_info("socket").dup()
        with connection:
            hand_over(connection, bytes(self._received))
        self._transport.abort()  # closes our copy: a connection that was handed over goes on

    def _go_on(self) -> None:
        if self._answering is not None or self._transport.is_closing():
            return
        if self._has_line():
            self._transport.pause_reading()  # who asks faster than we answer waits
            self._answering = asyncio.get_running_loop().create_task(self._answer_lines())
        elif len(self._received) > self._server.limit:
            self._server.log.info("connection ended: a line longer than %d bytes", self._server.limit)
            self._transport.abort()
        else:
            self.rest()

    def _has_line(self) -> bool:
        """The last one may lack its newline."""
        return b"\n" in self._received or (self._said_all and bool(self._received))

    def _next_line(self) -> bytes:
        end = self._received.find(b"\n") + 1 or len(self._received)
        line = bytes(self._received[:end])
        del self._received[:end]
        return line

    async def _answer_lines(self) -> None:
        try:
            while self._has_line() and not self._transport.is_closing():
                self._transport.write(await self._server.answer(self._next_line()))
                await self._writable.wait()
        except Exception:  # the border to the module's own code, which may raise anything
            self._server.log.exception("connection ended: its line could not be answered")
            self._transport.abort()
        self._answering = None
        if not self._transport.is_closing():
            self._transport.resume_reading()
            self._go_on()
