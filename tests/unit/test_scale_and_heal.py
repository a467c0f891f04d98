"""Scaling, healing, rolling reloads and the restart of one replica, as commands: what is done, and what is told."""

import asyncio

import pytest
from msgspec.structs import replace

from nexusd import healing
from nexusd.domain import events
from nexusd.domain.errors import BadValue, DependencyFailed, NoSuchModule, NotPossible, StartFailed, TimedOut
from nexusd.domain.events import Put, Scale, Want
from nexusd.domain.health import Health, health_of
from nexusd.domain.module import ModuleState
from tests.fakes import CLEAN, CRASH, definition
from tests.house import AT_ONCE, BUS, ECHO, FULL, GREETER, IMPATIENT, PATIENT, House, outcome, refusal


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real time, which the tests of healing have none of."""
    monkeypatch.setattr(healing, "WELL_S", 0.0)


def has_failed(house: House, module_id: str) -> None:
    """As often as the budget allows, and once more."""
    for _ in range(20):
        if house.state(module_id) is ModuleState.FAILED:
            return
        if house.module(module_id).is_active:
            house.exits(module_id)
        else:
            house.clock.advance(31, house.supervisor)
            house.supervisor.handle(Put(module_id, house.module(module_id)))
    raise AssertionError(f"{module_id} is {house.state(module_id)}")


@pytest.fixture
def broken(house: House) -> House:
    """bus runs; greeter was stopped by hand; echo has used up its budget."""
    house.put(ECHO, requires=[BUS], restart={"intensity": {"restarts": 1, "within": "1h"}})
    house.is_running(BUS, ECHO, GREETER)
    house.supervisor.handle(Want((GREETER,), False))
    house.exits(GREETER, CLEAN)
    has_failed(house, ECHO)
    house.processes.log.clear()
    return house


# Scale


def test_a_scale_is_done_when_the_new_ones_are_ready(house):
    house.is_running(BUS)
    told = outcome(
        house.operations.scale(BUS, 3, PATIENT),
        lambda: house.tell(BUS, events.Ready, index=1),
        lambda: house.tell(BUS, events.Ready, index=2),
    )
    assert told == {"module_id": BUS, "replicas": 3, "previous": 1, "changed": True, "state": "started"}
    assert house.processes.log == [f"spawn {BUS}#1", f"spawn {BUS}#2"]
    assert house.store.counts == {BUS: 3}


def test_a_scale_down_is_done_when_the_last_ones_have_ended(house):
    house.is_running(BUS)
    outcome(house.operations.scale(BUS, 2, PATIENT), lambda: house.tell(BUS, events.Ready, index=1))
    house.processes.log.clear()
    told = outcome(house.operations.scale(BUS, 1, PATIENT), lambda: house.exits(BUS, CLEAN, index=1))
    assert (told["replicas"], told["previous"]) == (1, 2)
    assert house.processes.log == [f"SIGTERM {BUS}#1", f"forget {BUS}#1"]


def test_the_same_number_again_changes_nothing(house):
    house.is_running(BUS)
    assert outcome(house.operations.scale(BUS, 1, PATIENT))["changed"] is False
    assert house.processes.log == []


def test_of_a_stopped_module_the_number_is_kept_for_its_next_start(house):
    told = outcome(house.operations.scale(BUS, 2, PATIENT))
    assert (told["state"], house.store.counts, house.processes.log) == ("loaded", {BUS: 2}, [])
    outcome(
        house.operations.start(BUS, PATIENT),
        lambda: house.ready(BUS),
        lambda: house.tell(BUS, events.Ready, index=1),
    )
    assert house.processes.log == [f"spawn {BUS}#0", f"spawn {BUS}#1"]


@pytest.mark.parametrize("count", [-1, 5, 10**30])
def test_a_number_out_of_bounds_is_refused_with_the_bounds(house, count):
    house.put(BUS, max_replicas=4)
    error = refusal(BadValue, house.operations.scale(BUS, count, PATIENT))
    assert str(error) == f"{BUS} may have 0 to 4 replicas, not {count}"
    assert (house.module(BUS).count, house.store.counts) == (1, {})


def test_to_none_is_refused_while_others_require_it_and_names_them(house):
    house.is_running(BUS, ECHO, GREETER)
    error = refusal(NotPossible, house.operations.scale(BUS, 0, PATIENT))
    assert str(error) == f"cannot scale to 0 {BUS}: {ECHO}, {GREETER} require it"
    assert error.details["required_by"] == [ECHO, GREETER]
    assert house.module(BUS).count == 1


def test_to_none_what_nobody_requires_is_stopped_and_says_why(house):
    house.is_running(BUS)
    told = outcome(house.operations.scale(BUS, 0, PATIENT), lambda: house.exits(BUS, CLEAN))
    assert (told["replicas"], told["state"], house.module(BUS).is_active) == (0, "stopped", False)
    assert house.module(BUS).reason == "scaled to 0 replicas"
    assert health_of(house.module(BUS)) == (Health.DEGRADED, ("stopped: scaled to 0 replicas",))
    told = outcome(house.operations.scale(BUS, 1, PATIENT), lambda: house.ready(BUS))
    assert told["state"] == "started"


@pytest.mark.parametrize("command", ["start", "restart"])
def test_what_is_scaled_to_none_has_nothing_to_start(house, command):
    house.is_running(BUS)
    outcome(house.operations.scale(BUS, 0, PATIENT), lambda: house.exits(BUS, CLEAN))
    error = refusal(NotPossible, getattr(house.operations, command)(BUS, PATIENT))
    assert str(error) == f"cannot {command} {BUS}: it is scaled to 0 replicas"
    assert error.hint == f"nexusctl scale {BUS} 1"


def test_who_requires_what_is_scaled_to_none_cannot_start_and_starts_when_there_is_one_again(house):
    house.is_running(BUS)
    outcome(house.operations.scale(BUS, 0, PATIENT), lambda: house.exits(BUS, CLEAN))
    error = refusal(DependencyFailed, house.operations.start(ECHO, PATIENT))
    assert str(error) == f"cannot start {ECHO}: requires {BUS}, which is scaled to 0 replicas"
    outcome(house.operations.scale(BUS, 1, PATIENT), lambda: house.ready(BUS))
    assert house.state(ECHO) == "starting"


def test_what_is_scaled_to_none_can_be_reloaded_and_is_not_healed(house):
    house.is_running(BUS)
    outcome(house.operations.scale(BUS, 0, PATIENT), lambda: house.exits(BUS, CLEAN))
    house.on_disk[BUS] = definition(BUS, "new")
    assert outcome(house.operations.reload(BUS, None, PATIENT))["reloaded"] is True
    assert outcome(house.operations.heal(BUS, PATIENT))["skipped"] == {BUS: "scaled to 0 replicas"}


def test_a_new_one_that_does_not_start_is_told_with_its_log_and_the_number_stays(house):
    house.is_running(BUS)
    house.logs.lines[f"{BUS}#1"] = ["no port left"]
    error = refusal(
        StartFailed, house.operations.scale(BUS, 2, PATIENT), lambda: house.exits(BUS, CRASH, index=1)
    )
    assert str(error) == (
        f"{BUS} is to have 2 replicas now, but {BUS}#1 did not start: exit status 1 before it was ready"
    )
    assert (error.details["log"], error.details["replica"]) == (["no port left"], f"{BUS}#1")
    assert (house.module(BUS).count, house.store.counts) == (2, {BUS: 2})


def test_a_scale_whose_requirement_is_missing_says_which(house):
    house.is_running(BUS, ECHO)
    house.supervisor.handle(Want((BUS,), False))
    house.exits(BUS, CLEAN)
    error = refusal(DependencyFailed, house.operations.scale(ECHO, 2, PATIENT))
    assert f"requires {BUS}, which is stopped" in str(error)


def test_a_scale_that_is_overtaken_by_another_says_so(house):
    house.is_running(BUS)
    error = refusal(
        NotPossible,
        house.operations.scale(BUS, 3, PATIENT),
        lambda: house.supervisor.handle(Scale(BUS, 2)),
    )
    assert str(error) == f"{BUS} was scaled to 2 meanwhile"


def test_a_scale_that_takes_longer_than_the_caller_has_goes_on(house):
    house.is_running(BUS)
    refusal(TimedOut, house.operations.scale(BUS, 2, IMPATIENT))
    assert house.module(BUS).count == 2


def test_a_scale_on_a_full_disk_works_and_warns(house):
    house.is_running(BUS)
    house.store.full = FULL
    told = outcome(house.operations.scale(BUS, 2, AT_ONCE))
    assert told["warning"] == "the disk is full; after a restart of nexusd the former number holds"


def test_a_module_whose_folder_is_gone_gets_fewer_replicas_and_no_more(house):
    house.is_running(BUS)
    house.supervisor.handle(Put(BUS, replace(house.module(BUS), gone=True)))
    assert "is gone" in str(refusal(NotPossible, house.operations.scale(BUS, 2, PATIENT)))
    assert outcome(house.operations.scale(BUS, 0, AT_ONCE))["replicas"] == 0


# One replica


def test_one_replica_is_restarted_and_the_others_are_not_touched(house):
    house.is_running(BUS)
    outcome(house.operations.scale(BUS, 2, PATIENT), lambda: house.tell(BUS, events.Ready, index=1))
    house.processes.log.clear()
    told = outcome(
        house.operations.restart(BUS, PATIENT, 1),
        lambda: house.exits(BUS, CLEAN, index=1),
        lambda: house.tell(BUS, events.Ready, index=1),
    )
    assert told == {"module_id": BUS, "replica": f"{BUS}#1", "restarted": True, "state": "started"}
    assert house.processes.log == [f"SIGTERM {BUS}#1", f"forget {BUS}#1", f"spawn {BUS}#1"]


def test_a_replica_that_there_is_not_is_refused(house):
    house.is_running(BUS)
    error = refusal(NotPossible, house.operations.restart(BUS, PATIENT, 1))
    assert str(error) == f"cannot restart {BUS}#1: it has 1 replicas, counted from 0"


def test_during_a_reload_no_single_replica_is_restarted(house):
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new")
    outcome(house.operations.reload(BUS, "graceful", AT_ONCE))
    error = refusal(NotPossible, house.operations.restart(BUS, PATIENT, 0))
    assert str(error) == f"cannot restart {BUS}#0: it is being reloaded"


def test_of_a_stopped_module_no_replica_is_restarted(house):
    house.is_running(BUS)
    house.supervisor.handle(Want((BUS,), False))
    house.exits(BUS, CLEAN)
    error = refusal(NotPossible, house.operations.restart(BUS, PATIENT, 0))
    assert str(error) == f"cannot restart {BUS}#0: it is stopped"
    assert house.state(BUS) == "stopped"


# Rolling


def rolling(house: House) -> None:
    """Two replicas of bus, and a new definition on disk."""
    house.is_running(BUS)
    outcome(house.operations.scale(BUS, 2, PATIENT), lambda: house.tell(BUS, events.Ready, index=1))
    house.on_disk[BUS] = definition(BUS, "new")
    house.processes.log.clear()


def test_a_rolling_reload_is_done_when_the_last_of_the_old_has_ended(house):
    rolling(house)
    told = outcome(
        house.operations.reload(BUS, "rolling", PATIENT),
        lambda: house.tell(BUS, events.Ready, generation=2),
        lambda: house.exits(BUS, CLEAN, index=0, generation=1),
        lambda: house.tell(BUS, events.Ready, index=1, generation=2),
        lambda: house.exits(BUS, CLEAN, index=1, generation=1),
    )
    assert told == {
        "module_id": BUS,
        "reloaded": True,
        "strategy": "rolling",
        "generation": 2,
        "changed": True,
    }
    assert house.told[-1] == ("module.reloaded", BUS, "rolling")


def test_a_rolling_reload_that_fails_is_told_when_all_are_back(house):
    rolling(house)
    error = refusal(
        StartFailed,
        house.operations.reload(BUS, "rolling", PATIENT),
        lambda: house.tell(BUS, events.Ready, generation=2),
        lambda: house.exits(BUS, CLEAN, index=0, generation=1),
        lambda: house.exits(BUS, CRASH, index=1, generation=2),
        lambda: house.tell(BUS, events.Ready, index=0, generation=1),
        lambda: house.exits(BUS, CLEAN, index=0, generation=2),
    )
    assert str(error) == (
        f"{BUS} was not reloaded: the new generation failed (exit status 1 before it was ready); "
        "all replicas are the old one's"
    )
    assert error.details["replica"] == f"{BUS}#1"
    assert house.processes.spawned_as[house.module(BUS).replicas[0].run].folder == f"/copies/{BUS}"


def test_without_a_copy_to_go_back_to_a_rolling_reload_is_refused(house):
    rolling(house)
    house.copies.lost.add(BUS)
    error = refusal(NotPossible, house.operations.reload(BUS, "rolling", PATIENT))
    assert "no copy of the code in force to go back to" in str(error)
    assert error.hint == f"nexusctl reload {BUS} --strategy graceful"
    assert house.processes.log == []


def test_of_one_replica_a_rolling_reload_needs_no_copy(house):
    house.copies.lost.add(BUS)
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new")
    told = outcome(
        house.operations.reload(BUS, "rolling", PATIENT),
        lambda: house.tell(BUS, events.Ready, generation=2),
        lambda: house.exits(BUS, CLEAN, generation=1),
    )
    assert (told["reloaded"], told["strategy"]) == (True, "rolling")


def test_a_refused_reload_is_told_when_nothing_of_the_new_generation_is_left(house):
    rolling(house)
    refusal(
        StartFailed,
        house.operations.reload(BUS, "graceful", PATIENT),
        lambda: house.exits(BUS, CRASH, index=1, generation=2),
        lambda: house.exits(BUS, CLEAN, index=0, generation=2),
    )
    assert [one.generation for one in house.module(BUS).replicas] == [1, 1]


def test_a_value_is_set_when_the_reload_is_over(house):
    house.is_running(BUS, ECHO)
    house.on_disk[ECHO] = replace(house.module(ECHO).definition, digest="new")

    async def both() -> dict:
        await house.operations.reload(ECHO, "graceful", AT_ONCE)
        return await house.operations.configure(ECHO, "rate", 50)

    told = outcome(
        both(),
        lambda: house.tell(ECHO, events.Ready, generation=2),
    )
    assert (told["applied"], house.control.asked) == ("live", [(f"{ECHO}#0", "rate", 50)])
    assert house.module(ECHO).generation == 2


def test_who_does_not_wait_for_a_reload_finds_its_end_among_the_events(house):
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new")

    async def story() -> dict:
        told = await house.operations.reload(BUS, "graceful", AT_ONCE)
        assert house.told == []
        house.tell(BUS, events.Ready, generation=2)
        house.exits(BUS, CLEAN, generation=1)
        return told

    assert outcome(_and_a_moment(story()))["reloaded"] is False
    assert (house.told, house.configs.tidied) == ([("module.reloaded", BUS, "graceful")], [BUS])


async def _and_a_moment(story):
    told = await story
    for _ in range(5):
        await asyncio.sleep(0)
    return told


# Healing


def test_what_has_failed_is_started_with_a_fresh_budget_and_it_is_told_that_it_helped(broken):
    told = outcome(broken.operations.heal(None, PATIENT), lambda: broken.ready(ECHO))
    assert (told["healed"], told["restarted"], told["helped"]) == ([ECHO], [ECHO], True)
    assert (told["replicas"], told["message"]) == ([f"{ECHO}#0"], "1 of 1 healed")
    assert (told["before"]["unhealthy"], told["after"]["unhealthy"]) == (1, 0)
    assert broken.module(ECHO).current[0].history.times == ()


def test_what_an_operator_stopped_is_not_touched_and_told(broken):
    told = outcome(broken.operations.heal(None, PATIENT), lambda: broken.ready(ECHO))
    assert told["skipped"] == {GREETER: "stopped by an operator"}
    assert broken.processes.log == [f"spawn {ECHO}#0"]


def test_what_fails_again_was_not_helped_and_says_why(broken):
    told = outcome(broken.operations.heal(None, PATIENT), lambda: broken.exits(ECHO))
    assert (told["helped"], told["healed"]) == (False, [])
    assert "exit status 1 before it was ready" in told["not_healed"][ECHO]


def test_what_ends_again_after_a_moment_was_not_helped(broken, monkeypatch):
    monkeypatch.setattr(healing, "WELL_S", 60.0)

    def start_and_fall() -> None:
        broken.ready(ECHO)
        asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(broken.exits, ECHO))

    told = outcome(broken.operations.heal(None, PATIENT), start_and_fall)
    assert (told["helped"], told["healed"]) == (False, [])


def test_one_that_backs_off_waits_no_longer(house):
    house.is_running(BUS)
    house.exits(BUS)
    house.exits(BUS)
    assert house.state(BUS) == "backoff"
    assert outcome(house.operations.heal(BUS, PATIENT), lambda: house.ready(BUS))["helped"]


def test_who_failed_with_what_it_requires_is_healed_after_it(house):
    house.put(BUS, restart={"intensity": {"restarts": 0, "within": "1h"}})
    house.supervisor.handle(Want((BUS, ECHO), True))
    has_failed(house, BUS)
    assert house.state(ECHO) == "failed"
    house.processes.log.clear()
    told = outcome(house.operations.heal(ECHO, PATIENT), lambda: house.ready(BUS), lambda: house.ready(ECHO))
    assert (told["healed"], told["helped"]) == ([ECHO, BUS], True)
    assert house.processes.log == [f"spawn {BUS}#0", f"spawn {ECHO}#0"]


def test_who_requires_what_was_stopped_is_not_helped_and_that_is_not_started(house):
    house.is_running(BUS, ECHO)
    house.supervisor.handle(Want((BUS,), False))
    house.exits(BUS, CLEAN)
    house.exits(ECHO)
    told = outcome(house.operations.heal(ECHO, PATIENT))
    assert (told["helped"], house.state(BUS)) == (False, "stopped")
    assert told["skipped"] == {BUS: "stopped by an operator"}


def test_only_the_failed_replica_is_started(house):
    house.put(BUS, replicas=2, restart={"policy": "never"})
    house.supervisor.handle(Want((BUS,), True))
    house.tell(BUS, events.Ready, index=0)
    house.tell(BUS, events.Ready, index=1)
    house.exits(BUS, CRASH, index=1)
    house.processes.log.clear()
    told = outcome(house.operations.heal(None, PATIENT), lambda: house.tell(BUS, events.Ready, index=1))
    assert (told["replicas"], house.processes.log) == ([f"{BUS}#1"], [f"spawn {BUS}#1"])


def test_a_module_that_is_being_reloaded_is_left_to_its_reload(broken):
    broken.put(GREETER, replicas=2, restart={"policy": "never"})
    broken.supervisor.handle(Want((GREETER,), True))
    broken.tell(GREETER, events.Ready)
    broken.exits(GREETER, index=1)
    broken.on_disk[GREETER] = definition(GREETER, "new")
    outcome(broken.operations.reload(GREETER, "graceful", AT_ONCE))
    told = outcome(broken.operations.heal(GREETER, PATIENT))
    assert (told["skipped"], told["restarted"]) == ({GREETER: "it is being reloaded"}, [])


def test_with_nothing_to_heal_it_says_so(house):
    house.is_running(BUS)
    told = outcome(house.operations.heal(None, PATIENT))
    assert (told["restarted"], told["helped"]) == ([], None)
    assert told["message"] == "nothing that is to run is failed or unhealthy"
    assert house.processes.log == []


def test_who_does_not_wait_is_not_told_whether_it_helped(broken):
    assert outcome(broken.operations.heal(None, AT_ONCE))["helped"] is None


def test_what_takes_too_long_was_not_helped(broken):
    told = outcome(broken.operations.heal(None, IMPATIENT))
    assert (told["helped"], told["not_healed"]) == (False, {ECHO: "starting"})


def test_an_invalid_module_is_left_to_its_author(house):
    house.put_invalid("mesh/broken")
    assert "invalid" in outcome(house.operations.heal(None, PATIENT))["skipped"]["mesh/broken"]


def test_an_unknown_module_cannot_be_healed(house):
    assert (
        refusal(NoSuchModule, house.operations.heal("mesh/ecko", PATIENT)).hint == "did you mean mesh/echo?"
    )
