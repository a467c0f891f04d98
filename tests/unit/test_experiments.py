"""Experiments as values: what may be asked for, who is hit, and what a look at the module makes of them."""

import math
import random
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from nexusd.domain import chaos, trial
from nexusd.domain.chaos import Kind, View, experiment_of, share_of
from nexusd.domain.chaos_report import MOST_EVENTS, interrupted, line, plan, report, verdict
from nexusd.domain.errors import InvalidParams, NotPossible
from nexusd.domain.events import Put, Renewal
from nexusd.domain.health import Health, health_of
from nexusd.domain.replica import Exit
from nexusd.domain.trial import Phase, Trial
from tests.fakes import CLEAN, Rehearsal, module

ONE = "vitals/one"
KILLED = Exit(signal=9)
ALLOWED = {"chaos": {"allow": True}}


@pytest.mark.parametrize(
    ("said", "running", "hit"),
    [(1, 3, 1), ("2", 3, 2), ("50%", 4, 2), ("50%", 3, 2), ("1%", 3, 1), ("100%", 3, 3), (" 2 ", 3, 2)],
)
def test_a_share_is_a_number_or_a_percentage_rounded_up(said: int | str, running: int, hit: int) -> None:
    assert share_of(said).of(running) == hit


@pytest.mark.parametrize("said", [0, -1, "0", "0%", "101%", "half", "", "%", "1.5", "²", True, "99999"])
def test_what_is_no_share_is_refused(said: Any) -> None:
    with pytest.raises(InvalidParams, match="replicas: expected a number from 1 or a percentage"):
        share_of(said)


@pytest.mark.parametrize(
    ("said", "seconds"), [(5, 5.0), ("10s", 10.0), ("1h", 3600.0), ("2.5", 2.5), ("500ms", 0.5)]
)
def test_a_duration_is_seconds_or_a_text(said: float | str, seconds: float) -> None:
    assert experiment_of("freeze", ONE, 1, said, 1).duration_s == seconds


@pytest.mark.parametrize("said", [0, -1, 3601, "2h", "soon", "", float("nan"), float("inf")])
def test_a_duration_out_of_bounds_is_refused(said: Any) -> None:
    with pytest.raises(InvalidParams, match="duration: expected one above 0 and up to 1h"):
        experiment_of("freeze", ONE, 1, said, 1)


def test_each_experiment_has_a_duration_of_its_own_where_none_is_given() -> None:
    assert [experiment_of(kind, ONE, 1, None, 1).duration_s for kind in Kind] == [60.0, 60.0, 10.0]


def test_an_unknown_experiment_names_those_there_are_and_a_near_match() -> None:
    with pytest.raises(
        InvalidParams, match="no such experiment: freze; there are kill, terminate, freeze"
    ) as no:
        experiment_of("freze", ONE, 1, None, 1)
    assert no.value.hint == "did you mean freeze?"


class Story(Rehearsal):
    """One module, started, and an experiment on it that sees what happens to it."""

    def __init__(self, kind: str = "kill", share: int | str = 1, count: int = 1, **manifest: Any) -> None:
        super().__init__(module(ONE, **{**ALLOWED, "replicas": count, **manifest}))
        self.want(ONE)
        for replica in self.replicas():
            self.ready(ONE, index=replica.index)
        self.stopped: frozenset[str] = frozenset()
        self.leaving = False
        self.calm_s = math.inf
        experiment = experiment_of(kind, ONE, share, 10, 7)
        chosen = chaos.targets(experiment, self.module(ONE), self.view(), random.Random(7).sample)
        before = chaos.steadiness(self.view())
        self.trial = Trial("kill-1", experiment, "alice", 1000.0, chosen, before)

    def view(self) -> View:
        found = self.fleet.modules.get(ONE)
        health, reasons = health_of(found) if found else (Health.UNHEALTHY, ())
        return View(found, health, reasons, self.stopped, self.leaving, self.calm_s)

    def look(self) -> Phase:
        self.trial = trial.look(self.trial, self.view(), self.now)
        return self.trial.phase

    def inject(self) -> None:
        self.now = 1.0
        self.trial = trial.injected(self.trial, self.now)

    @property
    def report(self) -> dict[str, Any]:
        return report(self.trial, [])


