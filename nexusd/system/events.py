"""Turns changes of the fleet into events, keeps the last ones, and tells subscribers and the store.

An observer of the supervisor: it decides nothing about modules.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

import msgspec

from nexusd.domain.errors import NexusError
from nexusd.domain.fleet import Fleet
from nexusd.domain.health import health_of
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica, Stopping

KEPT = 2000
SAVE_S = 0.25  # history may lose this much when nexusd is killed; what is wanted may not, and is stored apart
Event = dict[str, Any]
Subscriber = Callable[[Event], None]
Save = Callable[[Iterable[tuple[int, str]]], Awaitable[None]]

log = logging.getLogger("nexusd.events")
_BLANK = dict.fromkeys(("kind", "module_id", "replica", "from", "to", "reason"))


class EventLog:
    def __init__(self, save: Save, former: list[Event]) -> None:
        self._save = save
        self._kept: deque[Event] = deque(former, maxlen=KEPT)
        self._seq = former[-1]["seq"] if former else 0
        self._subscribers: set[Subscriber] = set()
        self._unsaved: list[Event] = []
        self._saving: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self._is_losing = False  # whether the store refused the last ones

    def observe(self, before: Fleet, after: Fleet, touched: frozenset[str]) -> None:
        for module_id in sorted(touched):
            former, module = before.modules.get(module_id), after.modules.get(module_id)
            events = list(_changes(former, module))
            # The line with a module's new state says all; for one with one replica, what the replica's would, too.
            is_one = module is not None and module.count == 1
            has_moved = any(event["kind"] == "module.state" for event in events)
            said = {"module.health", "replica.state"} if is_one else {"module.health"}
            for event in events:
                self._add(event, is_minor=has_moved and event["kind"] in said)

    def add(self, kind: str, module_id: str | None = None, **more: Any) -> None:
        """One event. The log line is for people, the event for programs."""
        self._add({"kind": kind, "module_id": module_id, **more}, is_minor=False)

    def _add(self, said: Event, is_minor: bool) -> None:
        """A minor one says what another of the same moment says, too: people need not read it."""
        self._seq += 1
        event = {"seq": self._seq, "time": time.time(), **_BLANK, **said, "minor": is_minor}
        self._kept.append(event)
        if not is_minor:
            _log(event)
        for subscriber in tuple(self._subscribers):
            try:
                subscriber(event)
            except Exception:  # the border: whoever looks on does not stop what happens
                log.exception("a subscriber of events failed, and hears no more of them")
                self._subscribers.discard(subscriber)
        self._unsaved.append(event)
        if self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save_soon())

    def last(self, most: int, module_id: str | None = None) -> list[Event]:
        chosen = [event for event in self._kept if module_id is None or event["module_id"] == module_id]
        return chosen[-most:] if most else []

    def since(self, seq: int, module_id: str | None = None) -> list[Event]:
        return [event for event in self.last(KEPT, module_id) if event["seq"] > seq]

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Returns the way out."""
        self._subscribers.add(subscriber)
        return lambda: self._subscribers.discard(subscriber)

    async def flush(self) -> None:
        """Have all that happened stored before this returns."""
        self._leaving.set()
        while self._saving is not None:
            await asyncio.wait([self._saving])

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(SAVE_S):
                await self._leaving.wait()
        except TimeoutError:
            pass

    async def _save_soon(self) -> None:
        """Whatever comes together in a while, or while the disk was busy, goes in one transaction."""
        try:
            while self._unsaved:
                await self._pause()
                batch, self._unsaved = self._unsaved, []
                await self._save((event["seq"], msgspec.json.encode(event).decode()) for event in batch)
                self._is_losing = False
        except NexusError as error:
            if not self._is_losing:  # once: on a disk that is full, so is the one of the log most likely
                log.error("events are kept in memory only: %s", error)
            self._is_losing = True
        finally:
            self._saving = None


def _changes(before: Module | None, after: Module | None) -> Iterator[Event]:
    if after is None or before is None:
        if (module := after or before) is not None:
            kind = "module.loaded" if after else "module.dropped"
            yield {"kind": kind, "module_id": module.id, "to": str(module.state)}
        return
    former = {replica.key: replica for replica in before.replicas}
    for replica in after.replicas:
        yield from _replica_changes(former.get(replica.key), replica)
    if after.refused is not None and after.refused is not before.refused:
        yield {"kind": "module.reload_refused", "module_id": after.id, "reason": after.refused.reason}
    has_moved = (former_state := before.state) is not (state := after.state)
    if has_moved:
        yield {
            "kind": "module.state",
            "module_id": after.id,
            "from": str(former_state),
            "to": str(state),
            "reason": after.reason,
        }
    if has_moved or not _is_as_well(before, after):
        yield from _health_changes(before, after)


def _health_changes(before: Module, after: Module) -> Iterator[Event]:
    (former, _), (health, reasons) = health_of(before), health_of(after)
    if health is not former:
        reason = "; ".join(reasons) or None
        yield {
            "kind": "module.health",
            "module_id": after.id,
            "from": str(former),
            "to": str(health),
            "reason": reason,
        }


def _is_as_well(before: Module, after: Module) -> bool:
    """Whether, in the same state, nothing has changed that health follows from: most events tell a pid, no more."""
    if len(before.replicas) != len(after.replicas) or before.definition is not after.definition:
        return False
    return all(
        a is b or (type(a.state) is type(b.state) is not Stopping and a.checks is b.checks)
        for a, b in zip(before.replicas, after.replicas, strict=True)
    )


def _replica_changes(before: Replica | None, after: Replica) -> Iterator[Event]:
    """A run that ended and was followed by another within one turn is a change, too."""
    same_state = before is not None and type(before.state) is type(after.state)
    if before is not None and same_state and (before.run == after.run or after.run is None):
        return
    yield {
        "kind": "replica.state",
        "module_id": after.module_id,
        "replica": after.name,
        "from": before.state_name if before else None,
        "to": after.state_name,
        "reason": after.reason,
        "pid": after.pid,
    }


def _log(event: Event) -> None:
    level = logging.WARNING if event["to"] in ("failed", "backoff", "stuck", "unhealthy") else logging.INFO
    passing = event["to"] in ("waiting", "starting", "stopping") and event["reason"] is None
    if event["kind"] == "module.loaded" or passing:
        level = logging.DEBUG
    where = event["replica"] or event["module_id"] or "nexusd"
    way = f" {event['from']} → {event['to']}" if event["to"] and event["from"] else f" {event['to'] or ''}"
    why = f": {event['reason']}" if event["reason"] else ""
    kind = "" if event["kind"].endswith(".state") else f" {event['kind']}"
    about = {"module": event["module_id"], "replica": event["replica"], "event": event["kind"]}
    log.log(level, "%s%s%s%s", where, kind, way, why, extra={"fields": about})
