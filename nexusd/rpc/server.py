"""The API socket: accepts connections, counts them, keeps their one clock, and closes in good order.

What happens on a connection stands in `connection`, where the socket lies in `endpoint`.
"""

import asyncio
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

from nexusd.domain.access import Caller
from nexusd.rpc import endpoint
from nexusd.rpc.connection import Connection, Limits
from nexusd.rpc.dispatch import Answer, Dispatcher
from nexusd.rpc.peers import Peers

__all__ = ["Limits", "RpcServer"]

# From 3.13 on asyncio would delete the socket's file by itself, systemd's too.
_KEEP_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class RpcServer:
    """Serves one dispatcher on any number of listening sockets."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        limits: Limits | None = None,
        *,
        group: str | None = "nexus",
        mode: int = 0o660,
        peers: Peers | None = None,
    ) -> None:
        self.dispatcher = dispatcher
        self.limits = limits or Limits()
        self.tasks: set[asyncio.Task[Answer]] = set()
        self._group = group
        self._mode = mode
        self._peers = peers or Peers()
        self._listeners: list[asyncio.Server] = []
        self._endpoints: list[endpoint.Endpoint] = []
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._deadlines: dict[Connection, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def most_connections(self) -> int:
        """Half of the files that may be open: the daemon needs some for modules, logs and itself."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = self.limits.connections
        return most if soft == resource.RLIM_INFINITY else min(most, soft // 2)

    async def serve(self, path: str | os.PathLike[str]) -> None:
        """Bind and listen, or raise NotPossible: a daemon lives there, or something that is no socket."""
        await self.serve_bound(endpoint.bind(Path(path), mode=self._mode, group=self._group))

    async def serve_bound(self, bound: endpoint.Endpoint) -> None:
        """Serve where somebody has bound already; the file is removed at the end."""
        self._endpoints.append(bound)
        await self.adopt(bound.sock)

    async def adopt(self, sock: socket.socket) -> None:
        """Serve on a socket that listens already (systemd's); its file is left alone at the end."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        # To asyncio the backlog is also how often it calls accept() in a row, and without a free descriptor how
        # many complaints it has, and how many timers to try again.
        listener = await loop.create_unix_server(
            lambda: Connection(self, loop), sock=sock, backlog=1, **_KEEP_FILE
        )
        sock.listen(endpoint.BACKLOG)
        self._listeners.append(listener)

    async def close(self, grace_s: float = 5.0) -> None:
        """Stop accepting and reading; requests in flight have `grace_s` to be answered, or are cancelled."""
        for listener in self._listeners:
            listener.close()
        for bound in self._endpoints:
            bound.remove()
        self._endpoints.clear()
        for connection in self._connections:
            connection.drain()
        await self._settle(grace_s)
        if self._timer is not None:
            self._timer.cancel()

    async def _settle(self, grace_s: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + grace_s
        if self.tasks:
            _, late = await asyncio.wait(self.tasks, timeout=grace_s)
            for task in late:
                task.cancel()
        for connection in tuple(self._connections):
            connection.close()
        try:
            async with asyncio.timeout_at(until + 0.1):
                await self._empty.wait()
        except TimeoutError:
            for connection in tuple(self._connections):
                connection.abort()
            await self._empty.wait()

    # What the connections ask for

    def admit(self, connection: Connection, sock: socket.socket) -> Caller | None:
        if len(self._connections) >= self.most_connections:
            return None
        self._connections.add(connection)
        self._empty.clear()
        return self._peers.caller(sock)

    def leave(self, connection: Connection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    def watch(self, connection: Connection) -> None:
        loop = asyncio.get_running_loop()
        self._deadlines.setdefault(connection, loop.time() + self.limits.request_timeout_s)
        if self._timer is None:
            self._timer = loop.call_later(self._tick_s(), self._tick, loop)

    def unwatch(self, connection: Connection) -> None:
        self._deadlines.pop(connection, None)

    def _tick_s(self) -> float:
        return min(1.0, self.limits.request_timeout_s / 4)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        """One timer for all: it runs while a connection has something to complete."""
        now = loop.time()
        for connection in [each for each, deadline in self._deadlines.items() if deadline <= now]:
            del self._deadlines[connection]
            connection.expire()
        self._timer = loop.call_later(self._tick_s(), self._tick, loop) if self._deadlines else None
