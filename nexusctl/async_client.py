"""The same client over asyncio: one reader hands each answer and each notification to who waits for it.

Messages and errors are wire.py's; this file decides only who waits for what.
"""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

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
    RpcError,
    decode_message,
    encode_request,
    error_of,
)

if TYPE_CHECKING:
    from nexusctl.wire import Params, Request

Outcome = Any | RpcError
End = Unreachable | RpcError


class AsyncClient:
    """A connection for many tasks of one event loop, opened at the first call; close it in the same loop."""

    def __init__(self, path: str | os.PathLike[str] | None = None, timeout: float = READ_TIMEOUT_S) -> None:
        self.path = os.fspath(path) if path is not None else default_socket()
        self.timeout = timeout
        self._opening = asyncio.Lock()
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._last_id = 0
        self._waiting: dict[int, asyncio.Future[Outcome]] = {}
        self._queues: defaultdict[int, asyncio.Queue[dict[str, Any] | End]] = defaultdict(asyncio.Queue)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def is_connected(self) -> bool:
        return self._writer is not None

    async def close(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        self._hang_up()

    async def call(self, method: str, params: Params = None, timeout: float | None = None) -> Any:
        """The result, or RpcError, or Unreachable. `timeout` in seconds; None is the client's own."""
        allowed = self.timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(None if allowed == float("inf") else allowed):
                outcome = await self._outcome(method, params)
        except TimeoutError:
            raise unanswered(self.path, method, allowed) from None
        if isinstance(outcome, RpcError):
            raise outcome
        return outcome

    async def call_many(self, requests: Sequence[Request], timeout: float | None = None) -> list[Outcome]:
        """All at once on the one connection; results and RpcErrors in the order of the requests."""

        async def outcome(request: Request) -> Outcome:
            try:
                return await self.call(*request, timeout)
            except RpcError as error:
                return error

        return await asyncio.gather(*(outcome(request) for request in requests))

    async def subscribe(self, method: str = "subscribe_events", params: Params = None) -> AsyncSubscription:
        """Call a method whose result names a subscription; `async for` what comes."""
        first = await self.call(method, params)
        return AsyncSubscription(first, self._queues[first.get("subscription")])

    async def _outcome(self, method: str, params: Params) -> Outcome:
        self._last_id += 1
        request_id = self._last_id
        writer = await self._send(encode_request(request_id, method, params), method)
        self._waiting[request_id] = asyncio.get_running_loop().create_future()
        try:
            await writer.drain()
            return await self._waiting[request_id]
        except Unreachable:
            raise
        except OSError:
            raise closed(self.path, method) from None
        finally:
            self._waiting.pop(request_id, None)

    async def _send(self, line: bytes, method: str) -> asyncio.StreamWriter:
        """Once more where the daemon has gone since the last call: then not a byte went out."""
        for _ in range(2):
            writer = await self._connected(method)
            writer.write(line)
            if not writer.is_closing():
                return writer
            if writer is self._writer:
                await self.close()
                self._end_all(closed(self.path, method))
        raise closed(self.path, method)

    async def _connected(self, method: str) -> asyncio.StreamWriter:
        async with self._opening:
            if self._writer is not None:
                return self._writer
            refuse_foreign_folder(self.path)
            try:
                reader, self._writer = await self._open()
            except OSError as error:
                raise unreachable(self.path, error) from None
            self._reading = asyncio.create_task(self._read(reader, method))
            return self._writer

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """connect(), tried again while the daemon's queue of connections is full (see client._connect)."""
        while True:
            try:
                return await asyncio.open_unix_connection(self.path, limit=LINE_LIMIT)
            except BlockingIOError:
                await asyncio.sleep(0.01)

    async def _read(self, reader: asyncio.StreamReader, method: str) -> None:
        end: End = closed(self.path, method)
        try:
            while line := await reader.readline():
                self._deliver(decode_message(line, self.path))
        except (Unreachable, RpcError) as error:
            end = error
        except ValueError:
            end = Unreachable(NOT_OUR_PROTOCOL, f"{self.path} sends a line without end", self.path)
        except OSError:
            pass  # a reset is an end as any other
        self._hang_up()
        self._end_all(end)

    def _deliver(self, message: dict[str, Any]) -> None:
        if "method" in message:
            params = message.get("params") or {}
            self._queues[params.get("subscription", 0)].put_nowait(params)
            return
        error = error_of(message)
        if error is not None and message.get("id") is None:
            raise error  # about the connection: no request of ours will be answered
        future = self._waiting.get(message.get("id", 0))
        if future is not None and not future.done():
            future.set_result(message.get("result") if error is None else error)

    def _end_all(self, end: End) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(end)
        for queue in self._queues.values():
            queue.put_nowait(end)
        self._queues.clear()  # the numbers belong to this connection; a subscription keeps its own queue

    def _hang_up(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.close()


class AsyncSubscription:
    """`first` is the answer to the call; `async for` gives the params of each notification of it."""

    def __init__(self, first: dict[str, Any], queue: asyncio.Queue[dict[str, Any] | End]) -> None:
        self.first = first
        self._queue = queue

    async def __aiter__(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            yield await self.next()

    async def next(self) -> dict[str, Any]:
        params = await self._queue.get()
        if isinstance(params, BaseException):
            self._queue.put_nowait(params)  # for who asks once more
            raise params
        return params
