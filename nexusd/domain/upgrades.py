"""Two generations of one module side by side: which replicas each of them is to have, and how that ends.

When they are started and stopped is the fleet's.
"""

from collections.abc import Iterable

from msgspec import Struct

from nexusd.domain import checks
from nexusd.domain.checks import Plan, Tally
from nexusd.domain.manifest import Definition
from nexusd.domain.replica import Replica, Started, Stopping, Stuck, Waiting

Key = tuple[int, int]  # index, generation


class Refusal(Struct, frozen=True):
    """Why the last upgrade came to nothing."""

    successor: Replica  # whose failure ended it
    at: float  # monotonic seconds
    rolling: bool = False  # then those that had been replaced went back

    @property
    def reason(self) -> str:
        return reason_of(self.successor) or "it did not get ready"


class Upgrade(Struct, frozen=True):
    """A new generation that is started beside the old one. It takes over when all of it is ready and
    healthy; or, rolling, index by index, each when its replica is.
    """

    definition: Definition
    generation: int
    rolling: bool = False

    def successors(self, replicas: Iterable[Replica], count: int) -> tuple[Replica, ...]:
        return tuple(one for one in replicas if one.generation == self.generation and one.index < count)

    def replaced(self, replicas: Iterable[Replica], count: int) -> int:
        """How many indices, from 0 up, are the new generation's by now."""
        if not self.rolling:
            return 0
        plan = checks.plan_of(self.definition.manifest)
        ready = {one.index for one in self.successors(replicas, count) if _is_proven(one, plan)}
        return next((index for index in range(count) if index not in ready), count)

    def wanted(self, former: int, replicas: Iterable[Replica], count: int) -> set[Key]:
        """Which replicas are to run, of this generation and of the former one."""
        if not self.rolling:
            return {(index, generation) for generation in (former, self.generation) for index in range(count)}
        replicas = tuple(replicas)
        at = self.replaced(replicas, count)
        # One at a time: who has been replaced ends before the next successor is started.
        one_ends = any(
            one.index < at and one.generation != self.generation and _goes_on(one) for one in replicas
        )
        begun = any(one.key == (at, self.generation) for one in replicas)
        new = range(at if one_ends and not begun else min(at + 1, count))
        return {(index, self.generation) for index in new} | {(index, former) for index in range(at, count)}

    def failed(self, replicas: Iterable[Replica], count: int) -> Replica | None:
        """The successor that ends this upgrade."""
        plan = checks.plan_of(self.definition.manifest)
        return next((one for one in self.successors(replicas, count) if _has_failed(one, plan)), None)

    def is_complete(self, replicas: Iterable[Replica], count: int) -> bool:
        plan = checks.plan_of(self.definition.manifest)
        successors = self.successors(replicas, count)
        return len(successors) >= count and all(_is_proven(one, plan) for one in successors)


def is_ready(replica: Replica) -> bool:
    return isinstance(replica.state, Started)


def reason_of(replica: Replica) -> str | None:
    match replica.state:
        case Waiting(obstacle=str(obstacle)):
            return obstacle
        case Stopping(failure=str(failure)):
            return failure
    return replica.reason


def _has_failed(replica: Replica, plan: Plan) -> bool:
    """Whether it did not get ready at its first try, or was and is no more, or is unhealthy, or never can be."""
    match replica.state:
        case Waiting(lasting=True) | Stopping(failure=str()):
            return True
        case Started() if any(tally.verdict == "unhealthy" for tally in _lasting(replica, plan)):
            return True
    return replica.history.last_exit is not None


def _is_proven(replica: Replica, plan: Plan) -> bool:
    """Ready, past its probation, and each of its checks has passed."""
    if getattr(replica.state, "probation", None) is not None:
        return False
    return is_ready(replica) and all(tally.has_passed for tally in _lasting(replica, plan))


def _lasting(replica: Replica, plan: Plan) -> Iterable[Tally]:
    return (replica.checks.get(purpose, Tally()) for purpose in plan.lasting)


def _goes_on(replica: Replica) -> bool:
    """Whether it has a process that will end: one that the kernel holds is not waited for."""
    return replica.run is not None and not isinstance(replica.state, Stuck)
