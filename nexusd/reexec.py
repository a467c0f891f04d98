"""How the running nexusd is replaced by the installed one: who is in the way, how that one is tried.

What is decided from that stands in `domain/replacing.py`; giving the place over is the daemon's.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from nexusd.domain import replacing
from nexusd.domain.errors import Busy, NotPossible
from nexusd.domain.replacing import Command, Here, Report, Trial
from nexusd.system.exits import refused

TRIAL_S = 20.0


class Keeper(Protocol):
    """The keeper's client: nexusd itself starts nothing."""

    @property
    def notes(self) -> Mapping[str, str]: ...

    async def probe(self, launch: dict[str, Any], timeout_s: float) -> dict[str, Any] | None: ...


class Replacement:
    """One at a time; without a command there is none: then nexusd is part of another program."""

    def __init__(
        self,
        command: Command | None,
        variables: Mapping[str, str],
        here: Here,
        keeper: Keeper,
        under_way: Callable[[], list[str]],
    ) -> None:
        """variables: what systemd told nexusd."""
        self._command = command
        self._variables = variables
        self._here = here
        self._keeper = keeper
        self._under_way = under_way
        self._busy = False

    async def try_out(self, force: bool, timeout_s: float | None) -> Report:
        """The word of the installed nexusd for itself, when nothing is in the way. Raises Busy, NotPossible."""
        if self._command is None:
            raise NotPossible("nexusd is part of another program here, and cannot be replaced by itself")
        if self._busy:
            raise Busy("nexusd is being replaced already", hint="nexusctl status")
        self._refuse_unless(force)
        self._busy = True  # for good, where it succeeds
        try:
            report = await self._tried(self._command, timeout_s or TRIAL_S)
            self._refuse_unless(force)
        except BaseException:
            self._busy = False
            raise
        return report

    def _refuse_unless(self, force: bool) -> None:
        if not force:
            replacing.refuse_while(self._under_way())

    async def _tried(self, command: Command, timeout_s: float) -> Report:
        try:
            told = await self._ask(command, timeout_s)
        except (OSError, ValueError) as error:
            raise NotPossible(f"nexusd is not replaced: the new one cannot be tried: {error}") from error
        if told is None:
            raise NotPossible("nexusd is not replaced: the new one cannot be tried while there is no keeper")
        return replacing.judged(_trial(told), self._here, timeout_s)

    async def _ask(self, command: Command, timeout_s: float) -> Mapping[str, Any] | None:
        notes = os.path.join(self._here.runtime, "successor.json")
        descriptor = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(self._keeper.notes, file)
            launch = {
                "argv": [command.program, *command.argv[1:], "check", "--successor", notes],
                "environment": self._environment(),
                "directory": os.getcwd(),
            }
            return await self._keeper.probe(launch, timeout_s)
        finally:
            os.unlink(notes)

    def _environment(self) -> dict[str, str]:
        """As the successor will have it, but for what would have it speak to systemd."""
        told = {name: text for name, text in self._variables.items() if name.endswith("_DIRECTORY")}
        return {**os.environ, **told}


def _trial(told: Mapping[str, Any]) -> Trial:
    why = refused(told["refusal"]) if told.get("refusal") else None
    output = (
        told.get("tail") or told.get("line") or ""
    )  # a keeper of a version before has the last line alone
    status = told.get("status")
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return Trial(code, output, bool(told.get("timed_out")), why)
