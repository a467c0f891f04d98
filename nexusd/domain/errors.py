"""The errors that a caller of nexusd reacts to, one class for each reaction.

Which JSON-RPC code belongs to a kind is said in `nexusd.rpc.codec`, which exit status in `nexusctl`.
"""

from typing import Any, ClassVar


class NexusError(Exception):
    """A command that was refused or failed, in words for the person who gave it.

    `hint` is what to type or look at next; `details` are further JSON values of the answer's `data`.
    """

    kind: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        module_id: str | None = None,
        reason: str | None = None,
        hint: str | None = None,
        **details: Any,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.module_id = module_id
        self.reason = reason
        self.hint = hint
        self.details = details

    def data(self) -> dict[str, Any]:
        """The error object's `data`: kind, what it concerns, why, and what to do next."""
        known = {"kind": self.kind, "module_id": self.module_id, "reason": self.reason, "hint": self.hint}
        return {**known, **self.details}


class InvalidParams(NexusError):
    """The parameters do not fit the method."""

    kind = "invalid_params"


class PermissionDenied(NexusError):
    """The caller may not do this."""

    kind = "permission_denied"


class NoSuchModule(NexusError):
    """No module has this id."""

    kind = "no_such_module"


class NotPossible(NexusError):
    """The module's present state, or another module, forbids it."""

    kind = "not_possible"


class BadValue(NexusError):
    """A configuration value of the wrong type or out of range, or a key that is not there."""

    kind = "bad_value"


class TimedOut(NexusError):
    """It was asked for and goes on, but was not done in the time the caller gave."""

    kind = "timed_out"


class DependencyFailed(NexusError):
    """A module that this one requires is missing, or has failed."""

    kind = "dependency_failed"


class Busy(NexusError):
    """The daemon has as much of this to do as it takes on at once."""

    kind = "busy"


class StartFailed(NexusError):
    """The module was started and did not get ready."""

    kind = "start_failed"


class ShuttingDown(NexusError):
    """The daemon is on its way out and takes no more commands."""

    kind = "shutting_down"
