"""All modules with their replicas, and the rules between them: who may start now, who may stop now.

`apply` takes one event, lets the rules settle to a fixed point, and returns the new fleet with what is to be
done. How one replica moves is `lifecycle`'s; what a module is by itself, `module`'s; orders and cycles are `graph`'s.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from nexusd.domain import events, lifecycle
from nexusd.domain.events import FleetEvent, GiveUp, Load, News, Order, Put, Renewal, Roll, Scale, Want
from nexusd.domain.graph import Graph, cycles
from nexusd.domain.lifecycle import Moment
from nexusd.domain.manifest import Definition
from nexusd.domain.module import (
    SCALED_TO_NONE,
    Module,
    ModuleState,
    next_generation,
    with_definition,
    with_replica,
)
from nexusd.domain.policy import policy_of
from nexusd.domain.replica import Failed, Replica, Waiting
from nexusd.domain.upgrades import Refusal, Upgrade

FreshRun = Callable[[str, int, int], str]  # module id, index, generation -> a run's key, never used before


class Fleet(Struct, frozen=True):
    modules: dict[str, Module] = {}
    graph: Graph = Graph({}, {})


def graph_of(modules: Iterable[Module]) -> Graph:
    """Of the modules whose manifest is valid."""
    relations = {module.id: module.relations for module in modules if module.definition is not None}
    return Graph(
        {module_id: requires for module_id, (requires, _) in relations.items()},
        {module_id: after for module_id, (_, after) in relations.items()},
    )


def circle_with(fleet: Fleet, module: Module, definition: Definition) -> tuple[str, ...] | None:
    """The circle of modules that this definition would close: each would wait for the next for ever."""
    fresh = replace(module, definition=definition, upgrade=None)
    circles = cycles(graph_of({**fleet.modules, module.id: fresh}.values()))
    return circles[0] if circles else None


class Change(NamedTuple):
    fleet: Fleet
    actions: tuple[Order | GiveUp, ...]
    touched: frozenset[str]


def apply(fleet: Fleet, event: FleetEvent, moment: Moment, fresh_run: FreshRun) -> Change:
    """The fleet after the event and after every rule that it set off."""
    turn = _Turn(fleet, moment, fresh_run)
    turn.take(event)
    turn.settle()
    return Change(Fleet(turn.modules, turn.graph), tuple(turn.actions), frozenset(turn.touched))


class _Turn:
    """One event on its way through the fleet; nobody sees what is half done."""

    def __init__(self, fleet: Fleet, moment: Moment, fresh_run: FreshRun) -> None:
        self.modules = dict(fleet.modules)
        self.graph = fleet.graph
        self.actions: list[Order | GiveUp] = []
        self.touched: set[str] = set()
        self._queue: list[str] = []
        self._moment = moment
        self._fresh_run = fresh_run

    def take(self, event: FleetEvent) -> None:
        match event:
            case Put(module_id, module):
                self._put(module_id, module)
            case Load(modules):
                self._load(modules)
            case Want(module_ids, started):
                self._want(module_ids, started)
            case Renewal(module_id, None, _, index):
                self._renew(self.modules[module_id], index)
            case Renewal(module_id, Definition() as definition, True) if self.modules[module_id].ready:
                self._begin_upgrade(self.modules[module_id], definition)
            case Roll(module_id, definition, former) if self.modules[module_id].ready:
                self._begin_upgrade(self.modules[module_id], definition, former)
            case Renewal(module_id, Definition() as definition) | Roll(module_id, definition):
                self._replace(self.modules[module_id], definition)
            case Scale(module_id, count):
                self._store(replace(self.modules[module_id], count=count))
            case News(module_id, key, news):
                self._move(module_id, key, news)

    def settle(self) -> None:
        """Each rule looks at one module and its neighbours; a change asks the neighbours again."""
        while self._queue:
            module_id = self._queue.pop()
            if module_id in self.modules and self.modules[module_id].definition is not None:
                self._judge_upgrade(module_id)
                self._fill(module_id)
                self._stop_in_order(module_id)
                self._admit(module_id)
                self._tidy(module_id)

    # Events

    def _put(self, module_id: str, module: Module | None) -> None:
        before = self.modules.pop(module_id, None)
        if module is not None:
            self.modules[module_id] = module
        self._relate(module_id, before, module)
        self._touch(module_id)

    def _load(self, modules: Iterable[Module]) -> None:
        self.modules |= {module.id: module for module in modules}
        self.graph = graph_of(self.modules.values())
        for module in modules:
            self._touch(module.id)

    def _want(self, module_ids: Iterable[str], started: bool) -> None:
        modules = [self.modules[module_id] for module_id in module_ids]
        for module in modules:
            self._store(replace(module, wanted=started, asked=True))
        for module in modules if started else ():
            for replica in module.current:
                self._move(module.id, replica.key, events.Start())

    def _renew(self, module: Module, index: int | None) -> None:
        self._store(replace(module, wanted=True, asked=True, upgrade=None, refused=None))
        for replica in self.modules[module.id].current:
            if index in (None, replica.index):
                self._move(module.id, replica.key, events.Renew())

    def _replace(self, module: Module, definition: Definition) -> None:
        """The new generation is in force at once; if it is to run, `_fill` stops the old and makes the new one."""
        fresh = with_definition(module, definition, next_generation(module))
        self._put(module.id, replace(fresh, since=self._moment.now, refused=None))

    def _begin_upgrade(
        self, module: Module, definition: Definition, former: Definition | None = None
    ) -> None:
        """Rolling if there is something former to go back to."""
        upgrade = Upgrade(definition, next_generation(module), rolling=former is not None)
        now = replace(module, definition=former or module.definition, upgrade=upgrade)
        self._store(replace(now, refused=None, faults=(), gone=False))

    # Rules

    def _judge_upgrade(self, module_id: str) -> None:
        """All successors are ready and healthy: they take over. One has failed: they go, and the old ones stay."""
        module = self.modules[module_id]
        if module.upgrade is None:
            return
        if not module.wanted:
            self._store(replace(module, upgrade=None))
            return
        upgrade = module.upgrade
        failed = upgrade.failed(module.replicas, module.count)
        if failed is not None:
            refusal = Refusal(failed, self._moment.now, upgrade.rolling)
            self._store(replace(module, upgrade=None, refused=refusal, pending=upgrade.definition))
        elif upgrade.is_complete(module.replicas, module.count):
            self._put(module_id, with_definition(module, upgrade.definition, upgrade.generation))

    def _fill(self, module_id: str) -> None:
        """Every wanted index has a replica of each generation in force; what is beyond is stopped."""
        module = self.modules[module_id]
        if not module.wanted:
            return
        wanted = module.wanted_keys
        for key in sorted(wanted - {replica.key for replica in module.replicas}):
            fresh = Replica(module_id, key[0], key[1], self._moment.now)
            self._store(with_replica(self.modules[module_id], fresh))
            self._move(module_id, key, events.Start())
        for replica in module.replicas:
            if replica.wanted is not (replica.key in wanted):
                event = events.Stop() if replica.wanted else events.Start()
                self._move(module_id, replica.key, event)

    def _stop_in_order(self, module_id: str) -> None:
        """Dependents that are to stop, too, go first; what has no process needs no turn."""
        module = self.modules[module_id]
        if module.wanted:
            return
        dependents = (*self.graph.required_by.get(module_id, ()), *self.graph.before.get(module_id, ()))
        others = (self.modules[one] for one in dependents if one in self.modules)
        too_early = any(other.is_active and not other.wanted for other in others)
        for replica in module.replicas:
            if replica.wanted and (replica.run is None or not too_early):
                self._move(module_id, replica.key, events.Stop())

    def _admit(self, module_id: str) -> None:
        """A waiting replica starts when nothing stands in its way."""
        for replica in self.modules[module_id].replicas:
            if not isinstance(replica.state, Waiting):
                continue
            held = self._obstacle(self.modules[module_id], replica)
            if held is None:
                run = self._fresh_run(module_id, replica.index, replica.generation)
                self._move(module_id, replica.key, events.Admit(run))
            elif (replica.state.obstacle, replica.state.lasting) != (held.obstacle, held.lasting):
                self._move(module_id, replica.key, held)

    def _tidy(self, module_id: str) -> None:
        """Forgotten is what ended and is beyond the wanted number or generation, or has no folder any more."""
        module = self.modules[module_id]
        if module.gone and not module.wanted and not module.is_active:
            self._put(module_id, None)
            return
        in_force = (*module.current, *module.successors)
        kept = tuple(replica for replica in module.replicas if replica.run is not None or replica in in_force)
        if len(kept) != len(module.replicas):
            self._store(replace(module, replicas=kept))

    def _obstacle(self, module: Module, replica: Replica) -> events.Hold | None:
        beside = module.upgrade is not None and replica.generation == module.upgrade.generation
        # A later generation than the one in force comes of an upgrade that was called off: beside is meant.
        former = (
            r for r in module.replicas if r.index == replica.index and r.generation < replica.generation
        )
        if not beside and any(other.run is not None for other in former):
            return events.Hold("waits for the former generation to end", False)
        manifest = module.definition_of(replica).manifest
        for required in manifest.requires:
            if (held := _requirement(required, self.modules.get(required))) is not None:
                return held
        for earlier in manifest.after:
            other = self.modules.get(earlier)
            if other is not None and other.wanted and _is_on_its_way(other):
                return events.Hold(f"waits for {earlier} to be started", False)
        return None

    # Changes

    def _move(self, module_id: str, key: tuple[int, int], event: events.Event) -> None:
        module = self.modules[module_id]
        before = next((replica for replica in module.replicas if replica.key == key), None)
        if before is None or module.definition is None:
            return
        manifest = module.definition_of(before).manifest
        is_successor = module.upgrade is not None and before.generation == module.upgrade.generation
        policy = policy_of(manifest, on_probation=is_successor)
        after, actions = lifecycle.step(before, event, policy, self._moment)
        self.actions.extend(Order(after, action) for action in actions)
        if after is not before:
            self._store(with_replica(module, after))
        gave_up = isinstance(after.state, Failed) and not isinstance(before.state, Failed)
        if gave_up and after in self.modules[module_id].current:
            self.actions.append(GiveUp(module_id))

    def _store(self, module: Module) -> None:
        before = self.modules[module.id]
        if module.state is not before.state:
            module = replace(module, since=self._moment.now)
        self.modules[module.id] = module
        self._relate(module.id, before, module)
        self._touch(module.id)

    def _relate(self, module_id: str, before: Module | None, after: Module | None) -> None:
        if before and after and before.relations == after.relations:
            return
        self._queue.extend(self.graph.neighbours(module_id))  # who was one may no longer have to wait
        self.graph = graph_of(self.modules.values())

    def _touch(self, module_id: str) -> None:
        self.touched.add(module_id)
        self._queue.append(module_id)
        self._queue.extend(self.graph.neighbours(module_id))


def _is_on_its_way(module: Module) -> bool:
    """Starting for the first time: a module that has failed or backs off holds up nobody who only follows it."""
    return module.state is ModuleState.STARTING and not any(r.history.last_exit for r in module.current)


def _requirement(required: str, module: Module | None) -> events.Hold | None:
    if module is None:
        return events.Hold(f"requires {required}, which is not there", True)
    if module.state is ModuleState.STARTED:
        return None
    if module.state is ModuleState.INVALID:
        return events.Hold(f"requires {required}, whose manifest has faults", True)
    if module.state is ModuleState.FAILED:
        return events.Hold(f"requires {required}, which has failed: {module.reason}", True)
    if not module.wanted:
        return events.Hold(f"requires {required}, which is {module.state}", True)
    if module.count == 0:
        return events.Hold(f"requires {required}, which is {SCALED_TO_NONE}", True)
    if module.state is ModuleState.STOPPED:
        return events.Hold(f"requires {required}, which {module.reason}", True)
    return events.Hold(f"waits for {required}, which is {module.state}", False)
