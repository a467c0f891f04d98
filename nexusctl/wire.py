"""What goes over the daemon's socket: requests and answers as lines, and the errors that answers carry.

Both clients speak in these words; connections and waiting are theirs. Standard library only, quick to import.
"""

from __future__ import annotations

import json

from nexusctl.unreachable import NOT_OUR_PROTOCOL, Unreachable

TYPE_CHECKING = False  # as typing has it, without importing typing
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Params = Mapping[str, Any] | Sequence[Any] | None
    Request = tuple[str, Params]

READ_TIMEOUT_S = 5.0
LINE_LIMIT = 64 * 1024 * 1024

PERMISSION_DENIED = -32001


class RpcError(Exception):
    """The daemon's answer was an error: its code, its message, its data (always with a `kind`)."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data: dict[str, Any] = data if isinstance(data, dict) else {}

    def __str__(self) -> str:
        return self.message

    @property
    def kind(self) -> str:
        return str(self.data.get("kind", "unknown"))


class PermissionDenied(RpcError, PermissionError):
    """Code -32001, so that `except PermissionError` works too."""


def encode_request(request_id: int, method: str, params: Params) -> bytes:
    """One request as its line. NaN is refused here as the daemon refuses it there."""
    message: dict[str, object] = {"jsonrpc": "2.0", "id": request_id, "method": method}
    if params is not None:
        message["params"] = params
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode_message(line: bytes, path: str) -> dict[str, Any]:
    """One line of the daemon's as an object; anything else is not our protocol."""
    try:
        message = json.loads(line.decode())
    except (ValueError, RecursionError):
        message = None
    if isinstance(message, dict) and message.get("jsonrpc") == "2.0" and _is_id(message.get("id")):
        return message
    said = line[:60].decode(errors="replace").strip()
    raise Unreachable(NOT_OUR_PROTOCOL, f"{path} does not speak JSON-RPC 2.0: it said {said!r}", path)


def _is_id(value: object) -> bool:
    return value is None or isinstance(value, int | str)


def error_of(message: Mapping[str, Any]) -> RpcError | None:
    """The error that an answer carries, of the class its code deserves."""
    error = message.get("error")
    if error is None:
        return None
    if not isinstance(error, dict):
        return RpcError(-32603, f"an error without shape: {error!r}")
    code = error.get("code", -32603)
    kind = PermissionDenied if code == PERMISSION_DENIED else RpcError
    return kind(code, str(error.get("message", "error without a message")), error.get("data"))
