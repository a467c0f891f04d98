"""Whom AEON's functions speak to: a daemon object of this process, once one was attached, else the socket.

One place for it, since the shims may be imported under several package names at once.
"""

from __future__ import annotations

from nexusctl.client import Client
from nexusctl.unreachable import NO_DAEMON, Unreachable, unanswered
from nexusctl.wire import error_of

TYPE_CHECKING = False  # as typing has it, without importing typing
if TYPE_CHECKING:
    from typing import Any, Protocol

    from nexusctl.wire import Params

    class Daemon(Protocol):
        """What nexusd.daemon.UniversalDaemon offers those who share its process.

        Errors that a call was answered with have `code`, `message` and `data`; ConnectionError: no daemon runs.
        """

        async def call(self, method: str, params: Params = None) -> Any: ...

        def call_now(self, method: str, params: Params = None, timeout_s: float = ...) -> Any: ...


HERE = "this process"
_attached: list[Daemon] = []


def attach(daemon: Daemon | None) -> None:
    """Speak to this object from now on; None: to the socket again."""
    _attached[:] = [] if daemon is None else [daemon]


async def ask(method: str, params: Params = None, timeout: float = 5.0) -> Any:
    """The result; RpcError, PermissionDenied or Unreachable. `timeout` in seconds bounds the whole of it."""
    import asyncio  # noqa: PLC0415  for those who await

    from nexusctl.async_client import AsyncClient  # noqa: PLC0415

    if not _attached:
        async with AsyncClient(timeout=timeout) as client:
            return await client.call(method, params)
    try:
        async with asyncio.timeout(timeout):
            return await _attached[0].call(method, params)
    except Exception as error:
        raise _as_from_the_socket(error, method, timeout) from error


def ask_now(method: str, params: Params = None, timeout: float = 5.0) -> Any:
    """The same without asyncio. RuntimeError where an attached daemon could only answer after we return."""
    if not _attached:
        with Client(timeout=timeout) as client:
            return client.call(method, params)
    try:
        return _attached[0].call_now(method, params, timeout)
    except Exception as error:
        raise _as_from_the_socket(error, method, timeout) from error


def _as_from_the_socket(error: Exception, method: str, timeout: float) -> Exception:
    """The class that the same failure has over the socket."""
    if isinstance(error, TimeoutError):
        return unanswered(HERE, method, timeout)
    if isinstance(error, ConnectionError):
        return Unreachable(NO_DAEMON, f"no daemon: {error}", HERE)
    told = {name: getattr(error, name, None) for name in ("code", "message", "data")}
    return error if told["code"] is None else error_of({"error": told}) or error
