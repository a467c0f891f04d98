"""One client's connection: lines out of bytes, answers back, and the bounds that keep it from hurting others.

Lines are answered by the dispatcher; what concerns all connections together is the server's.
"""

import asyncio
import logging
import os
import select
import socket
from collections import deque
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, cast

from nexusd.domain.access import Caller
from nexusd.domain.errors import Busy
from nexusd.rpc import codec
from nexusd.rpc.call import Call
from nexusd.rpc.dispatch import Answer, Dispatcher

log = logging.getLogger("nexusd.rpc")

_PASS_S = 0.005  # how long one connection may keep the loop before the others get their turn
_LOOK_S = 1.0  # between two looks whether a client that has said all still waits for its answers
_PASS_BYTES = 64 * 1024  # output of one pass


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may ask of the daemon."""

    message_bytes: int = 1024 * 1024
    batch: int = 100
    in_flight: int = 64
    connections: int = 1024
    user_share: float = 0.5
    request_timeout_s: float = 10.0
    unsent_bytes: int = 1024 * 1024


class House(Protocol):
    """What a connection needs of the server."""

    limits: Limits
    dispatcher: Dispatcher
    tasks: set[asyncio.Task[Answer]]

    def admit(self, connection: "Connection", sock: socket.socket) -> Caller | Busy:
        """A new connection, or what its client is told where there are too many."""

    def leave(self, connection: "Connection") -> None: ...

    def watch(self, connection: "Connection") -> None:
        """Call `expire` unless `unwatch` comes within the request time-out. A second call changes nothing."""

    def unwatch(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """Beside open it may be `_eof` (the client has said all, answers are owed) or `_ended` (we have said all,
    input is read and dropped until the client closes).
    """

    __slots__ = (
        "_again",
        "_blocked",
        "_call",
        "_draining",
        "_ended",
        "_eof",
        "_former",
        "_half",
        "_held",
        "_house",
        "_hushed",
        "_in_flight",
        "_lines",
        "_looking",
        "_loop",
        "_out",
        "_reading",
        "_silent",
        "_transport",
        "_watched",
        "_working",
    )

    def __init__(self, house: House, loop: asyncio.AbstractEventLoop, former: bytes = b"") -> None:
        """former: what was read by the nexusd that handed this connection over."""
        self._house = house
        self._former = former
        self._loop = loop
        self._lines: deque[bytes] = deque()  # complete, waiting for their turn
        self._half = bytearray()
        self._out: list[bytes] = []
        self._in_flight = 0
        self._again: asyncio.Handle | None = None
        self._looking: asyncio.Handle | None = None
        self._reading = True
        self._silent = True  # it has not said a word yet
        self._working = False
        self._watched = False
        self._blocked = False  # the client does not read: the transport holds unsent output
        self._draining = False
        self._held = False
        self._hushed = False
        self._eof = False
        self._ended = False

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        caller = self._house.admit(self, transport.get_extra_info("socket"))
        if isinstance(caller, Busy):
            self._ended = True
            self._transport.write(codec.refusal(caller) + b"\n")
            self._transport.close()
            return
        self._call = Call(caller, self._push)
        if self._former:
            former, self._former = self._former, b""
            self.data_received(former)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._silent = False
        *lines, rest = data.split(b"\n")
        if lines:
            if self._half:
                lines[0] = bytes(self._half + lines[0])
            self._lines.extend(lines)
            self._half = bytearray(rest)
            self._unwatch()
        else:
            self._half += rest
        if len(self._half) > self._house.limits.message_bytes:
            self._lines.append(bytes(self._half))  # refused when its turn comes, after what came before it
            self._half.clear()
        self._work()

    def eof_received(self) -> bool:
        """The client has closed, or at least its writing side. What it asked is still answered."""
        self._eof = True
        if self._ended:
            return False
        if self._half and not self._hushed:
            self._lines.append(bytes(self._half))  # the newline after the last line may be missing
            self._half.clear()
        self._work()
        return True

    def pause_writing(self) -> None:
        self._blocked = True
        self._pace()

    def resume_writing(self) -> None:
        self._blocked = False
        self._work()

    def connection_lost(self, failure: Exception | None) -> None:
        self._ended = True
        self._lines.clear()
        for handle in (self._again, self._looking):
            if handle is not None:
                handle.cancel()
        self._unwatch()
        self._house.leave(self)
        if hasattr(self, "_call"):
            self._call.closed()

    # What the server asks for

    def expire(self) -> None:
        """The time for completing a request is up, or the time a refused client had to close."""
        self._watched = False
        if self._ended:
            self._transport.abort()
        else:
            timeout_s = self._house.limits.request_timeout_s
            self._end(codec.problem("invalid_request", f"no complete line within {timeout_s:g} s"))

    def drain(self) -> None:
        """Part as soon as nothing is owed, from one that has not said a word yet after its first request."""
        self._draining = True
        if self._ended:
            self.hush()
        self._pace()

    def hush(self) -> None:
        """Have the client say no more: what it has sent is read to the end and answered, a half line is not."""
        if not (self._hushed or self._transport.is_closing()):
            self._hushed = True
            self._transport.get_extra_info("socket").shutdown(socket.SHUT_RD)

    def hold(self) -> None:
        """Take no further requests, and keep what has come of them."""
        self._held = True
        self._pace()

    def part(self) -> None:
        """Answer what has come, and close: for one that cannot be let go."""
        self._held = False
        self.drain()
        self.hush()

    def let_go(self) -> tuple[int, bytes] | None:
        """A copy of the descriptor, and what was read and not taken up. None: the client is owed something that only
        we can give, an answer or what it has subscribed to.
        """
        is_owed = self._in_flight or self._transport.get_write_buffer_size()
        if is_owed or self._ended or self._transport.is_closing() or self._call.subscriptions:
            return None
        try:
            copy = os.dup(self._transport.get_extra_info("socket").fileno())
        except OSError:  # no descriptor is free
            return None
        rest = b"".join(line + b"\n" for line in self._lines) + self._half
        self._transport.abort()  # of ours: the client sees nothing of it
        return copy, rest

    def close(self) -> None:
        self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # The work

    def _free(self) -> bool:
        """Whether another request may be taken up."""
        limit = self._house.limits.in_flight
        return self._in_flight < limit and not (self._blocked or self._ended or self._held)

    def _work(self) -> None:
        """One pass: answer lines until they, the time or the limits are at their end; then one write."""
        self._working = True
        until = self._loop.time() + _PASS_S
        size = 0
        while self._lines and self._free():
            size += self._take(self._lines.popleft())
            if size > _PASS_BYTES or self._loop.time() > until:
                break
        self._working = False
        self._flush()
        self._pace()

    def _take(self, line: bytes) -> int:
        """Have one line answered; the size of what there is to send at once."""
        if len(line) > self._house.limits.message_bytes:
            self._end(self._too_long())
            return 0
        if not line or line.isspace():
            return 0
        answer = self._house.dispatcher.answer(line, self._call, self._house.limits.batch)
        if answer is None:
            return 0
        if isinstance(answer, bytes):
            self._out.append(answer)
            return len(answer)
        self._start(answer)
        return 0

    def _start(self, answering: Coroutine[Any, Any, Answer]) -> None:
        self._in_flight += 1
        task = self._loop.create_task(answering)
        self._house.tasks.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._answered)

    def _answered(self, task: asyncio.Task[Answer]) -> None:
        self._in_flight -= 1
        self._house.tasks.discard(task)
        if not task.cancelled():
            answer = task.result()
            if answer is not None:
                self._out.append(answer)
        self._work()

    def _push(self, line: bytes) -> None:
        self._out.append(line)
        if not self._working:
            self._flush()

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not out or self._ended or self._transport.is_closing():
            return
        if self._transport.get_write_buffer_size() > self._house.limits.unsent_bytes:
            log.warning("dropped a client of %s that does not read", self._call.caller.principal)
            self._transport.abort()
            return
        out.append(b"")
        self._transport.write(b"\n".join(out))

    def _pace(self) -> None:
        """Read on exactly when a further request could be taken up: else the kernel holds the client back."""
        if self._ended:
            return
        if self._lines and self._free() and self._again is None:
            self._again = self._loop.call_soon(self._go_on)
        if self._eof:
            self._part()
            return
        if self._draining and not self._is_owed():
            self.hush()
        self._read(not self._lines and self._free())

    def _is_owed(self) -> bool:
        """Whether the client waits for something, or is about to."""
        return self._silent or bool(self._lines or self._half or self._in_flight)

    def _part(self) -> None:
        """Close when nothing is owed, or nobody is left to be told: what was asked for goes on all the same."""
        if self._lines:
            return
        if not self._in_flight or _has_hung_up(self._transport.get_extra_info("socket")):
            self._transport.close()
        elif self._looking is None:
            self._looking = self._loop.call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = None
        self._pace()

    def _read(self, wanted: bool) -> None:
        """Have the transport read or not; a half line is on the clock only while we do."""
        if wanted != self._reading:
            self._reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()
        if self._half and wanted:
            self._watch()
        else:
            self._unwatch()

    def _go_on(self) -> None:
        self._again = None
        self._work()

    def _end(self, last_words: bytes) -> None:
        """Say why, and that no more will come. What the client still sends is read and dropped for a while,
        so that it gets to read the reason instead of a broken pipe.
        """
        self._out.append(last_words)
        self._flush()
        self._ended = True
        self._lines.clear()
        self._half.clear()
        if self._eof:
            self._transport.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()
            self._read(True)
            self._unwatch()
            self._watch()

    def _watch(self) -> None:
        if not self._watched:
            self._watched = True
            self._house.watch(self)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._house.unwatch(self)

    def _too_long(self) -> bytes:
        limit = self._house.limits.message_bytes
        return codec.problem("invalid_request", f"a message longer than {limit} bytes")


def _has_hung_up(sock: socket.socket) -> bool:
    """Whether the client has closed, and not only its writing side: unix(7) sockets tell that by POLLHUP."""
    asked = select.poll()
    asked.register(sock.fileno(), 0)
    return any(event & select.POLLHUP for _, event in asked.poll(0))
