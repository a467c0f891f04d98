"""From what is known of modules to healthy, degraded or unhealthy, each with its reasons; and to readiness.

Pure: the facts are gathered elsewhere.
"""

from collections import Counter
from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct

from nexusd.domain.fleet import Module, ModuleState

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
    """A module stopped by hand is degraded; one that still has a ready replica is never worse."""
    state = module.state
    if state is ModuleState.STARTED:
        return Health.HEALTHY, ()
    reason = f"{state}: {module.reason}" if module.reason else str(state)
    bad = state in (ModuleState.FAILED, ModuleState.BACKOFF, ModuleState.INVALID)
    if bad and module.ready == 0:
        return Health.UNHEALTHY, (reason,)
    return Health.DEGRADED, (reason,)


def statistics(modules: Iterable[Module]) -> Statistics:
    return counted(health_of(module)[0] for module in modules if module.definition is not None)


def counted(healths: Iterable[Health]) -> Statistics:
    found = Counter(healths)
    return Statistics(found.total(), found[Health.HEALTHY], found[Health.DEGRADED], found[Health.UNHEALTHY])


def readiness(modules: Iterable[Module]) -> Readiness:
    """Ready when every critical module is healthy and at most MOST_UNHEALTHY of all are unhealthy."""
    loaded = [module for module in modules if module.definition is not None]
    figures = statistics(loaded)
    reasons = [
        f"critical module {one.id} is {health_of(one)[0]}" for one in critical(loaded) if not is_healthy(one)
    ]
    if figures.total and figures.unhealthy / figures.total > MOST_UNHEALTHY:
        reasons.append(f"{figures.unhealthy} of {figures.total} modules are unhealthy")
    ratio = figures.healthy / figures.total if figures.total else 1.0
    return Readiness(not reasons, tuple(reasons), figures, round(ratio, 2))


def critical(modules: Iterable[Module]) -> list[Module]:
    return [
        module for module in modules if module.definition is not None and module.definition.manifest.critical
    ]


def is_healthy(module: Module) -> bool:
    return health_of(module)[0] is Health.HEALTHY
