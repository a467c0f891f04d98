"""An error as an operator reads it, on stderr: one sentence, indented details, the next command to try."""

from __future__ import annotations

import json
import os
import sys

from nexusctl.client import RpcError
from nexusctl.exits import exit_status
from nexusctl.output import clean, hanging, page_of
from nexusctl.unreachable import NO_DAEMON, NO_PERMISSION, SHUT_DOWN, SYSTEM_SOCKET, TIMED_OUT, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

PREFIX = "nexusctl: "
UNITS = tuple(f"{folder}/systemd/system/nexusd.service" for folder in ("/etc", "/usr/lib", "/lib", "/run"))
NEXT = {
    "no_such_module": "nexusctl modules",
    "permission_denied": "nexusctl whoami",
    "timed_out": "nexusctl status {id}",
    "start_failed": "nexusctl logs {id}",
    "dependency_failed": "nexusctl status {id}",
    "bad_value": "nexusctl config get {id}",
    "busy": "nexusctl events -n 5",
    "method_not_found": "nexusctl rpc rpc.discover",
}
INVALID_PARAMS = "Invalid params"  # JSON-RPC's words for it; which one it is stands in the reason
GUESS = "did you mean "  # a hint that belongs to the sentence: it is no command to try
SHOWN_ELSEWHERE = frozenset(
    {"kind", "module_id", "reason", "hint", "exit", "log", "replica", "required_by", "near"}
)


def complain(
    error: RpcError | Unreachable, output: str, verb: str | None = None, module: str | None = None
) -> int:
    """Print what went wrong while doing `verb` to `module`; what comes back is the exit status it means."""
    status = exit_status(error)
    if output in ("json", "jsonl"):
        print(json.dumps({"error": as_object(error, module, status)}, ensure_ascii=False), file=sys.stderr)
    else:
        first, *rest = lines(error, verb, module)
        tell([PREFIX + first, *rest])
    return status


def tell(said: Sequence[str]) -> None:
    """Print on stderr, broken to fit a terminal; but not a next step, which is there to be copied."""
    page = page_of(sys.stderr)
    for line in said:
        bare = line.lstrip(" ")
        indent = line.removesuffix(bare)
        first, *rest = [line] if line.startswith("next: ") else hanging(indent, bare, page)
        if first.startswith(PREFIX):
            first = page.paint(PREFIX, "red") + first.removeprefix(PREFIX)
        print(first, *rest, sep="\n", file=sys.stderr)


def as_object(error: RpcError | Unreachable, module: str | None, status: int) -> dict[str, Any]:
    """The error for programs, in one shape for the daemon's errors and for those on the way to it."""
    if isinstance(error, RpcError):
        known = {"module_id": module, **error.data, "code": error.code, "message": error.message}
    else:
        known = {"kind": "unreachable", "cause": error.cause, "socket": error.path, "message": str(error)}
    return {**known, "exit_status": status, "next": next_step(error, module)}


def lines(error: RpcError | Unreachable, verb: str | None = None, module: str | None = None) -> list[str]:
    if isinstance(error, Unreachable):
        is_met = error.cause in (SHUT_DOWN, TIMED_OUT)
        told = [clean(error) if is_met else f"cannot connect: {clean(error)}"]
    else:
        sentence = _sentence(error, verb, module)
        told = [sentence, *(f"  {line}" for line in _details(error, sentence, verb))]
    following = next_step(error, module)
    return [*told, f"next: {following}"] if following else told


def next_step(error: RpcError | Unreachable, module: str | None = None) -> str | None:
    """The command to try next: the daemon's own hint before ours."""
    if isinstance(error, Unreachable):
        return _way_to_the_daemon(error)
    hint = clean(error.data.get("hint") or "")
    if hint and not hint.startswith(GUESS):
        return hint
    concerned = error.data.get("module_id") or module
    if error.data.get("required_by") and concerned:
        return f"nexusctl stop --cascade {concerned}"
    step = NEXT.get(error.kind, "nexusctl status {id}" if concerned else None)
    return step.format(id=concerned) if step and (concerned or "{id}" not in step) else None


def _way_to_the_daemon(error: Unreachable) -> str | None:
    if error.cause == NO_PERMISSION:
        return "run it as root, or as a member of the socket's group"
    if error.cause == TIMED_OUT:
        return "try it again with a longer --timeout"
    if error.cause != NO_DAEMON:
        return None
    if error.path == SYSTEM_SOCKET and any(map(os.path.exists, UNITS)):
        return "systemctl start nexusd, or name another socket with --socket"
    return "start nexusd, or name the socket of the one that runs with --socket or NEXUS_SOCKET"


def _sentence(error: RpcError, verb: str | None, module: str | None) -> str:
    """`cannot start mesh/echo: …`, unless the daemon's sentence says already what it is about."""
    said = clean(error.message)
    if said == INVALID_PARAMS:
        said = clean(error.data.get("reason") or said)
    hint = clean(error.data.get("hint") or "")
    if hint.startswith(GUESS) and GUESS not in said:
        said = f"{said}; {hint}"
    if verb is None or module is None or module in said:
        return said
    return f"cannot {verb} {module}: {said}"


def _details(error: RpcError, sentence: str, verb: str | None) -> list[str]:
    data = error.data
    told = []
    reason = data.get("reason")
    if reason and clean(reason) not in sentence:
        told.append(clean(reason))
    if error.kind == "start_failed" and data.get("module_id"):
        again = (
            "reload" if verb == "reload" else "restart"
        )  # it may be starting still, where start has no effect
        told.append(f"once it is corrected: nexusctl {again} {clean(data['module_id'])}")
    told += _ending(data, sentence)
    if required_by := data.get("required_by"):
        told.append(f"required by {', '.join(map(clean, required_by))}")
    told += [
        f"{clean(name)}: {clean(value)}"
        for name, value in data.items()
        if name not in SHOWN_ELSEWHERE and _is_news(value, sentence)
    ]
    return told


def _is_news(value: object, sentence: str) -> bool:
    return value is not None and not isinstance(value, dict | list) and clean(value) not in sentence


def _ending(data: dict[str, Any], said: str) -> list[str]:
    """How the replica of a failed start ended, and its last words."""
    replica = clean(data.get("replica") or data.get("module_id") or "it")
    told = []
    if isinstance(ended := data.get("exit"), dict) and str(ended.get("description")) not in said:
        told.append(f"{replica} ended: {clean(ended.get('description'))}")
    if log := data.get("log"):
        told.append(f"last lines of {replica}:")
        told += [f"  | {clean(line)}" for line in log]
    return told
