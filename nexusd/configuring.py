"""What configuring does: a value is checked, told to the running module and stored, or taken back to its default.

Which values are valid is `domain.settings`'s, how a file of them is written the adapter's.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from nexusd.domain import settings
from nexusd.domain.errors import BadValue, NexusError, NotPossible, TimedOut
from nexusd.domain.events import Put, Renewal
from nexusd.domain.fleet import Fleet
from nexusd.domain.manifest import ConfigKey
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica, Started, Starting
from nexusd.ports import Configs, Control, Store
from nexusd.reach import Patience, Reach
from nexusd.supervisor import Supervisor

log = logging.getLogger("nexusd.operations")

CONFIGURE_TIMEOUT_S = 5.0
ENDING_S = 1.0  # from a process that answers no more to the word that it has ended
RELOAD_PATIENCE = Patience(timeout_s=30.0)


class Configuring:
    """Refused as a whole when the value, the module or the store refuses."""

    def __init__(
        self,
        supervisor: Supervisor,
        reach: Reach,
        store: Store,
        control: Control,
        configs: Configs,
        tell: Callable[..., None],
    ) -> None:
        self._supervisor = supervisor
        self._reach = reach
        self._store = store
        self._control = control
        self._configs = configs
        self._tell = tell
        self._errands: dict[asyncio.Task[None], str] = {}  # and for which replica

    @property
    def untold(self) -> list[str]:
        """Replicas that are starting, and have yet to be told a value: the errand ends with this nexusd."""
        return list(self._errands.values())

    def tell_adopted(self) -> None:
        """Who was starting when a former nexusd ended may have read its values before the last one was set.

        To be called before the fleet hears what became of them meanwhile.
        """
        for module in self._supervisor.fleet.modules.values():
            for replica in module.current:
                if isinstance(replica.state, Starting):
                    keys = module.definition_of(replica).manifest.config
                    self._tell_later(replica, [name for name, key in keys.items() if key.apply == "live"])

    async def configure(self, module_id: str, name: str, value: Any) -> dict[str, Any]:
        async with self._reach.changing[module_id]:  # two could be told and stored in different orders
            await self._one_generation(module_id)
            module, key = self._key(module_id, name)
            checked = settings.check_value(key, value, name)
            configured = {**module.configured, name: checked}
            save = self._store.save_value
            return await self._change(module, name, configured, lambda: save(module_id, name, checked))

    async def unset(self, module_id: str, name: str) -> dict[str, Any]:
        """Back to the manifest's default, which a later manifest may change again."""
        async with self._reach.changing[module_id]:
            await self._one_generation(module_id)
            module, key = self._key(module_id, name)
            configured = {other: value for other, value in module.configured.items() if other != name}
            if name not in module.configured:
                default = settings.MASK if key.secret else key.default
                same = {"value": default, "previous": default, "applied": "none", "changed": False}
                return {"module_id": module_id, "key": name, **same}
            forget = self._store.forget_value
            told = await self._change(module, name, configured, lambda: forget(module_id, name))
            return {**told, "changed": True}

    def _key(self, module_id: str, name: str) -> tuple[Module, ConfigKey]:
        module = self._reach.valid(module_id)
        assert module.definition is not None
        return module, settings.key_named(module_id, module.definition.manifest.config, name)

    async def _one_generation(self, module_id: str) -> None:
        """A value told during a reload could miss the new generation, or the old one if that stays."""
        try:
            await self._reach.wait(module_id, RELOAD_PATIENCE, lambda module: module.upgrade is None)
        except TimedOut:
            raise NotPossible(
                f"cannot configure {module_id}: it is being reloaded",
                module_id=module_id,
                hint=f"nexusctl status {module_id}",
            ) from None

    async def _change(
        self, module: Module, name: str, configured: dict[str, Any], save: Callable[[], Awaitable[None]]
    ) -> dict[str, Any]:
        """To the value that the key has with `configured`."""
        assert module.definition is not None
        manifest = module.definition.manifest
        key = manifest.config[name]
        value = settings.effective(manifest, configured)[name]
        previous = settings.effective(manifest, module.configured)[name]
        told: list[str] = []
        try:
            if key.apply == "live":
                await self._tell_replicas(module, name, value, told, key)
            self._write_config(module.id, configured)
            await save()
        except NexusError:
            await self._take_back(told, name, previous, key)
            self._write_config(module.id, module.configured)
            raise
        self._supervisor.handle(Put(module.id, replace(self._reach.module(module.id), configured=configured)))
        if key.apply == "live":
            self._tell_late_ones(module.id, name, told)
        applied = self._apply(module.id, key, bool(told))
        shown = settings.masked(manifest, {name: value})[name]
        by_default = "" if name in configured else ", the default"
        self._tell("module.configured", module.id, reason=f"{name} = {shown!r}{by_default}")
        masked = settings.masked(manifest, {name: previous})[name]
        return {"module_id": module.id, "key": name, "value": shown, "previous": masked, "applied": applied}

    async def _tell_replicas(
        self, module: Module, name: str, value: Any, told: list[str], key: ConfigKey
    ) -> None:
        for run in [one.run for one in module.current if one.run is not None]:
            if not _is_started(self._supervisor.fleet, module.id, run):
                continue
            told.append(run)
            try:
                await self._tell_run(run, name, value, key)
            except BadValue:  # who refuses keeps the old value, and need not be told it
                told.pop()
                raise
            except NexusError:
                if not await self._ends(module.id, run):
                    raise
                told.pop()  # what comes after it reads the value, or is told it

    async def _ends(self, module_id: str, run: str) -> bool:
        """Whether it is being stopped, or has ended; its control socket may tell before the keeper does."""
        try:
            await self._supervisor.until(
                [module_id], lambda fleet: not _is_started(fleet, module_id, run), ENDING_S
            )
        except TimeoutError:
            return False
        return True

    def _tell_late_ones(self, module_id: str, name: str, told: Collection[str]) -> None:
        """Who was starting has read its values already, and hears of no other before it is started."""
        for replica in self._reach.module(module_id).current:
            if isinstance(replica.state, Starting | Started) and replica.state.run not in told:
                self._tell_later(replica, [name])

    def _tell_later(self, replica: Replica, names: Collection[str]) -> None:
        if names and replica.run is not None:
            errand = self._tell_when_started(replica.module_id, names, replica.run)
            task = asyncio.get_running_loop().create_task(errand)
            self._errands[task] = replica.name  # the loop itself keeps weak references only
            task.add_done_callback(self._errands.pop)

    async def _tell_when_started(self, module_id: str, names: Iterable[str], run: str) -> None:
        """The values that the keys have by then."""

        def is_decided(fleet: Fleet) -> bool:
            replica = _with_run(fleet.modules.get(module_id), run)
            return replica is None or not isinstance(replica.state, Starting)

        await self._supervisor.until([module_id], is_decided, None)
        async with self._reach.changing[module_id]:
            for name in names:
                await self._tell_present_value(module_id, name, run)

    async def _tell_present_value(self, module_id: str, name: str, run: str) -> None:
        module = self._supervisor.fleet.modules.get(module_id)
        replica = _with_run(module, run)
        if module is None or replica is None or not isinstance(replica.state, Started):
            return
        manifest = module.definition_of(replica).manifest
        if (key := manifest.config.get(name)) is None:
            return
        try:
            value = settings.effective(manifest, module.configured)[name]
            await self._tell_run(run, name, value, key)
        except NexusError as error:  # whoever set it waits no longer
            log.warning("%s may still use the former value of %s: %s", run, name, error)

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

    def _write_config(self, module_id: str, configured: Mapping[str, Any]) -> None:
        module = replace(self._reach.module(module_id), configured=dict(configured))
        if module.definition is not None:
            self._configs.write(module, module.definition, module.generation)

    def _apply(self, module_id: str, key: ConfigKey, told: bool) -> str:
        """How the value reaches the module: it was told, or is started anew from the definition in force."""
        module = self._reach.module(module_id)
        if not (module.wanted and module.is_active) or (key.apply == "live" and not told):
            return "stored"
        if key.apply == "restart":
            self._supervisor.handle(Renewal(module_id))
        elif key.apply == "reload":
            self._supervisor.handle(Renewal(module_id, module.definition, beside=True))
        return key.apply


def _is_started(fleet: Fleet, module_id: str, run: str) -> bool:
    replica = _with_run(fleet.modules.get(module_id), run)
    return replica is not None and isinstance(replica.state, Started)


def _with_run(module: Module | None, run: str) -> Replica | None:
    return next((replica for replica in module.replicas if replica.run == run), None) if module else None
