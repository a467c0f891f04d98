#!/usr/bin/env python3
"""AEON's commands to nexusd. A failure is an answer, `success` false with `error`; a missing permission is raised.

`command.py TYPE [JSON] [--timeout SECONDS]` prints the answer and exits 0, 1 for a failure, 77 for a refusal;
`get_metrics` prints the bare exposition text.
"""

from __future__ import annotations

import os
import sys

sys.path.append(os.path.dirname(os.path.dirname(os.path.realpath(__file__))))  # where nexusctl lies beside us

from nexusctl.attachment import ask, ask_now
from nexusctl.client import RpcError, Unreachable
from nexusctl.exits import DENIED, DONE, FAILED
from nexusctl.unreachable import TIMED_OUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

TIMEOUT_S = 60.0
GRACE_S = 5.0  # the daemon tells of a time-out itself; so much later we no longer believe that it will

Failure = (RpcError, Unreachable, TypeError, ValueError)  # the last two: parameters that JSON can't hold


async def execute_command(
    command_type: str, params: dict[str, Any] | None = None, timeout: float | None = None
) -> dict[str, Any]:
    """`success` and `result`, or `success: false`, `error`, and `code` and `data` where the daemon said no.

    Raises PermissionError when the caller may not. Without a `timeout` it is 60 s, or more where `params` ask the
    daemon for more.
    """
    try:
        return _done(await ask(command_type, params or {}, _patience(params, timeout)))
    except Failure as error:
        return _failed(error)


def execute_command_now(
    command_type: str, params: dict[str, Any] | None = None, timeout: float | None = None
) -> dict[str, Any]:
    """execute_command for scripts, without asyncio."""
    try:
        return _done(ask_now(command_type, params or {}, _patience(params, timeout)))
    except Failure as error:
        return _failed(error)


class CommandInterface:
    """The same as a method of an object."""

    async def execute_command(
        self, command_type: str, params: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return await execute_command(command_type, params)


def _patience(params: dict[str, Any] | None, timeout: float | None) -> float:
    if timeout is not None:
        return timeout
    asked = params.get("timeout") if isinstance(params, dict) else None
    return max(TIMEOUT_S, asked + GRACE_S) if isinstance(asked, int | float) else TIMEOUT_S


def _done(result: Any) -> dict[str, Any]:
    return {"success": True, "result": result}


def _failed(error: Exception) -> dict[str, Any]:
    if isinstance(error, PermissionError):
        raise error
    told: dict[str, Any] = {"success": False, "error": str(error)}
    if isinstance(error, RpcError):
        told |= {"error": _in_full(error), "code": error.code, "data": error.data}
    elif isinstance(error, Unreachable) and error.cause == TIMED_OUT:
        told |= {"error": f"{error}; it may still be carried out", "data": {"kind": "timed_out"}}
    return told


def _in_full(error: RpcError) -> str:
    """JSON-RPC words some messages itself, "Invalid params"; what is wrong stands in the reason then."""
    reason = error.data.get("reason")
    return f"{error}: {reason}" if reason and str(reason) not in str(error) else str(error)


def main(arguments: list[str]) -> int:
    from nexusctl.shim_arguments import parser  # noqa: PLC0415  nothing of this for those who import the file

    expected = parser("command.py", "Have nexusd do or tell something.", None, f"{TIMEOUT_S:g} if not given")
    expected.add_argument("type", metavar="TYPE", help="reload_module, start_module, get_metrics, …")
    expected.add_argument("params", metavar="JSON", nargs="?", default="{}", help="an object of parameters")
    given = expected.parse_args(arguments)
    params = _object(given.params)
    if params is None:
        expected.error(
            f'JSON: expected an object as {{"module_id": "vitals/heartbeat-client"}}, got {given.params}'
        )
    try:
        answer = execute_command_now(given.type, params, given.timeout)
    except PermissionError as error:
        print(f"command.py: {error}", file=sys.stderr)
        return DENIED
    return _shown(given.type, answer)


def _object(text: str) -> dict[str, Any] | None:
    import json  # noqa: PLC0415

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _shown(command_type: str, answer: dict[str, Any]) -> int:
    """Metrics go into files that others read: there stands the text alone, and a failure goes to stderr."""
    import json  # noqa: PLC0415

    if command_type != "get_metrics":
        print(json.dumps(answer, indent=2))
    elif answer["success"]:
        sys.stdout.write(answer["result"]["text"])
    else:
        print(json.dumps(answer, indent=2), file=sys.stderr)
    return DONE if answer["success"] else FAILED


if __name__ == "__main__":
    from nexusctl.shim_arguments import leave

    leave(main)
