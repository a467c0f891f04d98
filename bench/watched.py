"""nexusd with a watch on its event loop: how long each turn of the loop kept everybody else waiting.

`python -m bench.watched FILE` writes that there, as JSON, when nexusd ends; `holds` reads it.
"""

from __future__ import annotations

import asyncio
import json
import resource
import selectors
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from nexusd.__main__ import main

_WORTH_TELLING_MS = 0.2


class Hold(NamedTuple):
    """From the moment when the loop's wait was over until it waits again."""

    began: float  # monotonic seconds
    ms: float
    own_ms: float  # without the time in which it could have gone on, and others had the processors


class _Watching(selectors.DefaultSelector):
    """asyncio calls `select` once for each turn, all in one thread."""

    def __init__(self, tell: Callable[[Hold], None]) -> None:
        super().__init__()
        self._tell = tell
        self._began = self._processor = 0.0
        self._sleeps = 0

    def select(self, timeout: float | None = None) -> Any:
        if self._began:
            ms = (time.monotonic() - self._began) * 1000
            if ms > _WORTH_TELLING_MS:
                # A thread that never slept, for a lock or a disk, was kept waiting by others only.
                has_slept = _sleeps() > self._sleeps
                own_ms = ms if has_slept else (time.thread_time() - self._processor) * 1000
                self._tell(Hold(self._began, ms, own_ms))
        found = super().select(timeout)
        self._began, self._processor, self._sleeps = time.monotonic(), time.thread_time(), _sleeps()
        return found


def _sleeps() -> int:
    """How often this thread has given up the processor by itself (getrusage(2))."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class _Policy(asyncio.DefaultEventLoopPolicy):
    def __init__(self, tell: Callable[[Hold], None]) -> None:
        super().__init__()
        self._tell_hold = tell

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return asyncio.SelectorEventLoop(_Watching(self._tell_hold))


def holds(path: Path, began: float, ended: float) -> list[Hold]:
    """Those between two points of time, in monotonic seconds."""
    told = [Hold(*one) for one in json.loads(path.read_text())]
    return [hold for hold in told if began <= hold.began <= ended]


def _watch(path: Path) -> None:
    seen: list[Hold] = []
    asyncio.set_event_loop_policy(_Policy(seen.append))
    try:
        main()
    finally:
        path.write_text(json.dumps(seen))


if __name__ == "__main__":
    _watch(Path(sys.argv.pop(1)))
