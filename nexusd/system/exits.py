"""How a process ended, as the keeper tells it, in the domain's terms and in words."""

import os
from collections.abc import Mapping
from typing import Any

from nexusd.domain.replica import Exit


def exit_of(status: int | None, refusal: Mapping[str, Any] | None) -> Exit:
    """The keeper's wait status (None: nobody of ours could reap it) in the domain's terms."""
    if refusal is not None:
        return Exit(cause=refused(refusal))
    if status is None:
        return Exit()
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status))
    return Exit(code=os.waitstatus_to_exitcode(status))


def refused(refusal: Mapping[str, Any]) -> str:
    """Why the module's own code was never reached."""
    about, reason = refusal["about"], refusal["reason"]
    if refusal["step"] != "exec" or about is None:
        return f"cannot be started ({refusal['step']}): {reason}" + (f": {about}" if about else "")
    if os.path.isdir(about):
        return f"cannot execute {about}: it is a directory"
    if refusal["errno"] == 2 and os.path.exists(about):
        return f"cannot execute {about}: the interpreter in its first line is not there"
    return f"cannot execute {about}: {reason}"
