"""200 MB through one module's stdout into its log file, and what that costs nexusd and keeper."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from bench import fleets
from bench.daemon import Nexusd, nexusd
from bench.processes import cpu_s
from bench.rows import Aim, Figure, Row

MEGABYTES = 200
TIMES = 5
_PIECE = 1 << 20
_LINE = b"2024-01-01T00:00:00.000 INFO bench: a line of a hundred bytes, as logs have them, more or less, in all\n"
_MODULE = f"{fleets.GROUP}/loud"
_ONCE = '[restart]\npolicy = "never"\n'


@dataclass(frozen=True, slots=True)
class Pass:
    rate: float
    nexusd_percent: float
    keeper_percent: float


def measure() -> list[Row]:
    with nexusd() as daemon:
        command = _loud(daemon.folder / "lines")
        fleets.program(daemon.modules, "loud", *command, more=_ONCE)
        _not_at_start(daemon)
        daemon.start()
        passes, floors = [], []
        for _ in range(TIMES):  # in turns, so that a busy disk slows both
            passes.append(_through_nexusd(daemon))
            floors.append(_through_a_pipe(command, daemon.folder / "bare"))
    bare = Figure("a pipe read in pieces of 1 MiB into a file", statistics.median(floors), "MB/s")
    whole = Figure("a whole core", 100, "%")
    rate, ours, keepers = (
        statistics.median(getattr(one, name) for one in passes)
        for name in ("rate", "nexusd_percent", "keeper_percent")
    )
    return [
        Row(f"{MEGABYTES} MB through a module's stdout", Figure("", rate, "MB/s"), bare, Aim(800)),
        Row("CPU of nexusd meanwhile", Figure("", ours, "%"), whole, Aim(5)),
        Row("CPU of the keeper meanwhile", Figure("", keepers, "%"), whole),
    ]


def _loud(lines: Path) -> list[str]:
    """A command that writes MEGABYTES of lines as fast as the pipe takes them."""
    lines.write_bytes((_LINE * (_PIECE // len(_LINE) + 1))[: _PIECE - 1] + b"\n")
    return ["cat", *[str(lines)] * MEGABYTES]


def _not_at_start(daemon: Nexusd) -> None:
    manifest = daemon.modules / _MODULE / "module.toml"
    manifest.write_text("autostart = false\n" + manifest.read_text())


def _through_nexusd(daemon: Nexusd) -> Pass:
    """From the command to the news that the module has ended, which follows its last byte."""
    pids = daemon.pid, daemon.keeper_pid
    with daemon.client() as client, daemon.client() as listener:
        events = listener.subscribe(params={"module_id": _MODULE})
        before, began = [cpu_s(pid) for pid in pids], time.monotonic()
        client.call("start_module", {"module_id": _MODULE, "wait": False})
        while True:
            event = events.next(timeout=60)["event"]
            if event["kind"] == "replica.state" and event["from"] == "started":
                break
        elapsed_s = time.monotonic() - began
    used = [cpu_s(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
    return Pass(MEGABYTES * _PIECE / 1e6 / elapsed_s, *(100 * seconds / elapsed_s for seconds in used))


def _through_a_pipe(command: list[str], path: Path) -> float:
    """MB/s of the least that a keeper of logs has to do."""
    began = time.monotonic()
    buffer = memoryview(bytearray(_PIECE))
    with subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0, pipesize=_PIECE) as process:
        assert process.stdout is not None
        with open(path, "wb", buffering=0) as file:
            while count := os.readv(process.stdout.fileno(), [buffer]):
                file.write(buffer[:count])
    elapsed_s = time.monotonic() - began
    path.unlink()
    return MEGABYTES * _PIECE / 1e6 / elapsed_s
