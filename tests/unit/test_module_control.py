"""The control protocol's lines, answered by hooks that a test can see through."""

import asyncio
import json
from typing import Any

import pytest

from nexusd.keeper.module_control import LINE_LIMIT, Hooks, answer, read_health


async def _configure(key: str, value: Any) -> None:
    if value == "bad":
        raise ValueError


async def _health() -> Any:
    return "degraded", "tired"


def reply(line: bytes, state: Any = None) -> Any:
    async def export_state() -> Any:
        return state

    hooks = Hooks(
        _health,
        _configure,
        lambda: "# metrics\n",
        export_state,
        lambda error: type(error).__name__,
        lambda _transport: None,
    )
    said = asyncio.run(answer(hooks, line, asyncio.BaseTransport()))
    assert said.count(b"\n") == (1 if said else 0)
    return json.loads(said) if said else None


def ask(method: str, params: Any = None, state: Any = None) -> Any:
    request = {"jsonrpc": "2.0", "id": "q", "method": method, "params": params if params is not None else {}}
    return reply(json.dumps(request).encode(), state)


def test_each_method_answers() -> None:
    assert ask("health")["result"] == {"status": "degraded", "reason": "tired"}
    assert ask("metrics")["result"] == {"text": "# metrics\n"}
    assert ask("ready")["result"] == {"ready": True}
    assert ask("export_state", state={"count": 1})["result"] == {"count": 1}
    assert ask("configure", {"key": "a", "value": None})["result"] == {"applied": True}


def test_the_answer_bears_the_id_of_the_question() -> None:
    assert ask("health")["id"] == "q"


@pytest.mark.parametrize(
    ("line", "code", "kind"),
    [
        (b"{", -32700, "parse_error"),
        (b"\xff", -32700, "parse_error"),
        (b"", -32700, "parse_error"),
        (b'{"id":NaN,"method":"health"}', -32700, "parse_error"),
        (b"[" * 100_000, -32700, "parse_error"),
        (b"[]", -32600, "invalid_request"),
        (b'{"id":1}', -32600, "invalid_request"),
        (b'{"id":1,"method":"dance"}', -32601, "method_not_found"),
        (b'{"id":1,"method":"configure"}', -32602, "invalid_params"),
        (b'{"id":1,"method":"configure","params":{"key":1,"value":2}}', -32602, "invalid_params"),
        (b'{"id":1,"method":"configure","params":{"key":"a","value":2,"x":3}}', -32602, "invalid_params"),
        (b'{"id":1,"method":"configure","params":{"key":"a","value":"bad"}}', -32004, "bad_value"),
    ],
)
def test_a_request_that_cannot_be_answered_gets_an_error_with_its_kind(
    line: bytes, code: int, kind: str
) -> None:
    error = reply(line)["error"]
    assert (error["code"], error["data"]["kind"]) == (code, kind)


@pytest.mark.parametrize("state", [{1, 2}, float("nan"), "x" * LINE_LIMIT])
def test_a_state_that_fits_no_line_is_an_error_of_the_modules(state: Any) -> None:
    assert ask("export_state", state=state)["error"]["code"] == -32603


def test_a_notification_is_done_and_not_answered() -> None:
    assert reply(b'{"jsonrpc":"2.0","method":"health"}') is None


@pytest.mark.parametrize(
    ("said", "means"),
    [
        (None, ("healthy", None)),
        (True, ("healthy", None)),
        ("healthy", ("healthy", None)),
        ("degraded", ("degraded", None)),
        (("degraded", "slow"), ("degraded", "slow")),
        (("unhealthy", "gone"), ("unhealthy", "gone")),
        (False, ("unhealthy", None)),
        ({"status": "degraded", "reason": "slow"}, ("degraded", "slow")),
        ({"status": "healthy", "reason": None}, ("healthy", None)),
        ({"state": "fine"}, ("unhealthy", "health() returned {'state': 'fine'}, which means nothing")),
        (1, ("unhealthy", "health() returned 1, which means nothing")),
        ("fine", ("unhealthy", "health() returned 'fine', which means nothing")),
    ],
)
def test_what_health_returned_is_read_plainly(said: Any, means: tuple[str, str | None]) -> None:
    assert read_health(said) == means
