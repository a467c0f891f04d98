"""A rolling reload, told as stories: replica by replica, and all the way back at the first failure."""

import pytest
from msgspec.structs import replace

from nexusd.domain import events
from nexusd.domain.checks import Purpose, Said
from nexusd.domain.events import Renewal, Roll, Scale
from nexusd.domain.manifest import Definition
from nexusd.domain.policy import PROBATION_S
from nexusd.domain.replica import Exit, Started
from tests.fakes import CLEAN, CRASH, Rehearsal, definition, module

ECHO = "mesh/echo"
NEW = definition(ECHO, "new", replicas=3)
KEPT = replace(definition(ECHO, replicas=3), folder="/kept")


def three() -> Rehearsal:
    fleet = Rehearsal(module(ECHO, replicas=3))
    fleet.want(ECHO)
    for index in range(3):
        fleet.ready(ECHO, index=index)
    return fleet


def begin(fleet: Rehearsal, new: Definition = NEW) -> list[str]:
    return fleet.apply(Roll(ECHO, new, KEPT))


def replace_first(fleet: Rehearsal) -> None:
    begin(fleet)
    fleet.ready(ECHO, generation=2)
    fleet.exits(ECHO, CLEAN, generation=1)


def keys(fleet: Rehearsal) -> list[tuple[int, int]]:
    return [replica.key for replica in fleet.module(ECHO).replicas]


def test_each_replica_is_replaced_when_its_successor_is_ready_and_the_next_when_it_has_ended():
    fleet = three()
    assert begin(fleet) == [f"spawn {ECHO}#0"]
    assert fleet.ready(ECHO, generation=2) == [f"SIGTERM {ECHO}#0"]
    assert fleet.exits(ECHO, CLEAN, generation=1) == [f"forget {ECHO}#0", f"spawn {ECHO}#1"]
    assert fleet.ready(ECHO, index=1, generation=2) == [f"SIGTERM {ECHO}#1"]
    assert (fleet.state(ECHO), fleet.module(ECHO).generation) == ("started", 1)
    assert fleet.exits(ECHO, CLEAN, index=1, generation=1) == [f"forget {ECHO}#1", f"spawn {ECHO}#2"]
    assert fleet.ready(ECHO, index=2, generation=2) == [f"SIGTERM {ECHO}#2"]
    assert (fleet.state(ECHO), fleet.module(ECHO).generation) == ("started", 2)
    fleet.exits(ECHO, CLEAN, index=2, generation=1)
    assert keys(fleet) == [(0, 2), (1, 2), (2, 2)]
    assert fleet.module(ECHO).definition == NEW


SILENT = definition(ECHO, "new", replicas=3, run={"exec": ["./run"]})


def test_a_program_that_says_nothing_replaces_nobody_before_it_has_run_for_a_second():
    fleet = three()
    begin(fleet, SILENT)
    assert fleet.news(ECHO, events.Running, generation=2) == []
    assert fleet.pass_time(PROBATION_S) == [f"SIGTERM {ECHO}#0"]


def test_a_program_that_ends_on_probation_ends_the_reload_and_the_old_ones_never_noticed():
    fleet = three()
    others = [fleet.replica(ECHO, index, 1) for index in range(3)]
    begin(fleet, SILENT)
    fleet.news(ECHO, events.Running, generation=2)
    fleet.pass_time(0.5)
    fleet.exits(ECHO, CRASH, generation=2)
    assert fleet.module(ECHO).refused is not None
    assert list(fleet.module(ECHO).replicas) == others


def test_the_module_is_started_all_the_time():
    fleet = three()
    begin(fleet)
    states = [fleet.state(ECHO)]
    for index in range(3):
        fleet.ready(ECHO, index=index, generation=2)
        states.append(fleet.state(ECHO))
        fleet.exits(ECHO, CLEAN, index=index, generation=1)
        states.append(fleet.state(ECHO))
    assert set(states) == {"started"}


def test_at_the_first_failure_the_replaced_ones_go_back_and_the_others_never_noticed():
    fleet = three()
    replace_first(fleet)
    others = [fleet.replica(ECHO, index, 1) for index in (1, 2)]
    lines = fleet.exits(ECHO, CRASH, index=1, generation=2)
    assert sorted(lines) == [f"SIGTERM {ECHO}#0", f"forget {ECHO}#1", f"spawn {ECHO}#0"]
    fleet.ready(ECHO, generation=1)
    fleet.exits(ECHO, CLEAN, generation=2)
    after = fleet.module(ECHO)
    assert [fleet.replica(ECHO, index, 1) for index in (1, 2)] == others
    assert (after.state, after.generation, after.upgrade, keys(fleet)) == (
        "started",
        1,
        None,
        [(0, 1), (1, 1), (2, 1)],
    )
    assert (
        after.refused is not None
        and after.refused.rolling
        and after.refused.reason.startswith("exit status 1")
    )
    assert after.pending == NEW


def test_what_goes_back_is_started_from_the_code_that_was_kept():
    fleet = three()
    replace_first(fleet)
    fleet.exits(ECHO, CRASH, index=1, generation=2)
    back = fleet.replica(ECHO, 0, 1)
    assert fleet.module(ECHO).definition_of(back).folder == "/kept"


