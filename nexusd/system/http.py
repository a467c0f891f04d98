"""A small HTTP/1.1 server for the daemon's few pages: GET and HEAD, one request for each connection.

It decides what is a request and how much of anybody's time it gets; what the pages say is `nexusd.pages`'.
"""

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger("nexusd.http")

MOST_CONNECTIONS = 64
MOST_LONG = 48  # of those, how many may read a long page: for the others there is always a place
LONGEST_HEAD = 8192
REQUEST_S = 5.0  # for the request to come
ANSWER_S = 10.0  # for the answer to be made and read; Prometheus waits as long by default
RETRY_S = 10.0
HAND_OVER_S = 1.0  # for the pages that are being made and read when this nexusd gives its place to another
_PIECE = 1 << 16
_PASSES = 5  # of the loop, in which asyncio makes a connection of what it has accepted
_TEXT = "text/plain; charset=utf-8"
# Not http.HTTPStatus: nexusd imports this before it starts its first module.
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]  # names in small letters


@dataclass(frozen=True, slots=True)
class Response:
    body: bytes
    content_type: str = _TEXT
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Handler = Callable[[Request], Awaitable[Response]]


class Malformed(ValueError):
    """Not a request of HTTP/1."""


def parse(head: bytes) -> Request:
    """The request line and the headers, without the empty line that ends them. Raises Malformed."""
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1.") or not words[1].startswith("/"):
        raise Malformed(first)
    headers = {}
    for field in rest:
        name, colon, value = field.partition(":")
        if not colon or not name or name != name.strip():
            raise Malformed(field)
        headers[name.lower()] = value.strip()
    return Request(words[0], words[1].partition("?")[0], headers)


class HttpServer:
    def __init__(self) -> None:
        self._routes: Mapping[str, Handler] = {}
        self._long: Collection[str] = ()
        self._on_close: Callable[[], None] = lambda: None
        self._servers: list[asyncio.Server] = []
        self._opening: asyncio.Task[None] | None = None
        self._connections: dict[_Connection, None] = {}
        self._none_left: asyncio.Event | None = None
        self.trouble: str | None = None  # why it does not serve
        self.ports: tuple[int, ...] = ()

    def offer(
        self, routes: Mapping[str, Handler], on_close: Callable[[], None], long: Collection[str] = ()
    ) -> None:
        """What is served from now on; on_close lets go of what the handlers hold. long: the pages that take time to
        make and to read."""
        self._routes = routes
        self._long = long
        self._on_close = on_close

    def open(self, host: str, port: int, held: Sequence[socket.socket] = ()) -> None:
        """Serve there, as soon as it can be had: whoever holds the port may let it go. held: that listen there."""
        self._opening = asyncio.get_running_loop().create_task(self._open(host, port, held))

    async def _open(self, host: str, port: int, held: Sequence[socket.socket]) -> None:
        loop = asyncio.get_running_loop()
        for sock in held:
            self._servers.append(await loop.create_server(lambda: _Connection(self), sock=sock))
        while not self._servers:
            try:
                self._servers.append(await loop.create_server(lambda: _Connection(self), host, port))
            except OSError as error:
                self._tell(f"metrics are not served: {host} port {port}: {_in_words(error)}")
                await asyncio.sleep(RETRY_S)
        sockets = [sock for server in self._servers for sock in server.sockets]
        self.ports = tuple(sock.getsockname()[1] for sock in sockets)
        self.trouble = None
        log.info("metrics on %s port %d", host, self.ports[0])

    def _tell(self, trouble: str) -> None:
        if self.trouble != trouble:
            log.error("%s; tried again every %g s", trouble, RETRY_S)
            self.trouble = trouble

    def close(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        for server in self._servers:
            server.close()
        for connection in tuple(self._connections):
            connection.abort()
        self._on_close()

    async def hand_over(self) -> tuple[int, ...]:
        """As `close`, but those who have connected are answered, and the sockets go on listening: copies of them.

        None where no descriptor is free: whoever comes next binds them anew.
        """
        loop = asyncio.get_running_loop()
        sockets = [sock.fileno() for server in self._servers for sock in server.sockets]
        copies = _copies(sockets)
        for number in sockets:
            loop.remove_reader(number)
        for _ in range(_PASSES):
            await asyncio.sleep(0)
        self._none_left = asyncio.Event()
        if self._connections:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HAND_OVER_S):
                    await self._none_left.wait()
        self.close()
        return copies

    def admit(self, connection: "_Connection") -> None:
        """The newest gets a place: of too many, the one that has sat there longest without a request goes."""
        self._connections[connection] = None
        if len(self._connections) > MOST_CONNECTIONS:
            idle = (one for one in self._connections if not one.is_answering)
            next(idle, connection).abort()

    def leave(self, connection: "_Connection") -> None:
        self._connections.pop(connection, None)
        if not self._connections and self._none_left is not None:
            self._none_left.set()

    def makes_room(self, request: Request, asking: "_Connection") -> bool:
        """Whether the request can be answered now. For one more long page the client goes that has not read for the
        longest time."""
        asking.is_long = request.path in self._long
        if not asking.is_long:
            return True
        reading = [one for one in self._connections if one.is_long and one is not asking]
        if len(reading) < MOST_LONG:
            return True
        slowest = min(
            (one for one in reading if one.stuck_since), key=lambda one: one.stuck_since, default=None
        )
        if slowest is None:
            return False
        slowest.abort()
        return True

    async def answer(self, request: Request) -> Response:
        handler = self._routes.get(request.path)
        if handler is None:
            known = " ".join(self._routes)
            return Response(f"not found; there are: {known}\n".encode(), status=404)
        if request.method not in ("GET", "HEAD"):
            allow = (("Allow", "GET, HEAD"),)
            return Response(b"only GET and HEAD\n", status=405, headers=allow)
        try:
            return await handler(request)
        except Exception:  # the border: a client gets no traceback, and the server goes on
            log.exception("%s cannot be made", request.path)
            return Response(b"nexusd's log says why\n", status=500)


