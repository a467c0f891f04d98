"""The one owner of the fleet: in which order things are done, and who is told. Clock and processes are fakes."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from nexusd.domain import events
from nexusd.domain.errors import NotPossible, StartFailed
from nexusd.domain.events import News, Put, Want
from nexusd.domain.fleet import Fleet
from nexusd.domain.module import ModuleState
from nexusd.domain.replica import Exit
from nexusd.supervisor import Supervisor
from tests.fakes import CLEAN, CRASH, FakeClock, FakeProcesses, module

BUS, ECHO = "substrate/bus", "mesh/echo"


class House:
    def __init__(self) -> None:
        self.processes = FakeProcesses()
        self.clock = FakeClock()
        self.given_up: list[str] = []
        self.supervisor = Supervisor(self.processes, self.clock, self.given_up.append)
        self.put(BUS)
        self.put(ECHO, requires=[BUS])

    def put(self, module_id: str, **manifest: Any) -> None:
        self.supervisor.handle(Put(module_id, module(module_id, **manifest)))

    def want(self, *module_ids: str) -> None:
        self.supervisor.handle(Want(module_ids, True))

    def unwant(self, *module_ids: str) -> None:
        self.supervisor.handle(Want(module_ids, False))

    def news(self, module_id: str, kind: Any, *more: Any) -> None:
        replica = self.supervisor.fleet.modules[module_id].replicas[0]
        self.supervisor.handle(News(module_id, replica.key, kind(replica.run, *more)))

    def ready(self, *module_ids: str) -> None:
        for module_id in module_ids:
            self.news(module_id, events.Ready)

    def state(self, module_id: str) -> ModuleState:
        return self.supervisor.fleet.modules[module_id].state

    def done(self) -> list[str]:
        """What processes were asked for since the last time."""
        log, self.processes.log = self.processes.log, []
        return log

    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds, self.supervisor)


@pytest.fixture
def house() -> House:
    return House()


def run(story: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(story, 10))


def is_started(fleet: Fleet) -> bool:
    return fleet.modules[BUS].state is ModuleState.STARTED


# Actions


def test_start_crash_back_off_recover_stop(house):
    house.want(BUS)
    assert house.done() == [f"spawn {BUS}#0"]
    house.ready(BUS)
    house.news(BUS, events.Exited, CRASH)
    assert house.done() == [f"forget {BUS}#0", f"spawn {BUS}#0"]
    house.news(BUS, events.Exited, CRASH)
    assert (house.done(), house.state(BUS)) == ([f"forget {BUS}#0"], "backoff")
    house.pass_time(0.6)
    assert house.done() == [f"spawn {BUS}#0"]
    house.ready(BUS)
    house.unwant(BUS)
    house.pass_time(10)
    assert house.done() == [f"SIGTERM {BUS}#0", f"kill {BUS}#0"]
    house.news(BUS, events.Exited, CLEAN)
    assert (house.done(), house.state(BUS)) == ([f"forget {BUS}#0"], "stopped")
    assert house.given_up == []


def test_what_has_failed_for_good_is_told_once(house):
    house.put(BUS, restart={"policy": "never"})
    house.want(BUS)
    house.news(BUS, events.Exited, CRASH)
    assert house.given_up == [BUS]
    assert house.state(BUS) == "failed"


def test_a_run_is_remembered_before_it_is_spawned(house):
    house.want(BUS)  # FakeProcesses.spawn looks
    assert house.done() == [f"spawn {BUS}#0"]


def test_only_what_changed_is_remembered_again(house):
    house.want(BUS)
    house.processes.remembered.clear()
    house.ready(BUS)
    assert house.processes.remembered.keys() == {BUS}
    house.supervisor.handle(Put(ECHO, None))
    assert house.processes.remembered[ECHO] is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(2, "No such file", "env"), "No such file: env"),
        (OSError(98, "cannot listen on tcp:a:1"), "cannot listen on tcp:a:1"),
        (ValueError("line 3: expected NAME=value"), "line 3: expected NAME=value"),
        (NotPossible("no socket"), "no socket"),
    ],
)
def test_what_cannot_even_be_spawned_has_ended_and_is_tried_again_later(house, error, words):
    house.processes.unable[BUS] = error
    house.want(BUS)
    replica = house.supervisor.fleet.modules[BUS].replicas[0]
    assert house.state(BUS) == "backoff"  # after the first restart, which was at once
    assert replica.reason == f"cannot be started: {words}"
    assert replica.history.last_exit == Exit(cause=f"cannot be started: {words}")
    del house.processes.unable[BUS]
    house.done()
    house.pass_time(1)
    assert house.done() == [f"spawn {BUS}#0"]


def test_a_module_that_cannot_be_spawned_gives_up_like_any_other(house):
    house.processes.unable[BUS] = OSError("no")
    house.want(BUS)
    house.pass_time(60)
    assert (house.state(BUS), house.given_up) == ("failed", [BUS])


# The order of events


def test_an_event_that_arises_meanwhile_comes_after(house):
    seen = []

    def observe(before: Fleet, after: Fleet, touched: frozenset[str]) -> None:
        seen.append((str(before.modules[BUS].state), str(after.modules[BUS].state)))
        if after.modules[BUS].state is ModuleState.STARTED:
            house.unwant(BUS)
            assert house.state(BUS) == "started"  # not yet

    house.supervisor.observers.append(observe)
    house.want(BUS)
    house.ready(BUS)
    assert seen == [("loaded", "starting"), ("starting", "started"), ("started", "stopping")]


def test_observers_see_before_after_and_what_was_touched(house):
    seen = []
    house.supervisor.observers.append(lambda *change: seen.append(change))
    before = house.supervisor.fleet
    house.want(BUS)
    assert [change[:2] for change in seen] == [(before, house.supervisor.fleet)]
    assert BUS in seen[0][2]


def test_an_observer_that_fails_harms_nobody(house, caplog):
    seen = []

    def fail(*_change: object) -> None:
        raise RuntimeError("no room for events")

    house.supervisor.observers += [fail, lambda *change: seen.append(change)]
    house.want(BUS)
    assert house.done() == [f"spawn {BUS}#0"]
    assert len(seen) == 1
    assert "no room for events" in caplog.text


def test_an_event_that_cannot_be_taken_does_not_block_the_next(house):
    with pytest.raises(KeyError):
        house.want("nobody/there")
    house.want(BUS)
    assert house.done() == [f"spawn {BUS}#0"]


# Deadlines


def test_the_clock_is_set_to_the_earliest_deadline(house):
    house.put(ECHO, start={"timeout": 5})
    assert house.clock.alarm is None
    house.want(BUS, ECHO)
    assert house.clock.alarm == house.clock.time + 5
    house.ready(ECHO)
    house.pass_time(30)
    assert house.state(BUS) == "stopping"


def test_a_deadline_that_no_longer_holds_changes_nothing(house):
    house.want(BUS)
    house.pass_time(10)
    house.ready(BUS)
    house.done()
    house.pass_time(3600)
    assert (house.done(), house.state(BUS)) == ([], "started")
    assert house.clock.alarm is None


def test_a_deadline_of_a_former_state_does_not_fire_into_the_next(house):
    house.want(BUS)
    house.pass_time(29)
    house.unwant(BUS)
    house.done()
    house.pass_time(9)  # past the start time-out, before the stop time-out
    assert (house.done(), house.state(BUS)) == ([], "stopping")


def test_a_watchdog_that_is_fed_moves_the_deadline(house):
    house.put(BUS, health={"watchdog": 4})
    house.want(BUS)
    house.ready(BUS)
    for _ in range(5):
        house.pass_time(3)
        house.news(BUS, events.Pinged)
    house.done()
    assert house.clock.alarm == pytest.approx(
        house.clock.time + 1
    )  # a former one, which will find nothing due
    house.pass_time(3.9)
    assert house.done() == []
    house.pass_time(0.2)
    assert house.done() == [f"SIGABRT {BUS}#0"]


def test_deadlines_that_passed_while_nobody_looked_are_told_together(house):
    house.put(ECHO, start={"timeout": 5})
    house.want(BUS, ECHO)
    house.done()
    house.clock.time += 100
    house.supervisor.expire_deadlines()
    assert house.done() == [f"SIGTERM {ECHO}#0", f"SIGTERM {BUS}#0"]


# Waiting for an outcome


def test_who_waits_for_what_is_so_already_does_not_wait(house):
    house.want(BUS)
    house.ready(BUS)
    run(house.supervisor.until([BUS], is_started, None))


def test_who_waits_is_woken_when_it_is_so(house):
    async def story() -> None:
        house.want(BUS)
        waiting = asyncio.create_task(house.supervisor.until([BUS], is_started, None))
        await asyncio.sleep(0)
        assert not waiting.done()
        house.ready(BUS)
        await waiting

    run(story())


def test_who_waits_is_asked_only_when_its_modules_were_touched(house):
    house.put("vitals/log")
    asked = []

    def count(fleet: Fleet) -> bool:
        asked.append(str(fleet.modules[BUS].state))
        return False

    async def story() -> None:
        waiting = asyncio.create_task(house.supervisor.until([BUS], count, None))
        await asyncio.sleep(0)
        house.want("vitals/log")
        house.want(BUS)
        waiting.cancel()
        await asyncio.wait([waiting])
        house.ready(BUS)

    run(story())
    assert asked == ["loaded", "starting"]


def test_patience_ends(house):
    async def story() -> None:
        with pytest.raises(TimeoutError):
            await house.supervisor.until([BUS], is_started, 0)
        house.want(BUS)
        house.ready(BUS)  # nobody is left to be told

    run(story())


@pytest.mark.parametrize("at_once", [True, False])
def test_an_outcome_that_is_an_error_reaches_who_waits(house, at_once):
    def is_started_or_raises(fleet: Fleet) -> bool:
        if fleet.modules[BUS].replicas and fleet.modules[BUS].replicas[0].history.last_exit:
            raise StartFailed("it did not start")
        return is_started(fleet)

    async def story() -> None:
        house.want(BUS)
        if at_once:
            house.news(BUS, events.Exited, CRASH)
        waiting = asyncio.create_task(house.supervisor.until([BUS], is_started_or_raises, None))
        await asyncio.sleep(0)
        if not at_once:
            house.news(BUS, events.Exited, CRASH)
        with pytest.raises(StartFailed):
            await waiting

    run(story())


def test_several_may_wait_and_each_gets_an_outcome_of_its_own(house):
    def refuse(_fleet: Fleet) -> bool:
        if house.state(BUS) != "loaded":
            raise NotPossible("was started meanwhile")
        return False

    async def story() -> None:
        tasks = [
            asyncio.create_task(house.supervisor.until([BUS], done, None)) for done in (is_started, refuse)
        ]
        await asyncio.sleep(0)
        house.want(BUS)
        house.ready(BUS)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(one) for one in outcomes] == [type(None), NotPossible]

    run(story())
