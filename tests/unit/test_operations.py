"""What commands do, and what the operator is told when they can't. All adapters are fakes; nobody sleeps."""

import asyncio
import signal
from typing import Any

import pytest
from msgspec.structs import replace

from nexusd import configuring
from nexusd.domain import events
from nexusd.domain.errors import (
    BadValue,
    DependencyFailed,
    NoSuchModule,
    NotPossible,
    StartFailed,
    TimedOut,
)
from nexusd.domain.events import Put, Scale, Want
from nexusd.domain.replica import Exit
from tests.fakes import CLEAN, CRASH, definition
from tests.house import AT_ONCE, BUS, ECHO, FULL, GREETER, IMPATIENT, KEYS, PATIENT, House, outcome, refusal


@pytest.fixture
def house(monkeypatch: pytest.MonkeyPatch) -> House:
    monkeypatch.setattr(configuring, "ENDING_S", 0.01)
    return House()


# Start


def test_a_start_is_done_when_the_module_is_ready(house):
    told = outcome(house.operations.start(BUS, PATIENT), lambda: house.ready(BUS))
    assert told == {"module_id": BUS, "started": True, "state": "started", "changed": True, "also": []}
    assert house.store.wanted == {BUS: True}


def test_a_start_brings_what_is_required_with_it(house):
    told = outcome(house.operations.start(ECHO, PATIENT), lambda: house.ready(BUS), lambda: house.ready(ECHO))
    assert (told["started"], told["also"]) == (True, [BUS])
    assert house.processes.log == [f"spawn {BUS}#0", f"spawn {ECHO}#0"]
    assert house.store.wanted == {BUS: True, ECHO: True}


def test_what_is_started_already_is_not_changed(house):
    house.is_running(BUS)
    assert outcome(house.operations.start(BUS, PATIENT))["changed"] is False
    assert house.processes.log == []


def test_what_is_started_already_gets_back_what_it_lacks(house):
    house.is_running(BUS, ECHO)
    house.supervisor.handle(Want((BUS,), False))
    house.exits(BUS, CLEAN)
    assert outcome(house.operations.start(ECHO, PATIENT))["also"] == [BUS]
    assert house.state(BUS) == "starting"


def test_who_does_not_wait_is_told_what_is_so(house):
    told = outcome(house.operations.start(BUS, AT_ONCE))
    assert (told["started"], told["state"]) == (False, "starting")


@pytest.mark.parametrize(
    ("asked", "hint"),
    [("mesh/ecko", "did you mean mesh/echo?"), ("echo/mesh/none/of/it", "nexusctl modules")],
)
def test_an_unknown_module_names_its_near_match(house, asked, hint):
    error = refusal(NoSuchModule, house.operations.start(asked, PATIENT))
    assert (str(error), error.hint) == (f"no such module: {asked}", hint)


def test_an_invalid_module_says_what_is_wrong_with_it(house):
    house.put_invalid("mesh/broken")
    error = refusal(NotPossible, house.operations.start("mesh/broken", PATIENT))
    assert "1 fault in its manifest" in str(error)
    assert "exactly one of python and exec" in error.reason
    assert error.hint == "nexusctl status mesh/broken"


def test_a_start_that_fails_shows_exit_and_last_lines(house):
    house.logs.lines[f"{BUS}#0"] = [f"line {number}" for number in range(20)]
    error = refusal(
        StartFailed,
        house.operations.start(BUS, PATIENT),
        lambda: house.exits(BUS, Exit(signal=signal.SIGSEGV)),
    )
    assert (
        str(error) == f"{BUS} did not start: killed by SIGSEGV before it was ready; it is being tried again"
    )
    assert error.hint == f"nexusctl logs {BUS}"
    assert error.details["replica"] == f"{BUS}#0"
    assert error.details["exit"] == {"code": None, "signal": "SIGSEGV", "description": "killed by SIGSEGV"}
    assert error.details["log"] == [f"line {number}" for number in range(10, 20)]


def test_a_start_that_is_not_tried_again_says_nothing_of_it(house):
    house.put(BUS, restart={"policy": "never"})
    error = refusal(StartFailed, house.operations.start(BUS, PATIENT), lambda: house.exits(BUS))
    assert str(error) == f"{BUS} did not start: exit status 1 before it was ready"


