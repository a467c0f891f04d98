"""500 programs, from the call of nexusd until all of them run, and until nexusd says so."""

from __future__ import annotations

import os
import shutil
import signal
import time

from bench import fleets
from bench.daemon import Nexusd, nexusd
from bench.processes import await_program, children
from bench.rows import Aim, Figure, Row

COUNT = 500
_LOOK_S = 0.01
_BARE_THERE_MS = 483.0


def measure() -> list[Row]:
    bare = Figure(f"fork and exec of {COUNT} `sleep`", _bare_ms(), "ms")
    with nexusd() as daemon:
        fleets.programs(daemon.modules, COUNT)
        began = daemon.start()
        _await_running(daemon)
        running = Figure("", (time.monotonic() - began) * 1000, "ms")
        known = Figure("", (daemon.await_started(COUNT) - began) * 1000, "ms")
        began = time.monotonic()
        daemon.stop()
        stopped = Figure("", (time.monotonic() - began) * 1000, "ms")
    return [
        Row(f"nexusd called to {COUNT} programs running", running, bare, Aim(900, _BARE_THERE_MS)),
        Row(f"nexusd called to {COUNT} programs started in its status", known, bare),
        Row(f"SIGTERM to {COUNT} programs stopped, nexusd and keeper gone", stopped, bare),
    ]


def _await_running(daemon: Nexusd) -> None:
    """Seen from outside, so that nobody asks nexusd while it works."""
    keeper = daemon.keeper_pid
    while len(pids := children(keeper)) < COUNT:
        time.sleep(_LOOK_S)
    await_program(pids, fleets.SLEEP[0])


def _bare_ms() -> float:
    program = shutil.which(fleets.SLEEP[0])
    assert program is not None
    pids: list[int] = []
    began = time.monotonic()
    try:
        for _ in range(COUNT):
            pids.append(_forked(program))
        await_program(pids, fleets.SLEEP[0])
        return (time.monotonic() - began) * 1000
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _forked(program: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.execv(program, fleets.SLEEP)
    finally:
        os._exit(127)
