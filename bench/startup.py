"""From the call of nexusd to its first answer, with no module to start."""

from __future__ import annotations

import statistics
import sys
import time

from bench.daemon import nexusd
from bench.processes import wall_ms
from bench.rows import Figure, Row

TIMES = 7


def measure() -> list[Row]:
    ours, bare = [], []
    for _ in range(TIMES):
        ours.append(_first_answer_ms())
        bare.append(wall_ms([sys.executable, "-c", "import asyncio"]))
    name = "nexusd called to answering, no modules"
    result = Figure(name, statistics.median(ours), "ms")
    return [Row(name, result, Figure("python -c 'import asyncio'", statistics.median(bare), "ms"))]


def _first_answer_ms() -> float:
    with nexusd() as daemon:
        began = daemon.start()
        daemon.status()
        return (time.monotonic() - began) * 1000
