"""From what is known of modules to healthy, degraded or unhealthy, each with its reasons; and to readiness.

Pure: the facts are gathered elsewhere.
"""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from nexusd.domain.checks import NO_CHECKS, Plan, Tally, complaint, described, plan_of
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Replica, Started, Stopping

MOST_UNHEALTHY = 0.2  # share of modules that may be unhealthy while the daemon still counts as ready


class Health(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"


class Statistics(Struct, frozen=True):
    """Of the loaded modules; an invalid one is discovered and not loaded."""

    total: int
    healthy: int
    degraded: int
    unhealthy: int


class Readiness(Struct, frozen=True):
    ready: bool
    reasons: tuple[str, ...]
    statistics: Statistics
    ratio: float


def health_of(module: Module) -> tuple[Health, tuple[str, ...]]:
    """A module stopped by hand is degraded; one that still has a replica which is fit is never worse."""
    state = module.state
    if state is ModuleState.LOADED:
        return _when_never_asked_for(module)
    plan = plan_of(module.definition.manifest) if module.definition else NO_CHECKS
    if state is ModuleState.STARTED:
        return _when_started(module, plan) if plan.lasting else (Health.HEALTHY, ())
    current, why = module.current, module.reason
    is_bad = state in _BAD or any(_is_unhealthy(replica, plan) for replica in current)
    is_fit = is_bad and any(_is_fit(replica, plan) for replica in current)
    reasons = (f"{state.value}: {why}" if why else state.value,)
    return Health.UNHEALTHY if is_bad and not is_fit else Health.DEGRADED, reasons


def _when_started(module: Module, plan: Plan) -> tuple[Health, tuple[str, ...]]:
    told = [(replica, *health_of_replica(replica, plan)) for replica in module.current]
    reasons = tuple(_placed(replica, reason, module) for replica, _, reason in told if reason)
    if not reasons:
        return Health.HEALTHY, ()
    is_fit = any(word is not Health.UNHEALTHY for _, word, _ in told)
    return Health.DEGRADED if is_fit else Health.UNHEALTHY, reasons


_BAD = (ModuleState.FAILED, ModuleState.BACKOFF, ModuleState.INVALID)


def _when_never_asked_for(module: Module) -> tuple[Health, tuple[str, ...]]:
    """Nothing is wrong with what nobody wants to run; but a critical module is wanted by its manifest."""
    if module.definition is not None and module.definition.manifest.critical:
        return Health.DEGRADED, ("loaded: it is critical, and nobody has started it",)
    return Health.HEALTHY, ("loaded: nobody has asked it to run",)


def health_of_replica(replica: Replica, plan: Plan) -> tuple[Health, str | None]:
    """As its checks see it; what is not started has a state to tell, and is unhealthy when it had to be stopped."""
    if isinstance(replica.state, Stopping) and replica.state.failure is not None:
        return Health.UNHEALTHY, replica.state.failure
    if not isinstance(replica.state, Started):
        return Health.DEGRADED, replica.reason
    worst: tuple[Health, str | None] = (Health.HEALTHY, None)
    for purpose in plan.lasting:
        tally = replica.checks.get(purpose, Tally())
        word = Health(tally.verdict or Health.DEGRADED)
        if _FROM_GOOD_TO_BAD.index(word) > _FROM_GOOD_TO_BAD.index(worst[0]):
            unknown = f"{described(plan.checks[purpose])}: no verdict yet"
            worst = word, complaint(plan, purpose, tally) or unknown
    return worst


_FROM_GOOD_TO_BAD = (Health.HEALTHY, Health.DEGRADED, Health.UNHEALTHY)


def _is_unhealthy(replica: Replica, plan: Plan) -> bool:
    return health_of_replica(replica, plan)[0] is Health.UNHEALTHY


def _is_fit(replica: Replica, plan: Plan) -> bool:
    return isinstance(replica.state, Started) and not _is_unhealthy(replica, plan)


def _placed(replica: Replica, reason: str, module: Module) -> str:
    return f"#{replica.index}: {reason}" if module.count > 1 else reason


def statistics(modules: Iterable[Module]) -> Statistics:
    return counted(health_of(module)[0] for module in modules if module.definition is not None)


def counted(healths: Iterable[Health]) -> Statistics:
    found = Counter(healths)
    return Statistics(found.total(), found[Health.HEALTHY], found[Health.DEGRADED], found[Health.UNHEALTHY])


def readiness(modules: Iterable[Module], most_unhealthy: float = MOST_UNHEALTHY) -> Readiness:
    """Ready when every critical module is healthy and at most that share of all are unhealthy."""
    loaded = [module for module in modules if module.definition is not None]
    figures = statistics(loaded)
    reasons = [
        f"critical module {one.id} is {health_of(one)[0]}" for one in critical(loaded) if not is_healthy(one)
    ]
    if figures.total and figures.unhealthy / figures.total > most_unhealthy:
        reasons.append(f"{figures.unhealthy} of {figures.total} modules are unhealthy")
    ratio = figures.healthy / figures.total if figures.total else 1.0
    return Readiness(not reasons, tuple(reasons), figures, round(ratio, 2))


def critical(modules: Iterable[Module]) -> list[Module]:
    return [
        module for module in modules if module.definition is not None and module.definition.manifest.critical
    ]


def is_healthy(module: Module) -> bool:
    return health_of(module)[0] is Health.HEALTHY
