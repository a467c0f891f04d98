"""When a command is done, and what it is told when it can't be: the outcome, in words for an operator.

Pure but for the last lines of a log. Waiting for the outcome is `nexusd.operations`'s.
"""

from collections.abc import Callable, Iterable
from typing import Any

from nexusd.domain import settings
from nexusd.domain.errors import DependencyFailed, NexusError, NotPossible, StartFailed
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Exit, Failed, Replica, Started, Stopped, Stuck, Waiting
from nexusd.domain.upgrades import Refusal, is_ready
from nexusd.ports import Logs

LOG_LINES = 10


class Outcomes:
    """Each answers True when it is reached, False while it may be, and raises when it won't be."""

    def __init__(self, logs: Logs) -> None:
        self._logs = logs

    def is_started(self, module: Module) -> bool:
        if module.state is ModuleState.STARTED or (module.count == 0 and not module.is_active):
            return True
        if not module.wanted:
            raise NotPossible(f"{module.id} was stopped meanwhile", module_id=module.id)
        _refuse_stuck(module, f"cannot start {module.id}")
        for replica in module.current:
            if (failure := self._failure(module, replica)) is not None:
                raise failure
        return False

    @staticmethod
    def runs(module: Module, index: int | None) -> bool:
        """Whether the module, or one replica of it, is started."""
        if index is None:
            return module.state is ModuleState.STARTED
        return any(replica.index == index and is_ready(replica) for replica in module.current)

    @staticmethod
    def is_stopped(module: Module) -> bool:
        _refuse_stuck(module, f"cannot stop {module.id}")
        if module.wanted:
            raise NotPossible(f"{module.id} was started meanwhile", module_id=module.id)
        return not module.is_active

    def is_renewed(self, former: frozenset[str], index: int | None = None) -> Callable[[Module], bool]:
        """None of the former runs is left, and what follows is started: of the module, or of one replica."""

        def is_reached(module: Module) -> bool:
            if module.refused is not None:
                return self._is_back(module, module.refused)
            _refuse_stuck(module, f"cannot end the former process of {module.id}")
            if any(replica.run in former for replica in module.replicas):
                return False
            return self.is_started(module) if index is None else self._is_started_one(module, index)

        return is_reached

    def is_scaled(self, previous: int, count: int) -> Callable[[Module], bool]:
        """The new ones are started, those beyond have ended. What becomes of the others is another affair."""

        def is_reached(module: Module) -> bool:
            if module.count != count or not module.wanted:
                what = f"scaled to {module.count}" if module.wanted else "stopped"
                raise NotPossible(f"{module.id} was {what} meanwhile", module_id=module.id)
            for replica in module.current:
                if replica.index >= previous and (failure := self._failure(module, replica)) is not None:
                    raise self._not_scaled(module, count, replica, failure)
            new = [replica for replica in module.current if replica.index >= previous]
            beyond = any(replica.index >= count and replica.run is not None for replica in module.replicas)
            return len(new) == max(count - previous, 0) and all(map(is_ready, new)) and not beyond

        return is_reached

    def _is_started_one(self, module: Module, index: int) -> bool:
        for replica in module.current:
            if replica.index == index:
                if (failure := self._failure(module, replica)) is not None:
                    raise failure
                return is_ready(replica)
        raise NotPossible(f"{module.id}#{index} was stopped meanwhile", module_id=module.id)

    def _is_back(self, module: Module, refusal: Refusal) -> bool:
        """Raises the refusal once nothing is left of the new generation and the old one is all there again."""
        if any(replica.generation > module.generation and _will_end(replica) for replica in module.replicas):
            return False
        if refusal.rolling and module.state is ModuleState.STARTING:
            return False
        raise self._upgrade_refused(module, refusal)

    def _failure(self, module: Module, replica: Replica) -> NexusError | None:
        """Why this replica did not start, when it did not; one that is tried again has failed the once."""
        match replica.state:
            case Waiting(obstacle=str(obstacle), lasting=True):
                return DependencyFailed(
                    f"cannot start {module.id}: {obstacle}",
                    module_id=module.id,
                    reason=obstacle,
                    hint=f"nexusctl status {module.id}",
                )
            case Stopped() if replica.wanted:
                return self._start_failed(module, replica)
            case Started():
                return None
        failed = isinstance(replica.state, Failed) or replica.history.in_a_row > 0
        return self._start_failed(module, replica) if failed else None

    def _start_failed(self, module: Module, replica: Replica) -> StartFailed:
        exit = replica.history.last_exit
        is_over = isinstance(replica.state, Failed | Stopped)
        again = "" if is_over else "; it is being tried again"
        reason = replica.reason or (exit.description if exit else "unknown")
        return self._told_by(module, replica, f"{module.id} did not start: {reason}{again}", reason)

    def _upgrade_refused(self, module: Module, refusal: Refusal) -> StartFailed:
        reason = refusal.reason
        after = "the old one goes on"
        if refusal.rolling:
            well = module.state is ModuleState.STARTED
            after = (
                "all replicas are the old one's"
                if well
                else f"the old one is {module.state}" + (f": {module.reason}" if module.reason else "")
            )
        what = f"{module.id} was not reloaded: the new generation failed ({reason}); {after}"
        failure = self._told_by(module, refusal.successor, what, reason)
        if _found_its_port_taken([reason, *failure.details["log"]]):
            way_out = f"nexusctl reload {module.id} --strategy immediate"
            failure.hint = f"{way_out}; or let nexusd open the socket, for both generations: [run] listen"
        return failure

    def _not_scaled(self, module: Module, count: int, replica: Replica, failure: NexusError) -> NexusError:
        """The number stays: what is tried again may come up yet."""
        what = f"{replica.module_id} is to have {count} replicas now, but {replica.name} did not start"
        if isinstance(failure, StartFailed):
            return self._told_by(module, replica, f"{what}: {failure.reason}", failure.reason or "unknown")
        return type(failure)(
            f"{what}: {failure.reason}",
            module_id=failure.module_id,
            reason=failure.reason,
            hint=failure.hint,
        )

    def _told_by(self, module: Module, replica: Replica, what: str, reason: str) -> StartFailed:
        """With what the replica itself leaves behind: its last words, its exit, the end of its log file."""
        definition = module.definition_of(replica)
        in_journal = definition.manifest.log.target == "journal"  # then what a file has is of another time
        tail = [] if in_journal else self._logs.tail(replica.name, LOG_LINES)
        return StartFailed(
            what,
            module_id=replica.module_id,
            reason=replica.status_text or reason,
            hint=f"nexusctl logs {replica.module_id}",
            replica=replica.name,
            exit=exit_shown(replica.history.last_exit),
            log=[_without_secrets(module, line) for line in tail],
        )


def _without_secrets(module: Module, line: str) -> str:
    if module.definition is None:
        return line
    return settings.without_secrets(module.definition.manifest, module.configured, line)


def _found_its_port_taken(words: Iterable[str]) -> bool:
    """By the former generation, as a rule: the words of libc, and those of runtimes with words of their own."""
    return any("address already in use" in line.lower() or "EADDRINUSE" in line for line in words)


def _will_end(replica: Replica) -> bool:
    return replica.run is not None and not isinstance(replica.state, Stuck)


def _refuse_stuck(module: Module, command: str) -> None:
    """Waiting for a process that the kernel holds may never end."""
    for replica in module.replicas:
        if isinstance(replica.state, Stuck):
            raise NotPossible(f"{command}: {replica.reason}", module_id=module.id)


def exit_shown(exit: Exit | None) -> dict[str, Any] | None:
    """An exit as the API shows it."""
    if exit is None:
        return None
    return {"code": exit.code, "signal": exit.signal_name, "description": exit.description}
