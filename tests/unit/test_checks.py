"""What several checks in a row come to: plans, verdicts, complaints; and what they do to a replica and its module."""

import signal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nexusd.domain import checks, events, health
from nexusd.domain.checks import NO_CHECKS, Plan, Purpose, Said, Tally, counted, plan_of
from nexusd.domain.events import Renewal
from nexusd.domain.lifecycle import purposes
from nexusd.domain.manifest_sections import Check
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica, Started, Starting, Stopping
from tests.fakes import CLEAN, Rehearsal, definition, module

CONTROL = {"control": True}
HTTP = {"http": "http://127.0.0.1:8080/healthz"}
GOOD, BAD = Said("healthy"), Said("unhealthy", "connection refused")
POOR = Said("degraded", "the queue is long")
ECHO = "mesh/echo"


def plan(ready: str = "notify", **health: Any) -> Plan:
    found = definition(run={"exec": ["./run"], "ready": ready}, health=health)
    return plan_of(found.manifest)


# Plans


@pytest.mark.parametrize(
    ("ready", "given_checks", "gate", "lasting"),
    [
        ("notify", {"check": CONTROL}, None, ("readiness",)),
        ("notify", {"readiness": CONTROL}, None, ("readiness",)),
        ("notify", {"liveness": CONTROL}, None, ("liveness",)),
        ("notify", {"check": CONTROL, "liveness": HTTP}, None, ("liveness", "readiness")),
        ("notify", {"startup": CONTROL}, "startup", ()),
        ("notify", {"startup": CONTROL, "check": HTTP}, "startup", ("readiness",)),
        ("health", {"check": CONTROL}, "readiness", ("readiness",)),
        ("health", {"readiness": CONTROL, "liveness": HTTP}, "readiness", ("liveness", "readiness")),
        ("health", {"startup": CONTROL, "readiness": HTTP}, "startup", ("readiness",)),
    ],
)
def test_check_stands_in_for_readiness_and_nothing_for_liveness(ready, given_checks, gate, lasting):
    made = plan(ready, **given_checks)
    assert (made.gate, made.lasting) == (gate, lasting)
    assert made.ready_by_gate is (ready == "health")


def test_where_both_are_given_readiness_is_asked_instead_of_check():
    assert plan(check=CONTROL, readiness=HTTP).checks == {Purpose.READINESS: Check(http=HTTP["http"])}


def test_a_module_without_checks_has_the_one_plan_of_all_such_modules():
    assert plan(watchdog=3) is NO_CHECKS


# Counting

OLD_S = 1000.0
THREE_TWO = Plan(failures=3, successes=2)


@pytest.mark.parametrize(
    ("story", "verdict"),
    [
        ("", None),
        ("+", None),
        ("++", "healthy"),
        ("-", None),
        ("--", None),
        ("---", "unhealthy"),
        ("--+--", None),
        ("+-+-+-", None),
        ("++--", "healthy"),
        ("++--+--", "healthy"),
        ("++---", "unhealthy"),
        ("++---+", "unhealthy"),
        ("++---+-+", "unhealthy"),
        ("++---++", "healthy"),
        ("++o", "degraded"),
        ("++o+", "healthy"),
        ("o", None),
        ("oo", "degraded"),
        ("---oo", "degraded"),
    ],
)
def test_a_verdict_falls_and_changes_after_several_in_a_row(story, verdict):
    tally = Tally()
    for mark in story:
        tally = counted(tally, {"+": GOOD, "-": BAD, "o": POOR}[mark], THREE_TWO, OLD_S)
    assert tally.verdict == verdict


def test_what_changes_nothing_is_the_very_same_tally():
    """So that a module which is well costs nothing, however often it is asked."""
    tally = counted(Tally(), GOOD, Plan(), OLD_S)
    assert counted(tally, GOOD, Plan(), OLD_S) is tally
    assert counted(counted(tally, BAD, Plan(), OLD_S), GOOD, Plan(), OLD_S) == tally


@given(st.lists(st.sampled_from([GOOD, BAD, POOR])), st.integers(1, 4), st.integers(1, 4))
def test_whatever_comes_the_last_run_of_equals_decides(said, failures, successes):
    tally = Tally()
    for one in said:
        tally = counted(tally, one, Plan(failures=failures, successes=successes), OLD_S)
    at_the_end = 0
    for one in reversed(said):
        if (one.word == "unhealthy") is not (said[-1].word == "unhealthy"):
            break
        at_the_end += 1
    failing = bool(said) and said[-1].word == "unhealthy"
    assert tally.failures == (at_the_end if failing else 0)
    if failing and at_the_end >= failures:
        assert tally.verdict == "unhealthy"
    if said and not failing and at_the_end >= successes:
        assert tally.verdict == said[-1].word


