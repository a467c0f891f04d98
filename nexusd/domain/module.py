"""One module: what is wanted of it, its replicas of every generation, and the state that they add up to.

What its neighbours have to say in it is `fleet`'s.
"""

from enum import StrEnum
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from nexusd.domain.manifest import Definition, Fault
from nexusd.domain.replica import (
    Backoff,
    Failed,
    Replica,
    Started,
    Starting,
    Stopped,
    Stopping,
    Stuck,
    Waiting,
)
from nexusd.domain.upgrades import Refusal, Upgrade, reason_of

SCALED_TO_NONE = "scaled to 0 replicas"


class ModuleState(StrEnum):
    LOADED = "loaded"
    STARTING = "starting"
    STARTED = "started"
    STOPPING = "stopping"
    STOPPED = "stopped"
    BACKOFF = "backoff"
    FAILED = "failed"
    INVALID = "invalid"


class Module(Struct, frozen=True):
    """A folder with a manifest, what is wanted of it, and its replicas of every generation that still runs."""

    id: str
    folder: str
    definition: Definition | None  # in force; None for a manifest that never was valid
    since: float
    wanted: bool = False
    asked: bool = False  # whether anybody, autostart included, ever wanted it to run or to stop
    count: int = 1
    generation: int = 1
    replicas: tuple[Replica, ...] = ()
    configured: dict[str, Any] = {}
    pending: Definition | None = None  # on disk, in force after the next reload
    upgrade: Upgrade | None = None  # under way
    refused: Refusal | None = None  # how the last upgrade ended, if badly
    faults: tuple[Fault, ...] = ()
    gone: bool = False  # its folder is no longer there

    @property
    def current(self) -> tuple[Replica, ...]:
        """The replicas that count: of the generation that each index has by now, within the wanted number."""
        old, count = self.generation, self.count
        if self.upgrade is None:  # nearly always, and asked several times an event
            return tuple([one for one in self.replicas if one.index < count and one.generation == old])
        at, new = self.replaced, self.upgrade.generation
        return tuple(
            one
            for one in self.replicas
            if one.index < count and one.generation == (new if one.index < at else old)
        )

    @property
    def replaced(self) -> int:
        """How many indices, from 0 up, a rolling upgrade has gone past."""
        return self.upgrade.replaced(self.replicas, self.count) if self.upgrade else 0

    @property
    def ready(self) -> int:
        return sum(isinstance(replica.state, Started) for replica in self.current)

    @property
    def successors(self) -> tuple[Replica, ...]:
        """The replicas of the upgrade that is under way."""
        return self.upgrade.successors(self.replicas, self.count) if self.upgrade else ()

    @property
    def wanted_keys(self) -> set[tuple[int, int]]:
        """Index and generation of each replica that is to run."""
        if self.upgrade is not None:
            return self.upgrade.wanted(self.generation, self.replicas, self.count)
        return {(index, self.generation) for index in range(self.count)}

    @property
    def relations(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Whom it requires and whom it follows; during an upgrade, in either generation."""
        if self.definition is None:
            return (), ()
        now = self.definition.manifest
        if self.upgrade is None:
            return now.requires, now.after
        soon = self.upgrade.definition.manifest
        return (
            tuple(dict.fromkeys((*now.requires, *soon.requires))),
            tuple(dict.fromkeys((*now.after, *soon.after))),
        )

    def definition_of(self, replica: Replica) -> Definition:
        """What the replica is an instance of, as far as it is still known."""
        if self.upgrade is not None and replica.generation == self.upgrade.generation:
            return self.upgrade.definition
        assert self.definition is not None  # an invalid module has no replicas
        return self.definition

    @property
    def is_active(self) -> bool:
        """Whether any process of it runs."""
        return any(replica.run is not None for replica in self.replicas)

    @property
    def state(self) -> ModuleState:
        if self.definition is None:
            return ModuleState.INVALID
        return self._state_when_wanted() if self.wanted else self._state_when_unwanted()

    def _state_when_wanted(self) -> ModuleState:
        current = self.current
        if len(current) == self.count == 1:
            return _kind(current[0])
        if self.count == 0:
            return ModuleState.STOPPING if self.is_active else ModuleState.STOPPED
        kinds = {_kind(replica) for replica in current}
        if len(current) < self.count:
            kinds.add(ModuleState.STARTING)
        return next(kind for kind in _WORST_FIRST if kind in kinds)

    def _state_when_unwanted(self) -> ModuleState:
        if self.is_active:
            return ModuleState.STOPPING
        return ModuleState.STOPPED if self.asked else ModuleState.LOADED

    @property
    def reason(self) -> str | None:
        """Why it is not simply running, as its replicas or its folder tell it."""
        if self.definition is None:
            return f"{len(self.faults)} fault{'s' * (len(self.faults) != 1)} in its manifest"
        if self.wanted and self.count == 0:
            return SCALED_TO_NONE
        told = (reason_of(replica) for replica in self.current)
        return next((reason for reason in told if reason), None) or self._reason_on_disk()

    def _reason_on_disk(self) -> str | None:
        if self.gone:
            return "its folder is gone; what runs goes on until it is stopped"
        return "its manifest on disk has faults; the last good one is in force" if self.faults else None


_WORST_FIRST = (
    ModuleState.FAILED,
    ModuleState.BACKOFF,
    ModuleState.STOPPING,
    ModuleState.STARTING,
    ModuleState.STOPPED,
    ModuleState.STARTED,
)


# Of each replica, in every state of every module, several times an event: a table rather than a `match`.
_KINDS = {
    Stopped: ModuleState.STOPPED,
    Starting: ModuleState.STARTING,
    Started: ModuleState.STARTED,
    Stopping: ModuleState.STOPPING,
    Stuck: ModuleState.FAILED,
    Backoff: ModuleState.BACKOFF,
    Failed: ModuleState.FAILED,
}


def _kind(replica: Replica) -> ModuleState:
    state = replica.state
    if isinstance(state, Waiting):
        return ModuleState.FAILED if state.lasting else ModuleState.STARTING
    return _KINDS[type(state)]


def with_definition(module: Module, definition: Definition, generation: int) -> Module:
    """The module with a definition that was read from its folder just now: what was wrong there is past."""
    fresh = replace(module, definition=definition, generation=generation, faults=(), gone=False)
    return replace(fresh, count=count_with(module, definition), pending=None, upgrade=None)


def count_with(module: Module, definition: Definition) -> int:
    """How many replicas the module has under this definition: as many as it says, unless it was scaled."""
    was_scaled = module.definition is not None and module.count != module.definition.manifest.replicas
    return min(module.count, definition.manifest.max_replicas) if was_scaled else definition.manifest.replicas


def next_generation(module: Module) -> int:
    """Never one that a replica still has, such as that of an upgrade which was called off."""
    return 1 + max([module.generation, *(replica.generation for replica in module.replicas)])


def with_replica(module: Module, replica: Replica) -> Module:
    """The module with this replica in place of the one with its key, or as a new one."""
    others = tuple(other for other in module.replicas if other.key != replica.key)
    return replace(module, replicas=tuple(sorted((*others, replica), key=lambda one: one.key)))