def test_a_modules_own_last_words_are_the_reason(house):
    def fail() -> None:
        house.tell(BUS, events.Said, "cannot bind port 80")
        house.exits(BUS)

    house.put(BUS, restart={"policy": "never"})
    assert refusal(StartFailed, house.operations.start(BUS, PATIENT), fail).reason == "cannot bind port 80"


def test_a_start_fails_with_what_it_requires(house):
    house.put(BUS, restart={"policy": "never"})
    error = refusal(DependencyFailed, house.operations.start(ECHO, PATIENT), lambda: house.exits(BUS))
    reason = f"requires {BUS}, which has failed: exit status 1 before it was ready"
    assert (str(error), error.reason) == (f"cannot start {ECHO}: {reason}", reason)


def test_a_start_without_what_it_requires_fails_at_once(house):
    house.supervisor.handle(Put(BUS, None))
    error = refusal(DependencyFailed, house.operations.start(ECHO, PATIENT))
    assert str(error) == f"cannot start {ECHO}: requires {BUS}, which is not there"


def test_a_start_waits_on_while_what_it_requires_is_tried_again(house):
    told = outcome(
        house.operations.start(ECHO, PATIENT),
        lambda: house.exits(BUS),
        lambda: house.ready(BUS),
        lambda: house.ready(ECHO),
    )
    assert told["started"]


def test_a_start_that_takes_longer_than_the_caller_has_goes_on(house):
    error = refusal(TimedOut, house.operations.start(BUS, IMPATIENT))
    assert str(error) == f"{BUS} is still starting after 0.01 s"
    assert error.hint == f"nexusctl status {BUS}"
    assert house.state(BUS) == "starting"


def test_a_start_that_is_overtaken_by_a_stop_says_so(house):
    error = refusal(
        NotPossible,
        house.operations.start(BUS, PATIENT),
        lambda: house.supervisor.handle(Want((BUS,), False)),
    )
    assert str(error) == f"{BUS} was stopped meanwhile"


def test_a_start_of_what_backs_off_is_a_fresh_one(house):
    house.is_running(BUS)
    house.exits(BUS)
    house.exits(BUS)
    assert house.state(BUS) == "backoff"
    assert outcome(house.operations.start(BUS, PATIENT), lambda: house.ready(BUS))["started"]


def test_a_start_on_a_full_disk_works_and_warns(house):
    house.store.full = FULL
    told = outcome(house.operations.start(BUS, PATIENT), lambda: house.ready(BUS))
    assert told["warning"] == "the disk is full; after a restart of nexusd the former wish holds"


# Stop


def test_a_stop_is_done_when_the_process_has_ended(house):
    house.is_running(BUS)
    told = outcome(house.operations.stop(BUS, False, PATIENT), lambda: house.exits(BUS, CLEAN))
    assert told == {"module_id": BUS, "stopped": True, "state": "stopped", "changed": True, "also": []}
    assert house.store.wanted == {BUS: False}


def test_what_does_not_run_is_stopped_without_change(house):
    told = outcome(house.operations.stop(BUS, False, PATIENT))
    assert (told["stopped"], told["changed"]) == (True, False)


@pytest.mark.parametrize(
    ("running", "words"),
    [([ECHO], f"{ECHO} requires it"), ([ECHO, GREETER], f"{ECHO}, {GREETER} require it")],
)
def test_a_stop_is_refused_while_others_require_it_and_names_them(house, running, words):
    house.is_running(BUS, *running)
    error = refusal(NotPossible, house.operations.stop(BUS, False, PATIENT))
    assert str(error) == f"cannot stop {BUS}: {words}"
    assert error.details["required_by"] == running
    assert error.hint == f"nexusctl stop --cascade {BUS}"
    assert (house.processes.log, house.store.wanted) == ([], {})


def test_a_cascade_stops_those_first(house):
    house.is_running(BUS, ECHO, GREETER)
    told = outcome(
        house.operations.stop(BUS, True, PATIENT),
        lambda: house.exits(ECHO, CLEAN),
        lambda: house.exits(GREETER, CLEAN),
        lambda: house.exits(BUS, CLEAN),
    )
    assert (told["stopped"], told["also"]) == (True, [ECHO, GREETER])
    assert [line for line in house.processes.log if line.startswith("SIG")][-1] == f"SIGTERM {BUS}#0"
    assert house.store.wanted == {BUS: False, ECHO: False, GREETER: False}


