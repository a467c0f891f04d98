"""The event loop's clock: monotonic time, and one alarm; how late the loop is; what is tried again and again.

Implements `ports.Clock`. There is one timer for all deadlines, set to the earliest.
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


class LoopLag:
    """Looks once a second how much later than asked for the loop comes round; tells it in seconds."""

    EVERY_S = 1.0

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        due = time.monotonic() + self.EVERY_S
        self._timer = asyncio.get_running_loop().call_later(self.EVERY_S, self._came_round, due)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _came_round(self, due: float) -> None:
        self._tell(max(0.0, time.monotonic() - due))
        self.start()


class Retries:
    """Has each tried again every few seconds; whether there is anything to try is its own to know."""

    EVERY_S = 5.0

    def __init__(self, *tries: Callable[[], None]) -> None:
        self._tries = tries
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self.EVERY_S, self._try)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _try(self) -> None:
        self.start()
        for one in self._tries:
            one()