def test_a_reason_is_one_short_line_whatever_a_server_says():
    tally = counted(Tally(), Said("unhealthy", "\x1b[2Jx\r\n" + "y" * 9999), Plan(), OLD_S)
    assert (
        tally.reason is not None and tally.reason.isprintable() and len(tally.reason) == checks.LONGEST_REASON
    )


# Words


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (Check(http="http://[::1]:80/a?token=s3cret"), "http check http://[::1]:80/a"),
        (Check(exec=("./check", "--password", "s3cret")), "exec check ./check"),
        (Check(tcp="127.0.0.1:5432"), "tcp check 127.0.0.1:5432"),
        (Check(unix="/run/a.sock"), "unix check /run/a.sock"),
        (Check(control=True), "control check"),
    ],
)
def test_a_check_is_described_without_what_may_be_a_secret(check, words):
    assert checks.described(check) == words


def test_what_is_remembered_of_a_check_is_bounded_however_long_its_address():
    check = Check(http="http://127.0.0.1/" + "x" * 100_000)
    tally = counted(Tally(), Said("unhealthy", "y" * 100_000), Plan(), OLD_S)
    told = checks.complaint(
        Plan(checks={Purpose.LIVENESS: check}), Purpose.LIVENESS, replace(tally, failures=3)
    )
    assert told is not None and len(told) < 250


# A replica's life


class Checked(Rehearsal):
    """One module that is wanted; its checks say what the test says."""

    def __init__(self, ready: str = "notify", replicas: int = 1, **raw: Any) -> None:
        run = {"exec": ["./run"], "ready": ready}
        super().__init__(module(ECHO, run=run, replicas=replicas, **raw))
        self.want(ECHO)
        for index in range(replicas):
            self.news(ECHO, events.Spawned, 4711, index=index)

    def say(self, purpose: str, *said: Said, index: int = 0, generation: int | None = None) -> list[str]:
        lines = []
        for one in said:
            kind = events.Checked
            lines += self.news(ECHO, kind, Purpose(purpose), one, index=index, generation=generation)
        return lines

    @property
    def it(self) -> Module:
        return self.module(ECHO)

    @property
    def health(self) -> tuple[str, tuple[str, ...]]:
        word, reasons = health.health_of(self.it)
        return str(word), reasons

    @property
    def asked(self) -> tuple[str, ...]:
        assert self.it.definition is not None
        return tuple(purposes(self.replica(ECHO), plan_of(self.it.definition.manifest)))


def test_ready_by_health_is_ready_when_its_check_has_passed_often_enough():
    fleet = Checked("health", health={"check": CONTROL, "successes": 2})
    assert fleet.asked == ("readiness",)
    fleet.ready(ECHO)  # its own word is not what is waited for
    fleet.say("readiness", BAD, BAD, BAD, BAD, GOOD)
    assert isinstance(fleet.replica(ECHO).state, Starting)
    fleet.say("readiness", GOOD)
    assert isinstance(fleet.replica(ECHO).state, Started)
    assert fleet.health == ("healthy", ())


def test_ready_by_health_that_never_passes_runs_into_the_time_out_of_the_start():
    fleet = Checked("health", health={"check": HTTP}, start={"timeout": 5})
    fleet.say("readiness", BAD, BAD)
    assert fleet.pass_time(5) == [f"SIGTERM {ECHO}#0"]
    fleet.exits(ECHO, CLEAN)
    assert fleet.reason(ECHO) == (
        "not ready within 5 s; http check http://127.0.0.1:8080/healthz: connection refused, 2 times in a row"
    )


@pytest.mark.parametrize("first", ["its word", "its check"])
def test_with_a_startup_check_both_the_check_and_its_own_word_are_awaited(first):
    fleet = Checked(health={"startup": CONTROL, "liveness": CONTROL})
    assert fleet.asked == ("startup",)
    steps = [lambda: fleet.ready(ECHO), lambda: fleet.say("startup", GOOD)]
    for step in steps if first == "its word" else reversed(steps):
        assert isinstance(fleet.replica(ECHO).state, Starting)
        step()
    assert isinstance(fleet.replica(ECHO).state, Started)
    assert fleet.asked == ("liveness",)


