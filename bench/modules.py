"""Python modules from nothing to ready, 100 and 500, and the memory of all that then runs."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from dataclasses import dataclass

from bench import fleets
from bench.daemon import nexusd
from bench.processes import children, comm, pss_mb
from bench.rows import Aim, Figure, Row

_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Fleet:
    """What a number of module processes took, all together."""

    ready_s: float
    module_mb: float
    nexusd_mb: float = 0.0
    keeper_mb: float = 0.0


def measure() -> list[Row]:
    return [row for count in (100, 500) for row in _rows(count, _ours(count), _bare(count))]


def _rows(count: int, ours: Fleet, bare: Fleet) -> list[Row]:
    floor = f"{count} forks of a warm Python, a loop each"
    seconds, megabytes = Figure(floor, bare.ready_s, "s"), Figure(floor, bare.module_mb, "MB")
    ready = Figure("", ours.ready_s, "s")
    each = Figure("", ours.module_mb, "MB")
    rows = [
        Row(
            f"nexusd called to {count} Python modules ready", ready, seconds, Aim(3) if count == 500 else None
        ),
        Row(f"PSS of each of {count} Python modules", each, megabytes, Aim(4)),
    ]
    for name, value in (("nexusd", ours.nexusd_mb), ("the keeper", ours.keeper_mb)):
        rows.append(Row(f"PSS of {name} with {count} Python modules", Figure("", value, "MB"), megabytes))
    return rows


def _ours(count: int) -> Fleet:
    with nexusd() as daemon:
        fleets.python_modules(daemon.modules, count)
        fifo = daemon.folder / "ready"
        os.mkfifo(fifo)
        daemon.environment[fleets.FIFO] = str(fifo)
        ears = os.open(fifo, os.O_RDWR)  # a writer of our own: it never ends
        try:
            began = daemon.start()
            _await_said(ears, count)
        finally:
            os.close(ears)
        ready_s = daemon.await_started(count) - began
        modules = [pid for pid in children(daemon.keeper_pid) if comm(pid) != "nexus-spare"]
        each = sum(map(pss_mb, modules)) / count
        return Fleet(ready_s, each, pss_mb(daemon.pid), pss_mb(daemon.keeper_pid))


def _bare(count: int) -> Fleet:
    """Children of this process, which has imported asyncio: each makes a loop and says so."""
    ears, mouth = os.pipe()
    pids: list[int] = []
    began = time.monotonic()
    try:
        for _ in range(count):
            pids.append(_forked(mouth))
        _await_said(ears, count)
        ready_s = time.monotonic() - began
        return Fleet(ready_s, sum(map(pss_mb, pids)) / count)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(ears)
        os.close(mouth)


def _await_said(ears: int, count: int) -> None:
    """A byte for each that is ready. Nobody asks nexusd while it works: it would take longer."""
    said = 0
    while said < count:
        if not select.select([ears], [], [], _PATIENCE_S)[0]:
            raise TimeoutError(f"only {said} of {count} became ready")
        said += len(os.read(ears, count))


def _forked(mouth: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        asyncio.run(_be_ready(mouth))
    finally:
        os._exit(1)


async def _be_ready(mouth: int) -> None:
    os.write(mouth, b"r")
    await asyncio.Event().wait()
