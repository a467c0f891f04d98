"""Asking modules on their control socket: those that answer, and all the ways not to."""

import asyncio
import gc
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusd.domain.errors import BadValue, NexusError, NotPossible, TimedOut
from nexusd.system.control import LONGEST_ANSWER, ControlSockets

Answer = Callable[[bytes], bytes | None]  # None: none ever


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="nx") as folder:
        yield Path(folder)


def sockets(place: Path) -> ControlSockets:
    return ControlSockets(lambda run, kind: str(place / f"{run}.{kind}"))


def ask(place: Path, answer: Answer, timeout_s: float = 20.0, **params: Any) -> Any:
    """What comes back from a module that answers so."""

    async def module(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = answer(await reader.readline())
        if said is None:
            await reader.read()
        else:
            writer.write(said)
        writer.close()

    async def story() -> Any:
        server = await asyncio.start_unix_server(module, place / "one.control")
        async with server:
            return await sockets(place).ask("one", "health", params, timeout_s)

    return asyncio.run(story())


def result(value: Any) -> Answer:
    return lambda _: json.dumps({"jsonrpc": "2.0", "id": 1, "result": value}).encode() + b"\n"


def error(code: int, message: str, **data: Any) -> Answer:
    fault = {"code": code, "message": message, **({"data": data} if data else {})}
    return lambda _: json.dumps({"jsonrpc": "2.0", "id": 1, "error": fault}).encode() + b"\n"


def test_the_request_is_one_line_of_json_rpc_and_the_result_comes_back(place: Path) -> None:
    def echo(line: bytes) -> bytes:
        return json.dumps({"jsonrpc": "2.0", "id": 1, "result": json.loads(line)}).encode() + b"\n"

    assert ask(place, echo, key="a", value=[1]) == {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "health",
        "params": {"key": "a", "value": [1]},
    }
    assert ask(place, result(None)) is None


WRONG: dict[str, tuple[Answer, type[NexusError], str]] = {
    "refused": (error(-32004, "invalid value"), BadValue, "the module refused: invalid value"),
    "with a reason": (error(-32004, "no", reason="too big"), BadValue, "the module refused: too big"),
    "unknown method": (error(-32601, "no such"), NotPossible, "the module does not answer health"),
    "no JSON": (lambda _: b"hello\n", NotPossible, "is no JSON-RPC answer"),
    "a list": (lambda _: b"[]\n", NotPossible, "is no JSON-RPC answer"),
    "neither": (lambda _: b"{}\n", NotPossible, "is no JSON-RPC answer"),
    "an odd error": (lambda _: b'{"error": "no"}\n', NotPossible, "is no JSON-RPC answer"),
    "an error of nothing": (lambda _: b'{"error": {}}\n', NotPossible, "is no JSON-RPC answer"),
    "half a character": (lambda _: b'{"result": "\\ud800"}\n', NotPossible, "is no JSON-RPC answer"),
    "nested too deep": (lambda _: b"[" * 100_000 + b"\n", NotPossible, "is no JSON-RPC answer"),
    "not UTF-8": (lambda _: b"\xff\n", NotPossible, "is no JSON-RPC answer"),
    "hanging up": (lambda _: b"", NotPossible, "the module hung up on health"),
    "too long": (lambda _: b"x" * (LONGEST_ANSWER + 10) + b"\n", NotPossible, "is longer than 1048576 bytes"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_no_result_is_an_error_that_says_so(place: Path, what: str) -> None:
    answer, kind, text = WRONG[what]
    with pytest.raises(kind) as caught:
        ask(place, answer)
    assert text in caught.value.message


def test_silence_is_a_time_out(place: Path) -> None:
    with pytest.raises(TimedOut, match=r"one: no answer to health within 0\.05 s"):
        ask(place, lambda _: None, timeout_s=0.05)


async def asked(place: Path, timeout_s: float = 0.05) -> Awaitable[Any]:
    return await sockets(place).ask("one", "health", {}, timeout_s)


def test_what_is_said_of_a_run_names_the_replica(place: Path) -> None:
    with pytest.raises(NotPossible, match=r"^a/p#1: its control socket is out of reach: No such file"):
        asyncio.run(sockets(place).ask("a/p#1@10~0332822d", "configure", {}, 1.0))


def test_a_run_that_is_gone_is_out_of_reach(place: Path) -> None:
    with pytest.raises(NotPossible, match="out of reach: No such file"):
        asyncio.run(asked(place))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place / "one.control"))
        dead.listen()
    with pytest.raises(NotPossible, match="out of reach: Connection refused"):
        asyncio.run(asked(place))


def test_a_module_that_accepts_nobody_is_silent_however_often_it_is_asked(place: Path) -> None:
    gc.collect()  # loops of other tests
    before = len(os.listdir("/proc/self/fd"))
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(place / "one.control"))
        deaf.listen(1)
        for _ in range(5):
            with pytest.raises(TimedOut):
                asyncio.run(asked(place))
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_questions_at_once_get_their_own_answers(place: Path) -> None:
    async def module(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = json.loads(await reader.readline())["params"]["number"]
        writer.write(result(number)(b""))
        writer.close()

    async def story() -> list[Any]:
        server = await asyncio.start_unix_server(module, place / "one.control", backlog=200)
        async with server:
            control = sockets(place)
            return await asyncio.gather(*(control.ask("one", "x", {"number": n}, 20.0) for n in range(100)))

    assert asyncio.run(story()) == list(range(100))