def test_a_full_disk_keeps_nobody_from_stopping_a_module(house):
    house.is_running(BUS)
    house.store.full = FULL
    told = outcome(house.operations.stop(BUS, False, PATIENT), lambda: house.exits(BUS, CLEAN))
    assert told["stopped"]
    assert told["warning"] == "the disk is full; after a restart of nexusd the former wish holds"


def test_a_stop_of_what_hangs_takes_its_time_out(house):
    house.is_running(BUS)
    told = outcome(
        house.operations.stop(BUS, False, PATIENT),
        lambda: house.clock.advance(10, house.supervisor),
        lambda: house.exits(BUS, Exit(signal=signal.SIGKILL)),
    )
    assert told["stopped"]


def test_a_stop_that_is_overtaken_by_a_start_says_so(house):
    house.is_running(BUS)
    error = refusal(
        NotPossible,
        house.operations.stop(BUS, False, PATIENT),
        lambda: house.supervisor.handle(Want((BUS,), True)),
    )
    assert str(error) == f"{BUS} was started meanwhile"


@pytest.mark.parametrize("command", ["start", "stop", "restart"])
def test_a_process_that_cannot_be_ended_is_an_answer_and_no_endless_wait(house, command):
    house.is_stuck(BUS)
    order = {
        "start": lambda: house.operations.start(BUS, IMPATIENT),
        "stop": lambda: house.operations.stop(BUS, False, IMPATIENT),
        "restart": lambda: house.operations.restart(BUS, IMPATIENT),
    }[command]
    error = refusal(NotPossible, order())
    assert "does not end on SIGKILL" in str(error)


def test_a_restart_of_what_turns_out_to_be_stuck_ends_too(house):
    house.is_running(BUS)
    error = refusal(
        NotPossible,
        house.operations.restart(BUS, PATIENT),
        lambda: house.clock.advance(20, house.supervisor),
    )
    assert "does not end on SIGKILL" in str(error)


# Restart


def test_a_restart_is_done_when_the_next_process_is_ready(house):
    house.is_running(BUS)
    told = outcome(
        house.operations.restart(BUS, PATIENT),
        lambda: house.exits(BUS, CLEAN, generation=1),
        lambda: house.ready(BUS),
    )
    assert told == {"module_id": BUS, "restarted": True, "state": "started"}
    assert house.processes.log == [f"SIGTERM {BUS}#0", f"forget {BUS}#0", f"spawn {BUS}#0"]


def test_a_restart_of_what_is_stopped_starts_it(house):
    told = outcome(house.operations.restart(BUS, PATIENT), lambda: house.ready(BUS))
    assert told == {"module_id": BUS, "restarted": True, "state": "started"}
    assert house.store.wanted == {BUS: True}


def test_a_restart_of_what_crashed_long_ago_is_not_that_crash(house):
    house.is_running(BUS)
    house.exits(BUS)
    house.ready(BUS)
    told = outcome(
        house.operations.restart(BUS, PATIENT), lambda: house.exits(BUS, CLEAN), lambda: house.ready(BUS)
    )
    assert told["restarted"]


def test_a_restart_whose_next_process_fails_says_so(house):
    house.is_running(BUS)
    error = refusal(
        StartFailed,
        house.operations.restart(BUS, PATIENT),
        lambda: house.exits(BUS, CLEAN),
        lambda: house.exits(BUS),
    )
    assert "exit status 1 before it was ready" in str(error)


def test_a_restart_takes_every_replica(house):
    house.is_running(BUS)
    house.supervisor.handle(Scale(BUS, 2))
    house.tell(BUS, events.Ready, index=1)
    told = outcome(
        house.operations.restart(BUS, PATIENT),
        lambda: house.exits(BUS, CLEAN),
        lambda: house.ready(BUS),
        lambda: house.exits(BUS, CLEAN, index=1),
        lambda: house.tell(BUS, events.Ready, index=1),
    )
    assert told["restarted"]


# Reload


