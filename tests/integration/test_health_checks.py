"""When replicas are checked: by a real loop, with intervals short enough to be awaited, and checks that only count."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from msgspec.structs import replace

from nexusd.domain import events
from nexusd.domain.checks import Purpose, Said, Tally
from nexusd.domain.events import FleetEvent, News, Put, Want
from nexusd.domain.fleet import Fleet
from nexusd.domain.manifest_sections import Check
from nexusd.domain.module import Module
from nexusd.domain.replica import Exit, Replica, Started, Stopping
from nexusd.system import health_checks
from nexusd.system.health_checks import HealthChecks
from tests.fakes import Rehearsal, module

ECHO, BUS = "mesh/echo", "substrate/bus"
CONTROL = {"control": True}
GOOD, BAD = Said("healthy"), Said("unhealthy", "no")
PATIENCE_S = 20.0


class FakeAsking:
    """Counts, and says what it is told to say; `held` keeps every answer back."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.running: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        self.said: Said | None = GOOD
        self.held: asyncio.Event | None = None
        self.error: Exception | None = None
        self.changed = asyncio.Event()

    async def ask(self, check: Check, replica: Replica, module: Module, timeout_s: float) -> Said | None:
        name = replica.name
        self.asked[name] += 1
        self.changed.set()
        for counted in (name, "all"):
            self.running[counted] += 1
            self.most[counted] = max(self.most[counted], self.running[counted])
        try:
            if self.held is not None:
                await self.held.wait()
            if self.error is not None:
                raise self.error
            return self.said
        finally:
            for counted in (name, "all"):
                self.running[counted] -= 1
            self.changed.set()

    async def until(self, is_so: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not is_so():
                self.changed.clear()
                await self.changed.wait()


class Stage:
    """A fleet whose changes the checks observe, and whose events they send."""

    def __init__(self, *modules: Module) -> None:
        self.fleet = Rehearsal()
        self.asking = FakeAsking()
        self.events = 0
        self.checks = HealthChecks(self.asking, self.handle, lambda: self.fleet.fleet)  # type: ignore[arg-type]
        for one in modules:
            self.handle(Put(one.id, one))

    def handle(self, event: FleetEvent) -> None:
        before: Fleet = self.fleet.fleet
        self.events += 1
        self.fleet.change(event)
        after = self.fleet.fleet
        touched = {one for one in after.modules if after.modules[one] is not before.modules.get(one)}
        self.checks.observe(before, after, frozenset(touched | before.modules.keys() - after.modules.keys()))
        self.asking.changed.set()

    def run(self, *module_ids: str, count: int = 1) -> None:
        self.handle(Want(module_ids, True))
        for module_id in module_ids:
            for index in range(count):
                run = self.fleet.replica(module_id, index).run or ""
                self.tell(events.Spawned(run, 1), module_id, index)
                self.tell(events.Ready(run), module_id, index)

    def tell(self, event: Any, module_id: str = ECHO, index: int = 0) -> None:
        key = self.fleet.replica(module_id, index).key
        self.handle(News(module_id, key, event))

    def tally(self, purpose: Purpose, module_id: str = ECHO) -> Tally:
        return self.fleet.replica(module_id).checks.get(purpose, Tally())


def checked(module_id: str = ECHO, interval: float = 0.02, **more: Any) -> Module:
    health = {"check": CONTROL, "interval": interval, **more.pop("health", {})}
    return module(module_id, health=health, **more)


def story(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(work())


def test_a_started_replica_is_asked_soon_and_again_and_again_and_not_after_its_stop() -> None:
    async def work() -> None:
        stage = Stage(checked())
        stage.run(ECHO)
        await stage.asking.until(lambda: stage.asking.asked[f"{ECHO}#0"] >= 3)
        assert stage.tally(Purpose.READINESS).verdict == "healthy"
        stage.handle(Want((ECHO,), False))
        assert stage.checks._watches == {}

    story(work)


def test_a_module_without_checks_is_no_concern_of_it() -> None:
    async def work() -> None:
        stage = Stage(module(BUS))
        stage.run(BUS)
        assert stage.checks._watches == {}

    story(work)


def test_good_checks_one_after_the_other_change_the_fleet_once() -> None:
    async def work() -> None:
        stage = Stage(checked())
        stage.run(ECHO)
        await stage.asking.until(lambda: stage.asking.asked[f"{ECHO}#0"] >= 2)
        before = stage.fleet.fleet.modules[ECHO]
        await stage.asking.until(lambda: stage.asking.asked[f"{ECHO}#0"] >= 6)
        assert stage.fleet.fleet.modules[ECHO] is before

    story(work)


def test_two_checks_of_a_replica_never_run_at_once_and_one_for_two_purposes_is_asked_once() -> None:
    async def work() -> None:
        stage = Stage(checked(health={"liveness": CONTROL, "failures": 1000}))
        stage.asking.said = BAD
        stage.run(ECHO)
        await stage.asking.until(lambda: stage.asking.asked[f"{ECHO}#0"] >= 5)
        assert stage.asking.most[f"{ECHO}#0"] == 1
        assert abs(stage.tally(Purpose.LIVENESS).failures - stage.asking.asked[f"{ECHO}#0"]) <= 1
        assert abs(stage.tally(Purpose.READINESS).failures - stage.asking.asked[f"{ECHO}#0"]) <= 1

    story(work)


def test_a_check_that_hangs_is_called_off_with_the_stop_of_its_replica() -> None:
    async def work() -> None:
        stage = Stage(checked())
        stage.asking.held = asyncio.Event()
        stage.run(ECHO)
        await stage.asking.until(lambda: stage.asking.running["all"] == 1)
        stage.handle(Want((ECHO,), False))
        await stage.asking.until(lambda: stage.asking.running["all"] == 0)
        assert stage.tally(Purpose.READINESS) == Tally()

    story(work)


def test_many_replicas_are_asked_a_bounded_number_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_checks, "MOST_AT_ONCE", 7)

    async def work() -> None:
        stage = Stage(checked(replicas=50, max_replicas=50))
        stage.asking.held = asyncio.Event()
        stage.run(ECHO, count=50)
        await stage.asking.until(lambda: stage.asking.running["all"] == 7)
        watches = stage.checks._watches[ECHO].values()
        while any(watch.task is None for watch in watches):  # until the others wait for their turn
            await asyncio.sleep(0)
        stage.asking.held.set()
        await stage.asking.until(lambda: len(stage.asking.asked) == 50)
        assert stage.asking.most["all"] == 7

    story(work)


def test_what_could_not_be_asked_counts_for_nothing_and_is_asked_again() -> None:
    async def work() -> None:
        stage = Stage(checked())
        stage.asking.said = None
        stage.run(ECHO)
        await stage.asking.until(lambda: stage.asking.asked[f"{ECHO}#0"] >= 4)
        assert stage.tally(Purpose.READINESS) == Tally()

    story(work)


def test_a_secret_that_a_check_repeats_is_masked_in_its_reason() -> None:
    async def work() -> None:
        secret = {"type": "str", "default": "s3cret-token", "secret": True}
        stage = Stage(checked(config={"token": secret}))
        stage.asking.said = Said("degraded", "login with s3cret-token was refused")
        stage.run(ECHO)
        await stage.asking.until(lambda: stage.tally(Purpose.READINESS).verdict == "degraded")
        reason = stage.tally(Purpose.READINESS).reason or ""
        assert reason.startswith("login with ") and "s3cret" not in reason

    story(work)


def test_a_check_that_breaks_is_logged_and_ends_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async def work() -> None:
        stage = Stage(checked(), checked(BUS))
        stage.asking.error = RuntimeError("a fault of ours")
        stage.run(ECHO, BUS)
        await stage.asking.until(lambda: min(stage.asking.asked[f"{one}#0"] for one in (ECHO, BUS)) >= 2)
        stage.asking.error = None
        await stage.asking.until(lambda: stage.tally(Purpose.READINESS).verdict == "healthy")

    story(work)
    assert "could not be checked" in caplog.text


def test_failing_liveness_ends_the_watch_from_within_its_own_round_and_the_next_run_has_one_of_its_own() -> (
    None
):
    async def work() -> None:
        stage = Stage(module(ECHO, health={"liveness": CONTROL, "interval": 0.02, "failures": 1}))
        stage.asking.said = BAD
        stage.run(ECHO)
        first = stage.fleet.replica(ECHO).run or ""
        await stage.asking.until(lambda: isinstance(stage.fleet.replica(ECHO).state, Stopping))
        assert stage.checks._watches == {}
        stage.tell(events.Exited(first, Exit(code=0)))
        stage.asking.said = GOOD
        stage.run(ECHO)
        await stage.asking.until(lambda: stage.tally(Purpose.LIVENESS).verdict == "healthy")
        assert stage.checks.last(first) == {}
        last = stage.checks.last(stage.fleet.replica(ECHO).run or "")
        assert last[Purpose.LIVENESS].said == GOOD

    story(work)


def test_what_a_former_nexusd_has_checked_is_asked_at_any_time_of_its_interval_and_not_all_at_once() -> None:
    """Or a nexusd that comes back to 500 modules would ask them all in its first second."""

    async def work() -> None:
        stage = Stage()
        for number in range(200):
            one = checked(f"a/m{number}", interval=1000.0)
            state = Started(f"a/m{number}#0@1~x", 1)
            known = {Purpose.READINESS: Tally("healthy")}
            there = Replica(one.id, 0, 1, 0.0, wanted=True, state=state, checks=known)
            stage.handle(Put(one.id, replace(one, wanted=True, asked=True, replicas=(there,))))
        now = asyncio.get_running_loop().time()
        timers = [watch.timer for watches in stage.checks._watches.values() for watch in watches.values()]
        delays = sorted(timer.when() - now for timer in timers if timer is not None)
        assert len(delays) == 200
        assert delays[20] < 300 and 300 < delays[100] < 700 and delays[180] > 700
        stage.checks.close()
        assert stage.checks._watches == {}

    story(work)


def test_a_replica_that_gets_ready_by_its_check_is_asked_more_often_than_its_interval() -> None:
    async def work() -> None:
        stage = Stage(checked(interval=1000.0, run={"exec": ["./run"], "ready": "health"}))
        stage.asking.said = BAD
        stage.handle(Want((ECHO,), True))
        stage.tell(events.Spawned(stage.fleet.replica(ECHO).run or "", 1))
        await stage.asking.until(lambda: stage.asking.asked[f"{ECHO}#0"] >= 3)
        stage.asking.said = GOOD
        await stage.asking.until(lambda: isinstance(stage.fleet.replica(ECHO).state, Started))

    story(work)
