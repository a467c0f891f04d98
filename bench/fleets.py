"""Writes module folders: so many programs that sleep, so many Python modules that do nothing, or count."""

from __future__ import annotations

import json
from pathlib import Path

GROUP = "bench"
SLEEP = ("sleep", "1000000")

# Says that it has started, where somebody listens; nexusd hands the variable on.
FIFO = "BENCH_FIFO"
_DOES_NOTHING = f"""
import os

from nexusd.sdk import Module


class Nothing(Module):
    async def start(self) -> None:
        if path := os.environ.get("{FIFO}"):
            with open(path, "wb", buffering=0) as fifo:
                fifo.write(b"r")
"""
_COUNTS = """
from prometheus_client import Counter, Gauge, Histogram

from nexusd.sdk import Module


class Counts(Module):
    async def start(self) -> None:
        jobs = Counter("jobs", "Jobs done", ["kind"], registry=self.metrics)
        for kind in ("small", "large", "failed"):
            jobs.labels(kind).inc()
        Gauge("queue_length", "Jobs that wait", registry=self.metrics).set(3)
        Histogram("job_seconds", "Seconds that a job took", registry=self.metrics).observe(0.1)
"""
# As often as it likes, at once.
RESTARTS = """
[restart]
policy = "always"
backoff = { first = "0s", initial = "0s", max = "0s" }
intensity = { restarts = 1000000, within = "60s" }
"""


def programs(modules: Path, count: int) -> None:
    for number in range(count):
        program(modules, f"program-{number:03}", *SLEEP)


def program(modules: Path, name: str, *command: str, more: str = "") -> Path:
    """A module that executes the command. `more` is TOML for tables beside [run]."""
    return _write(modules, name, f"[run]\nexec = {json.dumps(command)}\n{more}")


def python_modules(modules: Path, count: int, more: str = "") -> None:
    for number in range(count):
        folder = _write(modules, f"python-{number:03}", f'[run]\npython = "nothing:Nothing"\n{more}')
        (folder / "nothing.py").write_text(_DOES_NOTHING)


def counting_modules(modules: Path, count: int) -> None:
    """Python modules with metrics of their own, some twenty series each."""
    for number in range(count):
        folder = _write(modules, f"counting-{number:03}", '[run]\npython = "counts:Counts"\n')
        (folder / "counts.py").write_text(_COUNTS)


def _write(modules: Path, name: str, manifest: str) -> Path:
    folder = modules / GROUP / name
    folder.mkdir(parents=True)
    (folder / "module.toml").write_text(manifest)
    return folder