def test_an_immediate_reload_ends_the_old_and_starts_the_new(house):
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new")
    told = outcome(
        house.operations.reload(BUS, "immediate", PATIENT),
        lambda: house.exits(BUS, CLEAN, generation=1),
        lambda: house.ready(BUS),
    )
    assert told == {
        "module_id": BUS,
        "reloaded": True,
        "strategy": "immediate",
        "generation": 2,
        "changed": True,
    }
    assert house.told == [("module.reloaded", BUS, "immediate")]


def test_a_graceful_reload_starts_the_new_before_it_ends_the_old(house):
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new")
    told = outcome(
        house.operations.reload(BUS, None, PATIENT),
        lambda: house.tell(BUS, events.Ready, generation=2),
        lambda: house.exits(BUS, CLEAN, generation=1),
    )
    assert (told["reloaded"], told["strategy"], told["generation"]) == (True, "graceful", 2)
    assert house.processes.log == [f"spawn {BUS}#0", f"SIGTERM {BUS}#0", f"forget {BUS}#0"]
    assert [one.digest for one in house.processes.spawned_as.values()] == ["as it was", "new"]


def test_a_graceful_reload_that_fails_says_why_and_that_the_old_goes_on(house):
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new")
    error = refusal(
        StartFailed, house.operations.reload(BUS, None, PATIENT), lambda: house.exits(BUS, generation=2)
    )
    assert str(error).startswith(f"{BUS} was not reloaded: the new generation failed (exit status 1")
    assert (house.state(BUS), house.module(BUS).generation) == ("started", 1)


def test_a_manifest_with_faults_is_refused_and_changes_nothing(house):
    house.is_running(BUS)
    house.on_disk[BUS] = None
    error = refusal(NotPossible, house.operations.reload(BUS, None, PATIENT))
    assert "its manifest has faults, the one in force stays" in str(error)
    assert (house.processes.log, house.state(BUS)) == ([], "started")


def test_a_manifest_that_closes_a_circle_is_refused_and_changes_nothing(house):
    house.is_running(BUS, ECHO)
    house.on_disk[BUS] = definition(BUS, "new", requires=[ECHO])
    error = refusal(NotPossible, house.operations.reload(BUS, "immediate", PATIENT))
    assert error.reason == f"{ECHO} → {BUS} → {ECHO}"
    assert (house.processes.log, house.module(BUS).definition) == ([], definition(BUS))


def test_a_reload_starts_nothing_that_was_stopped_by_hand(house):
    house.is_running(BUS)
    outcome(house.operations.stop(BUS, False, PATIENT), lambda: house.exits(BUS, CLEAN))
    house.processes.log.clear()
    house.on_disk[BUS] = definition(BUS, "new")
    told = outcome(house.operations.reload(BUS, None, PATIENT))
    assert (told["reloaded"], told["generation"], house.state(BUS)) == (True, 2, "stopped")
    assert house.module(BUS).definition == definition(BUS, "new")
    assert house.processes.log == []


def test_replicas_are_asked_for_their_states_at_the_same_time_and_who_does_not_answer_costs_no_other(house):
    house.put(BUS, run={"python": "bus:Bus", "ready": "notify"}, replicas=3)
    house.is_running(BUS)
    house.tell(BUS, events.Ready, index=1)
    house.tell(BUS, events.Ready, index=2)
    everybody = asyncio.Event()
    asked = []

    async def state(replica: str) -> str:
        asked.append(replica)
        if len(asked) == 3:
            everybody.set()
        await everybody.wait()  # each answers only when all were asked
        if replica == f"{BUS}#1":
            raise TimedOut("no answer")
        return f"state of {replica}"

    house.control.states = state
    outcome(house.operations.reload(BUS, None, AT_ONCE))
    assert house.configs.handed_over[BUS] == {0: f"state of {BUS}#0", 2: f"state of {BUS}#2"}


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 98] Address already in use",
        "Error: listen EADDRINUSE: address already in use :::8080",
    ],
)
def test_a_program_that_finds_its_own_port_taken_is_shown_the_ways_out(house, line):
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new")
    house.logs.lines[f"{BUS}#0"] = ["starting", line]
    error = refusal(
        StartFailed,
        house.operations.reload(BUS, None, PATIENT),
        lambda: house.exits(BUS, generation=2),
    )
    assert error.hint.startswith(f"nexusctl reload {BUS} --strategy immediate; or ")
    assert "[run] listen" in error.hint


