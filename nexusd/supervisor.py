"""The one owner of the fleet: takes events, carries the resulting actions out, tells observers.

It decides nothing: `domain.fleet` does. Nothing awaits between reading a module's state and storing it.
"""

import asyncio
import heapq
import logging
import os
import random
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nexusd.domain import events
from nexusd.domain import fleet as rules
from nexusd.domain.errors import NexusError
from nexusd.domain.events import FleetEvent, GiveUp, News, Order
from nexusd.domain.fleet import Fleet
from nexusd.domain.lifecycle import Moment
from nexusd.domain.replica import Exit, Replica
from nexusd.domain.runs import RunKey
from nexusd.ports import Clock, Observer, Processes

log = logging.getLogger("nexusd.supervisor")

Done = Callable[[Fleet], bool]  # may raise a NexusError: then that is the outcome


@dataclass(eq=False, slots=True)
class _Waiter:
    module_ids: frozenset[str]
    done: Done
    future: asyncio.Future[None]


class Supervisor:
    def __init__(self, processes: Processes, clock: Clock, gave_up: Callable[[str], None]) -> None:
        self.fleet = Fleet()
        self.observers: list[Observer] = []
        self._processes = processes
        self._clock = clock
        self._gave_up = gave_up
        self._events: deque[FleetEvent] = deque()
        self._busy = False
        self._deadlines: list[tuple[float, str, tuple[int, int]]] = []
        self._waiters: set[_Waiter] = set()

    def handle(self, event: FleetEvent) -> None:
        """Take the event and all that follows from it. An event that arises meanwhile comes after it."""
        self._events.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._events:
                self._take(self._events.popleft())
        finally:
            self._busy = False
        self._clock.wake_at(self._next_deadline())

    def expire_deadlines(self) -> None:
        """Tell every replica whose deadline has passed."""
        now = self._clock.now()
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, module_id, key = heapq.heappop(self._deadlines)
            if self._deadline_of(module_id, key) == deadline:
                self.handle(News(module_id, key, events.Expired()))
        self._clock.wake_at(self._next_deadline())

    async def until(self, module_ids: Iterable[str], done: Done, timeout_s: float | None) -> None:
        """Return when `done` says so of the fleet; raises TimeoutError, or the NexusError that `done` raised.

        Asked now and after each event that touched one of the modules.
        """
        if done(self.fleet):
            return
        waiter = _Waiter(frozenset(module_ids), done, asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        try:
            await asyncio.wait_for(waiter.future, timeout_s)
        finally:
            self._waiters.discard(waiter)

    def _take(self, event: FleetEvent) -> None:
        before = self.fleet
        moment = Moment(self._clock.now(), random.random())
        change = rules.apply(before, event, moment, _fresh_run)
        self.fleet = change.fleet
        left = set(change.touched)
        for action in change.actions:
            # Remembered first: a nexusd that is killed here leaves a wish behind, never a process without one.
            # Module by module: the keeper starts the first while the last is still being remembered.
            if action.module_id in left:
                left.remove(action.module_id)
                self._after(action.module_id, before)
            self._carry_out(action)
        for module_id in left:
            self._after(module_id, before)
        for observer in self.observers:
            self._tell(observer, before, change.touched)
        self._answer_waiters(change.touched)

    def _tell(self, observer: Observer, before: Fleet, touched: frozenset[str]) -> None:
        try:
            observer(before, self.fleet, touched)
        except Exception:
            log.exception("an observer failed; the fleet goes on")

    def _carry_out(self, action: Order | GiveUp) -> None:
        if isinstance(action, GiveUp):
            self._gave_up(action.module_id)
            return
        match action.action:
            case events.Spawn(run):
                self._spawn(run, action.replica)
            case events.Terminate(run, number):
                self._processes.terminate(run, number)
            case events.Kill(run):
                self._processes.kill(run)
            case events.Forget(run):
                self._processes.forget(run)

    def _spawn(self, run: str, replica: Replica) -> None:
        try:
            self._processes.spawn(run, replica, self.fleet.modules[replica.module_id])
        except (OSError, ValueError, NexusError) as error:
            cause = f"cannot be started: {_in_words(error)}"
            self._events.append(News(replica.module_id, replica.key, events.Exited(run, Exit(cause=cause))))

    def _after(self, module_id: str, before: Fleet) -> None:
        """Remember what changed, and when to look at it again."""
        module, former = self.fleet.modules.get(module_id), before.modules.get(module_id)
        if module is former:
            return
        self._processes.remember(module_id, module)
        for replica in module.replicas if module else ():
            if replica.deadline is not None and (former is None or replica not in former.replicas):
                heapq.heappush(self._deadlines, (replica.deadline, module_id, replica.key))

    def _deadline_of(self, module_id: str, key: tuple[int, int]) -> float | None:
        module = self.fleet.modules.get(module_id)
        replicas = module.replicas if module else ()
        return next((replica.deadline for replica in replicas if replica.key == key), None)

    def _next_deadline(self) -> float | None:
        return self._deadlines[0][0] if self._deadlines else None

    def _answer_waiters(self, touched: frozenset[str]) -> None:
        for waiter in tuple(self._waiters):
            if waiter.future.done() or not touched & waiter.module_ids:
                continue
            try:
                if waiter.done(self.fleet):
                    waiter.future.set_result(None)
            except NexusError as outcome:
                waiter.future.set_exception(outcome)


def _in_words(error: Exception) -> str:
    """Without the number that an OSError's text begins with."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error)


def _fresh_run(module_id: str, index: int, generation: int) -> str:
    return RunKey(module_id, index, generation, os.urandom(4).hex()).text()