def test_a_startup_check_that_has_passed_is_asked_no_more():
    fleet = Checked(health={"startup": CONTROL, "readiness": CONTROL})
    fleet.say("startup", GOOD)
    assert fleet.asked == ()
    fleet.say("readiness", BAD, BAD, BAD)
    fleet.ready(ECHO)
    assert fleet.health[0] == "degraded"  # what was said too early does not count


def test_a_module_that_counts_as_started_at_once_waits_for_its_startup_check():
    fleet = Checked("started", health={"startup": CONTROL})
    fleet.news(ECHO, events.Running)
    assert fleet.state(ECHO) == "starting"
    fleet.say("startup", GOOD)
    assert fleet.state(ECHO) == "started"


def test_failing_readiness_is_reported_and_restarts_nothing():
    fleet = Checked(health={"check": HTTP})
    fleet.ready(ECHO)
    assert fleet.health == ("degraded", ("http check http://127.0.0.1:8080/healthz: no verdict yet",))
    fleet.say("readiness", GOOD)
    assert fleet.say("readiness", BAD, BAD) == []
    assert (fleet.health, fleet.reason(ECHO)) == (("healthy", ()), None)
    assert fleet.say("readiness", BAD) == []
    told = "http check http://127.0.0.1:8080/healthz: connection refused, 3 times in a row"
    assert (fleet.health, fleet.state(ECHO), fleet.reason(ECHO)) == (("unhealthy", (told,)), "started", told)
    fleet.say("readiness", GOOD)
    assert (fleet.health, fleet.reason(ECHO)) == (("healthy", ()), None)


def test_failing_liveness_stops_the_replica_and_restarts_it_as_after_a_crash():
    fleet = Checked(health={"liveness": HTTP, "failures": 2})
    fleet.ready(ECHO)
    fleet.say("liveness", GOOD)
    assert fleet.say("liveness", BAD, BAD) == [f"SIGTERM {ECHO}#0"]
    told = "liveness http check http://127.0.0.1:8080/healthz: connection refused, 2 times in a row"
    assert fleet.health == ("unhealthy", (f"stopping: {told}",))
    assert fleet.exits(ECHO, CLEAN) == [f"forget {ECHO}#0", f"spawn {ECHO}#0"]
    replica = fleet.replica(ECHO)
    assert (replica.reason, replica.history.restarts, replica.checks) == (told, 1, {})


def test_liveness_that_fails_again_and_again_is_given_up_within_the_same_bounds_as_a_crash():
    fleet = Checked(
        health={"liveness": CONTROL, "failures": 1}, restart={"intensity": {"restarts": 2, "within": 60}}
    )
    lines = []
    for _ in range(3):
        fleet.news(ECHO, events.Spawned, 4711)
        fleet.ready(ECHO)
        fleet.say("liveness", BAD)
        lines += fleet.exits(ECHO, CLEAN)
        lines += fleet.pass_time(1)
    assert (fleet.state(ECHO), lines[-1]) == ("failed", f"give up {ECHO}")
    assert (
        fleet.reason(ECHO)
        == "liveness control check: connection refused; 2 restarts within 60 s did not help"
    )


def test_liveness_is_patient_with_a_replica_that_has_just_begun():
    """At first it is asked more often than its interval says: that must not make it fail the sooner."""
    fleet = Checked(health={"liveness": CONTROL, "failures": 3, "interval": 10})
    fleet.ready(ECHO)
    assert fleet.say("liveness", *[BAD] * 20) == []
    assert fleet.health == ("degraded", ("liveness control check: connection refused, 20 times in a row",))
    fleet.pass_time(20)
    assert fleet.say("liveness", BAD) == [f"SIGTERM {ECHO}#0"]


def test_a_verdict_once_known_has_no_such_patience():
    fleet = Checked(health={"liveness": CONTROL, "failures": 3, "interval": 10})
    fleet.ready(ECHO)
    fleet.say("liveness", GOOD)
    assert fleet.say("liveness", BAD, BAD, BAD) == [f"SIGTERM {ECHO}#0"]


def test_a_stop_during_a_liveness_restart_is_a_stop():
    fleet = Checked(health={"liveness": CONTROL, "failures": 1})
    fleet.ready(ECHO)
    fleet.say("liveness", BAD)
    fleet.unwant(ECHO)
    fleet.exits(ECHO, CLEAN)
    assert (fleet.state(ECHO), fleet.health) == ("stopped", ("degraded", ("stopped",)))