def test_a_reload_that_was_called_off_meanwhile_does_not_claim_to_be_done(house):
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new")

    async def both() -> dict[str, Any]:
        reloading = asyncio.ensure_future(house.operations.reload(BUS, None, PATIENT))
        await asyncio.sleep(0)
        house.on_disk.pop(BUS)  # the edit is taken back, or a restart would take it
        await house.operations.restart(BUS, AT_ONCE)
        house.exits(BUS, CLEAN, generation=2)
        house.exits(BUS, CLEAN, generation=1)
        house.ready(BUS)
        return await reloading

    told = outcome(both())
    assert (told["reloaded"], told["generation"]) == (False, 1)


def test_a_restart_of_what_was_edited_loads_all_of_it_as_a_new_generation(house):
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new", version="3")
    told = outcome(
        house.operations.restart(BUS, PATIENT),
        lambda: house.exits(BUS, CLEAN, generation=1),
        lambda: house.ready(BUS),
    )
    assert told == {"module_id": BUS, "restarted": True, "state": "started"}
    assert (house.module(BUS).generation, house.module(BUS).definition) == (2, house.on_disk[BUS])
    assert house.processes.log == [f"SIGTERM {BUS}#0", f"forget {BUS}#0", f"spawn {BUS}#0"]
    assert house.told == [("module.reloaded", BUS, "restart")]


@pytest.mark.parametrize("before", ["stopped", "failed"])
def test_so_does_a_start(house, before):
    house.put(BUS, restart={"policy": "never"})
    house.is_running(BUS)
    if before == "stopped":
        house.supervisor.handle(Want((BUS,), False))
    house.exits(BUS, CLEAN if before == "stopped" else CRASH)
    assert house.state(BUS) == before
    house.on_disk[BUS] = definition(BUS, "new")
    told = outcome(house.operations.start(BUS, PATIENT), lambda: house.ready(BUS))
    assert (told["started"], house.module(BUS).generation) == (True, 2)
    assert house.module(BUS).definition == house.on_disk[BUS]


@pytest.mark.parametrize("command", ["start", "restart"])
def test_a_manifest_with_faults_is_not_started_with_new_code_beside_the_old_manifest(house, command):
    house.is_running(BUS)
    if command == "start":
        house.supervisor.handle(Want((BUS,), False))
        house.exits(BUS, CLEAN)
    house.processes.log.clear()
    house.on_disk[BUS] = None
    error = refusal(NotPossible, getattr(house.operations, command)(BUS, PATIENT))
    assert str(error) == f"cannot {command} {BUS}: its manifest has faults, the one in force stays"
    assert error.hint == f"nexusctl check {house.module(BUS).folder}"
    assert house.processes.log == []


def test_one_replica_is_not_made_another_than_the_others(house):
    house.put(BUS, replicas=2)
    house.is_running(BUS)
    house.on_disk[BUS] = definition(BUS, "new", replicas=2)
    error = refusal(NotPossible, house.operations.restart(BUS, PATIENT, 1))
    assert str(error).startswith(f"cannot restart {BUS}#1: the module's files have changed")
    assert (error.hint, house.processes.log) == (f"nexusctl reload {BUS}", [])


def test_what_went_back_to_a_copy_of_its_code_restarts_from_it(house):
    house.is_running(BUS)
    copy = replace(house.module(BUS).definition, folder="/copies/bus")
    house.supervisor.handle(Put(BUS, replace(house.module(BUS), definition=copy)))
    house.on_disk[BUS] = definition(BUS, "new")
    outcome(house.operations.restart(BUS, PATIENT), lambda: house.exits(BUS, CLEAN), lambda: house.ready(BUS))
    assert (house.module(BUS).generation, house.module(BUS).definition) == (1, copy)


def test_a_reload_by_signal_goes_to_every_running_process(house):
    house.is_running(BUS)
    told = outcome(house.operations.reload(BUS, "signal", PATIENT))
    assert (told["reloaded"], told["changed"]) == (True, False)
    assert house.signalled == [(f"{BUS}#0", signal.SIGHUP)]


def test_a_reload_by_signal_of_what_does_not_run_is_refused(house):
    error = refusal(NotPossible, house.operations.reload(BUS, "signal", PATIENT))
    assert error.hint == f"nexusctl start {BUS}"


