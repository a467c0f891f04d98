"""What a command does: checks that it makes sense, asks the fleet, waits for the outcome, tells it.

What reload, scale, heal and configure do stands in files of their own. Rules between modules are the fleet's; who
may command, and how the outcome is encoded, is `nexusd.rpc`'s.
"""

from collections.abc import Callable
from typing import Any

from nexusd.configuring import Configuring
from nexusd.domain.errors import NotPossible
from nexusd.domain.events import Renewal, Want
from nexusd.domain.graph import closure
from nexusd.domain.module import SCALED_TO_NONE, Module, ModuleState
from nexusd.domain.replica import Replica
from nexusd.healing import Healing
from nexusd.outcomes import Outcomes
from nexusd.ports import Configs, Control, Copies, Logs, Store
from nexusd.reach import Patience, Reach, is_wanted, required, runs_of
from nexusd.reloading import Reloading, Reread, SignalRun
from nexusd.scaling import Scaling
from nexusd.supervisor import Supervisor


class Operations:
    def __init__(
        self,
        supervisor: Supervisor,
        store: Store,
        control: Control,
        logs: Logs,
        configs: Configs,
        reread: Reread,
        signal_leader: SignalRun,
        tell: Callable[..., None],
        copies: Copies,
    ) -> None:
        self._supervisor = supervisor
        self._store = store
        self._outcomes = outcomes = Outcomes(logs)
        self.before_reload: list[Callable[[str], None]] = []  # told the id of a module that will hand over
        self._reach = reach = Reach(supervisor)
        self._reloading = Reloading(
            supervisor,
            reach,
            outcomes,
            control,
            configs,
            copies,
            reread,
            signal_leader,
            tell,
            self.before_reload,
        )
        self._scaling = Scaling(supervisor, reach, store, outcomes)
        self._healing = Healing(supervisor, reach, tell)
        self._configuring = Configuring(supervisor, reach, store, control, configs, tell)

    def module(self, module_id: str) -> Module:
        """Raises NoSuchModule, with the nearest id there is."""
        return self._reach.module(module_id)

    async def reload(self, module_id: str, strategy: str | None, patience: Patience) -> dict[str, Any]:
        return await self._reloading.reload(module_id, strategy, patience)

    async def scale(self, module_id: str, count: int, patience: Patience) -> dict[str, Any]:
        return await self._scaling.scale(module_id, count, patience)

    async def heal(self, module_id: str | None, patience: Patience) -> dict[str, Any]:
        return await self._healing.heal(module_id, patience)

    async def configure(self, module_id: str, key: str, value: Any) -> dict[str, Any]:
        return await self._configuring.configure(module_id, key, value)

    async def unset_config(self, module_id: str, key: str) -> dict[str, Any]:
        return await self._configuring.unset(module_id, key)

    @property
    def untold(self) -> list[str]:
        return self._configuring.untold

    def tell_adopted(self) -> None:
        self._configuring.tell_adopted()

    def is_secret(self, module_id: str, key: str) -> bool:
        """Whether the value of this key must not be shown; one that nobody knows may be a mistyped secret."""
        module = self._supervisor.fleet.modules.get(module_id)
        keys = module.definition.manifest.config if module and module.definition else {}
        return key not in keys or keys[key].secret

    # Start, stop, restart

    async def start(self, module_id: str, patience: Patience) -> dict[str, Any]:
        """Starts what it requires, too. Raises StartFailed, DependencyFailed, TimedOut, NotPossible."""
        module = self._with_replicas(module_id, "start")
        if not module.is_active:
            edited = await self._reloading.edited(module, "start")
            module = self._reach.startable(module_id)
            if edited is not None and not module.is_active:
                self._reloading.take(module_id, edited)
        fleet = self._supervisor.fleet
        also = [
            one for one in sorted(closure(fleet.graph.requires, [module_id])) if not is_wanted(fleet, one)
        ]
        changed = module.state is not ModuleState.STARTED
        if changed or also:
            self._supervisor.handle(Want((*also, module_id), True))
        warning = await self._save_wanted([*also, module_id], True)
        await self._reach.wait(module_id, patience, self._outcomes.is_started)
        state = self.module(module_id).state
        started = {"started": state is ModuleState.STARTED, "state": str(state)}
        return {"module_id": module_id, **started, "changed": changed, "also": also, **warning}

    async def stop(self, module_id: str, cascade: bool, patience: Patience) -> dict[str, Any]:
        """Refused (NotPossible) while others that are to run require it, unless `cascade` stops those first."""
        module = self.module(module_id)
        dependents = self._reach.dependents_of(module_id)
        if dependents and not cascade:
            raise required("stop", module_id, dependents)
        changed = module.wanted or module.is_active
        self._supervisor.handle(Want((*dependents, module_id), False))
        warning = await self._save_wanted([*dependents, module_id], False)
        await self._reach.wait(module_id, patience, self._outcomes.is_stopped, may_be_dropped=True)
        left = self._supervisor.fleet.modules.get(module_id)
        stopped = {
            "stopped": left is None or not left.is_active,
            "state": str(left.state) if left else "stopped",
        }
        return {"module_id": module_id, **stopped, "changed": changed, "also": dependents, **warning}

    async def restart(self, module_id: str, patience: Patience, index: int | None = None) -> dict[str, Any]:
        """Of the whole module, as it lies on disk; or of one replica: the others are not touched."""
        module = self._with_replicas(module_id, "restart")
        which: dict[str, Any] = {} if index is None else {"replica": _replica(module, index).name}
        if not module.wanted and index is None:
            started = await self.start(module_id, patience)
            return {"module_id": module_id, "restarted": started["started"], "state": started["state"]}
        edited = await self._reloading.edited(module, "restart")
        if edited is not None and index is not None:
            raise _of_two_kinds(module, index)
        if edited is not None:
            former = self._reloading.take(module_id, edited)
        else:
            former = runs_of(self.module(module_id), index)
            self._supervisor.handle(Renewal(module_id, index=index))
        await self._reach.wait(module_id, patience, self._outcomes.is_renewed(former, index))
        after = self.module(module_id)
        restarted = not former & runs_of(after, index) and self._outcomes.runs(after, index)
        return {"module_id": module_id, **which, "restarted": restarted, "state": str(after.state)}

    def _with_replicas(self, module_id: str, command: str) -> Module:
        """One of which something would run."""
        module = self._reach.startable(module_id)
        if module.count == 0:
            raise NotPossible(
                f"cannot {command} {module_id}: it is {SCALED_TO_NONE}",
                module_id=module_id,
                hint=f"nexusctl scale {module_id} 1",
            )
        return module

    async def _save_wanted(self, module_ids: list[str], started: bool) -> dict[str, str]:
        """A full disk must not keep an operator from stopping a module: then the answer says what was not kept."""
        try:
            await self._store.save_wanted(dict.fromkeys(module_ids, started))
        except NotPossible as error:
            return {"warning": f"{error}; after a restart of nexusd the former wish holds"}
        return {}


def _replica(module: Module, index: int) -> Replica:
    """Raises NotPossible for one that there is not, that is not to run, or that is being replaced."""
    found = next((replica for replica in module.current if replica.index == index), None)
    if found is not None and module.wanted and module.upgrade is None:
        return found
    what = f"it has {module.count} replicas, counted from 0" if found is None else "it is being reloaded"
    what = what if module.wanted else f"it is {module.state}"
    raise NotPossible(
        f"cannot restart {module.id}#{index}: {what}",
        module_id=module.id,
        hint=f"nexusctl status {module.id}" if module.wanted else f"nexusctl start {module.id}",
    )


def _of_two_kinds(module: Module, index: int) -> NotPossible:
    return NotPossible(
        f"cannot restart {module.id}#{index}: the module's files have changed, it would be another than the others",
        module_id=module.id,
        hint=f"nexusctl reload {module.id}",
    )