def test_a_module_s_own_word_makes_it_degraded():
    fleet = Checked(health={"check": CONTROL})
    fleet.ready(ECHO)
    fleet.say("readiness", POOR)
    assert fleet.health == ("degraded", ("control check: the queue is long",))
    fleet.say("readiness", GOOD)
    assert fleet.health == ("healthy", ())


def test_one_replica_of_two_that_is_unhealthy_makes_the_module_degraded_and_both_make_it_unhealthy():
    fleet = Checked(replicas=2, health={"check": CONTROL, "failures": 1})
    for index in (0, 1):
        fleet.ready(ECHO, index=index)
        fleet.say("readiness", GOOD, index=index)
    fleet.say("readiness", BAD, index=1)
    assert fleet.health == ("degraded", ("#1: control check: connection refused",))
    fleet.say("readiness", BAD, index=0)
    assert fleet.health[0] == "unhealthy"


def test_a_check_of_a_purpose_that_nobody_asked_for_changes_nothing():
    fleet = Checked(health={"check": CONTROL})
    fleet.ready(ECHO)
    before = fleet.it
    fleet.say("liveness", BAD, BAD, BAD)
    fleet.say("startup", BAD)
    assert fleet.it is before


def test_a_check_that_goes_on_well_leaves_the_fleet_as_it_is():
    fleet = Checked(health={"check": CONTROL})
    fleet.ready(ECHO)
    fleet.say("readiness", GOOD)
    before = fleet.it
    fleet.say("readiness", GOOD, GOOD)
    assert fleet.it is before


# A graceful reload


def reloading(**health: Any) -> Checked:
    fleet = Checked(health=health)
    fleet.ready(ECHO)
    fresh = definition(ECHO, "new", health=health)
    assert fleet.apply(Renewal(ECHO, fresh, beside=True)) == [f"spawn {ECHO}#0"]
    fleet.news(ECHO, events.Spawned, 4712, generation=2)
    return fleet


def test_the_old_generation_goes_when_the_new_one_is_ready_and_every_check_of_it_has_passed():
    fleet = reloading(liveness=CONTROL, readiness=CONTROL)
    assert fleet.ready(ECHO, generation=2) == []
    assert fleet.say("liveness", GOOD, generation=2) == []
    assert fleet.say("readiness", GOOD, generation=2) == [f"SIGTERM {ECHO}#0"]
    assert (fleet.it.generation, fleet.it.refused) == (2, None)


def test_a_new_generation_that_is_ready_and_unhealthy_goes_and_the_old_one_stays():
    fleet = reloading(readiness=CONTROL, failures=2, interval=10)
    fleet.ready(ECHO, generation=2)
    assert fleet.say("readiness", BAD, BAD, generation=2) == []
    fleet.pass_time(10)
    assert fleet.say("readiness", BAD, generation=2) == [f"SIGTERM {ECHO}#0"]
    assert fleet.it.refused is not None
    assert fleet.it.refused.reason == "control check: connection refused, 3 times in a row"
    fleet.exits(ECHO, CLEAN, generation=2)
    assert (fleet.state(ECHO), fleet.it.generation) == ("started", 1)


def test_a_new_generation_whose_liveness_fails_goes_as_well():
    fleet = reloading(liveness=CONTROL, failures=1)
    fleet.ready(ECHO, generation=2)
    assert fleet.say("liveness", BAD, generation=2) == [f"SIGTERM {ECHO}#0"]
    fleet.exits(ECHO, CLEAN, generation=2)
    assert fleet.it.refused is not None
    assert fleet.it.refused.reason == "liveness control check: connection refused"
    assert (fleet.state(ECHO), fleet.it.generation) == ("started", 1)


# Facts without a verdict


def test_a_replica_that_has_to_go_because_it_hangs_is_unhealthy_until_it_has_gone():
    one = module(ECHO)
    hung = Replica(ECHO, 0, 1, 0.0, wanted=True, state=Stopping("r", 1, 9.0, failure="it hangs"))
    told = replace(one, wanted=True, asked=True, replicas=(replace(hung, reason="it hangs"),))
    assert health.health_of(told) == ("unhealthy", ("stopping: it hangs",))


def test_a_liveness_stop_uses_the_manifest_s_signal():
    fleet = Checked(health={"liveness": CONTROL, "failures": 1}, stop={"signal": "SIGINT"})
    fleet.ready(ECHO)
    assert fleet.say("liveness", BAD) == [f"{signal.SIGINT.name} {ECHO}#0"]
