"""The processor time of nexusd and keeper while 100 Python modules have nothing to do."""

from __future__ import annotations

import subprocess
import sys
import time

from bench import fleets
from bench.daemon import nexusd
from bench.processes import cpu_s
from bench.rows import Aim, Figure, Row

MODULES = 100
SECONDS = 30.0
_SETTLE_S = 4.0
_ONCE_A_SECOND = """
import asyncio
async def wake():
    while True:
        await asyncio.sleep(1)
asyncio.run(wake())
"""


def measure() -> list[Row]:
    with nexusd() as daemon:
        fleets.python_modules(daemon.modules, MODULES)
        daemon.start()
        daemon.await_started(MODULES)
        bare = subprocess.Popen([sys.executable, "-c", _ONCE_A_SECOND])
        try:
            ours, keepers, floor = _shares((daemon.pid, daemon.keeper_pid, bare.pid))
        finally:
            bare.kill()
            bare.wait()
    beside = Figure("an asyncio loop that wakes once a second", floor, "%")
    both = Figure("", ours + keepers, "%")
    return [
        Row(f"CPU of nexusd and keeper, {MODULES} idle modules", both, beside, Aim(0.1)),
        Row("of that nexusd", Figure("", ours, "%"), beside),
        Row("of that the keeper", Figure("", keepers, "%"), beside),
    ]


def _shares(pids: tuple[int, ...]) -> list[float]:
    """Percent of one core for each of the processes."""
    time.sleep(_SETTLE_S)
    before, began = [cpu_s(pid) for pid in pids], time.monotonic()
    time.sleep(SECONDS)
    after, elapsed_s = [cpu_s(pid) for pid in pids], time.monotonic() - began
    return [100 * (later - earlier) / elapsed_s for earlier, later in zip(before, after, strict=True)]
