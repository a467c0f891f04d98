"""The wall time of `live.py liveness`, as Kubernetes or cron would call it: alone, and 200 at once."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench import fleets
from bench.daemon import Nexusd, nexusd
from bench.processes import wall_ms
from bench.rows import Aim, Figure, Row

MODULES = 15
TIMES = 40
AT_ONCE = 200
_LIVE = (str(Path(__file__).resolve().parents[1] / "aeon_interface" / "live.py"), "liveness")
_PASS, _IMPORTS = ("-c", "pass"), ("-c", "import socket, json")
_BARE = ("-I", "-S")  # without what is installed beside the interpreter
_ONE_AND_A_HALF = Aim(1.5, 1.0)  # times what stands beside it
_NO_MORE = Aim(1.0, 1.0)


def measure() -> list[Row]:
    with nexusd() as daemon:
        fleets.programs(daemon.modules, MODULES)
        daemon.start()
        daemon.await_started(MODULES)
        rows = [
            *_alone(daemon, (), "live.py liveness"),
            *_alone(daemon, _BARE, "live.py liveness, python -I -S"),
        ]
        name = f"{AT_ONCE} times live.py liveness at once"
        bare = Figure(f"{AT_ONCE} times python -c pass at once", _at_once_ms(_PASS, daemon), "ms")
        return [*rows, Row(name, Figure(name, _at_once_ms(_LIVE, daemon), "ms"), bare, _ONE_AND_A_HALF)]


def _alone(daemon: Nexusd, options: Sequence[str], name: str) -> list[Row]:
    commands = [[sys.executable, *options, *program] for program in (_LIVE, _PASS, _IMPORTS)]
    taken: list[list[float]] = [[] for _ in commands]
    for _ in range(TIMES):  # in turns, so that a busy neighbour slows all
        for one, command in zip(taken, commands, strict=True):
            one.append(wall_ms(command, daemon.environment))
    live, bare, imports = map(statistics.median, taken)
    return [
        Row(name, Figure(name, live, "ms"), Figure("python -c pass", bare, "ms"), _ONE_AND_A_HALF),
        Row(
            name, Figure(name, live, "ms"), Figure("python -c 'import socket, json'", imports, "ms"), _NO_MORE
        ),
    ]


def _at_once_ms(program: Sequence[str], daemon: Nexusd) -> float:
    """From the first start to the last end; each has to end well."""
    began = time.perf_counter()
    running = [
        subprocess.Popen([sys.executable, *program], env=daemon.environment, stdout=subprocess.DEVNULL)
        for _ in range(AT_ONCE)
    ]
    statuses = [one.wait() for one in running]
    taken = (time.perf_counter() - began) * 1000
    if any(statuses):
        raise RuntimeError(f"{sum(map(bool, statuses))} of {AT_ONCE} did not say yes")
    return taken
