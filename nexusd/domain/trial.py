"""One experiment under way: how it goes on with what is seen of its module, until it is rolled back and over.

Pure: time is seconds since it was prepared. Who is hit stands in `chaos`, what the report says in `chaos_report`.
"""

from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from nexusd.domain.chaos import Experiment, Kind, Steadiness, Target, View, steadiness
from nexusd.domain.health import Health
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Backoff, Failed, Replica, Started, Stopped, Stopping

RECOVERY_S = 30.0  # from the rollback until the module must be in its steady state again
CALM_S = 1.0  # how long it has to be steady in the end: what crashes again at once has not recovered
LOOK_AGAIN_S = 0.05  # how often it is looked whether what was resumed goes on


class Phase(StrEnum):
    PREPARED = "prepared"  # its lease is being written
    INJECTED = "injected"
    ROLLED_BACK = "rolled back"  # and watched until the module is steady again
    OVER = "over"


class EarlyEnd(Struct, frozen=True):
    """Why it did not run its course. kind: aborted, interrupted."""

    kind: str
    reason: str


class Trial(Struct, frozen=True):
    """An experiment under way. Times are seconds since `epoch`, on the monotonic clock.

    It is what the lease holds: a field that is added later needs a default, so that an older lease can be read.
    """

    id: str
    experiment: Experiment
    requested_by: str
    epoch: float  # when it was prepared
    targets: tuple[Target, ...]
    before: Steadiness
    phase: Phase = Phase.PREPARED
    injected_at: float | None = None
    recovered_at: float | None = None
    gave_up: str | None = None
    rolled_back_at: float | None = None
    rollback: str | None = None  # what was done
    ended_at: float | None = None
    after: Steadiness | None = None
    early: EarlyEnd | None = None

    @property
    def is_over(self) -> bool:
        return self.phase is Phase.OVER

    @property
    def is_thawing(self) -> bool:
        return self.phase is Phase.ROLLED_BACK and self.experiment.kind is Kind.FREEZE


def injected(trial: Trial, now: float) -> Trial:
    return replace(trial, phase=Phase.INJECTED, injected_at=now)


def ended_early(trial: Trial, kind: str, reason: str, now: float) -> Trial:
    """Rolled back from here on; one that has touched nothing yet is simply over. The first reason stays."""
    if trial.phase not in (Phase.PREPARED, Phase.INJECTED):
        return trial
    early = EarlyEnd(kind, reason)
    if trial.phase is Phase.PREPARED:
        return replace(trial, phase=Phase.OVER, early=early, ended_at=now, after=trial.before)
    return _rolled_back(replace(trial, early=early), now)


def changed_before(trial: Trial, view: View) -> str | None:
    """What happened to the module while the lease was written."""
    steady = steadiness(view)
    runs = {target.run for target in trial.targets}
    if steady.is_steady and view.module and runs <= {replica.run for replica in view.module.current}:
        return None
    return "; ".join(steady.reasons) or "its replicas were started anew before anything was done"


def look(trial: Trial, view: View, now: float) -> Trial:
    """The experiment after this look at the module. On entering ROLLED_BACK the rollback is due."""
    if trial.phase not in (Phase.INJECTED, Phase.ROLLED_BACK):
        return trial
    seen = tuple(_seen(target, trial, view, now) for target in trial.targets)
    trial = replace(trial, targets=seen, gave_up=trial.gave_up or _gave_up(view.module))
    if not steadiness(view).is_steady:
        trial = replace(trial, recovered_at=None)  # it had only seemed so
    elif trial.recovered_at is None and all(target.recovered_at is not None for target in seen):
        trial = replace(trial, recovered_at=now)
    return _while_injected(trial, view, now) if trial.phase is Phase.INJECTED else _after(trial, view, now)


def next_look(trial: Trial, view: View, now: float) -> float | None:
    """When time alone changes something."""
    if trial.phase is Phase.INJECTED and trial.injected_at is not None:
        return trial.injected_at + trial.experiment.duration_s
    if trial.phase is Phase.ROLLED_BACK and trial.rolled_back_at is not None:
        if _may_be_held(trial, view, now):
            return now + LOOK_AGAIN_S
        calm_at = now + CALM_S - view.calm_s
        return (
            min(calm_at, trial.rolled_back_at + RECOVERY_S)
            if calm_at > now
            else trial.rolled_back_at + RECOVERY_S
        )
    return None


