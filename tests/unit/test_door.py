"""The way in for callers of the daemon's own process: the dispatcher's rights, errors and results, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from nexusd.domain.access import Caller
from nexusd.domain.errors import NoSuchModule, PermissionDenied
from nexusd.rpc.call import Call, CallFailed, CallRefused, Ended, Method, NoParams
from nexusd.rpc.dispatch import Dispatcher
from nexusd.rpc.door import Door


class Number(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    number: int


class Observed:
    def __init__(self) -> None:
        self.calls: list[tuple[str, Any, Any, Any]] = []

    def admit(self, call: Call, method: Method, params: Any) -> None:
        self.calls.append(("admitted", method.name, dict(params), call.caller.pid))

    def done(self, ended: Ended) -> None:
        error = ended.error
        self.calls.append(("done", ended.method.name, dict(ended.params), error and error.kind))


def authorise(caller: Caller, permission: str) -> None:
    if permission == "forbidden":
        raise PermissionDenied("permission denied")


async def later(_call: Call, params: Number) -> Any:
    await asyncio.sleep(0)
    return {"number": params.number, "pair": (1, 2)}


def missing(_call: Call, _params: Any) -> Any:
    raise NoSuchModule("no such module: a/b", module_id="a/b")


def subscribe(call: Call, _params: Any) -> Any:
    call.on_close(lambda: ended.append(True))
    return {"subscription": 1}


ended: list[bool] = []
ROWS = [
    Method("now", lambda _call, params: {"number": params.number, "pair": (1, 2)}, "", Number),
    Method("later", later, "", Number, audited=True),
    Method("missing", missing, ""),
    Method("refused", missing, "", NoParams, "forbidden"),
    Method("subscribe", subscribe, ""),
]


def in_a_loop(story: Callable[[Door], Awaitable[Any]], observed: Observed | None = None) -> Any:
    async def main() -> Any:
        dispatcher = Dispatcher(ROWS, authorise=authorise, observers=[observed] if observed else [])
        door = Door(lambda: SimpleNamespace(dispatcher=dispatcher))  # type: ignore[arg-type,return-value]
        door.open()
        return await story(door)

    return asyncio.run(main())


def test_a_call_gives_what_the_socket_would_and_the_observers_see_it() -> None:
    """A tuple is a list then, as it is in JSON."""
    observed = Observed()

    async def story(door: Door) -> list[Any]:
        return [await door.call("now", {"number": 1}), await door.call("later", [2])]

    assert in_a_loop(story, observed) == [{"number": 1, "pair": [1, 2]}, {"number": 2, "pair": [1, 2]}]
    assert [call[:3] for call in observed.calls] == [
        ("admitted", "now", {"number": 1}),
        ("done", "now", {"number": 1}),
        ("admitted", "later", {"number": 2}),
        ("done", "later", {"number": 2}),
    ]


@pytest.mark.parametrize(
    ("method", "params", "code", "kind"),
    [
        ("missing", None, -32002, "no_such_module"),
        ("now", {"number": "one"}, -32602, "invalid_params"),
        ("nwo", {}, -32601, "method_not_found"),
        ("now", "one", -32600, "invalid_request"),
    ],
)
def test_an_error_has_the_words_of_the_wire(method: str, params: Any, code: int, kind: str) -> None:
    with pytest.raises(CallFailed) as failed:
        in_a_loop(lambda door: door.call(method, params))
    assert (failed.value.code, failed.value.data["kind"]) == (code, kind)


def test_a_refusal_is_a_permission_error() -> None:
    with pytest.raises(PermissionError, match="permission denied") as refused:
        in_a_loop(lambda door: door.call("refused"))
    assert isinstance(refused.value, CallRefused)


@pytest.mark.parametrize("params", [{"number": float("nan")}, {"number": {1}}])
def test_what_json_cannot_hold_is_refused_before_it_gets_anywhere(params: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        in_a_loop(lambda door: door.call("now", params))


def test_a_subscription_ends_with_its_call() -> None:
    ended.clear()
    in_a_loop(lambda door: door.call("subscribe"))
    assert ended == [True]


def test_without_await_the_daemons_own_thread_gets_what_is_answered_at_once_and_no_more() -> None:
    async def story(door: Door) -> None:
        assert door.call_now("now", {"number": 1}, 1.0)["number"] == 1
        with pytest.raises(RuntimeError, match="later takes a while"):
            door.call_now("later", {"number": 1}, 1.0)

    in_a_loop(story)


def test_other_threads_and_other_loops_get_all_of_it() -> None:
    async def story(door: Door) -> tuple[Any, Any]:
        from_thread = await asyncio.to_thread(door.call_now, "later", {"number": 1}, 10.0)
        from_loop = await asyncio.to_thread(lambda: asyncio.run(door.call("later", {"number": 2})))
        return from_thread["number"], from_loop["number"]

    assert in_a_loop(story) == (1, 2)


def test_a_command_whose_caller_loses_patience_is_carried_through() -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(_call: Call, _params: Any) -> dict[str, Any]:
        begun.set()
        await go_on.wait()
        done.set()
        return {}

    async def story(door: Door) -> None:
        calling = asyncio.create_task(door.call("slow"))
        await begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        go_on.set()
        await door.close()
        assert done.is_set()

    ROWS.append(Method("slow", slow, ""))
    try:
        in_a_loop(story)
    finally:
        ROWS.pop()


def test_before_the_daemon_is_initialised_and_after_its_end_nobody_is_there() -> None:
    door = Door(lambda: pytest.fail("there is nothing to be made"))
    with pytest.raises(ConnectionError, match="has not been initialised"):
        asyncio.run(door.call("now"))

    async def story(door: Door) -> None:
        await door.close()
        with pytest.raises(ConnectionError, match="has shut down"):
            door.call_now("now", {"number": 1}, 1.0)

    in_a_loop(story)
