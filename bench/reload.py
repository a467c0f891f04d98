"""examples/modules/mesh/echo under load: twenty graceful reloads beside none. What fails, how fast, how late."""

from __future__ import annotations

import asyncio
import shutil
import socket
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from bench.daemon import Nexusd, nexusd
from bench.rows import Aim, Figure, Row

RELOADS = 20
_CALM_S = 5.0
_PAUSE_S = 0.2  # between two reloads, so that they meet a load that has found its pace
_SHORT, _LASTING = 8, 8  # clients that connect for each request, clients that stay connected
_EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "modules" / "mesh" / "echo"


@dataclass
class Load:
    """What came of all clients' requests."""

    port: int
    taken_ms: list[float] = field(default_factory=list)
    failed: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return len(self.taken_ms) / self.seconds

    @property
    def p99_ms(self) -> float:
        return statistics.quantiles(self.taken_ms, n=100)[98]

    def during(self, meanwhile: Callable[[], None]) -> Load:
        over = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._clients(over)))
        began = time.monotonic()
        thread.start()
        try:
            meanwhile()
        finally:
            over.set()
            thread.join()
        self.seconds = time.monotonic() - began
        return self

    async def _clients(self, over: threading.Event) -> None:
        lasting = (self._client(over, stays=True) for _ in range(_LASTING))
        await asyncio.gather(*lasting, *(self._client(over, stays=False) for _ in range(_SHORT)))

    async def _client(self, over: threading.Event, stays: bool) -> None:
        streams = None
        while not over.is_set():
            began = time.perf_counter()
            try:
                reader, writer = streams or await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(b"hello\n")
                if await reader.readline() != b"hello\n":
                    raise ConnectionError("closed")
                streams = (reader, writer) if stays else None
                self.taken_ms.append((time.perf_counter() - began) * 1000)
                if not stays:
                    writer.close()
            except OSError:
                streams = None
                self.failed += 1


def measure() -> list[Row]:
    with nexusd() as daemon:
        port = _echo(daemon)
        daemon.start()
        daemon.await_started(1)
        calm = Load(port).during(lambda: time.sleep(_CALM_S))
        graceful: list[float] = []
        load = Load(port).during(lambda: _reload(daemon, "graceful", graceful))
        immediate: list[float] = []
        _reload(daemon, "immediate", immediate)
    beside = "without reloads"
    return [
        Row(
            "20 reloads of mesh/echo under load, failed requests",
            Figure("failed", load.failed, "failed"),
            Figure("asked", len(load.taken_ms) + load.failed, "requests"),
            Aim(0),
        ),
        Row("the same, rate", Figure("rate", load.rate, "calls/s"), Figure(beside, calm.rate, "calls/s")),
        Row("the same, p99", Figure("p99", load.p99_ms, "ms"), Figure(beside, calm.p99_ms, "ms")),
        Row(
            "one such reload, p50",
            Figure("graceful", statistics.median(graceful), "ms"),
            Figure("immediate, without load", statistics.median(immediate), "ms"),
        ),
    ]


def _reload(daemon: Nexusd, strategy: str, taken_ms: list[float]) -> None:
    with daemon.client() as client:
        for _ in range(RELOADS):
            time.sleep(_PAUSE_S)
            began = time.perf_counter()
            client.call("reload_module", {"module_id": "mesh/echo", "strategy": strategy})
            taken_ms.append((time.perf_counter() - began) * 1000)


def _echo(daemon: Nexusd) -> int:
    """The example on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    folder = daemon.modules / "mesh" / "echo"
    shutil.copytree(_EXAMPLE, folder)
    manifest = folder / "module.toml"
    manifest.write_text(manifest.read_text().replace("127.0.0.1:7777", f"127.0.0.1:{port}"))
    return port