# Configure


async def settled():
    """All that was begun on the side has ended."""
    await asyncio.gather(*asyncio.all_tasks() - {asyncio.current_task()})


def test_a_live_value_is_told_stored_and_kept(house):
    house.is_running(BUS, ECHO)
    told = outcome(house.operations.configure(ECHO, "rate", 20))
    assert told == {"module_id": ECHO, "key": "rate", "value": 20, "previous": 10, "applied": "live"}
    assert house.control.asked == [(f"{ECHO}#0", "rate", 20)]
    assert house.store.values == {(ECHO, "rate"): 20}
    assert house.module(ECHO).configured == {"rate": 20}
    assert house.configs.files[f"{ECHO}.1"] == {"rate": 20}
    assert house.processes.log == []


def test_a_value_for_what_does_not_run_is_stored(house):
    assert outcome(house.operations.configure(ECHO, "rate", 20))["applied"] == "stored"
    assert (house.control.asked, house.configs.files[f"{ECHO}.1"]) == ([], {"rate": 20})


def test_a_live_value_reaches_a_replica_that_was_starting_as_soon_as_it_is_started(house):
    house.is_running(BUS)
    house.supervisor.handle(Want((ECHO,), True))

    async def story():
        told = await house.operations.configure(ECHO, "rate", 20)
        assert (told["applied"], house.control.asked) == ("stored", [])
        await house.operations.configure(ECHO, "rate", 30)
        house.ready(ECHO)
        await settled()

    asyncio.run(story())
    assert set(house.control.asked) == {(f"{ECHO}#0", "rate", 30)}


def test_who_was_starting_under_a_former_nexusd_is_told_every_live_value_once_it_is_started(house):
    house.is_running(BUS)
    house.supervisor.handle(Want((ECHO,), True))
    house.supervisor.handle(Put(ECHO, replace(house.module(ECHO), configured={"rate": 20})))

    async def story():
        house.operations.tell_adopted()
        assert house.operations.untold == [f"{ECHO}#0"]
        house.ready(ECHO)
        await settled()

    asyncio.run(story())
    assert house.control.asked == [(f"{ECHO}#0", "rate", 20), (f"{ECHO}#0", "token", "none")]
    assert house.operations.untold == []


def test_what_a_replica_that_was_starting_refuses_is_told_in_the_log(house, caplog):
    house.is_running(BUS)
    house.supervisor.handle(Want((ECHO,), True))
    house.control.refusals[f"{ECHO}#0", 20] = BadValue("too fast for me")

    async def story():
        await house.operations.configure(ECHO, "rate", 20)
        house.ready(ECHO)
        await settled()

    asyncio.run(story())
    assert "may still use the former value of rate: too fast for me" in caplog.text


def test_a_replica_that_never_gets_started_is_told_nothing(house):
    house.is_running(BUS)
    house.supervisor.handle(Want((ECHO,), True))

    async def story():
        await house.operations.configure(ECHO, "rate", 20)
        house.exits(ECHO)
        await settled()

    asyncio.run(story())
    assert (house.control.asked, house.module(ECHO).configured) == ([], {"rate": 20})


def test_a_secret_is_never_shown(house):
    house.is_running(BUS, ECHO)
    told = outcome(house.operations.configure(ECHO, "token", "hunter2"))
    assert (told["value"], told["previous"]) == ("********", "********")
    assert "hunter2" not in str(house.told)
    assert house.store.values == {(ECHO, "token"): "hunter2"}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("rate", 0, "from 1 to 100"), ("rate", "20", "an int"), ("rat", 20, "has no configuration key rat")],
)
def test_a_value_that_does_not_fit_reaches_nobody(house, key, value, words):
    house.is_running(BUS, ECHO)
    error = refusal(BadValue, house.operations.configure(ECHO, key, value))
    assert words in str(error)
    assert (house.control.asked, house.store.values, house.module(ECHO).configured) == ([], {}, {})