def test_a_kill_is_detected_at_the_exit_and_recovered_when_the_next_run_is_ready() -> None:
    story = Story()
    story.inject()
    assert story.look() is Phase.INJECTED
    story.now = 1.25
    story.exits(ONE, KILLED)
    assert story.look() is Phase.INJECTED
    story.now = 1.5
    story.ready(ONE)
    assert story.look() is Phase.ROLLED_BACK
    assert story.look() is Phase.OVER

    shown = story.report
    assert shown["targets"][0]["noticed"] == "killed by SIGKILL"
    assert (shown["detected_s"], shown["recovered_s"], shown["rolled_back_s"]) == (0.25, 0.5, 0.5)
    assert shown["injected_at"] == 1001.0
    assert shown["verdict"] == {
        "recovered": True,
        "outcome": "recovered",
        "reason": "in its steady state again after 0.5 s",
    }


def test_all_of_several_targets_have_to_be_back() -> None:
    story = Story("kill", "100%", count=2)
    story.inject()
    for index in (0, 1):
        story.exits(ONE, KILLED, index=index)
    story.ready(ONE, index=0)
    assert story.look() is Phase.INJECTED
    story.now = 3.0
    story.ready(ONE, index=1)
    assert story.look() is Phase.ROLLED_BACK
    assert [target["recovered_s"] for target in story.report["targets"]] == [0.0, 2.0]
    assert story.report["recovered_s"] == 2.0


def test_the_death_of_another_replica_is_not_taken_for_the_targets() -> None:
    story = Story("freeze", count=2)
    other = 1 - story.trial.targets[0].index
    story.inject()
    story.exits(ONE, KILLED, index=other)
    story.look()
    assert story.trial.targets[0].detected_at is None


def test_a_signal_that_nobody_noticed_is_no_recovery() -> None:
    story = Story("terminate")
    story.inject()
    story.now = 10.9
    assert story.look() is Phase.INJECTED
    story.now = 11.0
    assert story.look() is Phase.ROLLED_BACK
    assert story.look() is Phase.OVER
    found = verdict(story.trial)
    assert found is not None and not found.recovered
    assert (found.outcome, found.reason) == ("unaffected", "vitals/one#0 took no notice of SIGTERM")


def test_a_freeze_lasts_until_its_time_is_up_and_is_over_when_nothing_is_held_any_more() -> None:
    story = Story("freeze")
    story.inject()
    story.now = 11.0
    assert story.look() is Phase.ROLLED_BACK
    story.stopped = frozenset({story.trial.targets[0].run})
    for now in (11.05, 60.0, 600.0):  # a keeper that is away may take its time
        story.now = now
        assert story.look() is Phase.ROLLED_BACK
        assert trial.next_look(story.trial, story.view(), now) == now + trial.LOOK_AGAIN_S
    story.now, story.stopped = 601.0, frozenset()
    assert story.look() is Phase.OVER
    assert story.trial.targets[0].recovered_at == 601.0


def test_that_a_freeze_went_unnoticed_is_said_though_the_module_is_well_again() -> None:
    story = Story("freeze")
    story.inject()
    story.now = 11.0
    assert story.look() is Phase.ROLLED_BACK
    assert story.look() is Phase.ROLLED_BACK  # looked at twice: the SIGSTOP itself may be late
    assert trial.next_look(story.trial, story.view(), 11.0) == 11.0 + trial.LOOK_AGAIN_S
    story.now = 11.05
    assert story.look() is Phase.OVER
    found = verdict(story.trial)
    assert found is not None and found.recovered
    assert found.reason.endswith("nothing noticed that vitals/one#0 did not work")
    assert story.report["detected_s"] is None


def test_a_watchdog_that_fires_is_a_detection_and_its_reason_is_kept() -> None:
    story = Story("freeze", health={"watchdog": "2s"})
    story.inject()
    story.pass_time(1.0)
    story.look()
    (target,) = story.trial.targets
    assert (target.detected_at, target.noticed) == (2.0, "no WATCHDOG=1 within 2 s")
    assert story.trial.early is None  # nexusd itself ended it, no operator


def test_health_that_turns_while_all_replicas_are_started_is_a_detection() -> None:
    story = Story("freeze")
    story.inject()
    sick = replace(story.view(), health=Health.UNHEALTHY, reasons=("3 checks in a row failed",))
    story.trial = trial.look(story.trial, sick, 4.0)
    (target,) = story.trial.targets
    assert (target.detected_at, target.noticed) == (4.0, "unhealthy: 3 checks in a row failed")


