"""What /proc says of a process: memory, processor time, children; and how long a program takes to end."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.rows import BARE_PYTHON_THERE_MS


def pss_mb(pid: int) -> float:
    """Proportional share: a page that n processes map counts one n-th (proc(5), smaps_rollup), in MB of 2^20."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of {pid}")


def cpu_s(pid: int) -> float:
    """Processor time of all threads that live, in nanoseconds' precision; /proc/PID/stat has 10 ms only."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def comm(pid: int) -> str:
    """The name of its program; empty for a process that is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def await_program(pids: Iterable[int], name: str) -> None:
    """Return when each of the processes has become this program."""
    for pid in pids:
        while comm(pid) != name:
            time.sleep(0.001)


def wall_ms(command: Sequence[str], environment: dict[str, str] | None = None) -> float:
    """No time-out: with one, subprocess looks for the end in steps of up to 50 ms."""
    began = time.perf_counter()
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1000


def slowness(times: int = 15) -> float:
    """How many times longer a bare Python takes to start here than where the aims were set.

    Without what is installed beside it: a .pth file may cost more than the interpreter itself.
    """
    bare = [sys.executable, "-I", "-S", "-c", "import site"]
    return statistics.median(wall_ms(bare) for _ in range(times)) / BARE_PYTHON_THERE_MS
