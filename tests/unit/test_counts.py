"""What a change of a module adds to its figures, told as lives of replicas on fake time."""

from typing import Any

import pytest

from nexusd.domain import events
from nexusd.domain.counts import Count, Pinged, Ready, Restarted, counted, empty, possible
from nexusd.domain.events import FleetEvent, Renewal
from nexusd.domain.manifest_sections import Manifest
from nexusd.domain.replica import Exit
from tests.fakes import CLEAN, CRASH, Rehearsal, module

ONE = "vitals/one"
AT_ONCE = {"backoff": {"first": "0s"}}
_ALWAYS = {"command", "exit", "signal", "not_started", "unknown"}


class Counting(Rehearsal):
    """A fleet of one module that notes what each change adds."""

    def __init__(self, **manifest: Any) -> None:
        super().__init__(module(ONE, **{"restart": AT_ONCE, **manifest}))
        self.counts: list[Count] = []

    def apply(self, event: FleetEvent) -> list[str]:
        before = self.fleet
        lines = super().apply(event)
        if ONE in before.modules:
            self.counts += counted(before.modules[ONE], self.module(ONE))
            reasons = {one.reason for one in self.counts if isinstance(one, Restarted)}
            assert reasons <= set(possible(self.manifest))
        return lines

    @property
    def manifest(self) -> Manifest:
        found = self.module(ONE).definition
        assert found is not None
        return found.manifest

    def run(self) -> "Counting":
        self.want(ONE)
        self.ready(ONE)
        self.counts.clear()
        return self


@pytest.mark.parametrize(
    ("exit", "reason"),
    [
        (CRASH, "exit"),
        (Exit(signal=9), "signal"),
        (Exit(cause="cannot execute ./run"), "not_started"),
        (Exit(), "unknown"),
    ],
)
def test_a_restart_is_counted_by_how_the_process_ended(exit: Exit, reason: str) -> None:
    fleet = Counting().run()
    fleet.exits(ONE, exit)
    assert fleet.counts == [Restarted(0, reason)]  # type: ignore[arg-type]


def test_a_clean_end_that_is_followed_by_a_start_counts_as_an_exit() -> None:
    fleet = Counting(restart={"policy": "always", **AT_ONCE}).run()
    fleet.exits(ONE, CLEAN)
    assert fleet.counts == [Restarted(0, "exit")]


def test_a_start_that_takes_too_long_is_told_from_the_signal_that_ended_it() -> None:
    fleet = Counting(start={"timeout": "5s"})
    fleet.want(ONE)
    fleet.pass_time(5)
    fleet.exits(ONE, Exit(signal=15))
    assert fleet.counts == [Restarted(0, "start_timeout")]


def test_a_silent_watchdog_is_a_reason_of_its_own_and_a_ping_in_time_is_counted() -> None:
    fleet = Counting(health={"watchdog": "10s"}).run()
    fleet.pass_time(4)
    fleet.news(ONE, events.Pinged)
    assert fleet.counts == [Pinged()]
    fleet.pass_time(10)
    fleet.exits(ONE, Exit(signal=6))
    assert fleet.counts == [Pinged(), Restarted(0, "watchdog")]


def test_a_ping_without_a_watchdog_counts_for_nothing() -> None:
    fleet = Counting().run()
    fleet.news(ONE, events.Pinged)
    assert fleet.counts == []


def test_a_restart_that_somebody_asked_for_is_a_command_even_when_it_had_to_be_killed() -> None:
    fleet = Counting().run()
    fleet.apply(Renewal(ONE))
    fleet.exits(ONE, Exit(signal=9))
    assert fleet.counts == [Restarted(0, "command")]


@pytest.mark.parametrize(
    ("manifest", "reasons"),
    [
        ({"restart": {"policy": "never"}}, {"command"}),
        ({"run": {"exec": ["./run"], "ready": "started"}}, _ALWAYS),
        ({"run": {"exec": ["./run"], "ready": "notify"}}, _ALWAYS | {"start_timeout"}),
        ({"health": {"watchdog": "10s"}}, _ALWAYS | {"start_timeout", "watchdog"}),
        ({"health": {"liveness": {"http": "http://127.0.0.1:1/"}}}, _ALWAYS | {"start_timeout", "check"}),
        ({"health": {"check": {"http": "http://127.0.0.1:1/"}}}, _ALWAYS | {"start_timeout"}),
    ],
)
def test_what_a_manifest_rules_out_is_no_possible_reason(manifest: dict[str, Any], reasons: set[str]) -> None:
    assert set(possible(Counting(**manifest).manifest)) == reasons


def test_a_stop_is_no_restart() -> None:
    fleet = Counting().run()
    fleet.unwant(ONE)
    fleet.exits(ONE, Exit(signal=15))
    assert fleet.counts == []


def test_giving_up_is_no_restart() -> None:
    fleet = Counting(restart={"policy": "never"}).run()
    fleet.exits(ONE)
    assert fleet.counts == []


def test_a_start_that_was_lost_on_the_way_is_no_restart() -> None:
    fleet = Counting()
    fleet.want(ONE)
    fleet.news(ONE, events.NeverSpawned)
    assert fleet.counts == []


def test_a_start_lasts_from_the_decision_until_it_is_ready() -> None:
    fleet = Counting()
    fleet.want(ONE)
    fleet.pass_time(2.5)
    fleet.ready(ONE)
    assert fleet.counts == [Ready(2.5)]


def test_a_spread_counts_a_value_at_the_first_bound_that_it_does_not_exceed() -> None:
    spread = empty(1.0, 10.0)
    for value in (0.5, 1.0, 3.0, 11.0):
        spread = spread.with_value(value)
    assert spread.numbers == (2, 1, 1)
    assert spread.total == 15.5
