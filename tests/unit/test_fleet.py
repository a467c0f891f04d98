"""The rules between modules, told as stories: who may start now, who may stop now, and what a generation is."""

from itertools import pairwise

import pytest
from msgspec.structs import replace

from nexusd.domain.events import Put, Renewal, Scale, Want
from nexusd.domain.manifest import Fault
from nexusd.domain.module import ModuleState
from nexusd.domain.replica import (
    Backoff,
    Failed,
    History,
    Replica,
    Started,
    Starting,
    Stopped,
    Stopping,
    Stuck,
    Waiting,
)
from tests.fakes import CLEAN, CRASH, Rehearsal, definition, module

BUS, ECHO, GREETER, LOG = "substrate/bus", "mesh/echo", "mesh/greeter", "vitals/log"
FAULT = Fault("module.toml", "run", "exactly one of python and exec", "neither")


def bus_and_echo(**echo: object) -> Rehearsal:
    return Rehearsal(module(BUS), module(ECHO, requires=[BUS], **echo))


def invalid(module_id: str):
    return replace(module(module_id), definition=None, faults=(FAULT,))


def given_up(rehearsal: Rehearsal, module_id: str) -> None:
    """Crash a module until nobody tries any longer."""
    while rehearsal.state(module_id) is not ModuleState.FAILED:
        rehearsal.exits(module_id, CRASH)
        rehearsal.pass_time(10)


# Starting


def test_what_nobody_asked_for_is_loaded_and_does_nothing():
    fleet = bus_and_echo()
    assert (fleet.state(BUS), fleet.state(ECHO)) == ("loaded", "loaded")
    assert fleet.pass_time(3600) == []


def test_a_module_starts_when_what_it_requires_is_ready():
    fleet = bus_and_echo()
    assert fleet.want(ECHO, BUS) == [f"spawn {BUS}#0"]
    assert (fleet.state(ECHO), fleet.reason(ECHO)) == ("starting", f"waits for {BUS}, which is starting")
    assert fleet.ready(BUS) == [f"spawn {ECHO}#0"]
    assert fleet.ready(ECHO) == []
    assert (fleet.state(ECHO), fleet.reason(ECHO)) == ("started", None)


def test_modules_that_do_not_know_each_other_start_together():
    fleet = Rehearsal(module(BUS), *(module(one, requires=[BUS]) for one in (ECHO, GREETER)), module(LOG))
    assert sorted(fleet.want(GREETER, ECHO, LOG, BUS)) == [f"spawn {BUS}#0", f"spawn {LOG}#0"]
    assert sorted(fleet.ready(BUS)) == [f"spawn {ECHO}#0", f"spawn {GREETER}#0"]


def test_all_replicas_of_a_requirement_have_to_be_ready():
    fleet = Rehearsal(module(BUS, replicas=2), module(ECHO, requires=[BUS], replicas=2))
    assert fleet.want(BUS, ECHO) == [f"spawn {BUS}#0", f"spawn {BUS}#1"]
    assert fleet.ready(BUS, index=1) == []
    assert fleet.ready(BUS) == [f"spawn {ECHO}#0", f"spawn {ECHO}#1"]


def test_a_requirement_without_replicas_is_none_that_could_be_met():
    fleet = Rehearsal(module(BUS, replicas=0), module(ECHO, requires=[BUS]))
    assert fleet.want(BUS, ECHO) == []
    assert (fleet.state(BUS), fleet.state(ECHO)) == ("stopped", "failed")


def test_the_start_goes_down_the_whole_chain():
    chain = [f"chain/m{number}" for number in range(10)]
    fleet = Rehearsal(
        *(
            module(one, requires=[before] if before else [])
            for before, one in zip([None, *chain], chain, strict=False)
        )
    )
    assert fleet.want(*reversed(chain)) == [f"spawn {chain[0]}#0"]
    for one, following in pairwise(chain):
        assert fleet.ready(one) == [f"spawn {following}#0"]


# A requirement in trouble


def test_a_dependent_waits_while_its_requirement_restarts():
    fleet = bus_and_echo(restart={"backoff": {"first": 1}})
    fleet.want(BUS, ECHO)
    fleet.ready(BUS, ECHO)
    fleet.exits(BUS)  # the first restart is at once
    fleet.exits(ECHO)  # it lost its bus
    assert fleet.state(ECHO) == "backoff"
    assert fleet.pass_time(1) == []
    assert (fleet.state(ECHO), fleet.reason(ECHO)) == ("starting", f"waits for {BUS}, which is starting")
    fleet.exits(BUS)
    assert fleet.reason(ECHO) == f"waits for {BUS}, which is backoff"
    assert fleet.pass_time(0.5) == [f"spawn {BUS}#0"]
    assert fleet.ready(BUS) == [f"spawn {ECHO}#0"]


