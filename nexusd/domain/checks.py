"""Which checks a replica has, what they have said so far, and the verdict that follows for each purpose.

Pure. Who asks, and when, is `system.health_checks`'s; what a verdict leads to is `lifecycle`'s and `health`'s.
"""

from enum import StrEnum
from typing import Literal
from urllib.parse import urlsplit

from msgspec import Struct

from nexusd.domain.manifest_sections import Check, Manifest

LONGEST_REASON = 100  # it is part of what the keeper remembers of a module, which has to fit into a packet

Word = Literal["healthy", "degraded", "unhealthy"]


class Purpose(StrEnum):
    STARTUP = "startup"  # until it has passed, the replica is not ready, and nothing else is asked
    LIVENESS = "liveness"  # failing, the replica is restarted
    READINESS = "readiness"  # failing, the replica is reported as unhealthy, no more


class Plan(Struct, frozen=True):
    """What the manifest says of checking a replica."""

    gate: Purpose | None = None  # what has to pass before it is ready
    lasting: tuple[Purpose, ...] = ()  # what is asked while it is started
    checks: dict[Purpose, Check] = {}
    failures: int = 3
    successes: int = 1
    ready_by_gate: bool = False  # whether passing makes it ready, with no word of its own
    grace_s: float = 0.0  # since it became ready; before that no first verdict is a bad one


NO_CHECKS = Plan()


class Said(Struct, frozen=True):
    """What one check came to."""

    word: Word
    reason: str | None = None


class Tally(Struct, frozen=True, omit_defaults=True):
    """The checks for one purpose since the run began. A verdict falls, and changes, after several in a row."""

    verdict: Word | None = None  # None: too early to tell
    failures: int = 0  # in a row
    successes: int = 0  # in a row, counted no further than what is needed
    reason: str | None = None  # what the last check objected to

    @property
    def has_passed(self) -> bool:
        return self.verdict in ("healthy", "degraded")


Tallies = dict[Purpose, Tally]


def plan_of(manifest: Manifest) -> Plan:
    """`check` stands in for readiness. Nothing stands in for liveness: a restart has to be asked for."""
    health = manifest.health
    if not (health.check or health.liveness or health.readiness or health.startup):
        return NO_CHECKS
    named = {
        Purpose.STARTUP: health.startup,
        Purpose.LIVENESS: health.liveness,
        Purpose.READINESS: health.readiness or health.check,
    }
    checks = {purpose: check for purpose, check in named.items() if check is not None}
    by_gate = manifest.run.ready == "health"
    gate = Purpose.STARTUP if Purpose.STARTUP in checks else Purpose.READINESS if by_gate else None
    lasting = tuple(purpose for purpose in checks if purpose is not Purpose.STARTUP)
    grace_s = (
        health.failures - 1
    ) * health.interval  # it is asked more often at first: that is no reason to hurry
    return Plan(gate, lasting, checks, health.failures, health.successes, by_gate, grace_s)


def counted(tally: Tally, said: Said, plan: Plan, age_s: float) -> Tally:
    """The tally with one check more, of a replica that is ready for so long; the same one if nothing changed."""
    after = _failed(tally, said, plan, age_s) if said.word == "unhealthy" else _passed(tally, said, plan)
    return tally if after == tally else after


def _failed(tally: Tally, said: Said, plan: Plan, age_s: float) -> Tally:
    failures = tally.failures + 1
    is_too_early = tally.verdict is None and age_s < plan.grace_s
    verdict = "unhealthy" if failures >= plan.failures and not is_too_early else tally.verdict
    return Tally(verdict, failures, 0, _short(said.reason or "it failed"))


def _passed(tally: Tally, said: Said, plan: Plan) -> Tally:
    """A module's own word that it is degraded counts at once: it is no guess that wants to be confirmed."""
    successes = min(tally.successes + 1, plan.successes)
    is_enough = successes >= plan.successes or tally.has_passed
    verdict = said.word if is_enough else tally.verdict
    reason = _short(said.reason or "degraded") if said.word == "degraded" else None
    return Tally(verdict, 0, successes, reason if is_enough else tally.reason)


def described(check: Check) -> str:
    """A check in words, without what may be a secret: a URL's query, a program's arguments."""
    if check.http is not None:
        parts = urlsplit(check.http)
        return f"http check http://{parts.netloc.rpartition('@')[2]}{parts.path}"
    if check.exec is not None:
        return f"exec check {check.exec[0]}"
    if check.tcp is not None:
        return f"tcp check {check.tcp}"
    return "control check" if check.unix is None else f"unix check {check.unix}"


def complaint(plan: Plan, purpose: Purpose, tally: Tally) -> str | None:
    """What there is to say against a replica for this purpose, in words; None: nothing."""
    what = _short(described(plan.checks[purpose]))
    what = what if purpose is Purpose.READINESS else f"{purpose} {what}"
    if tally.verdict == "unhealthy" or tally.failures:
        often = f", {tally.failures} times in a row" if tally.failures > 1 else ""
        return f"{what}: {tally.reason}{often}"
    if tally.verdict == "degraded":
        return f"{what}: {tally.reason}"
    return None


def objection(plan: Plan, tallies: Tallies) -> str | None:
    """The first complaint that counts; failures that are too few for a verdict do not."""
    for purpose in plan.lasting:
        tally = tallies.get(purpose)
        if tally is not None and tally.verdict not in (None, "healthy"):
            return complaint(plan, purpose, tally)
    return None


def _short(text: str) -> str:
    """One line, bounded, without control characters: it may come from a module or a server."""
    line = "".join(c if c.isprintable() else " " for c in text).strip()
    return line if len(line) <= LONGEST_REASON else f"{line[: LONGEST_REASON - 1]}…"
