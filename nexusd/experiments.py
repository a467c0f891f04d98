"""The experiments under way and the reports of those that are over: which one is meant, who may begin.

It keeps them in memory; the store is the conductor's (`nexusd.chaos`).
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from nexusd.domain import chaos_report
from nexusd.domain.chaos import View
from nexusd.domain.errors import Busy, InvalidParams, NotPossible
from nexusd.domain.fields import near_match
from nexusd.domain.trial import Trial
from nexusd.ports import EventSource

MOST_AT_ONCE = 8
KEPT = 200  # reports

Report = dict[str, Any]


@dataclass(eq=False, slots=True)
class Running:
    """One experiment under way. `origin` is the monotonic time at which it was prepared."""

    number: int
    trial: Trial
    origin: float
    first_seq: int  # of the events that came before it
    begun: asyncio.Future[None]
    done: asyncio.Future[Report]
    over: asyncio.Event = field(default_factory=asyncio.Event)
    seen: View = field(default_factory=lambda: View(None))  # at the last look

    @property
    def module_id(self) -> str:
        return self.trial.experiment.module_id


class Register:
    def __init__(self, events: EventSource) -> None:
        self._events = events
        self._running: dict[str, Running] = {}
        self._reports: dict[str, Report] = {}
        self.last_number = 0

    def __iter__(self) -> Iterator[Running]:
        """Those under way, as they are now: some may end in the loop."""
        return iter(tuple(self._running.values()))

    def get(self, experiment_id: str) -> Running | None:
        return self._running.get(experiment_id)

    def take_up(self, number: int, trial: Trial, origin: float) -> Running:
        loop = asyncio.get_running_loop()
        last = self._events.last(1)
        first_seq = last[-1]["seq"] if last else 0
        running = Running(number, trial, origin, first_seq, loop.create_future(), loop.create_future())
        self._running[trial.id] = running
        self.last_number = max(self.last_number, number)
        return running

    def drop(self, running: Running) -> None:
        """It is over, or never began."""
        del self._running[running.trial.id]

    def keep(self, number: int, shown: Report) -> None:
        self.last_number = max(self.last_number, number)
        self._reports[shown["id"]] = shown
        while len(self._reports) > KEPT:
            del self._reports[next(iter(self._reports))]

    def of_module(self, module_id: str) -> list[Running]:
        return [running for running in self if running.module_id == module_id]

    def refuse_a_second(self, module_id: str) -> None:
        """Raises Busy while the module is under an experiment, or too many are under way."""
        for running in self.of_module(module_id):
            raise Busy(
                f"{module_id} is under the experiment {running.trial.id}",
                module_id=module_id,
                hint=f"nexusctl chaos abort {running.trial.id}",
            )
        if len(self._running) >= MOST_AT_ONCE:
            told = f"{MOST_AT_ONCE} experiments are under way, and no more at once"
            raise Busy(told, hint="nexusctl chaos list")

    def meant(self, which: str | None) -> Running:
        """An id or a module; None: the only one. Raises NotPossible, InvalidParams."""
        found = [
            running
            for running in self
            if which in (None, running.trial.id, running.module_id) and not running.trial.is_over
        ]
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(running.trial.id for running in found)
            raise InvalidParams(f"several experiments are under way: {names}; which one?")
        if which in self._reports:
            raise NotPossible(f"{which} is over", hint=f"nexusctl chaos show {which}")
        where = "" if which is None else f": {which}"
        raise NotPossible(f"no experiment is under way{where}", hint="nexusctl chaos list")

    def shown(self, running: Running) -> Report:
        return chaos_report.report(running.trial, self._events.since(running.first_seq, running.module_id))

    def report(self, experiment_id: str) -> Report:
        """Raises InvalidParams, with the nearest id there is."""
        if (running := self._running.get(experiment_id)) is not None:
            return self.shown(running)
        if (known := self._reports.get(experiment_id)) is not None:
            return known
        near = near_match(experiment_id, self._reports)
        hint = f"did you mean {near}?" if near else "nexusctl chaos list"
        raise InvalidParams(f"no such experiment: {experiment_id}", hint=hint)

    def reports(self, module_id: str | None = None) -> list[Report]:
        """One line of each, oldest first."""
        known = [*self._reports.values(), *map(self.shown, self)]
        return [chaos_report.line(one) for one in known if module_id in (None, one["module_id"])]
