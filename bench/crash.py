"""From SIGKILL of a replica to its successor: its first line as a program, its readiness as a Python module."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from bench import fleets
from bench.daemon import nexusd
from bench.rows import Aim, Figure, Row
from nexusctl.client import Subscription

TIMES = 50
_PAUSE_S = 0.03  # the daemon has written down the last crash
_NEVER_S = 1_000_000


def measure() -> list[Row]:
    return [*_of_a_program(), *_of_a_python_module()]


def _of_a_program() -> list[Row]:
    with nexusd() as daemon, _said(daemon.folder / "pids") as next_pid:
        folder = fleets.program(daemon.modules, "crashing", "./announce", more=fleets.RESTARTS)
        script = _announcing(folder / "announce", daemon.folder / "pids")
        daemon.start()
        ours = _crashes_ms(next_pid(), next_pid)
        daemon.stop()
        bare = _crashes_of_our_own_ms(lambda: os.posix_spawn(script, [script], os.environ), next_pid)
    return _rows("SIGKILL to successor, a program", ours, "waitpid and posix_spawn of it", bare, 5)


def _of_a_python_module() -> list[Row]:
    with nexusd() as daemon:
        fleets.python_modules(daemon.modules, 1, fleets.RESTARTS)
        daemon.start()
        daemon.await_started(1)
        with daemon.client() as client:
            module_id = f"{fleets.GROUP}/python-000"
            (instance,) = client.call("get_status", {"module_id": module_id})["instances"]
            events = client.subscribe(params={"module_id": module_id})
            ours = _crashes_ms(instance["pid"], lambda: _next_ready(events))
    with TemporaryDirectory(prefix="nexusd-bench-") as folder, _said(Path(folder) / "pids") as next_pid:
        bare = _crashes_of_our_own_ms(lambda: _warm_fork(Path(folder) / "pids"), next_pid)
    return _rows(
        "SIGKILL to ready, a Python module", ours, "waitpid, fork of a warm Python, a new loop", bare, 10
    )


def _rows(name: str, ours: list[float], what: str, bare: list[float], aim_ms: float) -> list[Row]:
    p50, p95 = (
        Row(
            f"{name}, {which}",
            Figure(name, _percentile(ours, n), "ms"),
            Figure(what, _percentile(bare, n), "ms"),
        )
        for which, n in (("p50", 50), ("p95", 95))
    )
    return [Row(p50.measure, p50.result, p50.beside, Aim(aim_ms)), p95]


def _percentile(values: list[float], number: int) -> float:
    return statistics.quantiles(values, n=100)[number - 1]


def _crashes_ms(pid: int, next_pid: Callable[[], int]) -> list[float]:
    """Kill, and wait for the successor to tell its pid, again and again."""
    taken = []
    for _ in range(TIMES):
        time.sleep(_PAUSE_S)
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        pid = next_pid()
        taken.append((time.perf_counter() - began) * 1000)
    return taken


def _crashes_of_our_own_ms(start: Callable[[], int], next_pid: Callable[[], int]) -> list[float]:
    """The same with ourselves as the supervisor: nothing but waiting and starting."""
    child = start()

    def successor() -> int:
        nonlocal child
        os.waitpid(child, 0)
        child = start()
        return next_pid()

    try:
        return _crashes_ms(next_pid(), successor)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _next_ready(events: Subscription) -> int:
    """The pid of the replica that nexusd next says is started."""
    while True:
        event = events.next(timeout=60)["event"]
        if event["kind"] == "replica.state" and event["to"] == "started":
            return int(event["pid"])


@contextmanager
def _said(fifo: Path) -> Iterator[Callable[[], int]]:
    """What is written into the FIFO, number by number; the reader wakes with the writer's first line."""
    os.mkfifo(fifo)
    descriptor = os.open(fifo, os.O_RDWR)  # a writer of our own: it never ends
    try:
        yield lambda: int(os.read(descriptor, 64))
    finally:
        os.close(descriptor)


def _announcing(script: Path, fifo: Path) -> str:
    script.write_text(f"#!/bin/sh\necho $$ >{fifo}\nexec sleep {_NEVER_S}\n")
    script.chmod(0o755)
    return str(script)


def _warm_fork(fifo: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        asyncio.run(_be_ready(fifo))
    finally:
        os._exit(1)


async def _be_ready(fifo: Path) -> None:
    fifo.write_text(f"{os.getpid()}\n")
    await asyncio.sleep(_NEVER_S)
