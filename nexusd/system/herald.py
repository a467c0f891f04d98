"""When systemd is told what of nexusd: the start is over, a line of status, still alive, on its way out.

What the line says, and when a start is over, is decided in `domain/service.py`; how it is said, in `notify`.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from nexusd.domain import service
from nexusd.domain.fleet import Fleet
from nexusd.system.notify import Notifier

log = logging.getLogger("nexusd.systemd")

_GATHER_S = 0.02  # changes come in crowds
_AGAIN_S = 5.0  # how often a slow start or stop is looked at when nothing changes
_BEATS = 3  # so many in each interval of the watchdog: one may be late

Pass = Callable[[float], Awaitable[str | None]]  # seconds it may take; what could not be reached


class Herald:
    """Silent where no systemd listens. It tells of what changes from the first change on; that the start is over, not
    before `serves`.
    """

    def __init__(self, notifier: Notifier, watchdog_s: float | None, fleet: Callable[[], Fleet]) -> None:
        self._notifier = notifier
        self._watchdog_s = watchdog_s
        self._fleet = fleet
        self._line = service.starting_line
        self._said = ""
        self._seen: Fleet | None = None
        self._is_ready = False
        self._was_ready = False
        self._is_serving = False
        self._timer: asyncio.TimerHandle | None = None
        self._heart: asyncio.Task[None] | None = None

    def observe(self, _before: Fleet, _after: Fleet, _touched: frozenset[str]) -> None:
        if self._notifier.is_heard:
            self._look_in(_GATHER_S)

    def serves(self, reach: Pass) -> None:
        """The API is there. From READY=1 on systemd hears WATCHDOG=1 after each pass that reached everything."""
        self._is_serving = True
        if self._notifier.is_heard:
            self._look()
            self._begin_to_beat(reach)

    def takes_over(self, was_ready: bool) -> None:
        """In the place of another nexusd. To systemd, and to its watchdog, the service was ready all the time."""
        self._was_ready = was_ready
        if was_ready and self._watchdog_s is not None and self._notifier.is_heard:
            self._notifier.say("WATCHDOG=1")  # who has come so far does not hang
            self._begin_to_beat(_come_round)

    def hands_over(self, version: str) -> bool:
        """Another nexusd takes our place, and says READY=1 then. Whether we have said it ourselves."""
        if self._is_ready:
            self._say_reloading()
            self._notifier.say(f"STATUS=giving way to nexusd {version}")
        return self._is_ready

    def _begin_to_beat(self, reach: Pass) -> None:
        if self._heart is not None:
            self._heart.cancel()
        if self._watchdog_s is not None:
            self._heart = asyncio.get_running_loop().create_task(self._beat(self._watchdog_s, reach))

    def _say_reloading(self) -> None:
        self._notifier.say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """READY=1 comes in any case: a service that stays in its reload is killed by systemd."""
        self._say_reloading()
        try:
            yield
        finally:
            if self._is_ready:
                self._notifier.say("READY=1")

    def leave(self) -> None:
        """nexusd is on its way out, and says for how long it may be."""
        self._notifier.say("STOPPING=1")
        self._line = service.stopping_line
        self._is_ready = False
        self._is_serving = False
        if self._notifier.is_heard:
            self._look()

    def close(self) -> None:
        for waiting in (self._timer, self._heart):
            if waiting is not None:
                waiting.cancel()
        self._notifier.flush()

    # When to look, and what to say

    def _look_in(self, delay_s: float) -> None:
        loop = asyncio.get_running_loop()
        if self._timer is None or self._timer.when() > loop.time() + delay_s:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = loop.call_later(delay_s, self._look)

    def _look(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        fleet = self._fleet()
        words = []
        if self._is_serving and not self._is_ready and (self._was_ready or not service.unsettled(fleet)):
            self._is_ready, self._line = True, service.line
            words.append("READY=1")
        if (line := self._line(fleet)) != self._said:
            self._said = line
            words.append(f"STATUS={line}")
        if not self._is_ready:
            words += self._plea(fleet)
            self._look_in(_AGAIN_S)
        self._seen = fleet
        if words:
            self._notifier.say(*words)

    def _plea(self, fleet: Fleet) -> list[str]:
        """For more time, while something moves or has moved: a start that stands still may run out of it."""
        patience = service.patience_s(fleet, time.monotonic())
        if patience is None and fleet is self._seen:
            return []
        return [f"EXTEND_TIMEOUT_USEC={int((patience or service.MARGIN_S) * 1_000_000)}"]

    async def _beat(self, watchdog_s: float, reach: Pass) -> None:
        interval_s = watchdog_s / _BEATS
        while True:
            due = time.monotonic() + interval_s
            await asyncio.sleep(interval_s)
            if (late_s := time.monotonic() - due) > interval_s / 2:
                log.warning(
                    "the event loop was %.1f s late; the watchdog ends nexusd after %g s", late_s, watchdog_s
                )
            try:
                missed = await reach(interval_s)
            except Exception:  # a border: who stops beating is killed, and nobody would know why
                log.exception("no word to the watchdog: the pass met a defect")
                continue
            if missed is None:
                self._notifier.say("WATCHDOG=1")
            else:
                log.warning("no word to the watchdog: %s", missed)


async def _come_round(_patience_s: float) -> None:
    """The loop is all that there is yet."""
    return None