@pytest.mark.parametrize(
    ("manifest", "exit", "reason"),
    [
        ({"restart": {"policy": "never"}}, KILLED, "vitals/one#0: killed by SIGKILL"),
        ({}, CLEAN, "vitals/one#0: ended by itself, exit status 0"),
    ],
)
def test_a_module_that_gives_up_is_rolled_back_at_once_and_needs_a_start(
    manifest: dict[str, Any], exit: Exit, reason: str
) -> None:
    story = Story(**manifest)
    story.inject()
    story.exits(ONE, exit)
    assert story.look() is Phase.ROLLED_BACK
    assert trial.needs_start(story.module(ONE))
    story.want(ONE)
    story.now = 2.0
    story.ready(ONE)
    assert story.look() is Phase.OVER
    shown = story.report
    assert shown["verdict"] == {"recovered": False, "outcome": "gave up", "reason": reason}
    assert shown["steady_after"]["steady"]
    assert (shown["recovered_s"], shown["targets"][0]["recovered_s"]) == (None, None)


def test_of_several_that_give_up_all_are_waited_for() -> None:
    story = Story(share=2, count=2)
    story.inject()
    story.exits(ONE, CLEAN)
    assert story.look() is Phase.INJECTED
    story.exits(ONE, CLEAN, index=1)
    assert story.look() is Phase.ROLLED_BACK


def test_what_crashes_again_at_once_has_not_recovered() -> None:
    story = Story()
    story.inject()
    story.now = 2.0
    story.exits(ONE, KILLED)
    story.ready(ONE)
    story.calm_s = 0.0
    assert story.look() is Phase.ROLLED_BACK
    assert story.look() is Phase.ROLLED_BACK
    assert trial.next_look(story.trial, story.view(), story.now) == 2.0 + trial.CALM_S
    story.exits(ONE, KILLED)
    assert story.look() is Phase.ROLLED_BACK
    story.now += trial.RECOVERY_S
    assert story.look() is Phase.OVER
    assert story.report["verdict"]["outcome"] == "not recovered"


def test_a_module_that_takes_too_long_has_not_recovered() -> None:
    story = Story(restart={"backoff": {"first": "1h", "max": "1h", "jitter": 0.0}})
    story.inject()
    story.exits(ONE, KILLED)
    story.look()
    story.now = 11.0
    assert story.look() is Phase.ROLLED_BACK
    assert trial.needs_start(story.module(ONE))
    story.want(ONE)
    story.now = 12.5
    story.ready(ONE)
    assert story.look() is Phase.OVER
    found = verdict(story.trial)
    assert found is not None
    assert (found.outcome, found.reason) == ("not recovered", "recovered after 11.5 s; 10 s were allowed")


def test_what_never_gets_steady_again_is_over_after_a_while() -> None:
    story = Story()
    story.inject()
    story.exits(ONE, KILLED)
    story.look()
    story.now = 11.0
    assert story.look() is Phase.ROLLED_BACK
    assert trial.next_look(story.trial, story.view(), 11.0) == 11.0 + trial.RECOVERY_S
    story.now += trial.RECOVERY_S
    assert story.look() is Phase.OVER
    found = verdict(story.trial)
    assert found is not None
    assert (found.outcome, found.reason) == (
        "not recovered",
        "not in its steady state: it is starting: killed by SIGKILL",
    )


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (lambda story: story.unwant(ONE), "the module was stopped meanwhile"),
        (lambda story: story.apply(Renewal(ONE)), "vitals/one#0 was stopped or restarted meanwhile"),
        (
            lambda story: story.apply(Renewal(ONE, story.module(ONE).definition, beside=True)),
            "the module is being reloaded",
        ),
        (lambda story: story.apply(Put(ONE, None)), "the module was removed meanwhile"),
    ],
)
def test_what_somebody_else_does_to_the_module_ends_the_experiment(
    deed: Callable[[Story], object], reason: str
) -> None:
    story = Story("freeze")
    story.inject()
    deed(story)
    story.look()
    assert story.trial.phase is Phase.ROLLED_BACK
    assert story.trial.early is not None
    assert (story.trial.early.kind, story.trial.early.reason) == ("aborted", reason)


def test_an_abort_before_anything_was_touched_is_simply_the_end() -> None:
    story = Story()
    story.trial = trial.ended_early(story.trial, "aborted", "by bob", 0.5)
    assert story.trial.phase is Phase.OVER
    assert (story.report["injected_at"], story.report["rolled_back_at"]) == (None, None)
    assert story.report["verdict"]["outcome"] == "aborted"


def test_the_first_reason_to_end_stays() -> None:
    story = Story()
    story.inject()
    once = trial.ended_early(story.trial, "aborted", "by bob", 2.0)
    assert trial.ended_early(once, "interrupted", "later", 3.0) is once


