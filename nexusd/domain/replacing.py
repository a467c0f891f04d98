"""When one nexusd may give its place to another: how it was started, what is under way, what a trial of the other says.

Pure. The trial is run by `nexusd.reexec`, the place is given over by `system/handover.py`.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from nexusd.domain.decoding import prepare
from nexusd.domain.errors import Busy, NotPossible
from nexusd.domain.fleet import Fleet

FORMAT = 1  # of what is handed over; counts up when a successor has to know more than the one before
LAST_LINES = 5
_NAMED = 5
_ELSEWHERE = "systemctl restart nexusd, or nexusctl shutdown and a new start"


class Command(NamedTuple):
    """What to execute, and its arguments, the first of which is its name."""

    program: str
    argv: tuple[str, ...]


def command(executable: str, started_with: Sequence[str], argv: Sequence[str], first_line: str) -> Command:
    """How this process was started, to be started so again.

    executable, started_with, argv: Python's own words for it (`sys.executable`, `sys.orig_argv`, `sys.argv`).
    first_line: of the file argv[0]. A console script is executed itself: the one that took its place may name another
    interpreter, and with it another installation.
    """
    script = argv[0]
    is_script = list(started_with[-len(argv) :]) == list(argv) and "/" in script
    words = first_line.removeprefix("#!").split() if first_line.startswith("#!") else []
    if is_script and words and words == list(started_with[: -len(argv)]):
        return Command(script, tuple(argv))
    return Command(executable, (executable, *started_with[1:]))


class Commanded(NamedTuple):
    """A command that somebody waits for."""

    method: str
    module_id: str | None
    principal: str


def under_way(
    fleet: Fleet,
    commanded: Collection[Commanded],
    experiments: Mapping[str, str],
    untold: Collection[str] = (),
) -> list[str]:
    """What would be cut short, in words. experiments: modules by the experiment's id. untold: names of replicas."""
    told = [f"{one.method} {one.module_id or ''}".strip() + f" ({one.principal})" for one in commanded]
    asked = {one.module_id for one in commanded}
    told += [
        f"a reload of {one.id}"
        for one in fleet.modules.values()
        if one.upgrade is not None and one.id not in asked
    ]
    told += [f"a value that {replica} is to hear of once it is started" for replica in dict.fromkeys(untold)]
    told += [f"{name} of {module_id}" for name, module_id in experiments.items() if module_id not in asked]
    return told


def refuse_while(told: Sequence[str]) -> None:
    """Raises Busy that names what is under way."""
    if told:
        left = len(told) - _NAMED
        named = ", ".join([*told[:_NAMED], *([f"{left} more"] if left > 0 else [])])
        raise Busy(
            f"nexusd is not replaced while this is under way: {named}",
            hint="nexusctl reexec --force cuts it short, as a kill of nexusd would",
            operations=list(told),
        )


class Report(msgspec.Struct, frozen=True):
    """What the successor says of itself when it is tried; unread: what it can't read of what is remembered."""

    version: str
    keeper_protocol: int
    takes_over: int
    runtime: str
    state: str
    socket: str
    unread: tuple[str, ...] = ()


prepare(Report)


class Here(NamedTuple):
    """What a successor has to agree with."""

    runtime: str
    state: str
    socket: str | None  # None: systemd's, whose path is no choice of nexusd's


class Trial(NamedTuple):
    """How the trial ended. code: its exit status, below 0 the signal; None where nothing is known of it."""

    code: int | None
    output: str
    timed_out: bool = False
    refusal: str | None = None  # why it was never begun


def judged(trial: Trial, here: Here, timeout_s: float) -> Report:
    """The successor's word for itself. Raises NotPossible: with the reason nothing has happened yet."""
    if trial.refusal is not None:
        raise _refused(trial.refusal)
    if trial.timed_out:
        raise _refused(f"it was tried for {timeout_s:g} s and came to no end", trial.output)
    lines = trial.output.strip().splitlines()
    try:
        report = msgspec.json.decode(lines[-1] if lines else "", type=Report)
    except (msgspec.DecodeError, UnicodeEncodeError):
        raise _refused(f"its trial ended with {_ended(trial.code)}", trial.output) from None
    if trial.code != 0:
        raise _refused(f"its trial ended with {_ended(trial.code)}", trial.output)
    _agree(report, here)
    return report


def _agree(report: Report, here: Here) -> None:
    if report.takes_over != FORMAT:
        raise _refused(
            f"{report.version} takes over in another way ({report.takes_over}, not {FORMAT})", hint=_ELSEWHERE
        )
    for name in ("runtime", "state", "socket"):
        ours, its = getattr(here, name), getattr(report, name)
        if ours not in (None, its):
            raise _refused(f"its {name} would be {its}, and is {ours}", hint=_ELSEWHERE)
    if report.unread:
        named = ", ".join(report.unread[:_NAMED])
        raise _refused(f"{report.version} cannot read what is remembered of {named}", hint=_ELSEWHERE)


def _ended(code: int | None) -> str:
    if code is None:
        return "an unknown status"
    return f"status {code}" if code >= 0 else f"signal {-code}"


def _refused(reason: str, output: str = "", hint: str = "nexusd's own log, and nexusd check") -> NotPossible:
    lines = [line for line in output.strip().splitlines() if line.strip()][-LAST_LINES:]
    error = NotPossible(f"nexusd is not replaced: {reason}", reason=lines[-1] if lines else reason, hint=hint)
    error.details |= {"replica": "its trial", "log": lines} if lines else {}
    return error
