"""`health`: one line and an exit status for cron, Nagios and their like; silent when all is well. Without click.

What is healthy the daemon says; here that becomes OK, WARNING, CRITICAL or UNKNOWN, within a hard deadline.
"""

from __future__ import annotations

import signal

from nexusctl.client import RpcError
from nexusctl.output import clean, compact, folded, indented
from nexusctl.unreachable import NO_PERMISSION, NOT_OUR_PROTOCOL, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType
    from typing import Any

    from nexusctl.invocation import Invocation
    from nexusctl.output import Page

    Item = dict[str, Any]

OK, WARNING, CRITICAL, UNKNOWN = range(4)  # monitoring-plugins.org, plugin return codes
NAMES = ("OK", "WARNING", "CRITICAL", "UNKNOWN")
DEADLINE_S = 2.0
MOST_SHOWN = 5  # modules in the line; --verbose has all
SHUTTING_DOWN = -32009


class _TimeIsUp(Exception):
    """The deadline has passed, whatever the daemon or a trickling connection does."""


class Finding:
    """What is to be told: a status, a sentence, the modules that are not well, the figures."""

    def __init__(
        self, status: int, sentence: str, items: Sequence[Item] = (), figures: Item | None = None
    ) -> None:
        self.status = status
        self.sentence = sentence
        self.items = items
        self.figures = figures

    @property
    def line(self) -> str:
        """Without the sign that parts a plugin's text from its figures."""
        return f"{NAMES[self.status]}: {clean(self.sentence)}".replace("|", "/")


def show_health(invocation: Invocation, verbose: bool = False, perfdata: bool = False) -> int:
    """Ask, print what there is to say, and give the status as Nagios has it."""
    finding = _asked(invocation)
    if invocation.output == "table":
        _print_lines(finding, verbose, perfdata, invocation.page)
    elif invocation.output == "name":
        print(*(item["id"] for item in finding.items), sep="\n", end="\n" if finding.items else "")
    else:
        print((indented if invocation.output == "json" else compact)(_as_object(finding)))
    return finding.status


def _print_lines(finding: Finding, verbose: bool, perfdata: bool, page: Page) -> None:
    figures = " ".join(f"{name}={value}" for name, value in (finding.figures or {}).items())
    if finding.status != OK or verbose or perfdata:
        line = f"{finding.line} | {figures}" if perfdata and figures else finding.line
        print(*folded(line, page), sep="\n")  # a plugin's output is one line; only on a terminal it is broken
    for item in finding.items if verbose else ():
        print(*folded(f"{item['id']}: {item['health']}, {clean(why(item))}", page), sep="\n")


def _as_object(finding: Finding) -> Item:
    told = {
        "status": NAMES[finding.status],
        "exit_status": finding.status,
        "message": clean(finding.sentence),
    }
    return {**told, "statistics": finding.figures, "modules": list(finding.items)}


def _asked(invocation: Invocation) -> Finding:
    timeout = DEADLINE_S if invocation.timeout is None else invocation.timeout
    late = Finding(CRITICAL, f"nexusd has not answered within {timeout:g} s")
    former = signal.signal(signal.SIGALRM, _raise)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        with invocation.client(2 * timeout) as client:
            answers = dict(client.call_many([("check_readiness", None), ("get_status", None)]))
        return judged(answers[0], answers[1])
    except _TimeIsUp:
        return late
    except Unreachable as error:
        is_unknown = error.cause in (NO_PERMISSION, NOT_OUR_PROTOCOL)
        return Finding(UNKNOWN if is_unknown else CRITICAL, str(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _raise(_number: int, _frame: FrameType | None) -> None:
    raise _TimeIsUp


def judged(readiness: Item | RpcError, status: Item | RpcError) -> Finding:
    """CRITICAL: not ready. WARNING: ready, and something is not as it should be."""
    for answer in (readiness, status):
        if isinstance(answer, RpcError):
            return Finding(CRITICAL if answer.code == SHUTTING_DOWN else UNKNOWN, answer.message)
    try:
        return _judged(readiness, status)  # type: ignore[arg-type]  # no error is left
    except (KeyError, TypeError, AttributeError) as error:
        return Finding(UNKNOWN, f"nexusd's answer is not understood: {error!r}")


def _judged(readiness: Item, status: Item) -> Finding:
    figures = status["health"]["statistics"]
    items = [item for item in status["modules"]["items"] if item["health"] != "healthy"]
    items.sort(key=lambda item: (item["health"] != "unhealthy", not item["critical"], item["id"]))
    invalid = [item for item in items if item["state"] == "invalid"]
    complaints = [
        *(_some(items, word, figures["total"]) for word in ("unhealthy", "degraded")),
        f"{len(invalid)} with a faulty manifest: {_named(invalid)}" if invalid else "",
        "" if (status.get("keeper") or {}).get("connected", True) else "the keeper is not connected",
    ]
    complaints = [complaint for complaint in complaints if complaint]
    if not readiness["ready"]:
        reasons = [
            one for one in readiness.get("reasons") or ["not ready"] if "critical" in one or not complaints
        ]
        return Finding(CRITICAL, "; ".join([*reasons, *complaints]), items, figures)
    if complaints:
        return Finding(WARNING, "; ".join(complaints), items, figures)
    return Finding(OK, f"{figures['healthy']} of {figures['total']} modules healthy", (), figures)


def _some(items: Sequence[Item], word: str, total: int) -> str:
    found = [item for item in items if item["health"] == word and item["state"] != "invalid"]
    return f"{len(found)} of {total} modules {word}: {_named(found)}" if found else ""


def _named(items: Sequence[Item]) -> str:
    named = ", ".join(f"{item['id']} ({why(item)})" for item in items[:MOST_SHOWN])
    return named if len(items) <= MOST_SHOWN else f"{named} and {len(items) - MOST_SHOWN} more"


def why(item: Item) -> str:
    reasons = item.get("health_reasons") or [item.get("reason") or item["state"]]
    return "; ".join(map(str, reasons))