def test_a_dependent_that_runs_is_left_alone_when_its_requirement_fails():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    fleet.ready(BUS, ECHO)
    given_up(fleet, BUS)
    assert (fleet.state(BUS), fleet.state(ECHO)) == ("failed", "started")


def test_a_failed_requirement_fails_the_dependent_with_its_reason_until_it_is_there_again():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    given_up(fleet, BUS)
    assert fleet.state(ECHO) == "failed"
    assert fleet.reason(ECHO) == f"requires {BUS}, which has failed: {fleet.reason(BUS)}"
    assert "exit status 1" in fleet.reason(ECHO)
    fleet.want(BUS)
    assert (fleet.state(ECHO), fleet.reason(ECHO)) == ("starting", f"waits for {BUS}, which is starting")
    assert fleet.ready(BUS) == [f"spawn {ECHO}#0"]


def test_giving_up_is_told_once_and_not_for_those_that_only_wait():
    fleet = Rehearsal(module(BUS, restart={"policy": "never"}))
    fleet.put(module(ECHO, requires=[BUS]))
    fleet.want(BUS, ECHO)
    assert fleet.exits(BUS) == [f"forget {BUS}#0", f"give up {BUS}"]
    assert fleet.pass_time(3600) == []


def test_a_missing_requirement_is_named_and_awaited():
    fleet = Rehearsal(module(ECHO, requires=[BUS]))
    assert fleet.want(ECHO) == []
    assert (fleet.state(ECHO), fleet.reason(ECHO)) == ("failed", f"requires {BUS}, which is not there")
    fleet.put(module(BUS))
    assert fleet.reason(ECHO) == f"requires {BUS}, which is loaded"
    fleet.want(BUS)
    assert fleet.ready(BUS) == [f"spawn {ECHO}#0"]


def test_a_requirement_that_is_dropped_is_missed():
    fleet = bus_and_echo()
    fleet.want(ECHO)
    fleet.apply(Put(BUS, None))
    assert fleet.reason(ECHO) == f"requires {BUS}, which is not there"


def test_a_requirement_that_was_stopped_by_hand_is_not_started_behind_the_operators_back():
    fleet = bus_and_echo()
    fleet.want(BUS)
    fleet.ready(BUS)
    fleet.unwant(BUS)
    assert fleet.want(ECHO) == []
    assert (fleet.state(ECHO), fleet.reason(ECHO)) == ("failed", f"requires {BUS}, which is stopping")
    assert fleet.exits(BUS, CLEAN) == [f"forget {BUS}#0"]
    assert fleet.reason(ECHO) == f"requires {BUS}, which is stopped"


def test_a_requirement_that_ended_by_itself_is_named_so():
    fleet = bus_and_echo()
    fleet.want(BUS)
    fleet.ready(BUS)
    fleet.exits(BUS, CLEAN)
    fleet.want(ECHO)
    assert fleet.state(BUS) == "stopped"
    assert fleet.reason(ECHO) == f"requires {BUS}, which ended by itself, exit status 0"


def test_one_invalid_module_harms_nobody_but_its_dependents():
    fleet = Rehearsal(invalid(BUS), module(ECHO, requires=[BUS]), module(LOG))
    assert fleet.want(ECHO, LOG) == [f"spawn {LOG}#0"]
    assert (fleet.state(BUS), fleet.reason(BUS)) == ("invalid", "1 fault in its manifest")
    assert fleet.reason(ECHO) == f"requires {BUS}, whose manifest has faults"
    fleet.put(module(BUS))
    fleet.want(BUS)
    assert fleet.ready(BUS) == [f"spawn {ECHO}#0"]


# Order alone


def test_after_is_order_only():
    fleet = Rehearsal(module(LOG), module(ECHO, after=[LOG]))
    assert fleet.want(ECHO, LOG) == [f"spawn {LOG}#0"]
    assert fleet.reason(ECHO) == f"waits for {LOG} to be started"
    assert fleet.ready(LOG) == [f"spawn {ECHO}#0"]


