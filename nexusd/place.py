"""The place of a nexusd in the world: its folders' locks, its sockets, its clients.

Made anew or taken over from the nexusd that this process was before; left, or given over to the next one. When another
may have it is decided in `domain/replacing.py`; the jump itself is `system/handover.py`'s.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from nexusd import __version__
from nexusd.config import Config
from nexusd.rpc import endpoint
from nexusd.system.folders import lock_folder, lock_path, make_folders
from nexusd.system.handover import Bound, Client, Handover, sockets_of
from nexusd.system.http import HttpServer
from nexusd.system.notify import Given

if TYPE_CHECKING:
    from nexusd.rpc.server import RpcServer  # slow to import: by whoever makes it


class Successor(NamedTuple):
    """Who gets the place."""

    version: str
    grace_s: float  # for what is in flight
    left_at: float  # monotonic seconds


class Place:
    """Call lock, bind, serve, take_over, serve_metrics, in that order; then leave and unlock, or give_over."""

    _server: "RpcServer"

    def __init__(self, config: Config, given: Given) -> None:
        self._config = config
        self._of_systemd = given.api
        self._handed = given.handed
        self._bound: endpoint.Endpoint | None = None
        self._locks: dict[str, int] = {}

    def lock(self) -> None:
        """Make the folders, and have them for this nexusd alone. Raises NotPossible, OSError."""
        config = self._config
        make_folders(config.runtime, config.state, config.logs)
        held = self._handed.locks if self._handed else {}
        for folder in (config.runtime, config.state):
            path = lock_path(folder)
            self._locks[path] = lock_folder(folder, held.get(path))

    def bind(self) -> None:
        """Raises NotPossible where another nexusd answers on the API socket."""
        if self._of_systemd is None:
            self._bound = self._found() or endpoint.bind(
                Path(self._config.socket), group=self._config.api.group
            )

    def _found(self) -> endpoint.Endpoint | None:
        if self._handed is None or (api := self._handed.api) is None:
            return None
        return endpoint.taken_over(api.fd, api.path, (api.device, api.inode))

    async def serve(self, server: "RpcServer") -> None:
        self._server = server
        if self._of_systemd is not None:
            server.adopt(self._of_systemd)  # its file is not ours to remove
        elif self._bound is not None:
            await server.serve_bound(self._bound)

    async def take_over(self, tell: Callable[..., None], warn: Callable[[str], None]) -> None:
        """From the nexusd that this process was before: its clients, and the word of how it went."""
        if (handed := self._handed) is None:
            return
        for client in handed.clients:
            await self._server.take_in(socket.socket(fileno=client.fd), client.rest)
        away_ms = (time.monotonic() - handed.left_at) * 1000
        if handed.failure is None:
            way = f"{handed.version} → {__version__}, the API was away for {away_ms:.0f} ms"
            tell("daemon.taken_over", reason=way)
        else:
            warn(f"nexusd {handed.target} could not be executed: {handed.failure}")
            tell("daemon.reexec_failed", reason=f"{handed.version} goes on: {handed.failure}")

    def serve_metrics(self, web: HttpServer) -> None:
        wanted = self._config.metrics
        sockets = sockets_of(self._handed, wanted.listen) if self._handed else []
        if wanted.address is not None:
            web.open(*wanted.address, sockets)

    def hold(self) -> None:
        """Take nothing more up: whoever hears an answer from now on speaks to the next one."""
        self._server.hold()

    async def give_over(
        self, successor: Successor, web: HttpServer, was_ready: bool, soft_files: int | None
    ) -> Handover:
        """Answer what is in flight; the sockets go on listening, the folders stay locked."""
        clients, metrics = await asyncio.gather(self._server.hand_over(successor.grace_s), web.hand_over())
        api = None
        if (bound := self._bound) is not None:
            api = Bound(bound.sock.detach(), str(bound.path), *bound.identity)
        return Handover(
            version=__version__,
            target=successor.version,
            left_at=successor.left_at,
            was_ready=was_ready,
            api=api,
            metrics=metrics,
            metrics_at=self._config.metrics.listen,
            locks=self._locks,
            clients=tuple(Client(fd, rest) for fd, rest in clients),
            soft_files=soft_files,
        )

    async def leave(self, web: HttpServer) -> None:
        web.close()
        await self._server.close()

    def unlock(self) -> None:
        """Last of all: another nexusd may come at once."""
        for lock in self._locks.values():
            os.close(lock)
