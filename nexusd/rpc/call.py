"""What a method is, and what its handler gets to know of the one who calls.

The table of methods stands in `nexusd.rpc.methods`; running a row is the dispatcher's.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from nexusd.domain.access import Caller
from nexusd.domain.errors import NexusError
from nexusd.rpc import codec


class CallFailed(Exception):
    """The error that a call was answered with, in the words of the wire."""

    def __init__(self, code: int, message: str, data: dict[str, Any]) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.data = data


class CallRefused(CallFailed, PermissionError):
    """The caller may not do this."""

    def __str__(self) -> str:
        return self.message


def outcome(answer: bytes | None) -> Any:
    """What an answer says: its result, or CallFailed."""
    told = codec.decode(answer) if answer is not None else {}
    error = told.get("error")
    if error is None:
        return told.get("result")
    refused = error["code"] == codec.CODES["permission_denied"]
    raise (CallRefused if refused else CallFailed)(error["code"], error["message"], error["data"])


class Call:
    """The calling side of one connection: who it is, and a way to send it more than the answer."""

    __slots__ = ("_closed", "_closing", "_send", "caller")

    def __init__(self, caller: Caller, send: Callable[[bytes], None]) -> None:
        self.caller = caller
        self._send = send
        self._closing: list[Callable[[], None]] = []
        self._closed = False

    def push(self, notification: bytes | dict[str, Any]) -> None:
        """Send a notification; bytes are one encoded message without its newline."""
        if not self._closed:
            self._send(notification if isinstance(notification, bytes) else codec.encode(notification))

    @property
    def subscriptions(self) -> int:
        """How many there are that end with the connection."""
        return len(self._closing)

    def on_close(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when the connection has ended: at once if it has already."""
        if self._closed:
            callback()
        else:
            self._closing.append(callback)

    def closed(self) -> None:
        """The connection has ended. For the server to say, once."""
        self._closed = True
        while self._closing:
            self._closing.pop()()


class NoParams(msgspec.Struct, frozen=True):
    """Of a method that takes none."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table.

    `permission` None is open to everybody who can connect; `also` is a second one that is needed. A handler that is
    a plain function is answered in the same pass over the input; a coroutine function gets a task and is in flight
    until it is done. So does an `audited` one of either kind: a command waits until its line in the audit log is
    safe.
    """

    name: str
    handler: Callable[[Call, Any], Any] | Callable[[Call, Any], Awaitable[Any]]
    help: str
    params: type[msgspec.Struct] = NoParams
    permission: str | None = None
    audited: bool = False
    also: str | None = None


class Ended(NamedTuple):
    """A call of a known method that has ended, refused ones included."""

    call: Call
    method: Method
    params: Mapping[str, Any]  # what the caller sent, by name
    error: NexusError | None
    elapsed_s: float