@pytest.mark.parametrize("other", [None, module(LOG), invalid(LOG)], ids=["absent", "not wanted", "invalid"])
def test_who_is_not_to_run_is_not_waited_for_by_its_followers(other):
    fleet = Rehearsal(module(ECHO, after=[LOG]), *([other] if other else []))
    assert fleet.want(ECHO) == [f"spawn {ECHO}#0"]


def test_a_follower_does_not_wait_for_one_that_fails():
    fleet = Rehearsal(module(LOG), module(ECHO, after=[LOG]))
    fleet.want(ECHO, LOG)
    assert f"spawn {ECHO}#0" in fleet.exits(LOG)


def test_a_follower_does_not_wait_for_one_that_cannot_start():
    fleet = Rehearsal(module(LOG, requires=[BUS]), module(ECHO, after=[LOG]))
    assert fleet.want(ECHO, LOG) == [f"spawn {ECHO}#0"]


def test_followers_stop_first():
    fleet = Rehearsal(module(LOG), module(ECHO, after=[LOG]))
    fleet.want(ECHO, LOG)
    fleet.ready(LOG, ECHO)
    assert fleet.unwant(LOG, ECHO) == [f"SIGTERM {ECHO}#0"]
    assert fleet.exits(ECHO, CLEAN) == [f"forget {ECHO}#0", f"SIGTERM {LOG}#0"]


# Stopping


def test_the_stop_order_is_the_start_order_reversed():
    fleet = Rehearsal(
        module(BUS),
        module(ECHO, requires=[BUS]),
        module(GREETER, requires=[BUS]),
        module(LOG, requires=[ECHO]),
    )
    fleet.want(BUS, ECHO, GREETER, LOG)
    fleet.ready(BUS, ECHO, GREETER, LOG)
    assert sorted(fleet.unwant(BUS, ECHO, GREETER, LOG)) == [f"SIGTERM {GREETER}#0", f"SIGTERM {LOG}#0"]
    assert fleet.exits(LOG, CLEAN) == [f"forget {LOG}#0", f"SIGTERM {ECHO}#0"]
    assert fleet.exits(ECHO, CLEAN) == [f"forget {ECHO}#0"]
    assert fleet.state(BUS) == "stopping"
    assert fleet.exits(GREETER, CLEAN) == [f"forget {GREETER}#0", f"SIGTERM {BUS}#0"]
    assert fleet.exits(BUS, CLEAN) == [f"forget {BUS}#0"]
    assert {fleet.state(one) for one in (BUS, ECHO, GREETER, LOG)} == {"stopped"}


def test_a_dependent_that_goes_on_does_not_keep_its_requirement_from_stopping():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    fleet.ready(BUS, ECHO)
    assert fleet.unwant(BUS) == [f"SIGTERM {BUS}#0"]
    assert fleet.state(ECHO) == "started"


def test_what_only_waits_is_stopped_at_once():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    assert fleet.unwant(BUS, ECHO) == [f"SIGTERM {BUS}#0"]
    assert fleet.state(ECHO) == "stopped"


def test_nothing_unwanted_is_started_while_its_dependents_are_still_stopping():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    fleet.ready(BUS, ECHO)
    fleet.unwant(BUS, ECHO)
    assert fleet.exits(BUS, CRASH) == [f"forget {BUS}#0"]
    assert fleet.pass_time(5) == []
    fleet.exits(ECHO, CLEAN)
    assert (fleet.state(BUS), fleet.state(ECHO)) == ("stopped", "stopped")


def test_back_off_ends_with_the_wish():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    fleet.ready(BUS, ECHO)
    fleet.exits(BUS)
    fleet.exits(BUS)
    assert fleet.state(BUS) == "backoff"
    fleet.unwant(BUS, ECHO)
    assert fleet.pass_time(5) == []
    assert fleet.exits(ECHO, CLEAN) == [f"forget {ECHO}#0"]


def test_a_start_turns_a_stop_round():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    fleet.ready(BUS, ECHO)
    fleet.unwant(BUS, ECHO)
    assert fleet.want(ECHO, BUS) == []
    assert fleet.state(ECHO) == "stopping"
    assert fleet.state(BUS) == "started"  # its turn had not come
    assert fleet.exits(ECHO, CLEAN) == [f"forget {ECHO}#0", f"spawn {ECHO}#0"]


# Number


