"""The methods about what modules have said and what has happened to them: logs, events, the history.

How much of the logs is read, and for how many, is `following`'s.
"""

from collections.abc import Callable
from typing import Any

from nexusd.domain.errors import Busy, InvalidParams
from nexusd.operations import Operations
from nexusd.ports import EventSource, LogReader, Outputs
from nexusd.rpc import views
from nexusd.rpc.call import Call, Method
from nexusd.rpc.following import Following
from nexusd.rpc.parameters import GetHistory, GetLogs, SubscribeEvents

MOST_SUBSCRIPTIONS = 1024  # of a connection


class History:
    def __init__(
        self, operations: Operations, logs: LogReader, events: EventSource, outputs: Outputs
    ) -> None:
        self._operations = operations
        self._events = events
        self._outputs = outputs
        self._following = Following(logs)
        self._subscriptions = 0
        self.methods = [
            Method(
                "get_logs",
                self.get_logs,
                "The last lines of a module, and those to come",
                GetLogs,
                "logs.read",
            ),
            Method(
                "subscribe_events", self.subscribe, "Events as they happen", SubscribeEvents, "events.read"
            ),
            Method("get_history", self.get_history, "The last events", GetHistory, "events.read"),
        ]

    async def get_logs(self, call: Call, params: GetLogs) -> dict[str, Any]:
        module = self._operations.module(params.module_id)
        indexes = self._indexes(module.id, params.replica)
        answer: dict[str, Any] = {"module_id": module.id, "lines": [], "subscription": None, "journal": None}
        if (
            journal := views.journal(module, self._outputs)
        ) is not None:  # what a file has is of another time
            return {**answer, "journal": journal}
        names = [f"{module.id}#{index}" for index in indexes]
        if not params.follow:
            return {**answer, "lines": await self._following.last_lines(names, params.lines)}
        number = self._next_subscription(call)
        # Followed before the past is read: a line may come twice, none is missed.
        feed = self._following.open(call, names, _log_pusher(call, number))
        try:
            lines = await self._following.last_lines(names, params.lines)
        except BaseException:
            self._following.end(call, feed)
            raise
        self._following.start(call, feed)
        return {**answer, "lines": lines, "subscription": number}

    def _indexes(self, module_id: str, replica: int | None) -> list[int]:
        module = self._operations.module(module_id)
        indexes = sorted({*range(module.count), *(one.index for one in module.replicas)})
        if replica is None:
            return indexes
        if replica not in indexes:
            raise InvalidParams(f"{module_id} has no replica {replica}", module_id=module_id)
        return [replica]

    def subscribe(self, call: Call, params: SubscribeEvents) -> dict[str, Any]:
        if params.module_id is not None:
            self._operations.module(params.module_id)
        number = self._next_subscription(call)

        def push(event: dict[str, Any]) -> None:
            if params.module_id in (None, event["module_id"]):
                told = {"subscription": number, "event": event}
                call.push({"jsonrpc": "2.0", "method": "event", "params": told})

        former = [] if params.since is None else self._events.since(params.since, params.module_id)
        call.on_close(self._events.subscribe(push))
        return {"subscription": number, "events": former}

    def get_history(self, _call: Call, params: GetHistory) -> dict[str, Any]:
        if params.module_id is not None:
            self._operations.module(params.module_id)
        return {"events": self._events.last(params.limit, params.module_id)}

    def _next_subscription(self, call: Call) -> int:
        """Each costs something at every event, and each followed log a descriptor."""
        if call.subscriptions >= MOST_SUBSCRIPTIONS:
            told = f"this connection has {MOST_SUBSCRIPTIONS} subscriptions, and gets no more"
            raise Busy(told, hint="close the connection: that ends them")
        self._subscriptions += 1
        return self._subscriptions


def _log_pusher(call: Call, number: int) -> Callable[[str, list[str]], None]:
    def push(replica: str, lines: list[str]) -> None:
        params = {"subscription": number, "replica": replica, "lines": lines}
        call.push({"jsonrpc": "2.0", "method": "log", "params": params})

    return push
