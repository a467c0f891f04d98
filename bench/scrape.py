"""One page of metrics with 500 modules, and how long the event loop keeps a caller waiting meanwhile."""

from __future__ import annotations

import http.client
import multiprocessing
import re
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection

from bench import echo, fleets
from bench.daemon import Nexusd, nexusd
from bench.rows import Aim, Figure, Row

COUNT = 500
TIMES = 30
_EVERY_S = 0.05
_QUIET_S = 3.0
_PAUSE_S = 0.0005
_OPEN_METRICS = "application/openmetrics-text;version=1.0.0"
_LISTENING = re.compile(r"metrics on 127\.0\.0\.1 port (\d+)")
_REQUEST = b'{"jsonrpc":"2.0","id":1,"method":"check_liveness"}\n'


def measure() -> list[Row]:
    with nexusd() as daemon:
        fleets.python_modules(daemon.modules, COUNT)
        (daemon.folder / "nexusd.toml").write_text('[metrics]\nlisten = "127.0.0.1:0"\n')
        daemon.start()
        daemon.await_started(COUNT)
        port = _port(daemon)
        first_ms, page = _scraped_ms(port)
        bare = str(daemon.folder / "echo.sock")
        with echo.serving(bare, len(page)):
            floor = Figure(
                f"asyncio answering as many bytes ({len(page) / 1e6:.1f} MB)", _bare_ms(bare), "ms"
            )
        with _calling(daemon.socket) as quiet:
            time.sleep(_QUIET_S)
        with _calling(daemon.socket) as busy:
            _scrapes_ms(port)
        taken = _scrapes_ms(port)
    name = f"scrape, {COUNT} Python modules"
    waits = Figure("no scrape", _nearly_all(quiet), "ms")
    return [
        Row(f"{name}, first", Figure("", first_ms, "ms"), floor),
        Row(f"{name}, p50", Figure("", statistics.median(taken), "ms"), floor, Aim(50)),
        Row(f"{name}, longest of {TIMES}", Figure("", max(taken), "ms"), floor),
        Row("API call during scrapes, p99.9", Figure("", _nearly_all(busy), "ms"), waits, Aim(5)),
        Row(
            "API call during scrapes, longest",
            Figure("", max(busy), "ms"),
            Figure("no scrape", max(quiet), "ms"),
        ),
    ]


def _nearly_all(taken: list[float]) -> float:
    return statistics.quantiles(taken, n=1000)[998]


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
