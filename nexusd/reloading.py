"""What a reload does: reads what is on disk, has states handed over, and puts the new generation in force.

So does a start or a restart of a module that was edited: it runs what lies on disk whole, or not at all.

In which order the two generations start and stop is the fleet's.
"""

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from nexusd.domain.errors import NexusError, NotPossible
from nexusd.domain.events import Renewal, Roll
from nexusd.domain.fleet import circle_with
from nexusd.domain.manifest import Definition
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Replica, Started
from nexusd.outcomes import Outcomes
from nexusd.ports import Configs, Control, Copies
from nexusd.reach import Patience, Reach, runs_of
from nexusd.supervisor import Supervisor

log = logging.getLogger("nexusd.operations")

EXPORT_TIMEOUT_S = 5.0

Reread = Callable[[Module], Awaitable[Definition | None]]  # the definition on disk; None: no longer usable
SignalRun = Callable[[str, int], None]


class Reloading:
    def __init__(
        self,
        supervisor: Supervisor,
        reach: Reach,
        outcomes: Outcomes,
        control: Control,
        configs: Configs,
        copies: Copies,
        reread: Reread,
        signal_leader: SignalRun,
        tell: Callable[..., None],
        before: Sequence[Callable[[str], None]],
    ) -> None:
        """before: told the id of a module that will hand over."""
        self._supervisor = supervisor
        self._reach = reach
        self._outcomes = outcomes
        self._control = control
        self._configs = configs
        self._copies = copies
        self._reread = reread
        self._signal_leader = signal_leader
        self._tell = tell
        self._before = before
        self._endings: set[asyncio.Task[None]] = set()

    async def reload(self, module_id: str, strategy: str | None, patience: Patience) -> dict[str, Any]:
        """Puts what is on disk in force. A definition with faults is refused and changes nothing."""
        module = self._reach.valid(module_id)
        assert module.definition is not None
        chosen = strategy or module.definition.manifest.reload.strategy
        if chosen == "signal":
            return self._reload_by_signal(module)
        definition = await self._definition_on_disk(module, "reload")
        changed = definition.digest != module.definition.digest
        async with self._reach.changing[
            module_id
        ]:  # a value that is told now reaches both generations or none
            former = await self._begin(module_id, definition, chosen)
        ending = self._run(self._see_to_the_end(module_id, chosen, former))
        if self._reach.module(module_id).wanted:
            await self._reach.wait(module_id, patience, self._outcomes.is_renewed(former))
        if patience.wait:
            await ending
        reloaded = self._reach.module(module_id)
        is_done = reloaded.state is ModuleState.STARTED or not (reloaded.wanted and reloaded.count)
        return {
            "module_id": module_id,
            "reloaded": is_done and reloaded.definition == definition,
            "strategy": chosen,
            "generation": reloaded.generation,
            "changed": changed,
        }

    async def edited(self, module: Module, command: str) -> Definition | None:
        """What lies on disk, if that is another than what is in force. Code alone would come of itself, with the
        next process; beside the former manifest that is neither the old module nor the new one. Raises NotPossible.
        """
        if module.definition is None or module.definition.folder != module.folder:
            return None  # a copy, to which a rolling reload went back, stays until a reload works
        found = await self._definition_on_disk(module, command)
        return found if found.digest != module.definition.digest else None

    def take(self, module_id: str, definition: Definition) -> frozenset[str]:
        """Put it in force at once, nothing handed over. Returns the runs that end by it."""
        former = runs_of(self._reach.module(module_id))
        self._supervisor.handle(Renewal(module_id, definition))
        self._run(self._see_to_the_end(module_id, "restart", former))
        return former

    async def _begin(self, module_id: str, definition: Definition, strategy: str) -> frozenset[str]:
        """The runs that are to end. Their states are handed over first."""
        for observer in self._before:
            observer(module_id)
        states = await self._export_states(self._reach.module(module_id))
        if strategy == "rolling":
            await self._copy_first(self._reach.module(module_id), definition)
        module = self._reach.module(module_id)
        renewal = self._renewal(module, definition, strategy)
        self._configs.hand_over(module, states)
        self._supervisor.handle(renewal)
        return runs_of(module)

    async def _copy_first(self, module: Module, definition: Definition) -> None:
        """What is in force can still be copied where the files are the same."""
        if module.definition is not None and definition.digest == module.definition.digest:
            self._copies.keep(module.definition)
        await self._copies.settled()

    async def _see_to_the_end(self, module_id: str, strategy: str, former: frozenset[str]) -> None:
        """Clear away and tell, also when whoever asked waits no longer."""
        try:
            if self._reach.module(module_id).wanted:
                await self._reach.wait(module_id, Patience(), self._outcomes.is_renewed(former))
        except NexusError:
            return  # told to whoever waits, and by the fleet's own event
        finally:
            self._configs.tidy(filter(None, [self._supervisor.fleet.modules.get(module_id)]))
            self._copies.tidy(self._supervisor.fleet.modules.values())
        self._tell("module.reloaded", module_id, reason=strategy)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._endings.add(task)  # the loop itself keeps weak references only
        task.add_done_callback(self._endings.discard)
        return task

    def _renewal(self, module: Module, definition: Definition, strategy: str) -> Renewal | Roll:
        """Raises NotPossible where a rolling reload could not be rolled back. One replica is never rolled back:
        its successor is ready before it goes.
        """
        assert module.definition is not None
        if strategy != "rolling" or module.count < 2:
            return Renewal(module.id, definition, beside=strategy != "immediate")
        former = self._copies.kept(module.definition)
        if former is None and module.ready:
            raise NotPossible(
                f"cannot reload {module.id} replica by replica: there is no copy of the code in force to go back to",
                module_id=module.id,
                reason="its files were changed before nexusd could copy them, or are too large",
                hint=f"nexusctl reload {module.id} --strategy graceful",
            )
        return Roll(module.id, definition, former or module.definition)

    async def _export_states(self, module: Module) -> dict[int, Any]:
        """What each replica wants its successor to know, by index. Programs are not asked: few would answer.

        All at the same time: those that hang cost one time-out together.
        """
        if module.definition is None or module.definition.manifest.run.python is None:
            return {}
        running = [replica for replica in module.current if isinstance(replica.state, Started)]
        states = await asyncio.gather(*(self._export_state(replica) for replica in running))
        told = zip((replica.index for replica in running), states, strict=True)
        return {index: state for index, state in told if state is not None}

    async def _export_state(self, replica: Replica) -> Any:
        assert replica.run is not None
        try:
            return await self._control.ask(replica.run, "export_state", {}, EXPORT_TIMEOUT_S)
        except NexusError as error:  # a state that can't be had must not keep new code from being loaded
            log.warning("%s hands nothing over: %s", replica.name, error)
            return None

    def _reload_by_signal(self, module: Module) -> dict[str, Any]:
        assert module.definition is not None
        running = [replica.run for replica in module.current if isinstance(replica.state, Started)]
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

    async def _definition_on_disk(self, module: Module, command: str) -> Definition:
        definition = await self._reread(module)
        if definition is None:
            faults = [str(fault) for fault in self._reach.module(module.id).faults]
            raise NotPossible(
                f"cannot {command} {module.id}: its manifest has faults, the one in force stays",
                module_id=module.id,
                reason="; ".join(faults) or "its folder is gone",
                hint=f"nexusctl check {module.folder}",
            )
        self._refuse_circle(module, definition, command)
        return definition

    def _refuse_circle(self, module: Module, definition: Definition, command: str) -> None:
        """Modules that require each other would wait for each other, at the start and at the stop."""
        circle = circle_with(self._supervisor.fleet, module, definition)
        if circle is not None:
            raise NotPossible(
                f"cannot {command} {module.id}: its manifest closes a circle of modules, the one in force stays",
                module_id=module.id,
                reason=" → ".join(circle),
                hint="nexusctl reload the others first, if they changed too",
            )
