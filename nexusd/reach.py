"""Modules as commands reach them: found by id, judged fit for what is asked, waited for.

What a command does with them stands in `operations` and the files beside it.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from nexusd.domain.errors import NoSuchModule, NotPossible, TimedOut
from nexusd.domain.fields import near_match
from nexusd.domain.fleet import Fleet
from nexusd.domain.graph import closure
from nexusd.domain.module import Module
from nexusd.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Patience:
    """Whether and how long a command waits for its outcome."""

    wait: bool = True
    timeout_s: float | None = None


class Reach:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        # Of a module: held while its values or its generations are being changed.
        self.changing: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def module(self, module_id: str) -> Module:
        """Raises NoSuchModule, with the nearest id there is."""
        modules = self._supervisor.fleet.modules
        if module_id in modules:
            return modules[module_id]
        near = near_match(module_id, modules)
        hint = f"did you mean {near}?" if near else "nexusctl modules"
        raise NoSuchModule(f"no such module: {module_id}", module_id=module_id, hint=hint)

    def valid(self, module_id: str) -> Module:
        """One whose manifest could be read."""
        module = self.module(module_id)
        if module.definition is None:
            raise NotPossible(
                f"{module_id} is invalid: {module.reason}",
                module_id=module_id,
                reason="; ".join(str(fault) for fault in module.faults),
                hint=f"nexusctl status {module_id}",
            )
        return module

    def startable(self, module_id: str) -> Module:
        module = self.valid(module_id)
        if module.gone:
            raise NotPossible(
                f"{module_id} cannot be started anew: its folder {module.folder} is gone",
                module_id=module_id,
                hint=f"nexusctl stop {module_id}, which ends and forgets it",
            )
        return module

    def dependents_of(self, module_id: str) -> list[str]:
        """Those that require it, however far, and are to run."""
        fleet = self._supervisor.fleet
        return [one for one in sorted(closure(fleet.graph.required_by, [module_id])) if is_wanted(fleet, one)]

    async def wait(
        self,
        module_id: str,
        patience: Patience,
        done: Callable[[Module], bool],
        may_be_dropped: bool = False,
    ) -> None:
        """Until `done` of the module; one whose folder is gone is dropped when it has stopped."""
        if not patience.wait:
            return

        def is_done(fleet: Fleet) -> bool:
            return (may_be_dropped and module_id not in fleet.modules) or done(self.module(module_id))

        try:
            await self._supervisor.until([module_id], is_done, patience.timeout_s)
        except TimeoutError:
            module = self.module(module_id)
            raise TimedOut(
                f"{module_id} is still {module.state} after {patience.timeout_s:g} s",
                module_id=module_id,
                reason=module.reason,
                hint=f"nexusctl status {module_id}",
            ) from None


def is_wanted(fleet: Fleet, module_id: str) -> bool:
    module = fleet.modules.get(module_id)
    return module is None or module.definition is None or module.wanted


def runs_of(module: Module, index: int | None = None) -> frozenset[str]:
    """The runs of its processes, or of those of one index."""
    chosen: Iterable[str | None] = (one.run for one in module.replicas if index in (None, one.index))
    return frozenset(run for run in chosen if run is not None)


def required(command: str, module_id: str, dependents: list[str]) -> NotPossible:
    """The refusal of what would take a module away from those that require it."""
    names = ", ".join(dependents)
    verb = "requires" if len(dependents) == 1 else "require"
    return NotPossible(
        f"cannot {command} {module_id}: {names} {verb} it",
        module_id=module_id,
        hint=f"nexusctl stop --cascade {module_id}",
        required_by=dependents,
    )
