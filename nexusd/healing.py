"""What healing does: starts anew what is failed or unhealthy and is to run, and says whether it helped.

It never touches what an operator stopped. When a module counts as unhealthy is `domain.health`'s.
"""

import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from msgspec.structs import asdict

from nexusd.domain.checks import NO_CHECKS, plan_of
from nexusd.domain.events import Renewal, Want
from nexusd.domain.fleet import Fleet
from nexusd.domain.graph import closure
from nexusd.domain.health import Health, health_of, health_of_replica, statistics
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.policy import PROBATION_S
from nexusd.domain.replica import Backoff, Failed, Replica, Started, Stuck, Waiting
from nexusd.reach import Patience, Reach
from nexusd.supervisor import Supervisor

LONGEST_S = 60.0  # what is not well by then was not helped
WELL_S = PROBATION_S  # what ends again sooner was not helped either
_BAD = (ModuleState.FAILED, ModuleState.BACKOFF)


class Healing:
    def __init__(self, supervisor: Supervisor, reach: Reach, tell: Callable[..., None]) -> None:
        self._supervisor = supervisor
        self._reach = reach
        self._tell = tell

    async def heal(self, module_id: str | None, patience: Patience) -> dict[str, Any]:
        """All at once: who failed because of another waits for it, as at any start. Raises NoSuchModule."""
        fleet = self._supervisor.fleet
        asked = self._asked(fleet, module_id)
        broken = [module for module in asked if can_be_healed(module)]
        replicas = [replica.name for module in broken for replica in _broken_replicas(module)]
        before = statistics(fleet.modules.values())
        self._renew(broken)
        ids = [module.id for module in broken]
        if broken and patience.wait:
            await self._until_settled(ids, patience.timeout_s or LONGEST_S)
            await self._while_well(ids)
        told = self._outcome(ids, patience.wait)
        skipped = {module.id: reason for module in asked if (reason := why_not(module)) is not None}
        figures = {"before": asdict(before), "after": asdict(statistics(self._fleet.modules.values()))}
        named = (
            {"module_id": module_id, "state": str(self._fleet.modules[module_id].state)} if module_id else {}
        )
        return {**named, **told, "restarted": ids, "replicas": replicas, "skipped": skipped, **figures}

    def _asked(self, fleet: Fleet, module_id: str | None) -> list[Module]:
        """All; or one, and what it requires: it can't be well without."""
        if module_id is None:
            return [fleet.modules[one] for one in sorted(fleet.modules)]
        self._reach.module(module_id)
        ids = {module_id, *closure(fleet.graph.requires, [module_id])}
        return [fleet.modules[one] for one in sorted(ids) if one in fleet.modules]

    def _renew(self, broken: Iterable[Module]) -> None:
        failed = tuple(module.id for module in broken if any(map(_has_failed, module.current)))
        sick = [replica for module in broken for replica in module.current if _is_sick(module, replica)]
        if failed:  # together: so none is refused because of another that is healed as well
            self._supervisor.handle(Want(failed, True))
        for replica in sick:
            self._supervisor.handle(Renewal(replica.module_id, index=replica.index))

    async def _until_settled(self, ids: list[str], timeout_s: float) -> None:
        def is_settled(fleet: Fleet) -> bool:
            return all(_has_settled(fleet, one) for one in ids)

        watched = {*ids, *closure(self._fleet.graph.requires, ids)}
        try:
            await self._supervisor.until(watched, is_settled, timeout_s)
        except TimeoutError:
            return  # the answer says of each what it is by now

    async def _while_well(self, ids: list[str]) -> None:
        def fell_again(fleet: Fleet) -> bool:
            return not any(_is_well(fleet.modules.get(one)) for one in ids)

        with contextlib.suppress(TimeoutError):
            await self._supervisor.until(ids, fell_again, WELL_S)

    def _outcome(self, ids: list[str], waited: bool) -> dict[str, Any]:
        modules = [self._fleet.modules[one] for one in ids if one in self._fleet.modules]
        healed = [one.id for one in modules if _is_well(one)]
        left = {one.id: _state_in_words(one) for one in modules if one.id not in healed}
        for module in modules:
            outcome = "healed" if module.id in healed else left[module.id] if waited else "under way"
            self._tell("module.healing", module.id, reason=outcome)
        started = [one.id for one in modules if one.state is ModuleState.STARTED]
        helped = len(healed) == len(ids) if waited and ids else None  # where nothing was done, nothing helped
        told = {"healed": healed, "started": started, "not_healed": left, "helped": helped}
        return {**told, "message": _in_words(len(ids), len(healed), waited)}

    @property
    def _fleet(self) -> Fleet:
        return self._supervisor.fleet