def test_a_mistyped_key_names_its_near_match(house):
    assert refusal(BadValue, house.operations.configure(ECHO, "rat", 1)).hint == "did you mean rate?"
    assert refusal(BadValue, house.operations.configure(ECHO, "xyz", 1)).hint == f"nexusctl config get {ECHO}"


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (BadValue("'hunter2' is too short", reason="hunter2"), BadValue),
        (NotPossible("no configure, not even for hunter2", reason="hunter2"), NotPossible),
    ],
)
def test_what_a_module_says_of_a_secret_value_is_not_repeated(house, said, kind, caplog):
    house.put(ECHO, config=KEYS, replicas=2)
    house.is_running(ECHO)
    house.tell(ECHO, events.Ready, index=1)
    house.control.refusals[f"{ECHO}#1", "hunter2"] = said
    house.control.refusals[f"{ECHO}#0", "none"] = BadValue("not 'none' again")
    error = refusal(kind, house.operations.configure(ECHO, "token", "hunter2"))
    assert str(error).startswith("token: the module ")
    assert "hunter2" not in f"{error} {error.data()} {caplog.text}"
    assert "not 'none' again" not in caplog.text


def test_a_secret_among_a_failed_module_s_last_words_is_masked(house):
    house.is_running(BUS)
    outcome(house.operations.configure(ECHO, "token", "hunter2"))
    house.logs.lines[f"{ECHO}#0"] = ["ValueError: bad token hunter2"]
    error = refusal(StartFailed, house.operations.start(ECHO, PATIENT), lambda: house.exits(ECHO))
    assert error.details["log"] == ["ValueError: bad token ********"]


def test_what_one_replica_refuses_is_taken_back_from_those_already_told(house):
    house.put(ECHO, config=KEYS, replicas=2)
    house.is_running(ECHO)
    house.tell(ECHO, events.Ready, index=1)
    house.control.refusals[f"{ECHO}#1", 20] = BadValue("too fast for me")
    assert str(refusal(BadValue, house.operations.configure(ECHO, "rate", 20))) == "too fast for me"
    assert [told for told in house.control.asked if told[0] == f"{ECHO}#0"] == [
        (f"{ECHO}#0", "rate", 20),
        (f"{ECHO}#0", "rate", 10),
    ]
    assert (house.store.values, house.module(ECHO).configured) == ({}, {})
    assert house.configs.files == {f"{ECHO}.1": {}}


@pytest.mark.parametrize("is_told_first", [True, False])
def test_a_replica_that_ends_while_it_is_told_a_value_refuses_nothing(house, monkeypatch, is_told_first):
    monkeypatch.setattr(configuring, "ENDING_S", 10.0)
    house.put(ECHO, config=KEYS, replicas=2)
    house.is_running(ECHO)
    house.tell(ECHO, events.Ready, index=1)

    def end() -> None:
        house.exits(ECHO, index=0)

    async def ask(run, *_: Any) -> Any:
        if run.startswith(f"{ECHO}#0@"):
            end() if is_told_first else asyncio.get_running_loop().call_soon(end)
            raise NotPossible(f"{ECHO}#0: its control socket is out of reach: Connection refused")
        return {"applied": True}

    house.control.ask = ask
    assert outcome(house.operations.configure(ECHO, "rate", 20))["applied"] == "live"
    assert house.store.values == {(ECHO, "rate"): 20}


def test_a_replica_that_is_stopped_before_its_turn_comes_is_told_nothing(house):
    house.put(ECHO, config=KEYS, replicas=2)
    house.is_running(ECHO)
    house.tell(ECHO, events.Ready, index=1)
    asked = []

    async def ask(run, *_: Any) -> Any:
        asked.append(run.partition("@")[0])
        house.supervisor.handle(Scale(ECHO, 1))
        return {"applied": True}

    house.control.ask = ask
    outcome(house.operations.configure(ECHO, "rate", 20))
    assert asked == [f"{ECHO}#0"]


def test_a_replica_that_runs_and_cannot_be_told_refuses_the_value(house):
    house.is_running(BUS, ECHO)
    house.control.refusals[f"{ECHO}#0", 20] = NotPossible("out of reach")
    assert str(refusal(NotPossible, house.operations.configure(ECHO, "rate", 20))) == "out of reach"
    assert house.store.values == {}


