"""get_status over the socket: one client's round trip, and what eight clients get together."""

from __future__ import annotations

import multiprocessing
import socket
import statistics
import time
from multiprocessing.connection import Connection

from bench import echo, fleets
from bench.daemon import nexusd
from bench.rows import Aim, Figure, Row

CLIENTS = 8
SECONDS = 3.0
_REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"get_status"}\n'
_AIMS_MS = {15: Aim(0.12), 500: Aim(1.4)}
_AIMS_RATE = {15: Aim(10_000)}


def measure() -> list[Row]:
    return [*_with_modules(15, 5000), *_with_modules(500, 1000)]


def _with_modules(count: int, times: int) -> list[Row]:
    with nexusd() as daemon:
        fleets.programs(daemon.modules, count)
        daemon.start()
        daemon.await_started(count)
        bare = str(daemon.folder / "echo.sock")
        with echo.serving(bare, _answer_bytes(daemon.socket)):
            ours, theirs = _round_trips_ms(daemon.socket, times), _round_trips_ms(bare, times)
            rates = _rate(daemon.socket), _rate(bare)
    what = f"asyncio answering as many bytes ({_answered(count)})"
    name = f"get_status, {count} modules"
    return [
        _row(f"{name}, p50", "ms", (ours[49], theirs[49]), what, _AIMS_MS[count]),
        _row(f"{name}, p99", "ms", (ours[98], theirs[98]), what),
        _row(f"{name}, {CLIENTS} clients", "calls/s", rates, what, _AIMS_RATE.get(count)),
    ]


def _answered(count: int) -> str:
    return f"{count} rows"


def _row(name: str, unit: str, values: tuple[float, float], what: str, aim: Aim | None = None) -> Row:
    return Row(name, Figure(name, values[0], unit), Figure(what, values[1], unit), aim)


def _connected(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(path)
    return sock


def _call(sock: socket.socket) -> int:
    """The length of the answer."""
    sock.sendall(_REQUEST)
    length = 0
    while True:
        piece = sock.recv(1 << 20)
        if not piece:
            raise ConnectionError("the server ended the connection")
        length += len(piece)
        if piece.endswith(b"\n"):
            return length


def _answer_bytes(path: str) -> int:
    with _connected(path) as sock:
        return _call(sock)


def _round_trips_ms(path: str, times: int) -> list[float]:
    """The percentiles, from 1 to 99."""
    taken = []
    with _connected(path) as sock:
        _call(sock)
        for _ in range(times):
            began = time.perf_counter()
            _call(sock)
            taken.append((time.perf_counter() - began) * 1000)
    return statistics.quantiles(taken, n=100)


def _rate(path: str) -> float:
    """Calls per second of all clients together, each a process of its own."""
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(CLIENTS)]
    clients = [context.Process(target=_keep_calling, args=(path, mouth), daemon=True) for _, mouth in pipes]
    for client in clients:
        client.start()
    total: float = sum(ear.recv() for ear, _ in pipes)
    for client in clients:
        client.join()
    return total


def _keep_calling(path: str, mouth: Connection) -> None:
    calls = 0
    with _connected(path) as sock:
        began = time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            _call(sock)
            calls += 1
        mouth.send(calls / (time.perf_counter() - began))
