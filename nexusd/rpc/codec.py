"""JSON-RPC 2.0 messages to and from bytes: strict, parsed once, every error with its code.

What a message means and who may send it is not decided here.
"""

import json
from collections.abc import Iterable, Mapping
from types import NoneType
from typing import Any

import msgspec

from nexusd.domain.errors import NexusError

CODES: Mapping[str, int] = {
    "parse_error": -32700,
    "invalid_request": -32600,
    "method_not_found": -32601,
    "invalid_params": -32602,
    "internal": -32603,
    "permission_denied": -32001,
    "no_such_module": -32002,
    "not_possible": -32003,
    "bad_value": -32004,
    "timed_out": -32005,
    "dependency_failed": -32006,
    "busy": -32007,
    "start_failed": -32008,
    "shutting_down": -32009,
}

# The specification words these five; what happened stands in data.reason.
STANDARD: Mapping[str, str] = {
    "parse_error": "Parse error",
    "invalid_request": "Invalid Request",
    "method_not_found": "Method not found",
    "invalid_params": "Invalid params",
    "internal": "Internal error",
}

_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()
_NO_PARAMS: dict[str, Any] = {}
_STRUCTURED = (dict, list)
_ID_TYPES = (int, str, float, NoneType)  # exact types: a bool is an int to isinstance


class Unparsable(ValueError):
    """The line is not JSON; the text says why."""


def decode(line: bytes) -> Any:
    """One JSON text. Refused: NaN, infinities, a BOM, bad UTF-8, lone surrogates, bottomless nesting."""
    try:
        return _decoder.decode(line)
    except RecursionError:
        raise Unparsable("nested too deeply") from None
    except UnicodeDecodeError as failure:
        raise Unparsable(f"not UTF-8: {failure.reason} at byte {failure.start}") from None
    except (msgspec.MsgspecError, ValueError) as failure:
        raise Unparsable(str(failure)) from None


def fault(message: Any) -> str | None:
    """Why `message` is no JSON-RPC 2.0 request or notification; None when it is one."""
    if type(message) is not dict:
        return "a request is a JSON object"
    if message.get("jsonrpc") != "2.0":
        return 'the member "jsonrpc" must be "2.0"'
    if type(message.get("method")) is not str:
        return 'the member "method" must be a string'
    if type(message.get("params", _NO_PARAMS)) not in _STRUCTURED:
        return 'the member "params" must be an object or an array'
    if type(message.get("id")) not in _ID_TYPES:
        return 'the member "id" must be a string, a number or null'
    return None


def id_of(message: Any) -> int | str | float | None:
    """The id to answer under, None where it cannot be told."""
    found = message.get("id") if type(message) is dict else None
    return found if type(found) in _ID_TYPES else None


def encode(value: Any) -> bytes:
    """`value` as JSON on one line."""
    text = _encoder.encode(value)
    # Prepared bytes (msgspec.Raw) are taken over as they are. A newline in JSON is never but white space.
    return text.replace(b"\n", b" ") if b"\n" in text else text


def request(method: str, params: Any) -> bytes:
    """One request of our own as a line. Raises TypeError or ValueError for what JSON can't hold, NaN included."""
    message = {"jsonrpc": "2.0", "id": 1, "method": method}
    given = {} if params is None else {"params": params}
    return json.dumps({**message, **given}, allow_nan=False).encode()


def success(result: bytes, request_id: Any) -> bytes:
    """An answer around a result that is encoded already."""
    return b'{"jsonrpc":"2.0","result":%b,"id":%b}' % (result, _encoder.encode(request_id))


def failure(code: int, message: str, data: Mapping[str, Any], request_id: Any) -> bytes:
    error = {"code": code, "message": message, "data": data}
    return encode({"jsonrpc": "2.0", "error": error, "id": request_id})


def batch(answers: Iterable[bytes]) -> bytes:
    return b"[" + b",".join(answers) + b"]"


def error_members(error: NexusError) -> tuple[int, str, dict[str, Any]]:
    """Code, message and data of an error object."""
    data = error.data()
    if error.kind not in STANDARD:
        return CODES[error.kind], error.message, data
    data["reason"] = error.reason or error.message
    return CODES[error.kind], STANDARD[error.kind], data


def refusal(error: NexusError, request_id: Any = None) -> bytes:
    """The answer that tells of `error`."""
    return failure(*error_members(error), request_id)


def problem(kind: str, reason: str, request_id: Any = None) -> bytes:
    """The answer for one of the specification's own errors."""
    data = {"kind": kind, "module_id": None, "reason": reason, "hint": None}
    return failure(CODES[kind], STANDARD[kind], data, request_id)
