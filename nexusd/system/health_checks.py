"""When each replica is checked: a schedule of its own for every run that has checks, spread out, never two at once.

An observer of the supervisor. What is asked for stands in `domain.checks`, and what follows from an answer, too;
how a check is carried out is `system.asking`'s. A module without checks costs nothing here.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from nexusd.domain.checks import NO_CHECKS, Plan, Purpose, Said, Tally, plan_of
from nexusd.domain.events import Checked, FleetEvent, News
from nexusd.domain.fleet import Fleet
from nexusd.domain.lifecycle import purposes
from nexusd.domain.manifest_sections import Check
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica, Starting
from nexusd.domain.settings import without_secrets
from nexusd.ports import Seen
from nexusd.system.asking import Asking

MOST_AT_ONCE = 64
MOST_PROGRAMS = 16  # at once: each is a process
EAGER_S = (0.05, 0.1, 0.2, 0.4, 0.8)  # before and between the first checks of a run
SOON_S = 1.0  # between the next, as long as there is no verdict
SPREAD = 0.05  # share of an interval by which it varies

log = logging.getLogger("nexusd.health")


@dataclass(eq=False, slots=True)
class _Watch:
    """One run that is checked."""

    run: str
    module_id: str
    key: tuple[int, int]
    rounds: int = 0
    is_placed: bool = False  # whether it has its place in the interval
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    seen: dict[Purpose, Seen] = field(default_factory=dict)


class HealthChecks:
    """Implements `ports.CheckResults`."""

    def __init__(
        self, asking: Asking, handle: Callable[[FleetEvent], None], fleet: Callable[[], Fleet]
    ) -> None:
        self._asking = asking
        self._handle = handle
        self._fleet = fleet
        self._watches: dict[str, dict[str, _Watch]] = {}  # by module and run
        self._sockets = asyncio.Semaphore(MOST_AT_ONCE)
        self._programs = asyncio.Semaphore(MOST_PROGRAMS)

    def last(self, run: str) -> Mapping[Purpose, Seen]:
        module_id = run.partition("#")[0]
        watch = self._watches.get(module_id, {}).get(run)
        return dict(watch.seen) if watch else {}

    def observe(self, before: Fleet, after: Fleet, touched: frozenset[str]) -> None:
        for module_id in touched:
            module = after.modules.get(module_id)
            if module_id in self._watches or (module is not None and _has_checks(module)):
                self._look_at(module_id, module)

    def close(self) -> None:
        for module_id in tuple(self._watches):
            self._look_at(module_id, None)

    def _look_at(self, module_id: str, module: Module | None) -> None:
        """Begin with the runs that are to be checked now, end with those that are not any more."""
        due = _due(module) if module is not None else {}
        watches = self._watches.setdefault(module_id, {})
        for run in watches.keys() - due.keys():
            _stop(watches.pop(run))
        for run, replica in due.items():
            if module is not None and run not in watches:
                watches[run] = _Watch(run, module_id, replica.key)
                self._set_next(watches[run], module, replica)
        if not watches:
            del self._watches[module_id]

    def _set_next(self, watch: _Watch, module: Module, replica: Replica, took_s: float = 0.0) -> None:
        interval_s = module.definition_of(replica).manifest.health.interval
        delay_s = _delay_s(watch, replica, _plan(module, replica), interval_s)
        watch.timer = asyncio.get_running_loop().call_later(max(0.0, delay_s - took_s), self._begin, watch)

    def _begin(self, watch: _Watch) -> None:
        watch.timer = None
        watch.task = asyncio.get_running_loop().create_task(self._round(watch))

    async def _round(self, watch: _Watch) -> None:
        """Ask for each purpose, one after the other, then have it done again."""
        began = time.monotonic()
        try:
            await self._ask_for_each(watch)
        except Exception:  # the border: a check that fails in a way nobody foresaw ends no other
            log.exception("%s could not be checked", watch.run)
        watch.task = None
        watch.rounds += 1
        if watch.run in self._watches.get(watch.module_id, {}):
            self._set_next(watch, *self._found(watch), took_s=time.monotonic() - began)

    async def _ask_for_each(self, watch: _Watch) -> None:
        answers: dict[str, Said | None] = {}
        for purpose in Purpose:
            if watch.run not in self._watches.get(watch.module_id, {}):
                return
            module, replica = self._found(watch)
            plan = _plan(module, replica)
            if purpose not in purposes(replica, plan):
                continue
            check, began = plan.checks[purpose], time.monotonic()
            if repr(check) not in answers:  # one that serves two purposes is asked once
                answers[repr(check)] = await self._ask(check, replica, module)
            said = answers[repr(check)]
            if said is not None:
                watch.seen[purpose] = Seen(time.monotonic(), time.monotonic() - began, said)
                self._handle(News(watch.module_id, watch.key, Checked(watch.run, purpose, said)))

    async def _ask(self, check: Check, replica: Replica, module: Module) -> Said | None:
        """The time-out begins when its turn has come."""
        timeout_s = module.definition_of(replica).manifest.health.timeout
        async with self._programs if check.exec is not None else self._sockets:
            said = await self._asking.ask(check, replica, module, timeout_s)
        return None if said is None else _without_secrets(said, module, replica)

    def _found(self, watch: _Watch) -> tuple[Module, Replica]:
        module = self._fleet().modules[watch.module_id]
        return module, next(one for one in module.replicas if one.run == watch.run)


def _without_secrets(said: Said, module: Module, replica: Replica) -> Said:
    """The reason may be a module's, a server's or a program's own words, and what they know they may repeat."""
    if said.reason is None:
        return said
    manifest = module.definition_of(replica).manifest
    return Said(said.word, without_secrets(manifest, module.configured, said.reason))


def _due(module: Module) -> dict[str, Replica]:
    """The runs that are to be checked, as things stand."""
    return {one.run: one for one in module.replicas if one.run and purposes(one, _plan(module, one))}


def _has_checks(module: Module) -> bool:
    if module.definition is None:
        return False
    upgrade = module.upgrade.definition if module.upgrade else module.definition
    return any(plan_of(one.manifest) is not NO_CHECKS for one in (module.definition, upgrade))


def _plan(module: Module, replica: Replica) -> Plan:
    return plan_of(module.definition_of(replica).manifest)


def _delay_s(watch: _Watch, replica: Replica, plan: Plan, interval_s: float) -> float:
    """Until the next round: soon as long as no verdict is known, then at a place in the interval drawn by lot.

    So those that became ready together part, and those that a former nexusd has checked do not begin together.
    """
    if not _is_settled(replica, plan):
        eager_s = EAGER_S[watch.rounds] if watch.rounds < len(EAGER_S) else SOON_S
        return min(eager_s, interval_s) * random.uniform(0.5, 1)
    if not watch.is_placed:
        watch.is_placed = True
        return random.uniform(0, interval_s)
    return interval_s * random.uniform(1 - SPREAD, 1 + SPREAD)


def _is_settled(replica: Replica, plan: Plan) -> bool:
    verdicts = (replica.checks.get(purpose, Tally()).verdict for purpose in plan.lasting)
    return not isinstance(replica.state, Starting) and None not in verdicts


def _stop(watch: _Watch) -> None:
    if watch.timer is not None:
        watch.timer.cancel()
    if watch.task is not None and watch.task is not asyncio.current_task():
        watch.task.cancel()