def _copies(descriptors: Sequence[int]) -> tuple[int, ...]:
    """Of all, or of none."""
    copies: list[int] = []
    try:
        for number in descriptors:
            copies.append(os.dup(number))
    except OSError as error:
        log.warning("the metrics' port is not handed over: %s", error.strerror)
        for number in copies:
            os.close(number)
        return ()
    return tuple(copies)


def _in_words(error: OSError) -> str:
    """asyncio puts the address into the text once more; a name that is not known has no errno of the kernel's."""
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)


class _Connection(asyncio.Protocol):
    """One request, one answer, then the end. Who is slower than the bounds is cut off."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._received = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._is_head = False
        self.is_long = False
        self.stuck_since = 0.0  # monotonic; 0.0 while the client reads
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def is_answering(self) -> bool:
        return self._task is not None

    def abort(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._timer = asyncio.get_running_loop().call_later(REQUEST_S, self.abort)
        self._server.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        if self._task is not None:
            self._task.cancel()
        self._server.leave(self)

    def data_received(self, data: bytes) -> None:
        if self._task is not None:
            return  # a second request, or a body: neither is looked at
        self._received += data
        head, end, _ = self._received.partition(b"\r\n\r\n")
        if end and len(head) <= LONGEST_HEAD:
            self._take(bytes(head))
        elif len(self._received) > LONGEST_HEAD:
            text = f"more than {LONGEST_HEAD} bytes of headers\n".encode()
            self._refuse(Response(text, status=431))

    def _take(self, head: bytes) -> None:
        try:
            request = parse(head)
        except Malformed:
            self._refuse(Response(b"not an HTTP/1.1 request\n", status=400))
            return
        self._is_head = request.method == "HEAD"
        if self._server.makes_room(request, self):
            self._begin(self._server.answer(request))
        else:
            self.is_long = False
            busy = f"{MOST_LONG} clients have asked for this already\n".encode()
            self._refuse(Response(busy, status=503, headers=(("Retry-After", "1"),)))

    def _refuse(self, response: Response) -> None:
        async def refused() -> Response:
            return response

        self._begin(refused())

    def _begin(self, answering: Awaitable[Response]) -> None:
        loop = asyncio.get_running_loop()
        self._timer.cancel()
        self._timer = loop.call_later(ANSWER_S, self.abort)
        self._task = loop.create_task(self._answer(answering))

    async def _answer(self, answering: Awaitable[Response]) -> None:
        response = await answering
        fields = [
            f"HTTP/1.1 {response.status} {_PHRASES[response.status]}",
            time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime()),
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            "Connection: close",
            *(f"{name}: {value}" for name, value in response.headers),
        ]
        head = "\r\n".join(fields).encode("latin-1") + b"\r\n\r\n"
        self._transport.write(head)
        if not self._is_head:
            await self._write(response.body)
        self._transport.close()

    async def _write(self, body: bytes) -> None:
        """Piece by piece: the kernel takes milliseconds for a long page, and others are to have their turn."""
        for start in range(0, len(body), _PIECE):
            self._transport.write(body[start : start + _PIECE])
            await asyncio.sleep(0)
            await self._may_write.wait()

    def pause_writing(self) -> None:
        self.stuck_since = time.monotonic()
        self._may_write.clear()

    def resume_writing(self) -> None:
        self.stuck_since = 0.0
        self._may_write.set()
