"""The report of an experiment, from what was seen: JSON as docs/chaos.md describes it, and its verdict.

Pure. Fields are added, never changed.
"""

from typing import Any

from msgspec import Struct

from nexusd.domain.chaos import Kind, Steadiness, Target
from nexusd.domain.trial import RECOVERY_S, Phase, Trial

MOST_EVENTS = 100
Event = dict[str, Any]


class Verdict(Struct, frozen=True):
    outcome: str  # recovered, unaffected, gave up, not recovered, aborted, interrupted
    reason: str

    @property
    def recovered(self) -> bool:
        return self.outcome == "recovered"


def verdict(trial: Trial) -> Verdict | None:
    """None while it is under way."""
    if not trial.is_over:
        return None
    if trial.early is not None:
        return Verdict(trial.early.kind, trial.early.reason)
    if trial.gave_up is not None:
        return Verdict("gave up", trial.gave_up)
    if (untouched := _untouched(trial)) is not None:
        return Verdict("unaffected", untouched)
    return _on_recovery(trial)


def _untouched(trial: Trial) -> str | None:
    """A signal that a process took no notice of has tried nothing."""
    names = [target.name for target in trial.targets if target.detected_at is None]
    if trial.experiment.kind is Kind.FREEZE or not names:
        return None
    return f"{', '.join(names)} took no notice of {trial.experiment.kind.signal.name}"


def _on_recovery(trial: Trial) -> Verdict:
    limit_s = _limit_s(trial)
    recovered_s = _since_injection(trial, trial.recovered_at)
    if recovered_s is None:
        reasons = "; ".join(trial.after.reasons) if trial.after else ""
        return Verdict("not recovered", f"not in its steady state: {reasons}")
    if recovered_s > limit_s:
        return Verdict("not recovered", f"recovered after {recovered_s:g} s; {limit_s:g} s were allowed")
    unseen = [target.name for target in trial.targets if target.detected_at is None]
    noticed = f"; nothing noticed that {', '.join(unseen)} did not work" if unseen else ""
    return Verdict("recovered", f"in its steady state again after {recovered_s:g} s{noticed}")


def _limit_s(trial: Trial) -> float:
    """What is frozen for so long may need as long, and the time to recover."""
    frozen = trial.experiment.kind is Kind.FREEZE
    return trial.experiment.duration_s + (RECOVERY_S if frozen else 0.0)


def report(trial: Trial, events: list[Event]) -> dict[str, Any]:
    """Absolute times are epoch seconds; those that end in _s are seconds since the injection."""
    experiment, verdict_ = trial.experiment, verdict(trial)
    early = {"reason": trial.early.reason, "at": _epoch(trial, trial.rolled_back_at)} if trial.early else None
    return {
        "id": trial.id,
        "experiment": str(experiment.kind),
        "module_id": experiment.module_id,
        "replicas": str(experiment.share),
        "duration_s": experiment.duration_s,
        "seed": experiment.seed,
        "requested_by": trial.requested_by,
        "phase": str(trial.phase),
        "signal": experiment.kind.signal.name,
        "steady_before": {"at": _epoch(trial, 0.0), **_steadiness(trial.before)},
        "injected_at": _epoch(trial, trial.injected_at),
        "targets": [_target(trial, target) for target in trial.targets],
        "detected_s": _last([_since_injection(trial, target.detected_at) for target in trial.targets]),
        "recovered_s": _since_injection(trial, trial.recovered_at),
        "gave_up": trial.gave_up,
        "rolled_back_at": _epoch(trial, trial.rolled_back_at),
        "rolled_back_s": _since_injection(trial, trial.rolled_back_at),
        "rollback": trial.rollback,
        "steady_after": _after(trial),
        "aborted": early if trial.early and trial.early.kind == "aborted" else None,
        "interrupted": early if trial.early and trial.early.kind == "interrupted" else None,
        "verdict": _verdict(verdict_),
        "events": events[-MOST_EVENTS:],
    }


def plan(trial: Trial) -> dict[str, Any]:
    """What it would hit; nothing has been touched."""
    shown = report(trial, [])
    kept = ("experiment", "module_id", "replicas", "duration_s", "seed", "signal", "steady_before")
    targets = [{"replica": target.name, "pid": target.pid, "run": target.run} for target in trial.targets]
    return {"dry_run": True, **{name: shown[name] for name in kept}, "targets": targets}


_OF_A_LINE = (
    "id",
    "experiment",
    "module_id",
    "phase",
    "requested_by",
    "injected_at",
    "detected_s",
    "recovered_s",
    "verdict",
)


def line(shown: dict[str, Any]) -> dict[str, Any]:
    """A report as a row of a list."""
    return {name: shown[name] for name in _OF_A_LINE}


def is_whole(shown: dict[str, Any]) -> bool:
    """Whether it can be listed: a bit that fell over in the store may have cost it a name."""
    return shown.keys() >= set(_OF_A_LINE)


def runs_hit(shown: dict[str, Any]) -> list[str]:
    """As far as it can be read."""
    targets = shown.get("targets", ())
    hit = [target.get("run") for target in targets if isinstance(target, dict)]
    return [run for run in hit if isinstance(run, str)]


def interrupted(shown: dict[str, Any], at: float) -> dict[str, Any]:
    """The report of one whose lease can't be read: another version wrote it."""
    reason = "nexusd ended in the middle, and its lease can't be read"
    verdict = _verdict(Verdict("interrupted", reason))
    return {
        **shown,
        "phase": str(Phase.OVER),
        "interrupted": {"reason": reason, "at": at},
        "verdict": verdict,
    }


def _target(trial: Trial, target: Target) -> dict[str, Any]:
    return {
        "replica": target.name,
        "pid": target.pid,
        "run": target.run,
        "detected_s": _since_injection(trial, target.detected_at),
        "noticed": target.noticed,
        "recovered_s": _since_injection(trial, target.recovered_at),
        "pid_after": target.pid_after,
    }


def _after(trial: Trial) -> dict[str, Any] | None:
    if trial.after is None:
        return None
    when = {"at": _epoch(trial, trial.ended_at), "s": _since_injection(trial, trial.ended_at)}
    return {**when, **_steadiness(trial.after)}


def _steadiness(found: Steadiness) -> dict[str, Any]:
    return {
        "steady": found.is_steady,
        "state": found.state,
        "replicas": {"wanted": found.wanted, "ready": found.ready},
        "health": found.health,
        "reasons": list(found.reasons),
    }


def _verdict(found: Verdict | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"recovered": found.recovered, "outcome": found.outcome, "reason": found.reason}


def _since_injection(trial: Trial, at: float | None) -> float | None:
    return None if at is None or trial.injected_at is None else round(at - trial.injected_at, 4)


def _epoch(trial: Trial, at: float | None) -> float | None:
    return None if at is None else round(trial.epoch + at, 3)


def _last(times: list[float | None]) -> float | None:
    """The slowest; None when one of them never came."""
    known = [at for at in times if at is not None]
    return max(known) if known and len(known) == len(times) else None
