"""Conducts experiments: writes the lease, sends the signals, watches the module, rolls back, keeps the report.

What is allowed, who is hit and when one is over stands in `domain.chaos`. The lease is in the store before
anything is touched and goes with the last report: whatever ends nexusd in between, the next one undoes it.
"""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import msgspec
from msgspec.structs import replace

from nexusd.domain import chaos, chaos_report, health
from nexusd.domain import trial as trials
from nexusd.domain.chaos import Experiment, Kind, View
from nexusd.domain.errors import NotPossible, TimedOut
from nexusd.domain.events import Want
from nexusd.domain.fleet import Fleet
from nexusd.domain.module import Module
from nexusd.domain.trial import Phase, Trial
from nexusd.experiments import Register, Report, Running
from nexusd.ports import Clock, EventSource, ExperimentStore, Hands, StoredExperiment
from nexusd.supervisor import Supervisor

log = logging.getLogger("nexusd.chaos")

LEAVE_S = 5.0  # how long a nexusd that goes waits until what it resumed goes on


class Conductor:
    def __init__(
        self,
        supervisor: Supervisor,
        hands: Hands,
        is_stopped: Callable[[int], bool],
        store: ExperimentStore,
        clock: Clock,
        events: EventSource,
        tell: Callable[..., None],
    ) -> None:
        """`is_stopped` tells of a pid whether it, or a descendant of it, is held by a SIGSTOP."""
        self._supervisor = supervisor
        self._hands = hands
        self._is_stopped = is_stopped
        self._store = store
        self._clock = clock
        self._tell = tell
        self.register = Register(events)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving = False

    # What is asked of it

    def plan(self, experiment: Experiment) -> Report:
        """What it would hit. Raises as `begin` does, and touches nothing."""
        return chaos_report.plan(self._trial("", experiment, ""))

    async def begin(self, experiment: Experiment, requested_by: str) -> str:
        """Returns the experiment's id once the signals are sent.

        Raises NotPossible, also when the lease can't be stored: then nothing was touched; and Busy.
        """
        self.register.refuse_a_second(experiment.module_id)
        number = self.register.last_number + 1
        trial = self._trial(f"{experiment.kind}-{number}", experiment, requested_by)
        running = self.register.take_up(number, trial, self._clock.now())
        self._perform(self._conduct(running))
        await asyncio.shield(running.begun)
        return trial.id

    async def finished(self, experiment_id: str, timeout_s: float | None) -> Report:
        """Its report, once it is over. Raises TimedOut; the experiment goes on then."""
        if (running := self.register.get(experiment_id)) is None:
            return self.register.report(experiment_id)
        try:
            return await asyncio.wait_for(asyncio.shield(running.done), timeout_s)
        except TimeoutError:
            raise TimedOut(
                f"{experiment_id} is still under way after {timeout_s:g} s",
                module_id=running.module_id,
                hint=f"nexusctl chaos show {experiment_id}",
                id=experiment_id,
            ) from None

    def abort(self, which: str | None, reason: str) -> str:
        """Roll back at once. `which` is an id or a module; None: the only one. Returns its id."""
        running = self.register.meant(which)
        self._end_early(running, "aborted", reason)
        return running.trial.id

    def release(self, module_id: str, reason: str) -> None:
        """Somebody is about to do something to the module: whatever is done to it here ends first."""
        for running in self.register.of_module(module_id):
            self._end_early(running, "aborted", reason)

    # nexusd's own life

    def restore(self, stored: Iterable[StoredExperiment]) -> None:
        """Take over the reports; undo what a nexusd that was killed left in the middle."""
        for one in stored:
            if one.lease is not None:
                self._undo(one.number, one.report, one.lease)
            elif chaos_report.is_whole(one.report):
                self.register.keep(one.number, one.report)
            else:
                log.error("the report of experiment %d is damaged: passed over", one.number)

    async def leave(self) -> None:
        """Before the modules are stopped: roll all back, and wait until it is seen to be."""
        self._leaving = True
        for running in self.register:
            self._end_early(running, "interrupted", "nexusd was stopped in the middle")
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=LEAVE_S)
            for task in left:  # its lease stays: the next nexusd undoes it
                log.error("an experiment could not be rolled back in time; the next nexusd will")
                task.cancel()

    def observe(self, _before: Fleet, _after: Fleet, touched: frozenset[str]) -> None:
        """An observer of the supervisor."""
        concerned = [running for running in self.register if running.module_id in touched]
        for running in concerned:
            self._look(running)
        if concerned:
            self._set_alarm()

    def expire(self) -> None:
        """The clock's alarm."""
        for running in self.register:
            self._look(running)
        self._set_alarm()

    # From the lease to the report

    async def _conduct(self, running: Running) -> None:
        trial = running.trial
        # The lease says that it has happened: whoever finds it can't know that it has not.
        lease = trials.injected(trial, 0.0)
        try:
            await self._store.save_experiment(
                running.number, chaos_report.report(lease, []), msgspec.json.encode(lease).decode()
            )
        except NotPossible as error:
            self.register.drop(running)
            running.begun.set_exception(_unstored(trial, error))
            return
        self._inject(running)
        running.begun.set_result(None)
        await self._see_to_the_end(running)

    def _inject(self, running: Running) -> None:
        trial, view = running.trial, self._view(running.trial)
        if trial.phase is Phase.PREPARED and (changed := trials.changed_before(trial, view)) is not None:
            trial = trials.ended_early(trial, "aborted", changed, self._since(running))
        if trial.phase is not Phase.PREPARED:
            self._become(running, trial)
            return
        module_id, number = trial.experiment.module_id, trial.experiment.kind.signal
        names = ", ".join(target.name for target in trial.targets)
        self._tell("chaos.started", module_id, reason=f"{trial.id} by {trial.requested_by}")
        running.trial = trials.injected(trial, self._since(running))
        for target in trial.targets:
            self._hands.signal(target.run, number)
        self._tell("chaos.injected", module_id, reason=f"{trial.id}: {number.name} to {names}")
        self._set_alarm()

    async def _see_to_the_end(self, running: Running) -> None:
        await running.over.wait()
        shown = self.register.shown(running)
        verdict = shown["verdict"]
        module_id = shown["module_id"]
        try:
            await self._store.save_experiment(running.number, shown, None)
        except NotPossible as error:  # its lease is undone once more at the next start, which does no harm
            log.error("the report of %s is kept in memory only: %s", running.trial.id, error)
            shown["warning"] = str(error)
        self.register.keep(running.number, shown)
        self.register.drop(running)
        reason = f"{running.trial.id}: {verdict['outcome']}: {verdict['reason']}"
        self._tell("chaos.ended", module_id, reason=reason)
        running.done.set_result(shown)

    def _undo(self, number: int, shown: Report, lease: str) -> None:
        try:
            trial = msgspec.json.decode(lease, type=Trial)
        except msgspec.DecodeError as error:
            log.error("the lease of experiment %d can't be read, its report has to do: %s", number, error)
            self._perform(self._close_unread(number, shown))
            return
        log.warning("%s was under way when nexusd ended: it is rolled back", trial.id)
        # The monotonic clock of another boot is not this one's: how long ago it was, the wall clock says.
        ago = max(0.0, time.time() - trial.epoch)
        running = self.register.take_up(number, trial, self._clock.now() - ago)
        running.begun.set_result(None)
        self._perform(self._see_to_the_end(running))
        self._end_early(running, "interrupted", "nexusd ended in the middle; rolled back at its next start")

    async def _close_unread(self, number: int, shown: Report) -> None:
        """Another version wrote the lease. Whom it hit stands in the report, too."""
        for run in chaos_report.runs_hit(shown):
            self._hands.signal(run, signal.SIGCONT)
        if chaos_report.is_whole(shown):  # else it is damaged as well
            shown = chaos_report.interrupted(shown, time.time())
            self.register.keep(number, shown)
        try:
            await self._store.save_experiment(number, shown, None)
        except NotPossible as error:
            log.error("a lease that can't be read stays: %s", error)

    def _end_early(self, running: Running, kind: str, reason: str) -> None:
        self._become(running, trials.ended_early(running.trial, kind, reason, self._since(running)))
        self._look(running)
        self._set_alarm()

    def _look(self, running: Running) -> None:
        trial = running.trial
        view = running.seen = self._view(trial)
        if view.stopped:
            self._resume(trial)  # again: a keeper that died may have taken the signal with it
        self._become(running, trials.look(trial, view, self._since(running)))
        if running.trial.phase is not trial.phase and not running.trial.is_over:
            self._look(running)

    def _become(self, running: Running, trial: Trial) -> None:
        former, running.trial = running.trial, trial
        if trial.phase is Phase.ROLLED_BACK and former.phase is not Phase.ROLLED_BACK:
            self._roll_back(running)
        if trial.is_over:
            running.over.set()

    # The rollback

    def _roll_back(self, running: Running) -> None:
        trial = running.trial
        module_id = trial.experiment.module_id
        module = self._module(module_id)
        done = self._resume(trial)
        is_to_start = module is not None and not self._leaving and trials.needs_start(module)
        if module is not None and is_to_start:
            done.append(f"started again: {module.reason or module.state}")
        told = "; ".join(done) or "there was nothing to undo"
        running.trial = replace(trial, rollback=told)
        self._tell("chaos.rolled_back", module_id, reason=f"{trial.id}: {told}")
        if is_to_start:  # last: what follows from it is looked at before this returns
            self._supervisor.handle(Want((module_id,), True))

    def _resume(self, trial: Trial) -> list[str]:
        """Said of every run of a freeze, whether or not it is still seen: to a run that is gone it does nothing."""
        if trial.experiment.kind is not Kind.FREEZE:
            return []
        for target in trial.targets:
            self._hands.signal(target.run, signal.SIGCONT)
        return ["SIGCONT to " + ", ".join(target.name for target in trial.targets)]

    # What it looks at

    def _view(self, trial: Trial) -> View:
        module = self._module(trial.experiment.module_id)
        if module is None:
            return View(None, in_a_hurry=self._leaving)
        found, reasons = health.health_of(module)
        stopped = self._stopped(module, trial) if trial.is_thawing else frozenset()
        calm_s = self._clock.now() - max((replica.since for replica in module.current), default=0.0)
        return View(module, found, tuple(reasons), stopped, self._leaving, calm_s)

    def _stopped(self, module: Module, trial: Trial) -> frozenset[str]:
        runs = {target.run for target in trial.targets}
        return frozenset(
            replica.run
            for replica in module.replicas
            if replica.run in runs and replica.run and replica.pid and self._is_stopped(replica.pid)
        )

    def _module(self, module_id: str) -> Module | None:
        return self._supervisor.fleet.modules.get(module_id)

    def _since(self, running: Running) -> float:
        return self._clock.now() - running.origin

    def _set_alarm(self) -> None:
        wishes = [
            running.origin + wish
            for running in self.register
            if (wish := trials.next_look(running.trial, running.seen, self._since(running)))
        ]
        self._clock.wake_at(min(wishes, default=None))

    # What it begins with

    def _trial(self, experiment_id: str, experiment: Experiment, requested_by: str) -> Trial:
        module = self._module(experiment.module_id)
        assert module is not None  # whoever asks has looked
        if not self._hands.connected:
            raise NotPossible("the keeper is being replaced: nothing could be done to a process now")
        found, reasons = health.health_of(module)
        view = View(module, found, tuple(reasons))
        sample = random.Random(experiment.seed).sample
        chosen = chaos.targets(experiment, module, view, sample)
        return Trial(
            experiment_id, experiment, requested_by, time.time(), chosen, before=chaos.steadiness(view)
        )

    def _perform(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("an experiment went wrong; its lease is undone at the next start", exc_info=error)


def _unstored(trial: Trial, error: NotPossible) -> NotPossible:
    return NotPossible(
        f"nothing was touched: the lease of the experiment is {error}",
        module_id=trial.experiment.module_id,
        reason=error.reason,
        hint=error.hint,
    )