def test_what_the_store_refuses_is_taken_back(house):
    house.is_running(BUS, ECHO)
    house.store.full = FULL
    assert refusal(NotPossible, house.operations.configure(ECHO, "rate", 20)) is FULL
    assert house.control.asked == [(f"{ECHO}#0", "rate", 20), (f"{ECHO}#0", "rate", 10)]
    assert (house.module(ECHO).configured, house.configs.files, house.told) == ({}, {f"{ECHO}.1": {}}, [])


def test_a_refusal_to_take_back_does_not_hide_the_first(house, caplog):
    house.is_running(BUS, ECHO)
    house.store.full = FULL
    house.control.refusals[f"{ECHO}#0", 10] = BadValue("make up your mind")
    assert refusal(NotPossible, house.operations.configure(ECHO, "rate", 20)) is FULL
    assert "may still use the refused value of rate" in caplog.text


def test_a_value_that_is_unset_is_the_manifests_again_everywhere(house):
    house.is_running(BUS, ECHO)
    outcome(house.operations.configure(ECHO, "rate", 20))
    told = outcome(house.operations.unset_config(ECHO, "rate"))
    assert told == {
        "module_id": ECHO,
        "key": "rate",
        "value": 10,
        "previous": 20,
        "applied": "live",
        "changed": True,
    }
    assert house.control.asked[-1] == (f"{ECHO}#0", "rate", 10)
    assert (house.store.values, house.module(ECHO).configured) == ({}, {})
    assert house.configs.files == {f"{ECHO}.1": {}}
    assert house.told[-1] == ("module.configured", ECHO, "rate = 10, the default")


def test_what_is_at_its_default_already_is_unset_without_a_word_to_the_module(house):
    house.is_running(BUS, ECHO)
    told = outcome(house.operations.unset_config(ECHO, "token"))
    assert (told["changed"], told["applied"], told["value"]) == (False, "none", "********")
    assert (house.control.asked, house.told, house.processes.log) == ([], [], [])


def test_an_unset_that_cannot_be_stored_is_taken_back(house):
    house.is_running(BUS, ECHO)
    outcome(house.operations.configure(ECHO, "rate", 20))
    house.store.full = FULL
    assert refusal(NotPossible, house.operations.unset_config(ECHO, "rate")) is FULL
    assert [value for _, _, value in house.control.asked] == [20, 10, 20]
    assert house.module(ECHO).configured == {"rate": 20}
    assert house.configs.files == {f"{ECHO}.1": {"rate": 20}}


def test_an_unset_takes_effect_as_the_key_says(house):
    house.is_running(BUS, ECHO)
    outcome(house.operations.configure(ECHO, "peers", ["a"]))
    house.exits(ECHO, CLEAN)
    house.tell(ECHO, events.Ready)
    house.processes.log.clear()
    assert outcome(house.operations.unset_config(ECHO, "peers"))["applied"] == "restart"
    assert house.processes.log == [f"SIGTERM {ECHO}#0"]


def test_a_mistyped_key_to_unset_names_its_near_match(house):
    assert refusal(BadValue, house.operations.unset_config(ECHO, "rat")).hint == "did you mean rate?"


def test_a_value_that_wants_a_restart_gets_one(house):
    house.is_running(BUS, ECHO)
    assert outcome(house.operations.configure(ECHO, "peers", ["a"]))["applied"] == "restart"
    assert house.processes.log == [f"SIGTERM {ECHO}#0"]


def test_a_value_that_wants_a_reload_gets_a_new_generation_of_the_same_definition(house):
    house.is_running(BUS, ECHO)
    before = house.module(ECHO).definition
    assert outcome(house.operations.configure(ECHO, "mode", "fast"))["applied"] == "reload"
    house.tell(ECHO, events.Ready, generation=2)
    assert house.processes.log == [f"spawn {ECHO}#0", f"SIGTERM {ECHO}#0"]
    assert house.module(ECHO).definition == before


@pytest.mark.parametrize("key", ["peers", "mode"])
def test_a_value_for_what_is_stopping_does_not_start_it_again(house, key):
    house.is_running(BUS, ECHO)
    house.supervisor.handle(Want((ECHO,), False))
    value = ["a"] if key == "peers" else "fast"
    assert outcome(house.operations.configure(ECHO, key, value))["applied"] == "stored"
    house.exits(ECHO, CLEAN)
    assert (house.state(ECHO), house.module(ECHO).wanted) == ("stopped", False)
