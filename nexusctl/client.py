"""The one client of the daemon's socket: JSON-RPC 2.0, one message a line, several requests in flight.

Importable alone and quick to import: standard library only, asyncio only for who asks for AsyncClient. How an
error is shown, and which exit status it means, others decide.
"""

from __future__ import annotations

import os
import socket
import time

from nexusctl.unreachable import (
    NOT_OUR_PROTOCOL,
    Unreachable,
    closed,
    default_socket,
    refuse_foreign_folder,
    unanswered,
    unreachable,
)
from nexusctl.wire import (
    LINE_LIMIT,
    READ_TIMEOUT_S,
    PermissionDenied,
    RpcError,
    decode_message,
    encode_request,
    error_of,
)

TYPE_CHECKING = False  # as typing has it, without importing typing
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import Any

    from nexusctl.async_client import AsyncClient, AsyncSubscription
    from nexusctl.wire import Params, Request

__all__ = [
    "AsyncClient",
    "AsyncSubscription",
    "Client",
    "PermissionDenied",
    "RpcError",
    "Subscription",
    "Unreachable",
    "default_socket",
]

FOREVER = float("inf")
IN_FLIGHT = 32  # the daemon reads at most 64 requests of one connection at a time


class Client:
    """A connection, opened at the first call. For one thread; `timeout` in seconds holds for each request."""

    def __init__(self, path: str | os.PathLike[str] | None = None, timeout: float = READ_TIMEOUT_S) -> None:
        self.path = os.fspath(path) if path is not None else default_socket()
        self.timeout = timeout
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._is_subscribed = False
        self._last_id = 0
        self._awaited: set[int] = set()
        self._answers: dict[int, dict[str, Any]] = {}
        self._notifications: list[dict[str, Any]] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def is_connected(self) -> bool:
        return self._socket is not None

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._is_subscribed = False
        self._buffer.clear()

    def connect(self) -> None:
        """Connect now rather than with the first call. Raises Unreachable."""
        self._connected(time.monotonic() + self.timeout)

    def call(self, method: str, params: Params = None, timeout: float | None = None) -> Any:
        """The result, or RpcError, or Unreachable. `timeout` None is the client's own."""
        for _, outcome in self.call_many([(method, params)], timeout):
            if isinstance(outcome, RpcError):
                raise outcome
            return outcome
        raise AssertionError("a request has an outcome")

    def call_many(
        self, requests: Sequence[Request], timeout: float | None = None
    ) -> Iterator[tuple[int, Any | RpcError]]:
        """Send all, yield (place in requests, result or RpcError) as the answers come, in any order.

        Other calls may be made meanwhile: an answer is kept for whoever awaits it.
        """
        allowed = self.timeout if timeout is None else timeout
        waiting: dict[int, tuple[int, float]] = {}  # request id: place, deadline; the oldest deadline first
        try:
            for place, request in enumerate(requests):
                deadline = time.monotonic() + allowed
                waiting[self._send(request, deadline, allowed)] = (place, deadline)
                if len(waiting) >= IN_FLIGHT:
                    yield self._next_answer(waiting, requests, allowed)
            while waiting:
                yield self._next_answer(waiting, requests, allowed)
        finally:
            self._awaited.difference_update(waiting)  # their answers, come or not, are nobody's
            for request_id in waiting:
                self._answers.pop(request_id, None)

    def subscribe(self, method: str = "subscribe_events", params: Params = None) -> Subscription:
        """Call a method whose result names a subscription; iterate what comes, until the connection ends."""
        first = self.call(method, params)
        self._is_subscribed = True
        return Subscription(self, first)

    def next_notification(self, subscription: int | None = None, timeout: float = FOREVER) -> dict[str, Any]:
        """The params of the next notification, of one subscription or of any. Unreachable when none comes."""
        deadline = time.monotonic() + timeout
        while True:
            for place, params in enumerate(self._notifications):
                if subscription is None or params.get("subscription") == subscription:
                    return self._notifications.pop(place)
            self._keep(self._receive(deadline, "a notification", timeout))

    def _next_answer(
        self, waiting: dict[int, tuple[int, float]], requests: Sequence[Request], allowed: float
    ) -> tuple[int, Any | RpcError]:
        oldest, deadline = next(iter(waiting.values()))
        while not (answered := waiting.keys() & self._answers.keys()):
            self._keep(self._receive(deadline, requests[oldest][0], allowed))
        request_id = min(answered)
        place, _ = waiting.pop(request_id)
        self._awaited.discard(request_id)
        message = self._answers.pop(request_id)
        return place, error_of(message) or message.get("result")

    def _keep(self, message: dict[str, Any]) -> None:
        """Put a message where who waits for it will look; an answer that nobody awaits is dropped."""
        if "method" in message:
            self._notifications.append(message.get("params") or {})
        elif message.get("id") in self._awaited:
            self._answers[message["id"]] = message
        elif message.get("id") is None and (error := error_of(message)):
            raise error  # about the connection, or a line of ours that could not be read

    def _send(self, request: Request, deadline: float, allowed: float) -> int:
        self._last_id += 1
        line = encode_request(self._last_id, *request)
        is_alone = not (self._awaited or self._is_subscribed)
        if not self._was_taken(line, request[0], deadline, allowed) and not (
            is_alone and self._was_taken(line, request[0], deadline, allowed)
        ):
            raise closed(self.path, request[0])
        self._awaited.add(self._last_id)
        return self._last_id

    def _was_taken(self, line: bytes, method: str, deadline: float, allowed: float) -> bool:
        """Whether the daemon can have read it. One that is leaving reads no more on a connection that it is about to
        close: what is said then was not heard, and may be said again on another.
        """
        connection = self._connected(deadline)
        try:
            connection.settimeout(_remaining(deadline))
            connection.sendall(line)
        except TimeoutError:
            raise self._lost(unanswered(self.path, method, allowed)) from None
        except OSError:
            self.close()
            return False
        return True

    def _receive(self, deadline: float, method: str, allowed: float) -> dict[str, Any]:
        connection = self._socket
        if connection is None:
            raise closed(self.path, method)
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                connection.settimeout(_remaining(deadline))
                data = connection.recv(1 << 16)
            except TimeoutError:
                raise unanswered(self.path, method, allowed) from None
            except OSError:
                data = b""
            if not data:
                raise self._lost(closed(self.path, method))
            self._buffer += data
            if len(self._buffer) > LINE_LIMIT:
                raise self._lost(
                    Unreachable(NOT_OUR_PROTOCOL, f"{self.path} sends a line without end", self.path)
                )
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            return decode_message(line, self.path)
        except Unreachable as error:
            raise self._lost(error) from None

    def _lost(self, error: Unreachable) -> Unreachable:
        self.close()
        return error

    def _connected(self, deadline: float) -> socket.socket:
        if not (self._awaited or self._is_subscribed) and _has_ended(self._socket):
            self.close()  # the daemon was restarted since the last call; nothing is lost by that
        if self._socket is None:
            refuse_foreign_folder(self.path)
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                _connect(connection, self.path, deadline)
            except OSError as error:
                connection.close()
                raise unreachable(self.path, error) from None
            self._socket = connection
        return self._socket


def _has_ended(connection: socket.socket | None) -> bool:
    """Whether the other end has hung up and left nothing to be read."""
    if connection is None:
        return True
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _connect(connection: socket.socket, path: str, deadline: float) -> None:
    """connect(), tried again while the daemon's queue of connections is full: Linux then says EAGAIN."""
    while True:
        connection.settimeout(_remaining(deadline))
        try:
            return connection.connect(path)
        except BlockingIOError:
            time.sleep(0.01)


def _remaining(deadline: float) -> float | None:
    """What settimeout() wants: None for ever; TimeoutError when nothing is left, since 0 is non-blocking."""
    if deadline == FOREVER:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class Subscription:
    """`first` is the answer to the call; iterating gives the params of each notification of it."""

    def __init__(self, client: Client, first: dict[str, Any]) -> None:
        self.first = first
        self._client = client

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            yield self.next()

    def next(self, timeout: float = FOREVER) -> dict[str, Any]:
        return self._client.next_notification(self.first.get("subscription"), timeout)


def __getattr__(name: str) -> object:
    if name in ("AsyncClient", "AsyncSubscription"):
        from nexusctl import async_client  # noqa: PLC0415  asyncio takes longer to import than a probe to run

        return getattr(async_client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