def test_scaling_starts_and_stops_only_the_difference():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    assert fleet.apply(Scale(ECHO, 3)) == [f"spawn {ECHO}#1", f"spawn {ECHO}#2"]
    fleet.ready(ECHO, index=1)
    fleet.ready(ECHO, index=2)
    assert fleet.apply(Scale(ECHO, 1)) == [f"SIGTERM {ECHO}#1", f"SIGTERM {ECHO}#2"]
    assert fleet.state(ECHO) == "started"
    fleet.exits(ECHO, CLEAN, index=1)
    fleet.exits(ECHO, CLEAN, index=2)
    assert [one.index for one in fleet.module(ECHO).replicas] == [0]


def test_scaling_down_and_up_again_forgets_no_replica():
    fleet = Rehearsal(module(ECHO, replicas=2))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    fleet.ready(ECHO, index=1)
    fleet.apply(Scale(ECHO, 1))
    fleet.apply(Scale(ECHO, 2))
    assert fleet.exits(ECHO, CLEAN, index=1) == [f"forget {ECHO}#1", f"spawn {ECHO}#1"]


def test_scaled_to_none_a_module_is_stopping_and_stopped():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    fleet.apply(Scale(ECHO, 0))
    assert fleet.state(ECHO) == "stopping"
    fleet.exits(ECHO, CLEAN)
    assert (fleet.state(ECHO), fleet.module(ECHO).replicas) == ("stopped", ())


@pytest.mark.parametrize(
    ("first", "second", "state"),
    [
        ("started", "started", "started"),
        ("started", "starting", "starting"),
        ("starting", "failed", "failed"),
        ("started", "backoff", "backoff"),
        ("backoff", "failed", "failed"),
        ("stopping", "started", "stopping"),
        ("stopping", "starting", "stopping"),
        ("started", "stopped", "stopped"),
        ("started", "stuck", "failed"),
    ],
)
def test_the_worst_replica_speaks_for_the_module(first, second, state):
    states = {
        "started": Started("run 1", 1),
        "starting": Starting("run 1", 9.0),
        "stopping": Stopping("run 1", 1, 9.0),
        "backoff": Backoff(9.0),
        "failed": Failed(),
        "stopped": Stopped(),
        "stuck": Stuck("run 1", 1),
    }
    replicas = tuple(
        Replica(ECHO, index, 1, 0.0, wanted=True, state=states[name])
        for index, name in enumerate((first, second))
    )
    assert replace(module(ECHO), wanted=True, count=2, replicas=replicas).state == state


# Generations


def test_a_restart_keeps_the_generation():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    assert fleet.apply(Renewal(ECHO)) == [f"SIGTERM {ECHO}#0"]
    assert fleet.exits(ECHO, CLEAN) == [f"forget {ECHO}#0", f"spawn {ECHO}#0"]
    assert fleet.module(ECHO).generation == 1


def test_a_new_generation_starts_when_the_former_has_ended():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    assert fleet.apply(Renewal(ECHO, definition(ECHO, "new"))) == [f"SIGTERM {ECHO}#0"]
    assert fleet.reason(ECHO) == "waits for the former generation to end"
    assert fleet.exits(ECHO, CLEAN, generation=1) == [f"forget {ECHO}#0", f"spawn {ECHO}#0"]
    assert [one.key for one in fleet.module(ECHO).replicas] == [(0, 2)]
    assert fleet.module(ECHO).definition == definition(ECHO, "new")


def test_a_new_generation_of_what_failed_has_a_clean_slate():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    given_up(fleet, ECHO)
    assert fleet.apply(Renewal(ECHO, definition(ECHO, "new"))) == [f"spawn {ECHO}#0"]
    assert fleet.replica(ECHO).history == History()


def test_a_graceful_reload_starts_the_new_before_it_stops_the_old():
    fleet = Rehearsal(module(ECHO, replicas=2))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    fleet.ready(ECHO, index=1)
    assert fleet.apply(Renewal(ECHO, definition(ECHO, "new", replicas=2), beside=True)) == [
        f"spawn {ECHO}#0",
        f"spawn {ECHO}#1",
    ]
    assert fleet.ready(ECHO, generation=2) == []
    assert (fleet.state(ECHO), fleet.module(ECHO).generation) == ("started", 1)
    assert fleet.ready(ECHO, index=1, generation=2) == [f"SIGTERM {ECHO}#0", f"SIGTERM {ECHO}#1"]
    assert (fleet.state(ECHO), fleet.module(ECHO).generation) == ("started", 2)
    for index in (0, 1):
        assert fleet.exits(ECHO, CLEAN, index, generation=1) == [f"forget {ECHO}#{index}"]
    assert [one.key for one in fleet.module(ECHO).replicas] == [(0, 2), (1, 2)]