def test_a_nexusd_that_leaves_waits_for_the_thaw_and_for_nothing_else() -> None:
    story = Story("freeze")
    story.inject()
    story.leaving = True
    story.unwant(ONE)
    story.stopped = frozenset({story.trial.targets[0].run})
    story.trial = trial.ended_early(story.trial, "interrupted", "nexusd was stopped", 2.0)
    assert story.look() is Phase.ROLLED_BACK
    story.now, story.stopped = 2.1, frozenset()
    assert story.look() is Phase.OVER


def test_a_trial_survives_its_way_through_the_store() -> None:
    story = Story("freeze")
    story.inject()
    assert msgspec.json.decode(msgspec.json.encode(story.trial), type=Trial) == story.trial


# Whom it hits


def hit(replicas: int | str, seed: int, count: int = 8) -> list[int]:
    story = Story("kill", "100%", count=count)
    experiment = experiment_of("kill", ONE, replicas, None, seed)
    sample = random.Random(seed).sample
    return [one.index for one in chaos.targets(experiment, story.module(ONE), story.view(), sample)]


def test_the_same_seed_hits_the_same_replicas_and_others_hit_others() -> None:
    assert hit(3, 5) == hit(3, 5)
    assert len({tuple(hit(3, seed)) for seed in range(20)}) > 5
    assert hit("50%", 1) == sorted(hit("50%", 1))


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(NotPossible, match="has 2 running replicas, not 3"):
        hit(3, 1, count=2)


def test_a_module_scaled_to_none_has_nobody_to_be_hit() -> None:
    with pytest.raises(NotPossible, match="not in its steady state") as refused:
        Story(count=0)
    assert "it is stopped: scaled to 0 replicas" in str(refused.value.reason)


def test_a_module_that_does_not_allow_it_is_left_alone_and_the_missing_line_is_named() -> None:
    with pytest.raises(NotPossible, match="vitals/one allows no experiments") as refused:
        Story(chaos={"allow": False})
    assert refused.value.reason == "/modules/vitals/one/module.toml has no [chaos] allow = true"
    assert refused.value.hint is not None and "nexusctl reload vitals/one" in refused.value.hint


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        (lambda story: story.unwant(ONE), "it is stopping"),
        (lambda story: story.exits(ONE), "it is starting: exit status 1"),
        (
            lambda story: story.apply(Renewal(ONE, story.module(ONE).definition, beside=True)),
            "it is being reloaded",
        ),
    ],
)
def test_what_is_not_steady_before_is_refused(deed: Callable[[Story], object], reason: str) -> None:
    story = Story()
    deed(story)
    with pytest.raises(NotPossible, match="not in its steady state") as refused:
        chaos.targets(story.trial.experiment, story.module(ONE), story.view(), random.Random(1).sample)
    assert refused.value.reason is not None and reason in refused.value.reason


def test_a_module_that_is_not_healthy_is_not_steady() -> None:
    view = replace(Story().view(), health=Health.DEGRADED, reasons=("slow",))
    assert chaos.steadiness(view).reasons == ("it is degraded: slow",)


# The report


def test_a_plan_says_whom_it_would_hit_and_nothing_of_what_came_of_it() -> None:
    shown = plan(Story().trial)
    assert shown["dry_run"] and shown["signal"] == "SIGKILL" and shown["seed"] == 7
    assert [target["replica"] for target in shown["targets"]] == ["vitals/one#0"]
    assert "verdict" not in shown and "id" not in shown


def test_a_report_under_way_has_no_verdict_and_is_json() -> None:
    story = Story()
    story.inject()
    shown = story.report
    assert msgspec.json.decode(msgspec.json.encode(shown)) == shown
    assert (shown["phase"], shown["verdict"], shown["steady_after"]) == ("injected", None, None)
    assert line(shown)["id"] == "kill-1"


def test_a_report_keeps_a_bounded_number_of_events() -> None:
    shown = report(Story().trial, [{"seq": seq} for seq in range(1000)])
    assert [shown["events"][0]["seq"], len(shown["events"])] == [1000 - MOST_EVENTS, MOST_EVENTS]


def test_a_lease_that_can_not_be_read_ends_its_report_all_the_same() -> None:
    shown = interrupted(Story().report, 2000.0)
    assert shown["verdict"]["outcome"] == "interrupted"
    assert shown["interrupted"]["at"] == 2000.0
