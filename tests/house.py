"""Operations over a fleet whose adapters are fakes, and what a command answers while things happen. Nobody sleeps."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from nexusd.domain import events
from nexusd.domain.errors import (
    NexusError,
    NotPossible,
)
from nexusd.domain.events import News, Put, Want
from nexusd.domain.manifest import Definition, Fault
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Exit
from nexusd.operations import Operations
from nexusd.reach import Patience
from nexusd.supervisor import Supervisor
from tests.fakes import (
    CRASH,
    FakeClock,
    FakeConfigs,
    FakeControl,
    FakeCopies,
    FakeLogs,
    FakeProcesses,
    FakeStore,
    module,
)

BUS, ECHO, GREETER = "substrate/bus", "mesh/echo", "mesh/greeter"
PATIENT, IMPATIENT, AT_ONCE = Patience(), Patience(timeout_s=0.01), Patience(wait=False)
FULL = NotPossible("the disk is full")
KEYS = {
    "rate": {"type": "int", "default": 10, "min": 1, "max": 100, "apply": "live"},
    "token": {"type": "str", "default": "none", "apply": "live", "secret": True},
    "peers": {"type": "list", "default": [], "apply": "restart"},
    "mode": {"type": "str", "default": "slow", "apply": "reload"},
}


class House:
    """bus ← echo, greeter. What a command waits for is brought about by `meanwhile`, once it waits."""

    def __init__(self) -> None:
        self.clock, self.processes = FakeClock(), FakeProcesses()
        self.store, self.control, self.logs, self.configs = (
            FakeStore(),
            FakeControl(),
            FakeLogs(),
            FakeConfigs(),
        )
        self.copies = FakeCopies()
        self.on_disk: dict[str, Definition | None] = {}
        self.signalled: list[tuple[str, int]] = []
        self.told: list[tuple[str, str, str | None]] = []
        self.supervisor = Supervisor(self.processes, self.clock, lambda _module_id: None)
        self.operations = Operations(
            self.supervisor,
            self.store,
            self.control,
            self.logs,
            self.configs,
            self.reread,
            lambda run, number: self.signalled.append((run.partition("@")[0], number)),
            lambda kind, module_id, reason=None: self.told.append((kind, module_id, reason)),
            self.copies,
        )
        self.put(BUS)
        self.put(ECHO, requires=[BUS], config=KEYS)
        self.put(GREETER, requires=[BUS])

    async def reread(self, one: Module) -> Definition | None:
        return self.on_disk.get(one.id, one.definition)

    def put(self, module_id: str, **manifest: Any) -> None:
        self.supervisor.handle(Put(module_id, module(module_id, **manifest)))

    def put_invalid(self, module_id: str) -> None:
        fault = Fault("module.toml", "run", "exactly one of python and exec", "neither")
        self.supervisor.handle(Put(module_id, replace(module(module_id), definition=None, faults=(fault,))))

    def module(self, module_id: str) -> Module:
        return self.supervisor.fleet.modules[module_id]

    def state(self, module_id: str) -> ModuleState:
        return self.module(module_id).state

    def tell(
        self, module_id: str, kind: Any, *more: Any, index: int = 0, generation: int | None = None
    ) -> None:
        key = (index, generation or self.module(module_id).generation)
        run = next(one.run for one in self.module(module_id).replicas if one.key == key)
        self.supervisor.handle(News(module_id, key, kind(run, *more)))

    def ready(self, *module_ids: str) -> None:
        for module_id in module_ids:
            self.tell(module_id, events.Ready)

    def exits(self, module_id: str, exit: Exit = CRASH, **which: int) -> None:
        self.tell(module_id, events.Exited, exit, **which)

    def is_running(self, *module_ids: str) -> None:
        """Started by hand before the story begins."""
        self.supervisor.handle(Want(module_ids, True))
        self.ready(*module_ids)
        self.processes.log.clear()

    def is_stuck(self, module_id: str) -> None:
        self.is_running(module_id)
        self.supervisor.handle(Want((module_id,), False))
        self.clock.advance(20, self.supervisor)


def outcome(command: Awaitable[dict[str, Any]], *meanwhile: Callable[[], None]) -> dict[str, Any]:
    """The command's answer, when each of these happens while it waits."""

    async def story() -> dict[str, Any]:
        task = asyncio.ensure_future(command)
        for happen in meanwhile:
            for _ in range(5):
                await asyncio.sleep(0)  # not a pause: lets the command reach the point where it waits
            assert not task.done(), f"did not wait: {task}"
            happen()
        return await asyncio.wait_for(task, 10)

    return asyncio.run(story())


def refusal(
    kind: type[NexusError], command: Awaitable[dict[str, Any]], *meanwhile: Callable[[], None]
) -> Any:
    with pytest.raises(kind) as raised:
        outcome(command, *meanwhile)
    return raised.value
