"""The wall time of `nexusctl status`, from the shell's view."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from bench import fleets
from bench.daemon import nexusd
from bench.processes import wall_ms
from bench.rows import Aim, Figure, Row

MODULES = 15
TIMES = 30


def measure() -> list[Row]:
    with nexusd() as daemon:
        fleets.programs(daemon.modules, MODULES)
        daemon.start()
        daemon.await_started(MODULES)
        ours, bare = [], []
        for _ in range(TIMES):  # in turns, so that a busy neighbour slows both
            ours.append(wall_ms([*_nexusctl(), "status"], daemon.environment))
            bare.append(wall_ms([sys.executable, "-c", "pass"]))
    name = f"`nexusctl status`, {MODULES} modules"
    result = Figure(name, statistics.median(ours), "ms")
    return [Row(name, result, Figure("python -c pass", statistics.median(bare), "ms"), Aim(30))]


def _nexusctl() -> list[str]:
    """The installed command, or the package where nothing is installed."""
    script = Path(sys.executable).with_name("nexusctl")
    return [str(script)] if script.exists() else [sys.executable, "-m", "nexusctl"]
