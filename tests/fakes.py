"""Fakes of the ports, modules to try the rules on, and a fleet whose time and processes obey the test.

Nothing here decides anything: time stands still until it is advanced, a process does what a test says it does.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from signal import Signals
from typing import Any

from msgspec.structs import replace

from nexusd.domain import events
from nexusd.domain import fleet as rules
from nexusd.domain.errors import NexusError
from nexusd.domain.events import FleetEvent, GiveUp, News, Order, Put, Want
from nexusd.domain.fleet import Fleet
from nexusd.domain.lifecycle import Moment
from nexusd.domain.manifest import Definition, parse_manifest
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Exit, Replica
from nexusd.supervisor import Supervisor

CLEAN = Exit(code=0)
CRASH = Exit(code=1)


def definition(module_id: str = "vitals/one", digest: str = "as it was", **raw: Any) -> Definition:
    """What a module.toml with these keys says. Its replicas are ready when they say READY=1."""
    raw = {"run": {"exec": ["./run"], "ready": "notify"}, **raw}
    manifest = parse_manifest(raw, module_id=module_id, file="module.toml")
    return Definition(module_id, f"/modules/{module_id}", manifest, digest)


def module(module_id: str = "vitals/one", now: float = 0.0, **raw: Any) -> Module:
    found = definition(module_id, **raw)
    return Module(module_id, found.folder, found, now, count=found.manifest.replicas)


def told(action: Order | GiveUp) -> str:
    """An action as a line of a log."""
    if isinstance(action, GiveUp):
        return f"give up {action.module_id}"
    name = action.replica.name
    match action.action:
        case events.Terminate(_, number):
            return f"{Signals(number).name} {name}"
        case other:
            return f"{type(other).__name__.lower()} {name}"


class Rehearsal:
    """A fleet without a supervisor. Each call returns what was to be done, as lines of a log."""

    def __init__(self, *modules: Module) -> None:
        self.fleet = Fleet()
        self.now = 0.0
        self.runs = 0
        for one in modules:
            self.apply(Put(one.id, one))

    def apply(self, event: FleetEvent) -> list[str]:
        return [told(action) for action in self.change(event)]

    def change(self, event: FleetEvent) -> tuple[Order | GiveUp, ...]:
        change = rules.apply(self.fleet, event, Moment(self.now), self._fresh_run)
        self.fleet = change.fleet
        return change.actions

    def _fresh_run(self, module_id: str, index: int, generation: int) -> str:
        self.runs += 1
        return f"{module_id}#{index}@{generation}~{self.runs}"

    def want(self, *module_ids: str) -> list[str]:
        return self.apply(Want(module_ids, True))

    def unwant(self, *module_ids: str) -> list[str]:
        return self.apply(Want(module_ids, False))

    def put(self, one: Module) -> list[str]:
        return self.apply(Put(one.id, one))

    def module(self, module_id: str) -> Module:
        return self.fleet.modules[module_id]

    def state(self, module_id: str) -> ModuleState:
        return self.module(module_id).state

    def reason(self, module_id: str) -> str | None:
        return self.module(module_id).reason

    def replica(self, module_id: str, index: int = 0, generation: int | None = None) -> Replica:
        key = (index, self.module(module_id).generation if generation is None else generation)
        return next(one for one in self.module(module_id).replicas if one.key == key)

    def ready(self, *module_ids: str, index: int = 0, generation: int | None = None) -> list[str]:
        lines = []
        for module_id in module_ids:
            lines += self.news(module_id, events.Ready, index=index, generation=generation)
        return lines

    def exits(
        self, module_id: str, exit: Exit = CRASH, index: int = 0, generation: int | None = None
    ) -> list[str]:
        return self.news(module_id, events.Exited, exit, index=index, generation=generation)

    def news(
        self, module_id: str, kind: Any, *more: Any, index: int = 0, generation: int | None = None
    ) -> list[str]:
        """Something that the present run of a replica did."""
        replica = self.replica(module_id, index, generation)
        assert replica.run is not None, f"{replica.name} is {replica.state_name}"
        return self.apply(News(module_id, replica.key, kind(replica.run, *more)))

    def pass_time(self, seconds: float) -> list[str]:
        """As the supervisor does it: each deadline at its time, the earliest first."""
        lines = []
        end = self.now + seconds
        while due := [replica for replica in self.replicas() if (replica.deadline or end + 1) <= end]:
            first = min(due, key=lambda replica: replica.deadline or 0.0)
            self.now = max(self.now, first.deadline or 0.0)
            lines += self.apply(News(first.module_id, first.key, events.Expired()))
        self.now = end
        return lines

    def replicas(self) -> list[Replica]:
        return [replica for one in self.fleet.modules.values() for replica in one.replicas]


class FakeClock:
    """Implements `ports.Clock`. `supervisor` is told of its deadlines by `advance`, as by a real alarm."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.alarm: float | None = None

    def now(self) -> float:
        return self.time

    def wake_at(self, deadline: float | None) -> None:
        self.alarm = deadline

    def advance(self, seconds: float, supervisor: Supervisor) -> None:
        end = self.time + seconds
        while self.alarm is not None and self.alarm <= end:
            self.time = max(self.time, self.alarm)
            supervisor.expire_deadlines()
        self.time = end