def test_an_old_one_that_crashes_meanwhile_is_started_from_the_code_that_was_kept():
    fleet = three()
    begin(fleet)
    assert fleet.exits(ECHO, CRASH, index=2, generation=1) == [f"forget {ECHO}#2", f"spawn {ECHO}#2"]
    assert fleet.module(ECHO).definition_of(fleet.replica(ECHO, 2, 1)).folder == "/kept"
    assert fleet.module(ECHO).upgrade is not None


def test_a_replaced_one_that_crashes_later_is_a_failure_too():
    fleet = three()
    replace_first(fleet)
    fleet.exits(ECHO, Exit(signal=11), index=0, generation=2)
    assert fleet.module(ECHO).upgrade is None
    assert fleet.replica(ECHO, 0, 1).state_name == "starting"
    assert fleet.replica(ECHO, 1, 2).state_name == "stopping"


def test_one_that_is_not_ready_in_time_ends_it():
    fleet = three()
    begin(fleet)
    assert f"SIGTERM {ECHO}#0" in fleet.pass_time(30)
    refused = fleet.module(ECHO).refused
    assert refused is not None and refused.reason == "not ready within 30 s"
    assert [one.state_name for one in fleet.module(ECHO).current] == ["started"] * 3


def test_who_does_not_end_holds_the_others_up_and_is_killed():
    fleet = three()
    begin(fleet)
    fleet.ready(ECHO, generation=2)
    assert keys(fleet) == [(0, 1), (0, 2), (1, 1), (2, 1)]
    assert fleet.pass_time(10) == [f"kill {ECHO}#0"]
    assert fleet.exits(ECHO, Exit(signal=9), generation=1) == [f"forget {ECHO}#0", f"spawn {ECHO}#1"]


def test_a_process_that_cannot_be_killed_does_not_hold_the_others_up():
    fleet = three()
    begin(fleet)
    fleet.ready(ECHO, generation=2)
    assert f"spawn {ECHO}#1" in fleet.pass_time(20)


@pytest.mark.parametrize(("count", "left"), [(1, 1), (4, 4)])
def test_scaling_meanwhile_is_taken_along(count, left):
    fleet = three()
    replace_first(fleet)
    fleet.apply(Scale(ECHO, count))
    for index in range(count):
        if any(one.key == (index, 1) and one.state_name == "starting" for one in fleet.module(ECHO).replicas):
            fleet.ready(ECHO, index=index, generation=1)
    for _ in range(20):
        for replica in fleet.module(ECHO).replicas:
            if replica.state_name == "stopping":
                fleet.exits(ECHO, CLEAN, replica.index, replica.generation)
            elif replica.state_name == "starting":
                fleet.ready(ECHO, index=replica.index, generation=replica.generation)
    assert keys(fleet) == [(index, 2) for index in range(left)]
    assert (fleet.state(ECHO), fleet.module(ECHO).generation) == ("started", 2)


def test_a_stop_calls_it_off_and_a_start_brings_the_former_generation():
    fleet = three()
    replace_first(fleet)
    fleet.unwant(ECHO)
    for replica in fleet.module(ECHO).replicas:
        fleet.exits(ECHO, CLEAN, replica.index, replica.generation)
    assert (fleet.state(ECHO), fleet.module(ECHO).generation) == ("stopped", 1)
    assert fleet.want(ECHO) == [f"spawn {ECHO}#{index}" for index in range(3)]
    assert fleet.module(ECHO).definition == KEPT


def test_of_a_module_that_does_not_run_the_new_definition_is_in_force_at_once():
    fleet = Rehearsal(module(ECHO, replicas=3))
    assert begin(fleet) == []
    assert (fleet.module(ECHO).generation, fleet.module(ECHO).definition) == (2, NEW)


def test_one_replica_can_be_restarted_alone():
    fleet = three()
    assert fleet.apply(Renewal(ECHO, index=1)) == [f"SIGTERM {ECHO}#1"]
    assert fleet.exits(ECHO, CLEAN, index=1) == [f"forget {ECHO}#1", f"spawn {ECHO}#1"]
    assert isinstance(fleet.replica(ECHO, 0).state, Started)


def test_a_successor_that_is_ready_replaces_nobody_before_its_checks_have_passed():
    new = definition(ECHO, "new", replicas=3, health={"check": {"control": True}})
    fleet = three()
    begin(fleet, new)
    assert fleet.ready(ECHO, generation=2) == []
    healthy = (Purpose.READINESS, Said("healthy"))
    assert fleet.news(ECHO, events.Checked, *healthy, generation=2) == [f"SIGTERM {ECHO}#0"]


def test_a_successor_that_is_unhealthy_ends_the_reload():
    new = definition(ECHO, "new", replicas=3, health={"check": {"control": True}})
    fleet = three()
    begin(fleet, new)
    fleet.ready(ECHO, generation=2)
    fleet.pass_time(60)  # early failures are no verdict yet
    for _ in range(3):
        fleet.news(ECHO, events.Checked, Purpose.READINESS, Said("unhealthy", "tired"), generation=2)
        if fleet.module(ECHO).upgrade is None:
            break
    refused = fleet.module(ECHO).refused
    assert refused is not None and "tired" in refused.reason
