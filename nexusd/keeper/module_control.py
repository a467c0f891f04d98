"""Answers on a module's control socket: JSON-RPC 2.0, one object per line (docs/module-protocol.md).

What is answered comes from the hooks it is given; it knows of lines, errors and connections only.
"""

import asyncio
import json
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NoReturn

LINE_LIMIT = 1024 * 1024
_ACCEPT_RETRY_S = 1.0

_PARSE_ERROR, _INVALID_REQUEST, _METHOD_NOT_FOUND = -32700, -32600, -32601
_INVALID_PARAMS, _INTERNAL, _BAD_VALUE = -32602, -32603, -32004
_KINDS = {
    _PARSE_ERROR: "parse_error",
    _INVALID_REQUEST: "invalid_request",
    _METHOD_NOT_FOUND: "method_not_found",
    _INVALID_PARAMS: "invalid_params",
    _INTERNAL: "internal",
    _BAD_VALUE: "bad_value",
}


@dataclass(frozen=True)
class Hooks:
    """What a module answers with. `describe` puts an exception of its code into one line."""

    health: Callable[[], Awaitable[Any]]
    configure: Callable[[str, Any], Awaitable[None]]
    metrics: Callable[[], str]
    export_state: Callable[[], Awaitable[Any]]
    describe: Callable[[BaseException], str]
    take_over: Callable[[asyncio.BaseTransport], None]


class _Refused(Exception):
    """A request that gets an error for an answer."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Control:
    """Accepts on the listening socket and answers, each connection on its own."""

    def __init__(self, hooks: Hooks, fd: int) -> None:
        self._hooks = hooks
        self._loop = asyncio.get_running_loop()
        self._listener = socket.socket(fileno=fd)
        self._listener.setblocking(False)
        self._connecting: set[asyncio.Task[Any]] = set()
        self._listen()

    def close(self) -> None:
        """Accept no more; what is being answered goes on."""
        self._loop.remove_reader(self._listener)

    def _listen(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            peer, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # out of descriptors: the listener stays readable, so look again later
            self.close()
            self._loop.call_later(_ACCEPT_RETRY_S, self._listen)
            return
        connecting = self._loop.connect_accepted_socket(lambda: _Connection(self._hooks), peer)
        task = self._loop.create_task(connecting)
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)


class _Connection(asyncio.Protocol):
    """One line in, one line out, in order. Who hangs up withdraws what is not answered yet."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks
        self._received = bytearray()
        self._answering: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > LINE_LIMIT:
            self._transport.write(_error_line(None, _Refused(_INVALID_REQUEST, "more than 1 MiB at once")))
            self._transport.close()
        elif self._answering is None and b"\n" in data:
            self._answering = asyncio.get_running_loop().create_task(self._answer_lines())

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answering is not None:
            self._answering.cancel()

    async def _answer_lines(self) -> None:
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            self._transport.write(await answer(self._hooks, line, self._transport))
        self._answering = None


async def answer(hooks: Hooks, line: bytes, transport: asyncio.BaseTransport) -> bytes:
    """The line that answers this line; empty for a notification."""
    request: dict[str, Any] = {"id": None}
    try:
        request = _parse(line)
        if request["method"] == "take_over":
            hooks.take_over(transport)
        result = await _result(hooks, request["method"], request.get("params", {}))
        answered = _result_line(request.get("id"), result)
    except _Refused as refused:
        answered = _error_line(request.get("id"), refused)
    except Exception as error:  # the border to the module's own code, which may raise anything
        answered = _error_line(request.get("id"), _Refused(_INTERNAL, hooks.describe(error)))
    return answered if "id" in request else b""


async def _result(hooks: Hooks, method: str, params: Any) -> Any:
    match method:
        case "health":
            return await _health(hooks)
        case "configure":
            return await _configure(hooks, params)
        case "metrics":
            return {"text": hooks.metrics()}
        case "export_state":
            return await hooks.export_state()
        case "ready":  # nobody answers here before it is
            return {"ready": True}
        case "take_over":
            return {"taking_over": True}
    raise _Refused(_METHOD_NOT_FOUND, f"no such method: {method}")


async def _health(hooks: Hooks) -> dict[str, str | None]:
    try:
        status, reason = read_health(await hooks.health())
    except Exception as error:  # a module that cannot tell is not well
        status, reason = "unhealthy", hooks.describe(error)
    return {"status": status, "reason": reason}


def read_health(said: Any) -> tuple[str, str | None]:
    """What health() returned, as status and reason."""
    match said:
        case None | True:
            return "healthy", None
        case False:
            return "unhealthy", None
        case "healthy" | "degraded" | "unhealthy":
            return said, None
        case ("healthy" | "degraded" | "unhealthy" as status, reason):
            return status, str(reason)
        case {"status": "healthy" | "degraded" | "unhealthy" as status, **more} if more.keys() <= {"reason"}:
            return status, None if more.get("reason") is None else str(more["reason"])
    return "unhealthy", f"health() returned {said!r}, which means nothing"


async def _configure(hooks: Hooks, params: Any) -> dict[str, bool]:
    match params:
        case {"key": str(key), "value": value, **others} if not others:
            pass
        case _:
            raise _Refused(_INVALID_PARAMS, "configure takes key, a string, and value")
    try:
        await hooks.configure(key, value)
    except Exception as error:  # however the module refuses
        raise _Refused(_BAD_VALUE, str(error) or type(error).__name__) from None
    return {"applied": True}


def _parse(line: bytes) -> dict[str, Any]:
    try:
        request = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _Refused(_PARSE_ERROR, f"not JSON: {error}") from None
    if not isinstance(request, dict) or not isinstance(request.get("method"), str):
        raise _Refused(_INVALID_REQUEST, "a request is an object with a method")
    return request


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _result_line(request_id: Any, result: Any) -> bytes:
    line = _line({"jsonrpc": "2.0", "id": request_id, "result": result})
    if len(line) > LINE_LIMIT:
        raise _Refused(_INTERNAL, "the answer is larger than 1 MiB")
    return line


def _error_line(request_id: Any, refused: _Refused) -> bytes:
    error = {"code": refused.code, "message": str(refused), "data": {"kind": _KINDS[refused.code]}}
    return _line({"jsonrpc": "2.0", "id": request_id, "error": error})


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message, allow_nan=False, separators=(",", ":")).encode() + b"\n"
