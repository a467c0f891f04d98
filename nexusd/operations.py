"""What a command does: checks that it makes sense, asks the fleet, waits for the outcome, tells it.

Rules between modules are the fleet's; who may command, and how the outcome is encoded, is `nexusd.rpc`'s.
"""

import asyncio
import logging
import signal
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from msgspec.structs import replace

from nexusd.domain import lifecycle, settings
from nexusd.domain.errors import BadValue, NexusError, NoSuchModule, NotPossible, TimedOut
from nexusd.domain.fields import near_match
from nexusd.domain.fleet import Fleet, Module, ModuleState, Put, Renewal, Want, circle_with
from nexusd.domain.graph import closure
from nexusd.domain.manifest import ConfigKey, Definition
from nexusd.outcomes import Outcomes
from nexusd.ports import Configs, Control, Logs, Store
from nexusd.supervisor import Supervisor

log = logging.getLogger("nexusd.operations")

CONFIGURE_TIMEOUT_S = 5.0
EXPORT_TIMEOUT_S = 5.0

Reread = Callable[[Module], Awaitable[Definition | None]]  # the definition on disk; None: no longer usable
SignalRun = Callable[[str, int], None]


@dataclass(frozen=True, slots=True)
class Patience:
    """Whether and how long a command waits for its outcome."""

    wait: bool = True
    timeout_s: float | None = None


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
    ) -> None:
        self._supervisor = supervisor
        self._store = store
        self._control = control
        self._outcomes = Outcomes(logs)
        self._configs = configs
        self._reread = reread
        self._signal_leader = signal_leader
        self._tell = tell
        self.before_reload: list[Callable[[str], None]] = []  # told the id of a module that will hand over
        self._configuring: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def module(self, module_id: str) -> Module:
        """Raises NoSuchModule, with the nearest id there is."""
        modules = self._supervisor.fleet.modules
        if module_id in modules:
            return modules[module_id]
        near = near_match(module_id, modules)
        hint = f"did you mean {near}?" if near else "nexusctl modules"
        raise NoSuchModule(f"no such module: {module_id}", module_id=module_id, hint=hint)

    def is_secret(self, module_id: str, key: str) -> bool:
        """Whether the value of this key must not be shown; one that nobody knows may be a mistyped secret."""
        module = self._supervisor.fleet.modules.get(module_id)
        keys = module.definition.manifest.config if module and module.definition else {}
        return key not in keys or keys[key].secret

    # Start, stop, restart

    async def start(self, module_id: str, patience: Patience) -> dict[str, Any]:
        """Starts what it requires, too. Raises StartFailed, DependencyFailed, TimedOut, NotPossible."""
        module = self._startable(module_id)
        fleet = self._supervisor.fleet
        also = [
            one for one in sorted(closure(fleet.graph.requires, [module_id])) if not _is_wanted(fleet, one)
        ]
        changed = module.state is not ModuleState.STARTED
        if changed or also:
            self._supervisor.handle(Want((*also, module_id), True))
        warning = await self._save_wanted([*also, module_id], True)
        await self._wait(module_id, patience, self._outcomes.is_started)
        state = self.module(module_id).state
        started = {"started": state is ModuleState.STARTED, "state": str(state)}
        return {"module_id": module_id, **started, "changed": changed, "also": also, **warning}

    async def stop(self, module_id: str, cascade: bool, patience: Patience) -> dict[str, Any]:
        """Refused (NotPossible) while others that are to run require it, unless `cascade` stops those first."""
        module = self.module(module_id)
        fleet = self._supervisor.fleet
        dependents = [
            one for one in sorted(closure(fleet.graph.required_by, [module_id])) if _is_wanted(fleet, one)
        ]
        if dependents and not cascade:
            raise _required(module_id, dependents)
        changed = module.wanted or module.is_active
        self._supervisor.handle(Want((*dependents, module_id), False))
        warning = await self._save_wanted([*dependents, module_id], False)
        await self._wait(module_id, patience, self._outcomes.is_stopped, may_be_dropped=True)
        left = self._supervisor.fleet.modules.get(module_id)
        stopped = {
            "stopped": left is None or not left.is_active,
            "state": str(left.state) if left else "stopped",
        }
        return {"module_id": module_id, **stopped, "changed": changed, "also": dependents, **warning}

    async def restart(self, module_id: str, patience: Patience) -> dict[str, Any]:
        module = self._startable(module_id)
        if not module.wanted:
            started = await self.start(module_id, patience)
            return {"module_id": module_id, "restarted": started["started"], "state": started["state"]}
        former = _runs(module)
        self._supervisor.handle(Renewal(module_id))
        await self._wait(module_id, patience, self._outcomes.is_renewed(former))
        state = self.module(module_id).state
        return {"module_id": module_id, "restarted": state is ModuleState.STARTED, "state": str(state)}

    async def reload(self, module_id: str, strategy: str | None, patience: Patience) -> dict[str, Any]:
        """Puts what is on disk in force. A definition with faults is refused and changes nothing."""
        module = self._valid(module_id)
        assert module.definition is not None
        chosen = strategy or module.definition.manifest.reload.strategy
        if chosen == "signal":
            return self._reload_by_signal(module)
        if chosen == "rolling":
            raise NotPossible(
                f"cannot reload {module_id}: this version has no strategy {chosen}",
                module_id=module_id,
                hint=f"nexusctl reload {module_id} --strategy immediate",
            )
        definition = await self._definition_on_disk(module)
        changed = definition.digest != module.definition.digest
        for observer in self.before_reload:
            observer(module_id)
        states = await self._export_states(self.module(module_id))
        former = _runs(self.module(module_id))
        self._configs.hand_over(self.module(module_id), states)
        self._supervisor.handle(Renewal(module_id, definition, beside=chosen == "graceful"))
        if self.module(module_id).wanted:
            await self._wait(module_id, patience, self._outcomes.is_renewed(former))
        reloaded = self.module(module_id)
        is_done = reloaded.state is ModuleState.STARTED or not reloaded.wanted
        self._configs.tidy([reloaded])
        self._tell("module.reloaded", module_id, reason=chosen)
        return {
            "module_id": module_id,
            "reloaded": is_done and reloaded.definition == definition,
            "strategy": chosen,
            "generation": reloaded.generation,
            "changed": changed,
        }

    async def _export_states(self, module: Module) -> dict[int, Any]:
        """What each replica wants its successor to know, by index. Programs are not asked: few would answer."""
        states: dict[int, Any] = {}
        if module.definition is None or module.definition.manifest.run.python is None:
            return states
        for replica in module.current:
            if isinstance(replica.state, lifecycle.Started):
                try:
                    states[replica.index] = await self._control.ask(
                        replica.state.run, "export_state", {}, EXPORT_TIMEOUT_S
                    )
                except (
                    NexusError
                ) as error:  # a state that can't be had must not keep new code from being loaded
                    log.warning("%s hands nothing over: %s", replica.name, error)
        return {index: state for index, state in states.items() if state is not None}

    def _reload_by_signal(self, module: Module) -> dict[str, Any]:
        assert module.definition is not None
        running = [replica.run for replica in module.current if isinstance(replica.state, lifecycle.Started)]
        if not running:
            raise NotPossible(
                f"cannot reload {module.id} by a signal: it is {module.state}",
                module_id=module.id,
                hint=f"nexusctl start {module.id}",
            )
        number = signal.Signals[module.definition.manifest.reload.signal]
        for run in running:
            if run is not None:
                self._signal_leader(run, number)
        self._tell("module.reloaded", module.id, reason="signal")
        told = {"reloaded": True, "strategy": "signal", "generation": module.generation, "changed": False}
        return {"module_id": module.id, **told}

    async def _definition_on_disk(self, module: Module) -> Definition:
        definition = await self._reread(module)
        if definition is None:
            faults = [str(fault) for fault in self.module(module.id).faults]
            raise NotPossible(
                f"cannot reload {module.id}: its manifest has faults, the one in force stays",
                module_id=module.id,
                reason="; ".join(faults) or "its folder is gone",
                hint=f"nexusctl check {module.folder}",
            )
        self._refuse_circle(module, definition)
        return definition

    def _refuse_circle(self, module: Module, definition: Definition) -> None:
        """Modules that require each other would wait for each other, at the start and at the stop."""
        circle = circle_with(self._supervisor.fleet, module, definition)
        if circle is not None:
            raise NotPossible(
                f"cannot reload {module.id}: its manifest closes a circle of modules, the one in force stays",
                module_id=module.id,
                reason=" → ".join(circle),
                hint="nexusctl reload the others first, if they changed too",
            )

    # Configuration

    async def configure(self, module_id: str, name: str, value: Any) -> dict[str, Any]:
        """Checked, told to the running module, stored; refused as a whole when one of these refuses."""
        async with self._configuring[module_id]:  # two at once could be told and stored in different orders
            return await self._configure(module_id, name, value)

    async def _configure(self, module_id: str, name: str, value: Any) -> dict[str, Any]:
        module = self._valid(module_id)
        assert module.definition is not None
        manifest = module.definition.manifest
        key = config_key(module_id, manifest.config, name)
        checked = settings.check_value(key, value, name)
        previous = settings.effective(manifest, module.configured)[name]
        told: list[str] = []
        try:
            if key.apply == "live":
                await self._tell_replicas(module, name, checked, told, key)
            self._write_config(module_id, {**module.configured, name: checked})
            await self._store.save_value(module_id, name, checked)
        except NexusError:
            await self._take_back(told, name, previous, key)
            self._write_config(module_id, module.configured)
            raise
        self._put_value(module_id, name, checked)
        applied = self._apply(module_id, key, bool(told))
        shown = settings.masked(manifest, {name: checked})[name]
        self._tell("module.configured", module_id, reason=f"{name} = {shown!r}")
        masked = settings.masked(manifest, {name: previous})[name]
        return {"module_id": module_id, "key": name, "value": shown, "previous": masked, "applied": applied}

    async def _tell_replicas(
        self, module: Module, name: str, value: Any, told: list[str], key: ConfigKey
    ) -> None:
        for replica in module.current:
            if isinstance(replica.state, lifecycle.Started):
                told.append(replica.state.run)
                try:
                    await self._tell_run(replica.state.run, name, value, key)
                except BadValue:  # who refuses keeps the old value, and need not be told it
                    told.pop()
                    raise

    async def _tell_run(self, run: str, name: str, value: Any, key: ConfigKey) -> None:
        params = {"key": name, "value": value}
        try:
            await self._control.ask(run, "configure", params, CONFIGURE_TIMEOUT_S)
        except NexusError as error:
            raise settings.without_words(key, name, error) from None

    async def _take_back(self, told: Iterable[str], name: str, previous: Any, key: ConfigKey) -> None:
        for run in told:
            try:
                await self._tell_run(run, name, previous, key)
            except NexusError as error:  # the refusal itself is what the caller is told
                log.warning("%s may still use the refused value of %s: %s", run, name, error)

    def _put_value(self, module_id: str, name: str, value: Any) -> None:
        module = self.module(module_id)
        module = replace(module, configured={**module.configured, name: value})
        self._supervisor.handle(Put(module_id, module))

    def _write_config(self, module_id: str, configured: Mapping[str, Any]) -> None:
        module = replace(self.module(module_id), configured=dict(configured))
        if module.definition is not None:
            self._configs.write(module, module.definition, module.generation)

    def _apply(self, module_id: str, key: ConfigKey, told: bool) -> str:
        """How the value reaches the module: it was told, or is started anew from the definition in force."""
        module = self.module(module_id)
        if not (module.wanted and module.is_active) or (key.apply == "live" and not told):
            return "stored"
        if key.apply == "restart":
            self._supervisor.handle(Renewal(module_id))
        elif key.apply == "reload":
            self._supervisor.handle(Renewal(module_id, module.definition, beside=True))
        return key.apply

    # What they share

    def _valid(self, module_id: str) -> Module:
        module = self.module(module_id)
        if module.definition is None:
            raise NotPossible(
                f"{module_id} is invalid: {module.reason}",
                module_id=module_id,
                reason="; ".join(str(fault) for fault in module.faults),
                hint=f"nexusctl status {module_id}",
            )
        return module

    def _startable(self, module_id: str) -> Module:
        module = self._valid(module_id)
        if module.gone:
            raise NotPossible(
                f"{module_id} cannot be started anew: its folder {module.folder} is gone",
                module_id=module_id,
                hint=f"nexusctl stop {module_id}, which ends and forgets it",
            )
        return module

    async def _save_wanted(self, module_ids: list[str], started: bool) -> dict[str, str]:
        """A full disk must not keep an operator from stopping a module: then the answer says what was not kept."""
        try:
            await self._store.save_wanted(dict.fromkeys(module_ids, started))
        except NotPossible as error:
            return {"warning": f"{error}; after a restart of nexusd the former wish holds"}
        return {}

    async def _wait(
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


def _is_wanted(fleet: Fleet, module_id: str) -> bool:
    module = fleet.modules.get(module_id)
    return module is None or module.definition is None or module.wanted


def _required(module_id: str, dependents: list[str]) -> NotPossible:
    names = ", ".join(dependents)
    verb = "requires" if len(dependents) == 1 else "require"
    return NotPossible(
        f"cannot stop {module_id}: {names} {verb} it",
        module_id=module_id,
        hint=f"nexusctl stop --cascade {module_id}",
        required_by=dependents,
    )


def _runs(module: Module) -> frozenset[str]:
    return frozenset(replica.run for replica in module.replicas if replica.run is not None)


def config_key(module_id: str, keys: Mapping[str, ConfigKey], name: str) -> ConfigKey:
    """Raises BadValue, with the nearest key there is."""
    if name in keys:
        return keys[name]
    near = near_match(name, keys)
    hint = f"did you mean {near}?" if near else f"nexusctl config get {module_id}"
    raise BadValue(f"{module_id} has no configuration key {name}", module_id=module_id, hint=hint, key=name)