def _while_injected(trial: Trial, view: View, now: float) -> Trial:
    assert trial.injected_at is not None
    if (reason := _interference(trial, view.module)) is not None:
        return ended_early(trial, "aborted", reason, now)
    time_is_up = now >= trial.injected_at + trial.experiment.duration_s
    # Of several that give up all are waited for: the rollback starts what has ended by then.
    all_hit = all(target.detected_at is not None for target in trial.targets)
    nothing_follows = trial.recovered_at is not None or (trial.gave_up is not None and all_hit)
    return _rolled_back(trial, now) if time_is_up or nothing_follows else trial


def _rolled_back(trial: Trial, now: float) -> Trial:
    return replace(trial, phase=Phase.ROLLED_BACK, rolled_back_at=now)


def _after(trial: Trial, view: View, now: float) -> Trial:
    """Never over while anything is still held; then as soon as it is steady, or cannot be, or takes too long."""
    assert trial.rolled_back_at is not None
    if _may_be_held(trial, view, now):
        return trial
    steady = steadiness(view)
    hopeless = view.in_a_hurry or view.module is None or not view.module.wanted
    if (steady.is_steady and view.calm_s >= CALM_S) or hopeless or now >= trial.rolled_back_at + RECOVERY_S:
        return replace(trial, phase=Phase.OVER, ended_at=now, after=steady)
    return trial


def _may_be_held(trial: Trial, view: View, now: float) -> bool:
    """A keeper that is behind may not have come to the SIGSTOP yet: what goes on is looked at twice."""
    assert trial.rolled_back_at is not None
    too_early = trial.is_thawing and now < trial.rolled_back_at + LOOK_AGAIN_S
    return bool(view.stopped) or too_early


def _seen(target: Target, trial: Trial, view: View, now: float) -> Target:
    replica = replica_at(view.module, target.index)
    if replica is None:
        return target
    if target.detected_at is None and (noticed := _noticed(target, replica, view)) is not None:
        target = replace(target, detected_at=now, noticed=noticed)
    if not _is_back(target, replica, trial, view):
        return target
    # What the rollback had to start has not recovered.
    recovered_at = now if target.recovered_at is None and trial.gave_up is None else target.recovered_at
    return replace(target, recovered_at=recovered_at, pid_after=replica.pid)


def replica_at(module: Module | None, index: int) -> Replica | None:
    current = module.current if module else ()
    return next((replica for replica in current if replica.index == index), None)


def _noticed(target: Target, replica: Replica, view: View) -> str | None:
    """What nexusd itself noticed: the replica left Started, or the health turned while all were started."""
    state = replica.state
    if replica.run == target.run and isinstance(state, Started):
        assert view.module is not None
        turned = view.module.state is ModuleState.STARTED and view.health is not Health.HEALTHY
        return f"{view.health}: {'; '.join(view.reasons)}" if turned else None
    return getattr(state, "failure", None) or replica.reason or f"it is {replica.state_name}"


def _is_back(target: Target, replica: Replica, trial: Trial, view: View) -> bool:
    """Started as another run, or, resumed, as the same."""
    resumed = trial.is_thawing and target.run not in view.stopped
    return isinstance(replica.state, Started) and (replica.run != target.run or resumed)


def _gave_up(module: Module | None) -> str | None:
    """Why nothing will start it again but a command."""
    for replica in module.current if module is not None and module.wanted else ():
        if isinstance(replica.state, Failed | Stopped):
            return f"{replica.name}: {replica.reason or replica.state_name}"
    return None


def _interference(trial: Trial, module: Module | None) -> str | None:
    """What somebody else does to the module, so that nothing can be learnt any more."""
    if module is None:
        return "the module was removed meanwhile"
    if not module.wanted:
        return "the module was stopped meanwhile"
    if module.upgrade is not None:
        return "the module is being reloaded"
    runs = {target.run for target in trial.targets}
    for replica in module.replicas:
        asked = isinstance(replica.state, Stopping) and replica.state.failure is None
        if replica.run in runs and asked:
            return f"{replica.name} was stopped or restarted meanwhile"
    return None


def needs_start(module: Module | None) -> bool:
    """Whether the rollback has to start it again: it has given up, or waits after failures."""
    resting = (Failed, Stopped, Backoff)
    current = module.current if module is not None and module.wanted else ()
    return any(isinstance(replica.state, resting) for replica in current)
