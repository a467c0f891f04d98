"""What the audit log says of a command: who gave it, with which parameters, and what became of it.

Decides what may be shown and how much of it. How lines hang together is `chain`'s, writing them `system.audit`'s.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import msgspec

from nexusd.domain.access import Caller
from nexusd.domain.errors import NexusError, PermissionDenied
from nexusd.domain.settings import MASK

BEGUN: Final = "begun"
INTERRUPTED: Final = "interrupted"
DAEMON: Final = "nexusd"

LONGEST_TEXT = 200  # characters of one value; a request may have a megabyte
MOST_PARAMS = 16

IsSecret = Callable[[str, str], bool]  # of a module's key; True of what nobody knows

_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Entry:
    """One line to be. `begun` is the number of the line that was written before the command ran."""

    time: str
    principal: str
    uid: int
    pid: int | None
    method: str
    params: Mapping[str, Any]
    outcome: str
    duration_s: float | None = None
    begun: int | None = None
    error: str | None = None  # the kind: an error's text may repeat what the caller sent
    permission: str | None = None  # what a caller who was denied did not hold

    def content(self) -> bytes:
        """As a JSON object, without what is not known."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return _encode({name: value for name, value in fields.items() if value is not None})


def entry(
    caller: Caller, method: str, params: Mapping[str, Any], *, time: str, outcome: str = BEGUN
) -> Entry:
    """`params` are fit to be shown already."""
    return Entry(time, _utf8(caller.principal), caller.uid, caller.pid, method, params, outcome)


def ended(begun: Entry, seq: int | None, error: NexusError | None, *, time: str, elapsed_s: float) -> Entry:
    """The line that tells what became of the command."""
    is_denied = isinstance(error, PermissionDenied)
    return replace(
        begun,
        time=time,
        outcome="ok" if error is None else "denied" if is_denied else "error",
        duration_s=round(elapsed_s, 6),
        begun=seq,
        error=error.kind if error is not None and not is_denied else None,
        permission=error.details.get("permission") if is_denied and error is not None else None,
    )


def own_entry(uid: int, pid: int, what: str, params: Mapping[str, Any], *, time: str) -> Entry:
    """What nexusd itself has to say, about its start or about the log."""
    return Entry(time, DAEMON, uid, pid, f"nexusd.{what}", params, "ok")


def fit_params(
    params: Mapping[str, Any], known: tuple[str, ...], method: str, is_secret: IsSecret
) -> dict[str, Any]:
    """What was sent, with secrets masked and long values cut.

    A parameter that the method does not take is masked too: it may be a secret under a mistyped name.
    """
    hidden = {name for name in params if name not in known}
    if method == "configure" and is_secret(str(params.get("module_id")), str(params.get("key"))):
        hidden.add("value")
    shown = {
        _cut(name): MASK if name in hidden else fit_value(value)
        for name, value in list(params.items())[:MOST_PARAMS]
    }
    if len(params) > MOST_PARAMS:
        shown["…"] = f"{len(params) - MOST_PARAMS} more"
    return shown


def fit_value(value: Any) -> Any:
    """The value itself if it is small, else its beginning or its size, and that there was more."""
    if isinstance(value, str):
        return _cut(value)
    if value is None or isinstance(value, bool | float):
        return value
    try:
        size = len(_encode(value))
    except (TypeError, ValueError, OverflowError, RecursionError):
        return "(not shown)"
    return value if size <= LONGEST_TEXT else f"({size} bytes of JSON)"


def _cut(text: str) -> str:
    text = _utf8(text)
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]}… ({len(text)} characters)"


def _utf8(text: str) -> str:
    """JSON has no lone surrogates; a name of the operating system may."""
    return text.encode(errors="backslashreplace").decode()
