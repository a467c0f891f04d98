"""How many replicas a module has: set, kept over restarts, and waited for. The others are not touched."""

from typing import Any

from nexusd.domain.errors import BadValue, NotPossible
from nexusd.domain.events import Scale
from nexusd.domain.module import Module
from nexusd.outcomes import Outcomes
from nexusd.ports import Store
from nexusd.reach import Patience, Reach, required
from nexusd.supervisor import Supervisor


class Scaling:
    def __init__(self, supervisor: Supervisor, reach: Reach, store: Store, outcomes: Outcomes) -> None:
        self._supervisor = supervisor
        self._reach = reach
        self._store = store
        self._outcomes = outcomes

    async def scale(self, module_id: str, count: int, patience: Patience) -> dict[str, Any]:
        """Of a module that is stopped the number is kept for its next start. Raises BadValue, NotPossible,
        StartFailed, TimedOut; a number that was taken stays, whatever becomes of the new replicas.
        """
        module = self._reach.valid(module_id)
        self._check(module, count)
        previous = module.count
        self._supervisor.handle(Scale(module_id, count))
        warning = await self._save(module_id, count)
        if self._reach.module(module_id).wanted:
            await self._reach.wait(module_id, patience, self._outcomes.is_scaled(previous, count))
        state = self._reach.module(module_id).state
        told = {"module_id": module_id, "replicas": count, "previous": previous}
        return {**told, "changed": previous != count, "state": str(state), **warning}

    def _check(self, module: Module, count: int) -> None:
        assert module.definition is not None
        most = module.definition.manifest.max_replicas
        if not 0 <= count <= most:
            raise BadValue(
                f"{module.id} may have 0 to {most} replicas, not {count}",
                module_id=module.id,
                reason=f"max_replicas is {most}",
                hint=f"nexusctl scale {module.id} {most if count > most else 0}",
                max_replicas=most,
            )
        dependents = self._reach.dependents_of(module.id)
        if count == 0 and module.count > 0 and module.wanted and dependents:
            raise required("scale to 0", module.id, dependents)
        if count > module.count and module.gone:
            raise NotPossible(
                f"{module.id} gets no more replicas: its folder {module.folder} is gone",
                module_id=module.id,
                hint=f"nexusctl stop {module.id}, which ends and forgets it",
            )

    async def _save(self, module_id: str, count: int) -> dict[str, str]:
        """A full disk must not keep an operator from scaling: then the answer says what was not kept."""
        try:
            await self._store.save_count(module_id, count)
        except NotPossible as error:
            return {"warning": f"{error}; after a restart of nexusd the former number holds"}
        return {}
