"""What the keeper says, as the fleet hears it: news one by one, and whole tables after a loss or a start."""

import asyncio
from signal import SIGQUIT, SIGTERM
from typing import Any

import pytest

from nexusd.domain.events import Exited, FleetEvent, NeverSpawned, News, Pinged, Ready, Running, Said, Spawned
from nexusd.domain.replica import Exit, Started
from nexusd.system import keeper_news
from nexusd.system.keeper_news import KeeperNews
from nexusd.system.processes import ReplicaProcesses
from tests.fakes import Rehearsal, module
from tests.integration.test_processes import FakeKeeper

Message = dict[str, Any]


class Ends:
    """Implements the ends of `ports.Processes`; remembers what it was told, as lines."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def spawn(self, run: str, *_: Any) -> None:
        raise AssertionError("news start nothing")

    def terminate(self, run: str, signal: int) -> None:
        self.log.append(f"signal {signal} {run}")

    def kill(self, run: str) -> None:
        self.log.append(f"kill {run}")

    def forget(self, run: str) -> None:
        self.log.append(f"forget {run}")

    def remember(self, module_id: str, module: Any) -> None:
        raise AssertionError("news remember nothing")


class Stage:
    """A fleet of one module with one replica that runs, and the news of it."""

    def __init__(self, **raw: Any) -> None:
        self.rehearsal = Rehearsal(module("test/one", **raw))
        self.rehearsal.want("test/one")
        self.processes = Ends()
        self.heard: list[FleetEvent] = []
        self.told: list[tuple[str, str | None]] = []
        self.news = KeeperNews(self.processes, self._handle, lambda: self.rehearsal.fleet, self._tell)

    def _handle(self, event: FleetEvent) -> None:
        self.heard.append(event)
        self.rehearsal.apply(event)

    def _tell(self, kind: str, reason: str | None = None) -> None:
        self.told.append((kind, reason))

    @property
    def run(self) -> str:
        run = self.rehearsal.replica("test/one").run
        assert run is not None
        return run

    def hear(self, *messages: Message) -> list[Any]:
        """The events of the replica that follow."""
        before = len(self.heard)
        for message in messages:
            self.news.hear(message)
        return [event.event for event in self.heard[before:] if isinstance(event, News)]

    def begin(self) -> None:
        self.hear({"say": "welcome", "pid": 7, "protocol": 1})
        self.rehearsal_begins()

    def rehearsal_begins(self) -> None:
        async def begin() -> None:
            self.news.begin()

        asyncio.run(begin())


def row(run: str, *, ended: Message | None = None, running: bool = True, **notices: str) -> Message:
    entry = {"key": run, "pid": 100}
    return {
        "say": "run",
        "run": run,
        "entry": entry,
        "running": running,
        "notices": notices,
        "ended": ended,
        "refusal": None,
    }


def exited(run: str, status: int | None = 0) -> Message:
    return {"say": "exited", "run": run, "status": status, "refusal": None, "at": 0.0}


WELCOME: Message = {"say": "welcome", "pid": 8, "protocol": 1}
LOST: Message = {"say": "lost", "why": "its connection ended"}
FORK_FAILED = {"step": "fork", "errno": 11, "reason": "Resource temporarily unavailable", "about": None}


@pytest.fixture
def stage() -> Stage:
    """Its replica is known to the keeper, and has begun."""
    stage = Stage()
    stage.hear(row(stage.run))
    stage.begin()
    stage.heard.clear()
    return stage


def test_news_become_events_of_the_replica(stage: Stage) -> None:
    run = stage.run
    assert stage.hear({"say": "spawned", "run": run, "entry": {"pid": 5}, "running": False}) == [
        Spawned(run, 5)
    ]
    assert stage.hear({"say": "running", "run": run}) == [Running(run)]
    notices = {"STATUS": "well", "READY": "1", "WATCHDOG": "1", "MAINPID": "1"}
    assert stage.hear({"say": "notify", "run": run, "notices": notices}) == [
        Said(run, "well"),
        Ready(run),
        Pinged(run),
    ]
    assert stage.hear(exited(run, 7 << 8)) == [Exited(run, Exit(code=7))]


def test_a_secret_in_what_a_module_says_of_itself_is_masked_before_anybody_hears_it() -> None:
    key = {"type": "str", "default": "hunter2", "secret": True}
    short = {"type": "str", "default": "no", "secret": True}
    stage = Stage(config={"password": key, "answer": short})
    stage.begin()
    notices = {"STATUS": "ValueError: no such password: hunter2"}
    (event,) = stage.hear({"say": "notify", "run": stage.run, "notices": notices})
    assert event.text == "ValueError: no such password: ********"


@pytest.mark.parametrize("value", ["0", "", "yes"])
def test_only_one_is_ready(stage: Stage, value: str) -> None:
    assert stage.hear({"say": "notify", "run": stage.run, "notices": {"READY": value}}) == []


def test_a_run_that_could_not_be_forked_has_ended_and_says_why(stage: Stage) -> None:
    (event,) = stage.hear({"say": "refused", "run": stage.run, "refusal": FORK_FAILED})
    assert event.exit.description == "cannot be started (fork): Resource temporarily unavailable"


def test_the_end_of_a_run_that_nobody_claims_is_forgotten_at_once(stage: Stage) -> None:
    for run in ("test/one#0@1~old", "test/gone#0@1~x"):
        assert stage.hear({"say": "running", "run": run}) == []
        assert stage.hear(exited(run)) == []
    assert stage.processes.log == ["forget test/one#0@1~old", "forget test/gone#0@1~x"]


# The start


def test_the_welcome_is_awaited_and_news_before_the_beginning_come_after_the_table() -> None:
    stage = Stage()
    run = stage.run
    assert not stage.news.welcomed.is_set()
    assert stage.hear(row(run), {"say": "notify", "run": run, "notices": {"READY": "1"}}) == []
    stage.begin()
    assert stage.news.welcomed.is_set()
    kinds = [type(event.event) for event in stage.heard if isinstance(event, News)]
    assert kinds == [Spawned, Ready]
    assert isinstance(stage.rehearsal.replica("test/one").state, Started)


def test_what_ended_while_nobody_looked_is_an_exit() -> None:
    stage = Stage()
    run = stage.run
    stage.hear(row(run, ended={"status": 3 << 8, "at": 0.0}, READY="1"))
    stage.begin()
    assert stage.heard[-1] == News("test/one", (0, 1), Exited(run, Exit(code=3)))


def test_a_run_that_no_module_claims_is_stopped_and_then_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_news, "STRANGER_STOP_S", 0.0)
    stage = Stage()
    stage.hear(row("test/gone#0@1~x"), row("test/gone#1@1~y", ended={"status": 0, "at": 0.0}), WELCOME)

    async def begin() -> None:
        stage.news.begin()
        while "kill test/gone#0@1~x" not in stage.processes.log:
            await asyncio.sleep(0)

    asyncio.run(begin())
    expected = {f"signal {int(SIGTERM)} test/gone#0@1~x", "forget test/gone#1@1~y", "kill test/gone#0@1~x"}
    assert expected <= set(stage.processes.log)


def test_what_was_remembered_is_restored_and_what_is_damaged_is_not() -> None:
    stage = Stage()
    one = stage.rehearsal.module("test/one")
    keeper = FakeKeeper()
    ReplicaProcesses(keeper, "/run", None, None, None, "/host.py", None).remember("test/one", one)  # type: ignore[arg-type]
    stage.hear(*({"say": "note", "name": name, "text": text} for name, text in keeper.notes.items()))
    stage.hear({"say": "note", "name": "test/two", "text": '{"from": "another version"}'}, WELCOME)
    former = stage.news.restored("test/one")
    assert former is not None
    assert (former.generation, former.replicas, former.definition) == (1, one.replicas, one.definition)
    assert stage.news.restored("test/two") is None
    assert stage.news.forgotten({"test/two"}) == ["test/one"]
    stage.begin()
    assert stage.news.restored("test/one") is None  # a module that comes back later begins anew


# A loss


def test_after_a_loss_what_runs_goes_on(stage: Stage) -> None:
    events = stage.hear(LOST, row(stage.run, READY="1"), WELCOME)
    assert [type(event) for event in events] == [Spawned, Ready]
    assert stage.told == [("keeper.lost", "its connection ended"), ("keeper.connected", "pid 8")]


def test_a_run_that_was_asked_for_and_never_heard_of_was_never_spawned() -> None:
    stage = Stage()
    run = stage.run
    stage.begin()
    assert stage.heard == [News("test/one", (0, 1), NeverSpawned(run))]
    assert stage.processes.log == [f"forget {run}"]


def test_a_run_that_is_in_no_table_any_more_has_ended_nobody_knows_how(stage: Stage) -> None:
    run = stage.run
    stage.hear({"say": "spawned", "run": run, "entry": {"pid": 5}, "running": False})
    assert stage.hear(LOST, WELCOME) == [Exited(run, Exit())]


def test_half_a_table_of_a_keeper_that_was_lost_again_is_dropped(stage: Stage) -> None:
    run = stage.run
    stage.hear({"say": "spawned", "run": run, "entry": {"pid": 5}, "running": False})
    assert stage.hear(LOST, row(run), LOST, WELCOME) == [Exited(run, Exit())]


def test_a_wish_to_stop_is_told_again_with_the_modules_own_signal() -> None:
    stage = Stage(stop={"signal": "SIGQUIT"})
    run = stage.run
    stage.hear(row(run))
    stage.begin()
    stage.rehearsal.unwant("test/one")
    stage.hear(LOST, row(run), WELCOME)
    assert stage.processes.log == [f"signal {int(SIGQUIT)} {run}"]
    for passed_s in (11, 60):  # killed, then stuck
        stage.processes.log.clear()
        stage.rehearsal.pass_time(passed_s)
        stage.hear(LOST, row(run), WELCOME)
        assert stage.processes.log == [f"kill {run}"]
