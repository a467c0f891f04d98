"""NexusClient: the client with a method for each of the daemon's, which comes back when the daemon does.

The methods are generated (methods.py), connection and waiting are client.py's.
"""

from __future__ import annotations

from nexusctl.client import Client
from nexusctl.methods import ACTIONS, Methods
from nexusctl.unreachable import CutOff
from nexusctl.wire import READ_TIMEOUT_S

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from typing import Any

    from nexusctl.wire import Params

ACTION_TIMEOUT_S = 60.0
GRACE_S = 5.0  # the daemon tells of a time-out itself; so much later we no longer believe that it will
REPEATS = 4  # a daemon that is killed may be killed again while it comes back


class NexusClient(Methods, Client):
    """For one thread. Time-outs in seconds: `timeout` for what reads, `action_timeout` for what does something.

    A connection that has ended is opened anew with the next call. What only reads is asked again when the
    daemon goes in the middle of it; a command is not, since it may have been carried out.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        timeout: float = READ_TIMEOUT_S,
        action_timeout: float = ACTION_TIMEOUT_S,
    ) -> None:
        super().__init__(path, timeout)
        self.action_timeout = action_timeout

    def call(self, method: str, params: Params = None, timeout: float | None = None) -> Any:
        for _ in range(0 if method in ACTIONS else REPEATS):
            try:
                return super().call(method, params, timeout)
            except CutOff:
                continue
        return super().call(method, params, timeout)

    def request(self, method: str, needed: dict[str, Any], **may: Any) -> Any:
        params, patience = request_of(method, needed, may, self.action_timeout)
        return self.call(method, params, patience)


def request_of(
    method: str, needed: dict[str, Any], may: dict[str, Any], action_timeout: float
) -> tuple[dict[str, Any], float | None]:
    """The parameters that were given, and how long to wait for the answer; None: as for what reads."""
    given = {name: value for name, value in may.items() if value is not None}
    if method not in ACTIONS:
        return {**needed, **given}, None
    return {**needed, **given}, max(action_timeout, given.get("timeout", 0.0) + GRACE_S)
