"""The exit statuses of nexusctl: what each means, which error leads to it, which of several is the worst."""

from __future__ import annotations

from nexusctl.client import RpcError
from nexusctl.unreachable import NO_PERMISSION, TIMED_OUT, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DONE = 0
FAILED = 1
USAGE = 2
NOT_RUNNING = 3
NO_SUCH_MODULE = 4
NOT_REACHABLE = 69
TIME_IS_UP = 75
DENIED = 77
INTERRUPTED = 130
PIPE_CLOSED = 141

MEANINGS = {
    DONE: "done; for `status MODULE`: it runs",
    FAILED: "failed or refused",
    USAGE: "the command line is wrong",
    NOT_RUNNING: "`status MODULE`: it does not run",
    NO_SUCH_MODULE: "no such module, or a pattern that matches none",
    NOT_REACHABLE: "the daemon is not reachable, or is shutting down",
    TIME_IS_UP: "timed out; what was asked for goes on",
    DENIED: "permission denied, by the socket or by the daemon",
    INTERRUPTED: "interrupted with Ctrl-C (0 where it ends a following command)",
    PIPE_CLOSED: "who read the output has gone (`| head`)",
}

OF_CODE = {-32001: DENIED, -32002: NO_SUCH_MODULE, -32005: TIME_IS_UP, -32009: NOT_REACHABLE}
OF_CAUSE = {NO_PERMISSION: DENIED, TIMED_OUT: TIME_IS_UP}
FROM_GOOD_TO_BAD = (DONE, NOT_RUNNING, NO_SUCH_MODULE, TIME_IS_UP, FAILED, DENIED, NOT_REACHABLE)


def exit_status(error: RpcError | Unreachable) -> int:
    if isinstance(error, RpcError):
        return OF_CODE.get(error.code, FAILED)
    return OF_CAUSE.get(error.cause, NOT_REACHABLE)


def worst(statuses: Iterable[int]) -> int:
    """Of several modules' outcomes the one that an operator must hear about first."""
    return max(statuses, key=FROM_GOOD_TO_BAD.index, default=DONE)