class FakeProcesses:
    """Implements `ports.Processes`. `log` is what it was asked for; `unable` are ids that cannot be spawned."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.unable: dict[str, Exception] = {}
        self.remembered: dict[str, Module | None] = {}
        self.spawned_as: dict[str, Definition] = {}

    def spawn(self, run: str, replica: Replica, module: Module) -> None:
        if replica.module_id in self.unable:
            raise self.unable[replica.module_id]
        # A wish is remembered before it is carried out: only so can a later nexusd claim the process.
        remembered = self.remembered[replica.module_id]
        assert remembered is not None and run in {one.run for one in remembered.replicas}
        self.spawned_as[run] = module.definition_of(replica)
        self.log.append(f"spawn {replica.name}")

    def terminate(self, run: str, signal: int) -> None:
        self.log.append(f"{Signals(signal).name} {run.partition('@')[0]}")

    def kill(self, run: str) -> None:
        self.log.append(f"kill {run.partition('@')[0]}")

    def forget(self, run: str) -> None:
        self.log.append(f"forget {run.partition('@')[0]}")

    def remember(self, module_id: str, module: Module | None) -> None:
        self.remembered[module_id] = module


class FakeStore:
    """Implements `ports.Store`. `full` is what a disk says that takes no more."""

    def __init__(self) -> None:
        self.wanted: dict[str, bool] = {}
        self.values: dict[tuple[str, str], Any] = {}
        self.counts: dict[str, int] = {}
        self.full: NexusError | None = None

    async def save_wanted(self, wanted: Mapping[str, bool]) -> None:
        self._refuse_when_full()
        self.wanted |= wanted

    async def save_count(self, module_id: str, count: int) -> None:
        self._refuse_when_full()
        self.counts[module_id] = count

    async def save_value(self, module_id: str, key: str, value: Any) -> None:
        self._refuse_when_full()
        self.values[module_id, key] = value

    async def forget_value(self, module_id: str, key: str) -> None:
        self._refuse_when_full()
        self.values.pop((module_id, key), None)

    def _refuse_when_full(self) -> None:
        if self.full is not None:
            raise self.full


class FakeControl:
    """Implements `ports.Control`. `asked` is what modules were told; `refusals` is which of them object, and how."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []  # replica, key, value
        self.refusals: dict[tuple[str, Any], NexusError] = {}  # of a replica, for a value
        self.states: Callable[[str], Awaitable[Any]] | None = None  # what a replica exports

    async def ask(self, run: str, method: str, params: Mapping[str, Any], timeout_s: float) -> Any:
        if method == "export_state" and self.states is not None:
            return await self.states(run.partition("@")[0])
        assert method == "configure"
        replica = run.partition("@")[0]
        self.asked.append((replica, params["key"], params["value"]))
        if (refusal := self.refusals.get((replica, params["value"]))) is not None:
            raise refusal
        return {"applied": True}


class FakeLogs:
    """Implements `ports.Logs`."""

    def __init__(self) -> None:
        self.lines: dict[str, list[str]] = {}

    def path(self, replica_name: str) -> str:
        return f"/log/{replica_name}.log"

    def tail(self, replica_name: str, lines: int) -> list[str]:
        return self.lines.get(replica_name, [])[-lines:]


class FakeConfigs:
    """Implements `ports.Configs`. `files` has what the processes of a generation would read."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, Any]] = {}
        self.tidied: list[str] = []
        self.handed_over: dict[str, dict[int, Any]] = {}

    def write(self, module: Module, definition: Definition, generation: int) -> str:
        path = self.path(definition, generation)
        self.files[path] = dict(module.configured)
        return path

    def path(self, definition: Definition, generation: int) -> str:
        return f"{definition.id}.{generation}"

    def hand_over(self, module: Module, states: Mapping[int, Any]) -> None:
        self.handed_over[module.id] = dict(states)

    def former_state(self, replica: Replica) -> str | None:
        return None

    def tidy(self, modules: Iterable[Module]) -> None:
        self.tidied.extend(module.id for module in modules)


class FakeCopies:
    """Implements `ports.Copies`. `lost` are ids of which there is no copy."""

    def __init__(self) -> None:
        self.lost: set[str] = set()

    def keep(self, definition: Definition) -> None: ...

    async def settled(self) -> None: ...

    def kept(self, definition: Definition) -> Definition | None:
        return None if definition.id in self.lost else replace(definition, folder=f"/copies/{definition.id}")

    def tidy(self, modules: Iterable[Module]) -> None: ...
