"""The life of one replica: `step` is the only function that moves it from state to state, by TRANSITIONS.

    Stopped ─Start→ Waiting ─Admit→ Starting ─Ready→ Started ─Stop→ Stopping ─Exited→ Stopped
                       ↑               │ Exited, Expired ↓ Exited        │ Expired (after SIGKILL)
                       └─Expired─ Backoff ←──────────────┴→ Failed       └→ Stuck ─Exited→ …

Every start goes through Waiting, where the fleet admits it when what it requires is there. Whoever acts on the
returned actions, reads the clock or knows of other modules is elsewhere.
"""

import signal
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from nexusd.domain import checks, restart
from nexusd.domain.checks import Plan, Purpose, Tally
from nexusd.domain.events import (
    Action,
    Admit,
    Checked,
    Event,
    Exited,
    Expired,
    Forget,
    Hold,
    Kill,
    NeverSpawned,
    Pinged,
    Ready,
    Renew,
    Running,
    Said,
    Spawn,
    Spawned,
    Start,
    Stop,
    Terminate,
)
from nexusd.domain.policy import Policy
from nexusd.domain.replica import (
    Alive,
    Backoff,
    Exit,
    Failed,
    History,
    Replica,
    Started,
    Starting,
    State,
    Stopped,
    Stopping,
    Stuck,
    Waiting,
)

# How the reasons begin for which a replica is stopped without having been asked to.
TOO_SLOW = "not ready within"
SILENT = "no WATCHDOG=1 within"
KILL_TIMEOUT_S = 10.0  # from SIGKILL until a process counts as one that cannot be killed


class Moment(Struct, frozen=True):
    """What the world gives a decision: the time (monotonic seconds) and a number between 0 and 1."""

    now: float
    chance: float = 0.5


Step = tuple[Replica, tuple[Action, ...]]


