"""Writes module folders: so many programs that sleep, so many Python modules that do nothing."""

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


def _write(modules: Path, name: str, manifest: str) -> Path:
    folder = modules / GROUP / name
    folder.mkdir(parents=True)
    (folder / "module.toml").write_text(manifest)
    return folder
