"""The API socket: accepts connections, counts them, keeps their one clock, and closes in good order.

What happens on a connection stands in `connection`, where the socket lies in `endpoint`.
"""

import asyncio
import os
import resource
import socket
from collections import Counter
from pathlib import Path

from nexusd.domain.access import Caller
from nexusd.domain.errors import Busy
from nexusd.rpc import endpoint
from nexusd.rpc.connection import Connection, Limits
from nexusd.rpc.dispatch import Answer, Dispatcher
from nexusd.rpc.entrance import Entrance
from nexusd.rpc.peers import Peers

_HEAR_OUT_S = 1.0  # a busy machine may keep a client from its first word for that long
_FLUSH_S = 0.1

__all__ = ["Limits", "RpcServer"]

KEPT_FREE = 8  # one in so many connections is for root and nexusd's own user alone


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
        self._entrances: list[Entrance] = []
        self._endpoints: list[endpoint.Endpoint] = []
        self._connections: dict[Connection, int] = {}  # with the uid at the other end
        self._of_user: Counter[int] = Counter()
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
        self.adopt(bound.sock)

    def adopt(self, sock: socket.socket) -> None:
        """Serve on a socket that listens already (systemd's); its file is left alone at the end."""
        loop = asyncio.get_running_loop()
        self._entrances.append(Entrance(sock, lambda: Connection(self, loop)))

    async def take_in(self, sock: socket.socket, rest: bytes) -> None:
        """Go on with a connection that a former nexusd handed over. rest: what it had read and not taken up."""
        loop = asyncio.get_running_loop()
        sock.setblocking(False)
        await loop.connect_accepted_socket(lambda: Connection(self, loop, rest), sock)

    async def close(self, grace_s: float = 5.0) -> None:
        """Let nobody else in, and answer those who are. Requests in flight after `grace_s` are cancelled.

        A connection is closed between two requests, and the kernel draws the line: what was sent before is answered,
        what is sent after fails in the client (EPIPE), which so knows that it was not heard, and may ask again.
        """
        for entrance in self._entrances:
            await entrance.close()
        for bound in self._endpoints:
            bound.remove()
        self._entrances.clear()
        self._endpoints.clear()
        await self._part(grace_s)
        if self._timer is not None:
            self._timer.cancel()

    def hold(self) -> None:
        """Let nobody else in, take no further requests: they wait for whoever this is handed over to."""
        for entrance in self._entrances:
            entrance.hold()
        for connection in self._connections:
            connection.hold()

    async def hand_over(self, grace_s: float = 5.0) -> list[tuple[int, bytes]]:
        """As `close`, but the sockets go on listening, and connections go on without us: a copy of the descriptor of
        each, and what was read of it and not taken up. Those that have subscribed to something end.
        """
        self.hold()
        for entrance in self._entrances:
            await entrance.settled()
        self.hold()
        if self.tasks:
            await asyncio.wait(self.tasks, timeout=grace_s)
        going_on = []
        for connection in tuple(self._connections):
            if (let_go := connection.let_go()) is None:
                connection.part()
            else:
                going_on.append(let_go)
        if not await self._emptied(_FLUSH_S):
            await self._cut_off()
        return going_on

    async def _part(self, grace_s: float) -> None:
        """From all connections: those that are owed something, or have not said a word yet, have their time."""
        heard_s = min(_HEAR_OUT_S, grace_s)
        for connection in tuple(self._connections):
            connection.drain()
        if await self._emptied(heard_s):
            return
        for connection in tuple(self._connections):
            connection.hush()
        if await self._emptied(grace_s - heard_s):
            return
        await self._cut_off()

    async def _cut_off(self) -> None:
        """What was answered is sent, if the client reads it."""
        for task in self.tasks:
            task.cancel()
        for connection in tuple(self._connections):
            connection.close()
        if not await self._emptied(_FLUSH_S):
            for connection in tuple(self._connections):
                connection.abort()
            await self._empty.wait()

    async def _emptied(self, patience_s: float) -> bool:
        """Whether all connections are over within that time."""
        try:
            async with asyncio.timeout(patience_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    # What the connections ask for

    def admit(self, connection: Connection, sock: socket.socket) -> Caller | Busy:
        """root and nexusd's own user may have every connection there is; no other user may keep the rest out, and
        all the others together not those two.
        """
        caller, most = self._peers.caller(sock), self.most_connections
        is_own = caller.uid in (0, os.getuid())
        if len(self._connections) >= (most if is_own else most - most // KEPT_FREE):
            return _too_many(f"the daemon has {len(self._connections)} connections")
        if not is_own and self._of_user[caller.uid] >= max(1, int(most * self.limits.user_share)):
            return _too_many(f"{caller.user} has {self._of_user[caller.uid]} connections")
        self._connections[connection] = caller.uid
        self._of_user[caller.uid] += 1
        self._empty.clear()
        return caller

    def leave(self, connection: Connection) -> None:
        uid = self._connections.pop(connection, None)
        if uid is not None:
            self._of_user[uid] -= 1
            if not self._of_user[uid]:
                del self._of_user[uid]
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


def _too_many(found: str) -> Busy:
    hint = "close connections that are not needed, or raise the limits in nexusd.toml and that of open files"
    return Busy(f"{found}: no more are taken", hint=hint)
