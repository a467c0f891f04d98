"""One page of metrics with 500 modules; how long meanwhile the event loop is held, and a caller kept waiting."""

from __future__ import annotations

import http.client
import multiprocessing
import re
import socket
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from bench import echo, fleets
from bench.daemon import Nexusd, nexusd
from bench.rows import Aim, Figure, Row
from bench.watched import Hold, holds

COUNT = 500
TIMES = 30
_EVERY_S = 0.05
_QUIET_S = 3.0
_PAUSE_S = 0.0005
_OPEN_METRICS = "application/openmetrics-text;version=1.0.0"
_LISTENING = re.compile(r"metrics on 127\.0\.0\.1 port (\d+)")
_REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"check_liveness"}\n'
_PERCENTILES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "longest": 1.0}


class _Measured(NamedTuple):
    first_ms: float
    taken_ms: list[float]
    floor: Figure
    holds: list[Hold]
    quiet_holds: list[Hold]
    calls_ms: list[float]
    quiet_calls_ms: list[float]


def measure() -> list[Row]:
    name = f"scrape, {COUNT} Python modules"
    plain = _measured(fleets.python_modules)
    own = _measured(fleets.counting_modules)
    return [
        Row(f"{name}, first", Figure("", plain.first_ms, "ms"), plain.floor),
        Row(f"{name}, p50", Figure("", statistics.median(plain.taken_ms), "ms"), plain.floor, Aim(50)),
        Row(f"{name}, longest of {TIMES}", Figure("", max(plain.taken_ms), "ms"), plain.floor),
        *_held(plain, "event loop held during scrapes"),
        *_called(plain, "API call during scrapes", ("p50", "p99", "p99.9", "longest")),
        Row(f"{name} with own metrics, p50", Figure("", statistics.median(own.taken_ms), "ms"), own.floor),
        *_held(own, "event loop held, own metrics"),
        *_called(own, "API call, own metrics", ("p99.9", "longest")),
    ]


def _measured(fleet: Callable[[Path, int], None]) -> _Measured:
    with nexusd() as daemon:
        fleet(daemon.modules, COUNT)
        (daemon.folder / "nexusd.toml").write_text('[metrics]\nlisten = "127.0.0.1:0"\n')
        record = daemon.folder / "holds"
        daemon.start("bench.watched", str(record))
        daemon.await_started(COUNT)
        port = _port(daemon)
        first_ms, page = _scraped_ms(port)
        bare = str(daemon.folder / "echo.sock")
        with echo.serving(bare, len(page)):
            floor = Figure(
                f"asyncio answering as many bytes ({len(page) / 1e6:.1f} MB)", _bare_ms(bare), "ms"
            )
        began = time.monotonic()
        with _calling(daemon.socket) as quiet:
            time.sleep(_QUIET_S)
        turned = time.monotonic()
        with _calling(daemon.socket) as busy:
            _scrapes_ms(port)
        taken = _scrapes_ms(port)
        ended = time.monotonic()
        daemon.stop()
        during, without = holds(record, turned, ended), holds(record, began, turned)
    return _Measured(first_ms, taken, floor, during, without, busy, quiet)


def _held(measured: _Measured, name: str) -> Iterator[Row]:
    """With and without the time in which the loop could have gone on, and other processes had the processors."""

    def row(name: str, ms: Callable[[Hold], float], aim: Aim | None = None) -> Row:
        beside = Figure("no scrape", max(map(ms, measured.quiet_holds), default=0.0), "ms")
        return Row(name, Figure("", max(map(ms, measured.holds), default=0.0), "ms"), beside, aim)

    yield row(f"{name}, longest", lambda hold: hold.own_ms, Aim(5))
    yield row(f"{name}, longest, waiting for a processor included", lambda hold: hold.ms)


def _called(measured: _Measured, name: str, which: Iterable[str]) -> Iterator[Row]:
    for one in which:
        share = _PERCENTILES[one]
        result = Figure("", _percentile(measured.calls_ms, share), "ms")
        beside = Figure("no scrape", _percentile(measured.quiet_calls_ms, share), "ms")
        yield Row(f"{name}, {one}", result, beside, Aim(5) if one == "p99.9" else None)


def _percentile(taken: list[float], share: float) -> float:
    return sorted(taken)[min(int(len(taken) * share), len(taken) - 1)]


def _port(daemon: Nexusd) -> int:
    """The kernel chose it; nexusd's log tells."""
    while True:
        if found := _LISTENING.search((daemon.folder / "out").read_text()):
            return int(found[1])
        time.sleep(_EVERY_S)


def _scrapes_ms(port: int) -> list[float]:
    """Each of several, with time for the modules to rest in between."""
    taken = []
    for _ in range(TIMES):
        time.sleep(_EVERY_S)
        taken.append(_scraped_ms(port)[0])
    return taken


def _scraped_ms(port: int) -> tuple[float, bytes]:
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics", headers={"Accept": _OPEN_METRICS})
    response = connection.getresponse()
    page = response.read()
    connection.close()
    if response.status != 200:
        raise ConnectionError(f"status {response.status}")
    return (time.perf_counter() - began) * 1000, page


def _bare_ms(path: str) -> float:
    return statistics.median(_asked_ms(path) for _ in range(TIMES))


def _asked_ms(path: str) -> float:
    with socket.socket(socket.AF_UNIX) as sock:
        began = time.perf_counter()
        sock.connect(path)
        _call(sock)
        return (time.perf_counter() - began) * 1000


def _call(sock: socket.socket) -> None:
    sock.sendall(_REQUEST)
    piece = b""
    while not piece.endswith(b"\n"):
        if not (piece := sock.recv(1 << 20)):
            raise ConnectionError("the server ended the connection")


@contextmanager
def _calling(path: str) -> Iterator[list[float]]:
    """Milliseconds of calls that follow one upon the other meanwhile: as long as the loop is held, so are they.

    From a process of its own: what this one does would keep it waiting, too.
    """
    taken: list[float] = []
    context = multiprocessing.get_context("fork")
    ear, mouth = context.Pipe()
    caller = context.Process(target=_keep_calling, args=(path, mouth), daemon=True)
    caller.start()
    try:
        yield taken
    finally:
        ear.send("enough")
        taken += ear.recv()
        caller.join()


def _keep_calling(path: str, mouth: Connection) -> None:
    taken = []
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)
        while not mouth.poll(_PAUSE_S):
            began = time.perf_counter()
            _call(sock)
            taken.append((time.perf_counter() - began) * 1000)
    mouth.send(taken)
