"""The event loop's clock: monotonic time, and one alarm.

Implements `ports.Clock`. There is one timer in all, set to the earliest deadline.
"""

import asyncio
import time
from collections.abc import Callable


class LoopClock:
    def __init__(self, ring: Callable[[], None]) -> None:
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None
        self._deadline: float | None = None
        self._running = False

    def start(self) -> None:
        """From now on it rings; a deadline that was wished for before rings now or when it is due."""
        self._running = True
        self._set(self._deadline)

    def now(self) -> float:
        return time.monotonic()

    def wake_at(self, deadline: float | None) -> None:
        if deadline != self._deadline or self._timer is None:
            self._set(deadline)

    def _set(self, deadline: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._deadline = deadline
        if deadline is not None and self._running:
            wait_s = max(0.0, deadline - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._rang)

    def _rang(self) -> None:
        self._timer = None
        self._ring()
