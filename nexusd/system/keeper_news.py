"""What the keeper says, as events of the fleet; and what it remembers, as modules to go on with.

Until `begin` its table is only collected: modules are restored from it first, then the news follow.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from signal import SIGTERM
from typing import Any

import msgspec

from nexusd.domain import events, runs, settings
from nexusd.domain.events import FleetEvent, News
from nexusd.domain.fleet import Fleet
from nexusd.domain.manifest import DEFINITIONS, Definition
from nexusd.domain.module import Module
from nexusd.domain.policy import policy_of
from nexusd.domain.replica import Exit, Replica, Stopping, Stuck
from nexusd.ports import Processes
from nexusd.system.exits import exit_of
from nexusd.system.notes import DEFINITION_NOTE, Note

log = logging.getLogger("nexusd.keeper")

Message = dict[str, Any]
STRANGER_STOP_S = 10.0
LONGEST_STATUS = 300


@dataclass(frozen=True, slots=True)
class Former:
    """What a former nexusd left of a module."""

    definition: Definition  # that was in force
    generation: int
    since: float
    replicas: tuple[Replica, ...]


class KeeperNews:
    def __init__(
        self,
        processes: Processes,
        handle: Callable[[FleetEvent], None],
        fleet: Callable[[], Fleet],
        tell: Callable[..., None],
    ) -> None:
        self._processes = processes
        self._handle = handle
        self._fleet = fleet
        self._tell = tell
        self._table: dict[str, Message] = {}
        self._notes: dict[str, Note] = {}
        self._definitions: dict[str, Definition] = {}
        self._early: list[Message] = []
        self._begun = False
        self.welcomed = asyncio.Event()

    def hear(self, message: Message) -> None:
        match message["say"]:
            case "run":
                self._table[message["run"]] = message
            case "note":
                self._take_note(message["name"], message["text"])
            case "held":
                pass
            case "welcome":
                self._welcome(message)
            case "lost":
                self._table.clear()
                self._tell("keeper.lost", reason=message["why"])
            case _ if not self._begun:
                self._early.append(message)
            case _:
                self._news(message)

    def begin(self) -> None:
        """The fleet holds what `restored` told; from now on news go straight to it."""
        self._begun = True
        self._reconcile()
        for message in self._early:
            self._news(message)
        self._early.clear()
        self._tell_of_broken_reloads()
        self._notes.clear()  # a module that comes back later begins anew
        self._definitions.clear()

    def _tell_of_broken_reloads(self) -> None:
        """A reload ends with the nexusd that carried it out: what had taken over by then goes back."""
        for module_id, note in self._notes.items():
            if any(one.wanted and one.generation > note.generation for one in note.replicas):
                reason = f"nexusd ended in the middle of it; generation {note.generation} stays in force"
                self._tell("module.reload_refused", module_id, reason=reason)

    def restored(self, module_id: str) -> Former | None:
        """What a former nexusd left of the module; None once `begin` was called."""
        note, definition = self._notes.get(module_id), self._definitions.get(module_id)
        if note is None or definition is None:
            return None
        return Former(definition, note.generation, note.since, note.replicas)

    def forgotten(self, known: set[str]) -> list[str]:
        """Modules that were remembered and are on disk no more."""
        return [module_id for module_id in self._notes if module_id not in known]

    def _take_note(self, name: str, text: str) -> None:
        try:
            noted = read_note(name, text)
        except ValueError as error:  # of another version: its processes are strangers then
            log.warning("what was remembered of %s can't be read: %s", name, error)
            return
        if isinstance(noted, Note):
            self._notes[name] = noted
        else:
            self._definitions[noted.id] = noted

    def _welcome(self, message: Message) -> None:
        self.welcomed.set()
        if self._begun:
            self._reconcile()
            self._tell("keeper.connected", reason=f"pid {message['pid']}")

    # The table

    def _reconcile(self) -> None:
        """Hold what the fleet believes against what the keeper has, run by run."""
        rows, self._table = self._table, {}
        for module in tuple(self._fleet().modules.values()):
            for replica in module.replicas:
                if replica.run is not None:
                    row = rows.pop(replica.run, None)
                    row = row and self._without_secrets(row, module.id)
                    for event in _facts(replica, row):
                        self._handle(News(module.id, replica.key, event))
                    if row is None:
                        self._processes.forget(replica.run)
                    self._ask_again(module, replica)
        for run, row in rows.items():
            self._dismiss(run, row)

    def _ask_again(self, module: Module, replica: Replica) -> None:
        """The wish to end it may have been lost with the former keeper."""
        match replica.state:
            case Stopping(run=run, killed=True) | Stuck(run=run):
                self._processes.kill(run)
            case Stopping(run=run):
                policy = policy_of(module.definition_of(replica).manifest)
                self._processes.terminate(run, policy.stop_signal)

    def _dismiss(self, run: str, row: Message) -> None:
        """A run that no module claims: its module is gone, or it is wanted no more."""
        if row["ended"] is not None:
            self._processes.forget(run)
            return
        log.warning("%s is claimed by no module: stopped", run)
        self._processes.terminate(run, SIGTERM)
        asyncio.get_running_loop().call_later(STRANGER_STOP_S, self._processes.kill, run)

    # News

    def _news(self, message: Message) -> None:
        place = self._place(message["run"])
        if place is None:
            if message["say"] in ("exited", "refused"):
                self._processes.forget(message["run"])
            return
        for event in _events(self._without_secrets(message, place[0])):
            self._handle(News(*place, event))

    def _without_secrets(self, message: Message, module_id: str) -> Message:
        """What a module says of itself goes into status, events and errors."""
        said = message.get("notices", {}).get("STATUS")
        module = self._fleet().modules[module_id]
        if said is None or module.definition is None:
            return message
        masked = settings.without_secrets(module.definition.manifest, module.configured, said)
        return {**message, "notices": {**message["notices"], "STATUS": masked}}

    def _place(self, run: str) -> tuple[str, tuple[int, int]] | None:
        key = runs.parse(run)
        module = self._fleet().modules.get(key.module_id)
        if module is None or not any(replica.run == run for replica in module.replicas):
            return None
        return key.module_id, (key.index, key.generation)


def read_note(name: str, text: str) -> Note | Definition:
    """What the keeper remembers under this name. Raises ValueError where another version wrote it."""
    if name.startswith(DEFINITION_NOTE):
        return DEFINITIONS.decode(text)
    return msgspec.json.decode(text, type=Note)


def _events(message: Message) -> Iterator[events.Event]:
    run = message["run"]
    match message["say"]:
        case "spawned":
            yield events.Spawned(run, message["entry"]["pid"], message["running"])
        case "running":
            yield events.Running(run)
        case "notify":
            yield from _notified(run, message["notices"])
        case "exited":
            yield events.Exited(run, exit_of(message["status"], message["refusal"]))
        case "refused":
            yield events.Exited(run, exit_of(None, message["refusal"]))


def _notified(run: str, notices: dict[str, str]) -> Iterator[events.Event]:
    """sd_notify(3): the variables that concern a replica's life."""
    if "STATUS" in notices:
        yield events.Said(run, _line(notices["STATUS"]))
    if notices.get("READY") == "1":
        yield events.Ready(run)
    if notices.get("WATCHDOG") == "1":
        yield events.Pinged(run)


def _line(text: str) -> str:
    """Bounded: it is part of what the keeper is to remember of the module, which has to fit into a packet."""
    return text if len(text) <= LONGEST_STATUS else f"{text[: LONGEST_STATUS - 1]}…"


def _facts(replica: Replica, row: Message | None) -> Iterator[events.Event]:
    """What must have happened to a run, seen from its row in the table."""
    run = replica.run
    assert run is not None
    if row is None:
        yield events.NeverSpawned(run) if replica.pid is None else events.Exited(run, Exit())
        return
    yield events.Spawned(run, row["entry"]["pid"], row["running"])
    yield from _notified(run, row["notices"])
    if row["ended"] is not None:
        yield events.Exited(run, exit_of(row["ended"]["status"], row["refusal"]))