def test_a_new_generation_that_does_not_get_ready_goes_and_the_old_one_never_noticed():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    before = fleet.replica(ECHO)
    fleet.apply(Renewal(ECHO, definition(ECHO, "new"), beside=True))
    assert fleet.exits(ECHO, CRASH, generation=2) == [f"forget {ECHO}#0"]
    after = fleet.module(ECHO)
    assert after.replicas == (before,)
    assert (after.state, after.generation, after.upgrade) == ("started", 1, None)
    assert after.refused is not None and after.refused.successor.history.last_exit == CRASH
    assert fleet.pass_time(3600) == []


def test_scaling_down_during_a_graceful_reload_does_not_spoil_it():
    fleet = Rehearsal(module(ECHO, replicas=2))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    fleet.ready(ECHO, index=1)
    fleet.apply(Renewal(ECHO, definition(ECHO, "new"), beside=True))
    fleet.apply(Scale(ECHO, 1))
    fleet.exits(ECHO, CLEAN, 1, generation=2)
    assert fleet.ready(ECHO, generation=2) == [f"SIGTERM {ECHO}#0"]
    assert fleet.module(ECHO).generation == 2


def test_a_new_generation_waits_for_what_its_own_manifest_requires():
    fleet = Rehearsal(module(BUS), module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    fleet.want(BUS)
    assert fleet.apply(Renewal(ECHO, definition(ECHO, "new", requires=[BUS]), beside=True)) == []
    assert fleet.replica(ECHO, generation=2).state == Waiting(f"waits for {BUS}, which is starting", False)
    assert fleet.ready(BUS) == [f"spawn {ECHO}#0"]
    assert fleet.ready(ECHO, generation=2) == [f"SIGTERM {ECHO}#0"]
    assert fleet.fleet.graph.required_by == {BUS: (ECHO,)}


def test_a_new_generation_whose_requirement_is_missing_is_refused():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    assert fleet.apply(Renewal(ECHO, definition(ECHO, "new", requires=[BUS]), beside=True)) == []
    assert fleet.module(ECHO).refused is not None
    assert (fleet.state(ECHO), fleet.module(ECHO).generation) == ("started", 1)
    assert fleet.fleet.graph.required_by == {}


def test_a_stop_calls_a_graceful_reload_off():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    fleet.apply(Renewal(ECHO, definition(ECHO, "new"), beside=True))
    assert sorted(fleet.unwant(ECHO)) == [f"SIGTERM {ECHO}#0", f"SIGTERM {ECHO}#0"]
    fleet.exits(ECHO, CLEAN, generation=2)
    fleet.exits(ECHO, CLEAN, generation=1)
    assert (fleet.state(ECHO), fleet.module(ECHO).generation) == ("stopped", 1)


def test_who_is_required_no_longer_is_free_to_stop():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    fleet.ready(BUS, ECHO)
    fleet.unwant(BUS, ECHO)
    assert fleet.state(BUS) == "stopping"
    assert fleet.apply(Renewal(ECHO, definition(ECHO, "new"))) == [f"SIGTERM {BUS}#0"]


# The record


def test_a_module_remembers_since_when_it_is_in_its_state():
    fleet = bus_and_echo()
    fleet.pass_time(5)
    fleet.want(BUS, ECHO)
    fleet.pass_time(2)
    fleet.ready(BUS)
    assert (fleet.module(BUS).since, fleet.module(ECHO).since) == (7, 5)


def test_a_change_names_the_modules_that_it_touched():
    fleet = Rehearsal(module(BUS), module(ECHO, requires=[BUS]), module(LOG))
    change = fleet.fleet
    fleet.want(BUS)
    unchanged = [one for one in change.modules if change.modules[one] is fleet.fleet.modules[one]]
    assert unchanged == [ECHO, LOG]


def test_wishes_are_taken_together():
    fleet = bus_and_echo()
    fleet.want(BUS, ECHO)
    fleet.ready(BUS, ECHO)
    assert fleet.apply(Want((BUS, ECHO), False)) == [f"SIGTERM {ECHO}#0"]


def test_a_folder_that_is_gone_is_told_and_harms_nothing():
    fleet = Rehearsal(module(ECHO))
    fleet.want(ECHO)
    fleet.ready(ECHO)
    fleet.put(replace(fleet.module(ECHO), gone=True))
    assert (fleet.state(ECHO), fleet.reason(ECHO)) == (
        "started",
        "its folder is gone; what runs goes on until it is stopped",
    )
