"""A cgroup of a test's own, marked as systemd marks what it delegates; gone with all that lives in it afterwards."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nexusd.keeper import leaf

BOUND_S = 10.0
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'  # for sh -c: the cgroup, then the program


def mounted() -> Path:
    """Where version 2 is; skips where it is not, or takes no cgroup of ours."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] == "cgroup2":
            place = Path(before.split()[4])
            if not os.access(place, os.W_OK):
                pytest.skip(f"uid {os.getuid()} may not make cgroups in {place}")
            if not any(place.glob("*/cgroup.kill")) and not _has_kill(place):
                pytest.skip("this kernel has no cgroup.kill")
            return place
    pytest.skip("no cgroup version 2 is mounted here")


def _has_kill(place: Path) -> bool:
    trial = place / f"nexus-trial-{os.getpid()}"
    trial.mkdir()
    try:
        return (trial / "cgroup.kill").exists()
    finally:
        trial.rmdir()


@contextmanager
def delegated(mark: bool = True) -> Iterator[Path]:
    place = mounted() / f"nexus-test-{os.getpid()}-{os.urandom(3).hex()}"
    place.mkdir()
    try:
        if mark:
            os.setxattr(place, "user.delegate", b"1")
        yield place
    finally:
        leaf.kill(str(place))
        deadline = time.monotonic() + BOUND_S
        while not leaf.remove(str(place)):
            assert time.monotonic() < deadline, f"{place} is not given back: {leaf.pids(str(place))}"


def entered(cgroup: Path, *command: str) -> list[str]:
    """The command, run inside."""
    return ["sh", "-c", ENTER, str(cgroup), *command]


def controllers(cgroup: Path) -> set[str]:
    return set((cgroup / "cgroup.controllers").read_text().split())


def need(cgroup: Path, controller: str) -> None:
    """Skips where limits of this kind can't be had."""
    if controller not in controllers(cgroup):
        pytest.skip(
            f"cgroup version 2 has no {controller} controller here: it belongs to version 1, or is not on"
        )
