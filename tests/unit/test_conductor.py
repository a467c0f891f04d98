"""In which order an experiment is carried out, and what becomes of it when something fails. All adapters are fakes."""

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import msgspec
import pytest

from nexusd.chaos import Conductor
from nexusd.domain import events, trial
from nexusd.domain.chaos import Experiment, experiment_of
from nexusd.domain.errors import Busy, InvalidParams, NotPossible, TimedOut
from nexusd.domain.events import News, Put, Want
from nexusd.domain.replica import Exit
from nexusd.experiments import KEPT, MOST_AT_ONCE
from nexusd.ports import StoredExperiment
from nexusd.supervisor import Supervisor
from tests.fakes import FakeClock, FakeProcesses, module

ONE, TWO = "vitals/one", "vitals/two"
FULL = NotPossible("not stored: the disk is full", reason="full")
KILLED = Exit(signal=9)


class Alarm(FakeClock):
    """The conductor's own alarm on the supervisor's time."""

    def __init__(self, other: FakeClock) -> None:
        super().__init__()
        self.other = other

    def now(self) -> float:
        return self.other.now()


class Shelf:
    """Implements `ports.ExperimentStore`. A write ends when `open` is set; `full` is what the disk says."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.rows: dict[int, StoredExperiment] = {}
        self.full: NotPossible | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def save_experiment(self, number: int, report: Mapping[str, Any], lease: str | None) -> None:
        await self.open.wait()
        if self.full is not None:
            raise self.full
        self.rows[number] = StoredExperiment(number, dict(report), lease)
        self.log.append(f"lease {number}" if lease else f"report {number}")


class Happenings:
    """Implements `ports.EventSource`; `add` is the other end of it."""

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.all: list[dict[str, Any]] = []

    def add(self, kind: str, module_id: str, reason: str = "") -> None:
        self.all.append({"seq": len(self.all) + 1, "kind": kind, "module_id": module_id, "reason": reason})
        self.log.append(kind)

    def last(self, most: int, module_id: str | None = None) -> list[dict[str, Any]]:
        return self.since(0, module_id)[-most:]

    def since(self, seq: int, module_id: str | None = None) -> list[dict[str, Any]]:
        return [one for one in self.all if one["seq"] > seq and module_id in (None, one["module_id"])]

    def subscribe(self, subscriber: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
        raise NotImplementedError


class House:
    """Two modules that allow experiments, started. `log` is what happened, in its order."""

    def __init__(self, stored: list[StoredExperiment] | None = None, **manifest: Any) -> None:
        self.log: list[str] = []
        self.connected = True
        self.held: set[int] = set()  # pids that stay stopped
        self.time, self.shelf, self.events = FakeClock(), Shelf(self.log), Happenings(self.log)
        self.supervisor = Supervisor(FakeProcesses(), self.time, lambda _module_id: None)
        self.alarm = Alarm(self.time)
        self.conductor = self.fresh_conductor()
        for number, module_id in enumerate((ONE, TWO), 1):
            one = module(module_id, **{"chaos": {"allow": True}, **manifest})
            self.supervisor.handle(Put(module_id, one))
            self.supervisor.handle(Want((module_id,), True))
            self.tell(module_id, events.Spawned, 100 * number)
            self.tell(module_id, events.Ready)
        self.log.clear()
        self.time.time += 60
        if stored:
            self.conductor.restore(stored)

    def fresh_conductor(self) -> Conductor:
        made = Conductor(
            self.supervisor,
            self,
            self.held.__contains__,
            self.shelf,
            self.alarm,
            self.events,
            self.events.add,
        )
        self.supervisor.observers[:] = [made.observe]
        return made

    def signal(self, run: str, number: int, /) -> None:
        self.log.append(f"{signal.Signals(number).name} {run.partition('@')[0]}")

    def tell(self, module_id: str, kind: Any, *more: Any) -> None:
        replica = self.supervisor.fleet.modules[module_id].replicas[0]
        self.supervisor.handle(News(module_id, replica.key, kind(replica.run, *more)))

    def recovers(self, module_id: str = ONE) -> None:
        """And is well for as long as it takes to be believed."""
        self.tell(module_id, events.Exited, KILLED)
        self.tell(module_id, events.Ready)
        self.pass_time(trial.CALM_S)

    def pass_time(self, seconds: float) -> None:
        """As the event loop does it: whose alarm is earliest rings first."""
        end = self.time.time + seconds
        while self.alarm.alarm is not None and self.alarm.alarm <= end:
            self.time.time, self.alarm.alarm = max(self.time.time, self.alarm.alarm), None
            self.conductor.expire()
        self.time.time = end


def story(told: Callable[[House], Coroutine[Any, Any, None]], **house: Any) -> None:
    async def run() -> None:
        await told(House(**house))

    asyncio.run(asyncio.wait_for(run(), 10))


def asked(kind: str = "kill", module_id: str = ONE) -> Experiment:
    return experiment_of(kind, module_id, 1, 10, 7)


def test_the_lease_is_there_before_the_signal_and_goes_with_the_report() -> None:
    async def told(house: House) -> None:
        started = await house.conductor.begin(asked(), "alice")
        lease = house.shelf.rows[1].lease
        assert lease is not None and "kill-1" in lease
        house.recovers()
        report = await house.conductor.finished(started, None)

        assert house.log == [
            "lease 1",
            "chaos.started",
            "SIGKILL vitals/one#0",
            "chaos.injected",
            "chaos.rolled_back",
            "report 1",
            "chaos.ended",
        ]
        assert report["requested_by"] == "alice"
        assert house.shelf.rows[1] == StoredExperiment(1, report, None)
        assert [event["kind"] for event in report["events"]] == [
            "chaos.started",
            "chaos.injected",
            "chaos.rolled_back",
        ]

    story(told)


def test_where_the_lease_can_not_be_stored_nothing_is_touched_and_the_next_may_begin() -> None:
    async def told(house: House) -> None:
        house.shelf.full = FULL
        with pytest.raises(NotPossible, match=r"nothing was touched: .* the disk is full"):
            await house.conductor.begin(asked(), "alice")
        assert house.log == []
        assert house.conductor.register.reports() == []
        house.shelf.full = None
        assert await house.conductor.begin(asked(), "alice") == "kill-2"

    story(told)


def test_a_report_that_can_not_be_stored_is_kept_in_memory_and_says_so() -> None:
    async def told(house: House) -> None:
        started = await house.conductor.begin(asked(), "alice")
        house.shelf.full = FULL
        house.recovers()
        report = await house.conductor.finished(started, None)
        assert report["warning"] == "not stored: the disk is full"
        assert house.conductor.register.report(started) == report

    story(told)


def test_a_module_that_changes_while_the_lease_is_written_is_not_touched() -> None:
    async def told(house: House) -> None:
        house.shelf.open.clear()
        beginning = asyncio.ensure_future(house.conductor.begin(asked(), "alice"))
        await asyncio.sleep(0)
        house.recovers()  # another run than the one that was chosen
        house.shelf.open.set()
        report = await house.conductor.finished(await beginning, None)
        assert "SIGKILL vitals/one#0" not in house.log
        assert report["verdict"]["outcome"] == "aborted"
        assert report["injected_at"] is None

    story(told)


def test_a_freeze_is_resumed_when_its_time_is_up_and_again_until_it_is_seen_to_go_on() -> None:
    async def told(house: House) -> None:
        started = await house.conductor.begin(asked("freeze"), "alice")
        house.held.add(100)
        house.pass_time(9.9)
        assert "SIGCONT vitals/one#0" not in house.log
        house.pass_time(0.2)
        first = house.log.count("SIGCONT vitals/one#0")
        assert first >= 1
        house.pass_time(60)  # the keeper is away all that time
        assert house.log.count("SIGCONT vitals/one#0") > first + 10
        assert not house.log.count("report 1")
        house.held.clear()
        house.pass_time(0.1)
        report = await house.conductor.finished(started, None)
        assert report["steady_after"]["steady"]
        assert report["targets"][0]["recovered_s"] == pytest.approx(70, abs=0.2)

    story(told)


def test_an_abort_resumes_at_once_and_names_who_it_was() -> None:
    async def told(house: House) -> None:
        started = await house.conductor.begin(asked("freeze"), "alice")
        assert house.conductor.abort(ONE, "aborted by bob") == started
        assert house.log[-2:] == ["SIGCONT vitals/one#0", "chaos.rolled_back"]
        house.pass_time(0.1)
        report = await house.conductor.finished(started, None)
        assert house.log.count("SIGCONT vitals/one#0") == 1
        assert report["aborted"]["reason"] == "aborted by bob"
        with pytest.raises(NotPossible, match=f"{started} is over"):
            house.conductor.abort(started, "again")

    story(told)


def test_which_one_is_to_be_aborted_has_to_be_clear() -> None:
    async def told(house: House) -> None:
        with pytest.raises(NotPossible, match="no experiment is under way"):
            house.conductor.abort(None, "")
        first = await house.conductor.begin(asked("freeze"), "alice")
        await house.conductor.begin(asked("freeze", TWO), "alice")
        with pytest.raises(InvalidParams, match="several experiments are under way: freeze-1, freeze-2"):
            house.conductor.abort(None, "")
        with pytest.raises(NotPossible, match="no experiment is under way: vitals/three"):
            house.conductor.abort("vitals/three", "")
        house.conductor.abort(first, "")
        house.pass_time(0.1)
        assert house.conductor.abort(None, "") == "freeze-2"

    story(told)


def test_an_operator_who_stops_the_module_ends_the_experiment_and_it_is_not_started_again() -> None:
    async def told(house: House) -> None:
        started = await house.conductor.begin(asked("freeze"), "alice")
        house.supervisor.handle(Want((ONE,), False))
        house.pass_time(0.1)
        report = await house.conductor.finished(started, None)
        assert report["aborted"]["reason"] == "the module was stopped meanwhile"
        assert not house.supervisor.fleet.modules[ONE].wanted
        assert house.log.count("SIGCONT vitals/one#0") == 1

    story(told)


def test_what_has_given_up_is_started_again_with_a_fresh_budget() -> None:
    async def told(house: House) -> None:
        started = await house.conductor.begin(asked(), "alice")
        house.recovers()
        report = await house.conductor.finished(started, None)
        assert report["verdict"]["outcome"] == "gave up"
        assert report["rollback"] == "started again: killed by SIGKILL"
        assert house.supervisor.fleet.modules[ONE].replicas[0].history.times == ()
        assert report["steady_after"]["steady"]

    story(told, restart={"policy": "never"})


def test_one_module_has_one_experiment_at_a_time_and_all_have_a_bound() -> None:
    async def told(house: House) -> None:
        await house.conductor.begin(asked("freeze"), "alice")
        with pytest.raises(Busy, match="vitals/one is under the experiment freeze-1"):
            await house.conductor.begin(asked(), "bob")
        for number in range(MOST_AT_ONCE - 1):
            module_id = f"more/n{number}"
            house.supervisor.handle(Put(module_id, module(module_id, chaos={"allow": True})))
            house.supervisor.handle(Want((module_id,), True))
            house.tell(module_id, events.Ready)
            await house.conductor.begin(asked("freeze", module_id), "alice")
        with pytest.raises(Busy, match=f"{MOST_AT_ONCE} experiments are under way"):
            await house.conductor.begin(asked("kill", TWO), "alice")

    story(told)


def test_without_a_keeper_nothing_begins() -> None:
    async def told(house: House) -> None:
        house.connected = False
        with pytest.raises(NotPossible, match="the keeper is being replaced"):
            await house.conductor.begin(asked(), "alice")
        assert house.log == []

    story(told)


def test_a_plan_touches_nothing() -> None:
    async def told(house: House) -> None:
        assert house.conductor.plan(asked())["targets"][0]["pid"] == 100
        assert house.log == [] and house.conductor.register.reports() == []

    story(told)


def test_waiting_has_a_bound_and_the_experiment_goes_on() -> None:
    async def told(house: House) -> None:
        started = await house.conductor.begin(asked("freeze"), "alice")
        with pytest.raises(TimedOut, match=r"freeze-1 is still under way after 0\.01 s"):
            await house.conductor.finished(started, 0.01)
        assert house.conductor.register.report(started)["phase"] == "injected"

    story(told)


def test_an_unknown_report_names_a_near_one() -> None:
    async def told(house: House) -> None:
        await house.conductor.begin(asked(), "alice")
        house.recovers()
        await house.conductor.finished("kill-1", None)
        with pytest.raises(InvalidParams, match="no such experiment: kil-1") as refused:
            house.conductor.register.report("kil-1")
        assert refused.value.hint == "did you mean kill-1?"

    story(told)


def test_a_nexusd_that_leaves_resumes_first_and_starts_nothing_again() -> None:
    async def told(house: House) -> None:
        await house.conductor.begin(asked("freeze"), "alice")
        await house.conductor.begin(asked("kill", TWO), "alice")
        house.tell(TWO, events.Exited, KILLED)
        leaving = asyncio.ensure_future(house.conductor.leave())
        await asyncio.sleep(0)
        house.pass_time(0.1)
        await leaving
        assert "SIGCONT vitals/one#0" in house.log
        reports = [house.conductor.register.report(name) for name in ("freeze-1", "kill-2")]
        assert [one["verdict"]["outcome"] for one in reports] == ["interrupted", "interrupted"]
        assert all(row.lease is None for row in house.shelf.rows.values())
        assert reports[1]["rollback"] == "there was nothing to undo"

    story(told, restart={"backoff": {"first": "1h", "max": "1h"}})


def leases(kind: str) -> list[StoredExperiment]:
    """What a nexusd that was killed in the middle leaves in its store."""
    left: list[StoredExperiment] = []

    async def told(house: House) -> None:
        await house.conductor.begin(asked(kind), "alice")
        left.extend(house.shelf.rows.values())

    story(told)
    return left


def test_a_lease_that_is_found_is_undone_and_its_report_closed() -> None:
    async def told(house: House) -> None:
        assert house.log == ["SIGCONT vitals/one#0", "chaos.rolled_back"]
        house.pass_time(0.1)
        report = await house.conductor.finished("freeze-1", None)
        assert report["verdict"]["outcome"] == "interrupted"
        assert report["rolled_back_at"] >= report["injected_at"]
        assert house.shelf.rows[1].lease is None
        assert await house.conductor.begin(asked(), "alice") == "kill-2"

    story(told, stored=leases("freeze"))


def test_a_lease_of_another_boot_is_dated_by_the_wall_clock() -> None:
    (stored,) = leases("kill")
    assert stored.lease is not None
    lease = msgspec.json.decode(stored.lease)
    lease["epoch"] = time.time() - 3600

    async def told(house: House) -> None:
        report = await house.conductor.finished("kill-1", None)
        assert report["rolled_back_s"] == pytest.approx(3600, abs=5)

    story(told, stored=[stored._replace(lease=msgspec.json.encode(lease).decode())])


def test_a_lease_that_can_not_be_read_is_undone_by_its_report() -> None:
    (stored,) = leases("freeze")

    async def told(house: House) -> None:
        await house.conductor.leave()  # all that was begun has ended
        assert house.log == ["SIGCONT vitals/one#0", "report 1"]
        assert house.conductor.register.report("freeze-1")["verdict"]["outcome"] == "interrupted"
        assert house.shelf.rows[1].lease is None

    story(told, stored=[stored._replace(lease="{}")])


@pytest.mark.parametrize("damage", ['"targets"', '"run"', '"id"'])
def test_a_lease_and_a_report_that_are_both_damaged_keep_nexusd_from_nothing(damage: str) -> None:
    (stored,) = leases("freeze")
    text = msgspec.json.encode(stored.report).decode()
    report = msgspec.json.decode(text.replace(damage, '"x"'))

    async def told(house: House) -> None:
        await house.conductor.leave()
        assert house.shelf.rows[1].lease is None
        assert ("SIGCONT vitals/one#0" in house.log) == (damage == '"id"')
        assert await house.fresh_conductor().begin(asked(), "alice")

    story(told, stored=[stored._replace(lease="", report=report)])


def test_a_report_that_is_damaged_is_told_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    shown = leases("kill")[0].report
    old = [StoredExperiment(1, {"id": "kill-1"}, None), StoredExperiment(2, {**shown, "id": "kill-2"}, None)]

    async def told(house: House) -> None:
        assert [one["id"] for one in house.conductor.register.reports()] == ["kill-2"]

    story(told, stored=old)
    assert "the report of experiment 1 is damaged: passed over" in caplog.text


def test_a_lease_of_a_module_that_is_gone_is_closed() -> None:
    (stored,) = leases("freeze")
    assert stored.lease is not None
    elsewhere = stored.lease.replace(ONE, "vitals/gone")

    async def told(house: House) -> None:
        house.pass_time(0.1)
        report = await house.conductor.finished("freeze-1", None)
        assert "SIGCONT vitals/gone#0" in house.log
        assert report["steady_after"]["reasons"] == ["the module is gone"]

    story(told, stored=[stored._replace(lease=elsewhere)])


def test_only_the_last_reports_are_kept() -> None:
    shown = leases("kill")[0].report
    old = [StoredExperiment(number, {**shown, "id": f"kill-{number}"}, None) for number in range(1, KEPT + 3)]

    async def told(house: House) -> None:
        ids = [one["id"] for one in house.conductor.register.reports()]
        assert (len(ids), ids[0], ids[-1]) == (KEPT, "kill-3", f"kill-{KEPT + 2}")
        assert await house.conductor.begin(asked(), "alice") == f"kill-{KEPT + 3}"

    story(told, stored=old)