def _is_well(module: Module | None) -> bool:
    """Healthy, and not started by itself since: the healing began its count of restarts anew."""
    if module is None or health_of(module)[0] is not Health.HEALTHY:
        return False
    return not any(replica.history.in_a_row for replica in module.current)


def can_be_healed(module: Module) -> bool:
    """It is to run, and something of it has failed, backs off or is unhealthy."""
    return why_not(module) is None and _is_broken(module)


def why_not(module: Module) -> str | None:
    """Why healing leaves a module alone that is not well; None where that is not so."""
    if module.definition is None:
        return f"invalid: {module.reason}"
    if not module.wanted:
        return "stopped by an operator" if module.asked else "was never started"
    if _is_broken(module) and (module.gone or module.upgrade is not None):
        return "its folder is gone" if module.gone else "it is being reloaded"
    if module.state is ModuleState.STOPPED:
        return module.reason or "ended by itself"
    stuck = next((one for one in module.replicas if isinstance(one.state, Stuck)), None)
    return stuck.reason if stuck else None


def _is_broken(module: Module) -> bool:
    return bool(_broken_replicas(module))


def _broken_replicas(module: Module) -> list[Replica]:
    return [replica for replica in module.current if _has_failed(replica) or _is_sick(module, replica)]


def _is_sick(module: Module, replica: Replica) -> bool:
    """It runs, and its checks say that it is not well. One that is being stopped for it is seen to already."""
    plan = plan_of(module.definition.manifest) if module.definition else NO_CHECKS
    is_started = isinstance(replica.state, Started)
    return is_started and health_of_replica(replica, plan)[0] is Health.UNHEALTHY


def _has_failed(replica: Replica) -> bool:
    """Given up on, waiting for a further try, or for what waiting alone does not bring."""
    match replica.state:
        case Failed() | Backoff() | Waiting(lasting=True):
            return True
    return False


def _has_settled(fleet: Fleet, module_id: str) -> bool:
    """Started and judged by its checks, or failed again, or held up by one that has."""
    module = fleet.modules.get(module_id)
    if module is None or not module.wanted or module.state is ModuleState.STOPPED:
        return True
    if module.state is ModuleState.STARTED:
        return not any(_is_unjudged(module, replica) for replica in module.current)
    if any(_has_failed(replica) or replica.history.in_a_row > 0 for replica in module.current):
        return True
    required = (fleet.modules.get(one) for one in closure(fleet.graph.requires, [module_id]))
    return any(one is None or not one.wanted or one.state in _BAD for one in required)


def _is_unjudged(module: Module, replica: Replica) -> bool:
    plan = plan_of(module.definition.manifest) if module.definition else NO_CHECKS
    tallies = (replica.checks.get(purpose) for purpose in plan.lasting)
    return any(tally is None or tally.verdict is None for tally in tallies)


def _state_in_words(module: Module) -> str:
    reasons = health_of(module)[1]
    return "; ".join(reasons) or str(module.state)


def _in_words(asked: int, healed: int, waited: bool) -> str:
    if asked == 0:
        return "nothing that is to run is failed or unhealthy"
    if not waited:
        return f"{asked} being started anew"
    return f"{healed} of {asked} healed"