def step(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    """The replica after the event, and what is to be done. News of another run changes nothing."""
    run = getattr(event, "run", None)
    if run is not None and not isinstance(event, Admit) and run != replica.run:
        return replica, ()
    transition = TRANSITIONS.get((type(replica.state), type(event)))
    return transition(replica, event, policy, moment) if transition else (replica, ())


def _enter(replica: Replica, state: State, moment: Moment, **changes: Any) -> Replica:
    return replace(replica, state=state, since=moment.now, **changes)


# Wanted


def _start(replica: Replica, _event: Event, _policy: Policy, moment: Moment) -> Step:
    history = _cleared(replica.history)
    return _enter(replica, Waiting(), moment, wanted=True, history=history, reason=None), ()


def _want(replica: Replica, _event: Event, _policy: Policy, _moment: Moment) -> Step:
    state = replica.state
    if isinstance(state, Stopping | Stuck):
        state = replace(state, failure=None)  # what follows is the start that was asked for, no further try
    return replace(replica, wanted=True, state=state, history=_cleared(replica.history)), ()


def _cleared(history: History) -> History:
    return replace(history, in_a_row=0, times=())


def _call_off(replica: Replica, _event: Event, _policy: Policy, moment: Moment) -> Step:
    return _enter(replica, Stopped(), moment, wanted=False, reason=None), ()


def _unwant(replica: Replica, _event: Event, _policy: Policy, _moment: Moment) -> Step:
    return replace(replica, wanted=False), ()


def _stop(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    history = _cleared(replica.history) if isinstance(event, Renew) else replica.history
    asked = replace(replica, wanted=isinstance(event, Renew), reason=None, history=history)
    return _terminate(asked, policy.stop_signal, None, policy, moment)


def _terminate(replica: Replica, number: int, failure: str | None, policy: Policy, moment: Moment) -> Step:
    assert isinstance(replica.state, Alive)
    run = replica.state.run
    state = Stopping(run, replica.state.pid, moment.now + policy.stop_timeout_s, failure=failure)
    return _enter(replica, state, moment, reason=failure), (Terminate(run, number),)


# Starting


def _hold(replica: Replica, event: Event, _policy: Policy, _moment: Moment) -> Step:
    assert isinstance(event, Hold)
    return replace(replica, state=Waiting(event.obstacle, event.lasting)), ()


def _admit(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    assert isinstance(event, Admit)
    state = Starting(event.run, moment.now + policy.start_timeout_s)
    return _enter(replica, state, moment, status_text=None, checks={}), (Spawn(event.run),)


def _spawned(replica: Replica, event: Event, _policy: Policy, _moment: Moment) -> Step:
    assert isinstance(event, Spawned) and isinstance(replica.state, Alive)
    return replace(replica, state=replace(replica.state, pid=event.pid)), ()


def _spawned_starting(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    assert isinstance(event, Spawned)
    known, _ = _spawned(replica, event, policy, moment)
    return _running(known, event, policy, moment) if event.running else (known, ())


def _running(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    return _ready(replica, event, policy, moment) if policy.ready_when_running else (replica, ())


def _ready(replica: Replica, _event: Event, policy: Policy, moment: Moment) -> Step:
    """It said so itself; where a check has to pass as well, that is awaited."""
    assert isinstance(replica.state, Starting)
    announced = replace(replica, state=replace(replica.state, announced=True))
    return _begin_if_ready(announced, policy, moment), ()


def _checked_at_start(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    assert isinstance(event, Checked)
    if event.purpose is not policy.checks.gate:
        return replica, ()
    return _begin_if_ready(_tallied(replica, event, policy, moment), policy, moment), ()


def _begin_if_ready(replica: Replica, policy: Policy, moment: Moment) -> Replica:
    assert isinstance(replica.state, Starting)
    plan = policy.checks
    if not (has_passed_gate(replica, plan) and (replica.state.announced or plan.ready_by_gate)):
        return replica
    probation = None if policy.probation_s is None else moment.now + policy.probation_s
    state = Started(replica.state.run, replica.state.pid, _watchdog_deadline(policy, moment), probation)
    return _enter(replica, state, moment, reason=checks.objection(plan, replica.checks))


def has_passed_gate(replica: Replica, plan: Plan) -> bool:
    return plan.gate is None or replica.checks.get(plan.gate, Tally()).has_passed


def _watchdog_deadline(policy: Policy, moment: Moment) -> float | None:
    return None if policy.watchdog_s is None else moment.now + policy.watchdog_s


def _pinged(replica: Replica, _event: Event, policy: Policy, moment: Moment) -> Step:
    assert isinstance(replica.state, Started)
    return replace(replica, state=replace(replica.state, deadline=_watchdog_deadline(policy, moment))), ()


# Checks


def purposes(replica: Replica, plan: Plan) -> tuple[Purpose, ...]:
    """What is to be asked of the replica now. What does not run, or is being stopped, is not asked."""
    match replica.state:
        case Started():
            return plan.lasting
        case Starting(pid=int()) if plan.gate is not None and not has_passed_gate(replica, plan):
            return (plan.gate,)
        case _:
            return ()


def _checked(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    assert isinstance(event, Checked)
    if event.purpose not in policy.checks.lasting:
        return replica, ()
    tallied = _tallied(replica, event, policy, moment)
    if tallied is replica:
        return replica, ()
    objection = checks.objection(policy.checks, tallied.checks)
    liveness = tallied.checks.get(Purpose.LIVENESS)
    if liveness is not None and liveness.verdict == "unhealthy":
        return _terminate(_calmed(tallied, policy, moment), policy.stop_signal, objection, policy, moment)
    return replace(tallied, reason=objection), ()


def _tallied(replica: Replica, event: Checked, policy: Policy, moment: Moment) -> Replica:
    before = replica.checks.get(event.purpose, Tally())
    after = checks.counted(before, event.said, policy.checks, moment.now - replica.since)
    return replica if after is before else replace(replica, checks={**replica.checks, event.purpose: after})


def _said(replica: Replica, event: Event, _policy: Policy, _moment: Moment) -> Step:
    assert isinstance(event, Said)
    return replace(replica, status_text=event.text), ()


def _never_spawned(replica: Replica, _event: Event, _policy: Policy, moment: Moment) -> Step:
    return _enter(replica, Waiting() if replica.wanted else Stopped(), moment), ()


# Deadlines


def _too_slow(replica: Replica, _event: Event, policy: Policy, moment: Moment) -> Step:
    failure = f"{TOO_SLOW} {policy.start_timeout_s:g} s"
    gate = policy.checks.gate
    if gate is not None and (tally := replica.checks.get(gate)) is not None and not tally.has_passed:
        failure += f"; {checks.complaint(policy.checks, gate, tally)}"
    return _terminate(replica, policy.stop_signal, failure, policy, moment)


def _time_passed(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    state = replica.state
    assert isinstance(state, Started)
    if state.probation is not None and state.probation <= moment.now:
        return replace(replica, state=replace(state, probation=None)), ()
    return _silent(replica, event, policy, moment)


def _silent(replica: Replica, _event: Event, policy: Policy, moment: Moment) -> Step:
    # SIGABRT as systemd sends it: a core dump shows where it hung (systemd.service(5), WatchdogSignal=).
    failure = f"{SILENT} {policy.watchdog_s:g} s"
    return _terminate(_calmed(replica, policy, moment), signal.SIGABRT, failure, policy, moment)


def _kill(replica: Replica, _event: Event, _policy: Policy, moment: Moment) -> Step:
    state = replica.state
    assert isinstance(state, Stopping)
    if state.killed:
        reason = f"process {state.pid} does not end on SIGKILL"
        return _enter(replica, Stuck(state.run, state.pid, state.failure), moment, reason=reason), ()
    later = replace(state, killed=True, deadline=moment.now + KILL_TIMEOUT_S)
    return replace(replica, state=later), (Kill(state.run),)


def _wait_is_over(replica: Replica, _event: Event, _policy: Policy, moment: Moment) -> Step:
    return _enter(replica, Waiting(), moment), ()


# Ends


def _ended_before_ready(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    """A clean exit before READY is a failed start too."""
    assert isinstance(event, Exited)
    how = event.exit.description if event.exit.cause else f"{event.exit.description} before it was ready"
    return _try_again(replica, event, _with_last_words(how, replica), policy, moment)


def _with_last_words(how: str, replica: Replica) -> str:
    """Its last STATUS= most likely says why it ended."""
    return f"{how}; it last said: {replica.status_text}" if replica.status_text else how


def _ended(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    assert isinstance(event, Exited)
    if event.exit.is_clean and policy.restart.policy != "always":
        remembered = _remember(replica, event.exit, moment)
        return _enter(remembered, Stopped(), moment, reason="ended by itself, exit status 0"), (
            Forget(event.run),
        )
    reason = _with_last_words(event.exit.description, replica)
    return _try_again(_calmed(replica, policy, moment), event, reason, policy, moment)


def _calmed(replica: Replica, policy: Policy, moment: Moment) -> Replica:
    """What has run long enough begins with short waits again."""
    ran_s = moment.now - replica.since
    in_a_row = 0 if ran_s >= policy.restart.backoff.reset_after else replica.history.in_a_row
    return replace(replica, history=replace(replica.history, in_a_row=in_a_row))


def _ended_as_asked(replica: Replica, event: Event, policy: Policy, moment: Moment) -> Step:
    assert isinstance(event, Exited) and isinstance(replica.state, Stopping | Stuck)
    if replica.wanted and replica.state.failure is not None:
        return _try_again(replica, event, replica.state.failure, policy, moment)
    remembered = _remember(replica, event.exit, moment)
    state = Waiting() if replica.wanted else Stopped()
    return _enter(remembered, state, moment, reason=None, status_text=None), (Forget(event.run),)


def _try_again(replica: Replica, event: Exited, reason: str, policy: Policy, moment: Moment) -> Step:
    """Back off, or give up when the policy or the intensity says so."""
    forget = (Forget(event.run),)
    replica = _remember(replica, event.exit, moment)
    history = replica.history
    intensity = policy.restart.intensity
    if policy.restart.policy == "never":
        return _enter(replica, Failed(), moment, reason=reason), forget
    if restart.is_spent(history.times, intensity, moment.now):
        spent = f"{reason}; {intensity.restarts} restarts within {intensity.within:g} s did not help"
        return _enter(replica, Failed(), moment, reason=spent), forget
    wait_s = restart.wait_s(policy.restart.backoff, history.in_a_row, moment.chance)
    times = (*restart.recent(history.times, intensity, moment.now), moment.now)
    history = replace(history, restarts=history.restarts + 1, in_a_row=history.in_a_row + 1, times=times)
    state = Backoff(moment.now + wait_s) if wait_s > 0 else Waiting()
    return _enter(replica, state, moment, reason=reason, history=history), forget


def _remember(replica: Replica, exit: Exit, moment: Moment) -> Replica:
    return replace(replica, history=replace(replica.history, last_exit=exit, last_exit_at=moment.now))


TRANSITIONS: dict[tuple[type[State], type[Event]], Callable[[Replica, Event, Policy, Moment], Step]] = {
    (Stopped, Start): _start,
    (Stopped, Stop): _unwant,
    (Stopped, Renew): _start,
    (Waiting, Start): _want,
    (Waiting, Stop): _call_off,
    (Waiting, Renew): _want,
    (Waiting, Hold): _hold,
    (Waiting, Admit): _admit,
    (Starting, Start): _want,
    (Starting, Stop): _stop,
    (Starting, Renew): _stop,
    (Starting, Spawned): _spawned_starting,
    (Starting, Running): _running,
    (Starting, Ready): _ready,
    (Starting, Said): _said,
    (Starting, Checked): _checked_at_start,
    (Starting, NeverSpawned): _never_spawned,
    (Starting, Exited): _ended_before_ready,
    (Starting, Expired): _too_slow,
    (Started, Start): _want,
    (Started, Stop): _stop,
    (Started, Renew): _stop,
    (Started, Pinged): _pinged,
    (Started, Said): _said,
    (Started, Checked): _checked,
    (Started, Exited): _ended,
    (Started, Expired): _time_passed,
    (Stopping, Start): _want,
    (Stopping, Stop): _unwant,
    (Stopping, Renew): _want,
    (Stopping, Spawned): _spawned,
    (Stopping, Said): _said,
    (Stopping, NeverSpawned): _never_spawned,
    (Stopping, Exited): _ended_as_asked,
    (Stopping, Expired): _kill,
    (Stuck, Start): _want,
    (Stuck, Stop): _unwant,
    (Stuck, Renew): _want,
    (Stuck, NeverSpawned): _never_spawned,
    (Stuck, Exited): _ended_as_asked,
    (Backoff, Start): _start,
    (Backoff, Stop): _call_off,
    (Backoff, Renew): _start,
    (Backoff, Expired): _wait_is_over,
    (Failed, Start): _start,
    (Failed, Stop): _call_off,
    (Failed, Renew): _start,
}
