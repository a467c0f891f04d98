"""When a command is done, and what it is told when it can't be: the outcome, in words for an operator.

Pure but for the last lines of a log. Waiting for the outcome is `nexusd.operations`'s.
"""

from collections.abc import Callable
from typing import Any

from nexusd.domain import lifecycle, settings
from nexusd.domain.errors import DependencyFailed, NexusError, NotPossible, StartFailed
from nexusd.domain.fleet import Module, ModuleState
from nexusd.domain.lifecycle import Replica
from nexusd.domain.upgrades import Refusal
from nexusd.ports import Logs

LOG_LINES = 10


class Outcomes:
    """Each answers True when it is reached, False while it may be, and raises when it won't be."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs

    def is_started(self, module: Module) -> bool:
        if module.state is ModuleState.STARTED:
            return True
        if not module.wanted:
            raise NotPossible(f"{module.id} was stopped meanwhile", module_id=module.id)
        _refuse_stuck(module, f"cannot start {module.id}")
        for replica in module.current:
            if (failure := self._failure(module, replica)) is not None:
                raise failure
        return False

    @staticmethod
    def is_stopped(module: Module) -> bool:
        _refuse_stuck(module, f"cannot stop {module.id}")
        if module.wanted:
            raise NotPossible(f"{module.id} was started meanwhile", module_id=module.id)
        return not module.is_active

    def is_renewed(self, former: frozenset[str]) -> Callable[[Module], bool]:
        def is_reached(module: Module) -> bool:
            if module.refused is not None:
                raise self._upgrade_refused(module, module.refused)
            _refuse_stuck(module, f"cannot end the former process of {module.id}")
            if any(replica.run in former for replica in module.replicas):
                return False
            return self.is_started(module)

        return is_reached

    def _failure(self, module: Module, replica: Replica) -> NexusError | None:
        """Why this replica did not start, when it did not; one that is tried again has failed the once."""
        match replica.state:
            case lifecycle.Waiting(obstacle=str(obstacle), lasting=True):
                return DependencyFailed(
                    f"cannot start {module.id}: {obstacle}",
                    module_id=module.id,
                    reason=obstacle,
                    hint=f"nexusctl status {module.id}",
                )
            case lifecycle.Stopped() if replica.wanted:
                return self._start_failed(module, replica)
            case lifecycle.Started():
                return None
        failed = isinstance(replica.state, lifecycle.Failed) or replica.history.in_a_row > 0
        return self._start_failed(module, replica) if failed else None

    def _start_failed(self, module: Module, replica: Replica) -> StartFailed:
        exit = replica.history.last_exit
        is_over = isinstance(replica.state, lifecycle.Failed | lifecycle.Stopped)
        again = "" if is_over else "; it is being tried again"
        reason = replica.reason or (exit.description if exit else "unknown")
        return self._told_by(module, replica, f"{module.id} did not start: {reason}{again}", reason)

    def _upgrade_refused(self, module: Module, refusal: Refusal) -> StartFailed:
        module_id, reason = refusal.successor.module_id, refusal.reason
        what = f"{module_id} was not reloaded: the new generation failed ({reason}); the old one goes on"
        return self._told_by(module, refusal.successor, what, reason)

    def _told_by(self, module: Module, replica: Replica, what: str, reason: str) -> StartFailed:
        """With what the replica itself leaves behind: its last words, its exit, the end of its log."""
        return StartFailed(
            what,
            module_id=replica.module_id,
            reason=replica.status_text or reason,
            hint=f"nexusctl logs {replica.module_id}",
            replica=replica.name,
            exit=exit_shown(replica.history.last_exit),
            log=[_without_secrets(module, line) for line in self._logs.tail(replica.name, LOG_LINES)],
        )


def _without_secrets(module: Module, line: str) -> str:
    if module.definition is None:
        return line
    return settings.without_secrets(module.definition.manifest, module.configured, line)


def _refuse_stuck(module: Module, command: str) -> None:
    """Waiting for a process that the kernel holds may never end."""
    for replica in module.replicas:
        if isinstance(replica.state, lifecycle.Stuck):
            raise NotPossible(f"{command}: {replica.reason}", module_id=module.id)


def exit_shown(exit: lifecycle.Exit | None) -> dict[str, Any] | None:
    """An exit as the API shows it."""
    if exit is None:
        return None
    return {"code": exit.code, "signal": exit.signal_name, "description": exit.description}
