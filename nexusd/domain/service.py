"""What a service manager is told of the fleet: whether the start is over, for how long to wait on, one line for people.

Pure; who says it, and when, is `system/herald.py`.
"""

from collections.abc import Iterable, Mapping

from nexusd.domain.fleet import Fleet
from nexusd.domain.health import Health, counted, health_of
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Replica, Starting, Stopping, Waiting

MARGIN_S = 15.0  # beyond the deadline of a replica, for what its end sets going
_NAMED = 3  # so many modules are named in the line, the rest is counted


def unsettled(fleet: Fleet) -> list[str]:
    """Wanted modules that have neither been started nor failed once, and are not kept waiting by one that has not run.

    Whoever waits for these waits for an end: each attempt has a deadline.
    """
    open_ones = {one.id for one in fleet.modules.values() if one.wanted and _is_open(one)}
    while kept := {one for one in open_ones if _waits_in_vain(fleet.modules, one, open_ones)}:
        open_ones -= kept
    return sorted(open_ones)


def _is_open(module: Module) -> bool:
    if module.definition is None:
        return False
    return len(module.current) < module.count or any(_is_undecided(one) for one in module.current)


def _is_undecided(replica: Replica) -> bool:
    is_on_its_way = isinstance(replica.state, Waiting | Starting)
    return is_on_its_way and replica.history.last_exit is None


def _waits_in_vain(modules: Mapping[str, Module], module_id: str, open_ones: set[str]) -> bool:
    """Whether it waits for somebody about whom all has been decided: waiting will not be over soon."""
    waiting = [one.state for one in modules[module_id].current if isinstance(one.state, Waiting)]
    if not waiting:
        return False
    definition = modules[module_id].definition
    required = definition.manifest.requires if definition else ()
    return any(state.lasting for state in waiting) or any(
        one not in open_ones and (one not in modules or modules[one].state is not ModuleState.STARTED)
        for one in required
    )


def patience_s(fleet: Fleet, now: float) -> float | None:
    """For how many seconds from now on something may be on its way within its own time-out; None: nothing is."""
    moving = [
        replica.state.deadline - now
        for module in fleet.modules.values()
        for replica in module.replicas
        if isinstance(replica.state, Starting | Stopping)
    ]
    return max(0.0, *moving) + MARGIN_S if moving else None


def starting_line(fleet: Fleet) -> str:
    waited_for = unsettled(fleet)
    return f"starting: waiting for {_listed(waited_for)}" if waited_for else "starting"


def stopping_line(fleet: Fleet) -> str:
    running = [one.id for one in fleet.modules.values() if one.is_active]
    return f"stopping: {_listed(running)} still to end" if running else "stopping"


def line(fleet: Fleet) -> str:
    """ "14/15 modules healthy, substrate/flaky failed": invalid ones are named, and not counted."""
    told = [(one, health_of(one)[0]) for one in fleet.modules.values()]
    figures = counted(word for one, word in told if one.definition is not None)
    ill = [f"{one.id} {_word(one, health)}" for one, health in told if health is not Health.HEALTHY]
    noun = "module" if figures.total == 1 else "modules"
    return ", ".join([f"{figures.healthy}/{figures.total} {noun} healthy", *_shortened(ill)])


def _word(module: Module, health: Health) -> str:
    return health.value if module.state is ModuleState.STARTED else module.state.value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(_shortened(list(names)))


def _shortened(names: list[str]) -> list[str]:
    left = len(names) - _NAMED
    return names if left <= 0 else [*names[:_NAMED], f"{left} more"]
