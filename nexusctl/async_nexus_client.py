"""AsyncNexusClient: as NexusClient, over asyncio; and the daemon's events as an iterator that outlives the daemon."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from nexusctl.async_client import AsyncClient
from nexusctl.methods import ACTIONS, AsyncMethods
from nexusctl.nexus_client import ACTION_TIMEOUT_S, REPEATS, request_of
from nexusctl.unreachable import NO_DAEMON, SHUT_DOWN, TIMED_OUT, CutOff, Unreachable
from nexusctl.wire import READ_TIMEOUT_S

if TYPE_CHECKING:
    from nexusctl.wire import Params

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
MOST_HISTORY = 10_000  # as many as the daemon takes

Event = dict[str, Any]


class AsyncNexusClient(AsyncMethods, AsyncClient):
    """For many tasks of one loop; several requests are under way at once. Time-outs as NexusClient's."""

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        timeout: float = READ_TIMEOUT_S,
        action_timeout: float = ACTION_TIMEOUT_S,
    ) -> None:
        super().__init__(path, timeout)
        self.action_timeout = action_timeout

    async def call(self, method: str, params: Params = None, timeout: float | None = None) -> Any:
        for _ in range(0 if method in ACTIONS else REPEATS):
            try:
                return await super().call(method, params, timeout)
            except CutOff:
                continue
        return await super().call(method, params, timeout)

    async def request(self, method: str, needed: dict[str, Any], **may: Any) -> Any:
        params, patience = request_of(method, needed, may, self.action_timeout)
        return await self.call(method, params, patience)

    async def events(self, module_id: str | None = None, since: int | None = None) -> AsyncIterator[Event]:
        """Events from now on, or first those after `since` (0: all that are kept). On a connection of their own.

        When the daemon goes, this waits for the next one and goes on where it was: what happened meanwhile is
        told then. Raises Unreachable only where waiting is in vain: no permission, or not our daemon.
        """
        about = {} if module_id is None else {"module_id": module_id}
        last: Event | None = None
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                async with AsyncClient(self.path, self.timeout) as client:
                    if since is None:
                        last, since = await _latest(client, about), 0
                    async for event in _events(client, about, since, last):
                        last, pause_s = event, FIRST_PAUSE_S
                        yield event
            except Unreachable as error:
                if error.cause not in (NO_DAEMON, SHUT_DOWN, TIMED_OUT):
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


async def _latest(client: AsyncClient, about: Event) -> Event | None:
    events = (await client.call("get_history", {**about, "limit": 1}))["events"]
    return events[-1] if events else None


async def _events(client: AsyncClient, about: Event, since: int, last: Event | None) -> AsyncIterator[Event]:
    """What came after `last`, or else after the number `since`; ends with the connection."""
    asked = since if last is None else last["seq"] - 1
    subscription = await client.subscribe("subscribe_events", {**about, "since": asked})
    former: list[Event] = subscription.first["events"]
    if last is not None:
        former = former[1:] if former[:1] == [last] else await _after_a_loss(client, about, last)
    newest = 0
    for event in former:
        newest = event["seq"]
        yield event
    async for told in subscription:
        if told["event"]["seq"] > newest:
            yield told["event"]


async def _after_a_loss(client: AsyncClient, about: Event, last: Event) -> list[Event]:
    """A daemon that is killed loses its last quarter of a second of history, and the next one gives those
    numbers anew: then only the time tells what is news.
    """
    events = (await client.call("get_history", {**about, "limit": MOST_HISTORY}))["events"]
    return [event for event in events if event["time"] > last["time"]]
