"""What a change of a module adds to its figures: restarts with their reasons, starts with their durations, pings.

Pure: who keeps the figures and who shows them is others'.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Literal, NamedTuple

from nexusd.domain.lifecycle import SILENT, TOO_SLOW
from nexusd.domain.manifest_sections import Manifest
from nexusd.domain.module import Module
from nexusd.domain.replica import Exit, Replica, Started, Starting, Stopping, Stuck, Waiting

# One word each, for ever the same: they become labels, and a label's values must be few.
Reason = Literal["exit", "signal", "not_started", "start_timeout", "watchdog", "check", "unknown", "command"]


class Restarted(NamedTuple):
    replica: int
    reason: Reason


class Ready(NamedTuple):
    seconds: float  # from the decision to start it until it was ready


class Pinged(NamedTuple):
    """WATCHDOG=1 came in time."""


Count = Restarted | Ready | Pinged


class Spread(NamedTuple):
    """How often a value was at most each bound: what Prometheus calls a histogram. The last number has no bound."""

    bounds: tuple[float, ...]
    numbers: tuple[int, ...]
    total: float = 0.0

    def with_value(self, value: float) -> "Spread":
        place = bisect_left(self.bounds, value)
        numbers = (*self.numbers[:place], self.numbers[place] + 1, *self.numbers[place + 1 :])
        return Spread(self.bounds, numbers, self.total + value)


def empty(*bounds: float) -> Spread:
    return Spread(bounds, (0,) * (len(bounds) + 1))


def possible(manifest: Manifest) -> tuple[Reason, ...]:
    """Why a replica may be restarted, as far as its manifest decides: its counters are there before they count.

    A restart for another reason, which the manifest of a former generation allowed, is counted all the same.
    """
    if manifest.restart.policy == "never":
        return ("command",)
    reasons: list[Reason] = ["command", "exit", "signal", "not_started", "unknown"]
    if manifest.run.ready != "started" or manifest.health.startup is not None:
        reasons.append("start_timeout")
    if manifest.health.watchdog is not None:
        reasons.append("watchdog")
    if manifest.health.liveness is not None:
        reasons.append("check")
    return tuple(reasons)


def counted(before: Module, after: Module) -> Iterator[Count]:
    """What one turn of the fleet adds to the figures of a module."""
    former = {replica.key: replica for replica in before.replicas}
    for replica in after.replicas:
        was = former.get(replica.key)
        if was is not None and was is not replica:
            yield from _counted(was, replica)


def _counted(was: Replica, now: Replica) -> Iterator[Count]:
    reason = _restart(was, now)
    if reason is not None:
        yield Restarted(now.index, reason)
    if isinstance(now.state, Started) and was.run == now.run:
        if isinstance(was.state, Starting):
            yield Ready(now.since - was.since)
        elif isinstance(was.state, Started) and (now.state.deadline or 0.0) > (was.state.deadline or 0.0):
            yield Pinged()


def _restart(was: Replica, now: Replica) -> Reason | None:
    """Why it is to run once more, if it is; what was lost before it had begun is no restart."""
    if now.history.restarts > was.history.restarts:
        failure = was.state.failure if isinstance(was.state, Stopping | Stuck) else None
        return _of_failure(failure) if failure else _of_exit(now.history.last_exit)
    was_stopped = (
        isinstance(was.state, Stopping | Stuck) and now.history.last_exit_at != was.history.last_exit_at
    )
    return "command" if was_stopped and isinstance(now.state, Waiting | Starting) else None


def _of_failure(failure: str) -> Reason:
    if failure.startswith(TOO_SLOW):
        return "start_timeout"
    return "watchdog" if failure.startswith(SILENT) else "check"


def _of_exit(exit: Exit | None) -> Reason:
    if exit is None:
        return "unknown"
    if exit.cause is not None:
        return "not_started"
    if exit.signal is not None:
        return "signal"
    return "unknown" if exit.code is None else "exit"
