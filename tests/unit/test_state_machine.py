"""A fleet that anything may happen to, in any order, and what is true of it nevertheless.

A model of the processes obeys the fleet's orders and talks back as the keeper would: the two must always agree.
"""

from collections import defaultdict
from dataclasses import dataclass
from signal import SIGKILL
from typing import Any, get_args

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from nexusd.domain import events
from nexusd.domain.checks import Purpose, Said, Word
from nexusd.domain.events import FleetEvent, News, Order, Put, Renewal, Roll, Scale, Want
from nexusd.domain.fleet import graph_of
from nexusd.domain.health import Health, health_of
from nexusd.domain.manifest import Definition, Fault
from nexusd.domain.module import Module, ModuleState
from nexusd.domain.replica import Exit, Failed, Replica, Starting, Stopped, Waiting
from tests.fakes import Rehearsal, definition

IDS = ("m/a", "m/b", "m/c", "m/d")
BUDGET, WITHIN_S = 2, 20.0
STOP_TIMEOUT_S = 10.0
FAULT = Fault("module.toml", "run", "a program", "nothing")
CONTROL = {"control": True}
HEALTH: list[dict[str, Any]] = [
    {},
    {"health": {"watchdog": 7}},
    {"health": {"liveness": CONTROL, "failures": 1}},
    {"health": {"startup": CONTROL, "readiness": CONTROL, "successes": 2}},
    {"health": {"check": CONTROL}, "run": {"exec": ["./run"], "ready": "health"}},
]
EXITS = st.sampled_from([Exit(code=0), Exit(code=1), Exit(signal=11), Exit()])


@st.composite
def a_definition(draw: Any, module_id: str) -> Definition:
    """Each may require and follow those before it in IDS: there are no circles, whoever changes."""
    earlier = IDS[: IDS.index(module_id)]
    some = st.lists(st.sampled_from(earlier), unique=True, max_size=2) if earlier else st.just([])
    return definition(
        module_id,
        digest=str(draw(st.integers(0, 99))),
        requires=draw(some),
        after=draw(some),
        restart={
            "policy": draw(st.sampled_from(["always", "on-failure", "never"])),
            "intensity": {"restarts": BUDGET, "within": WITHIN_S},
        },
        stop={"timeout": STOP_TIMEOUT_S},
        **draw(st.sampled_from(HEALTH)),
    )


DEFINITIONS = st.sampled_from(IDS).flatmap(a_definition)
SOME_IDS = st.lists(st.sampled_from(IDS), unique=True, min_size=1)


@dataclass
class Process:
    key: tuple[str, int, int]
    spawned: bool = False
    told_to_end: bool = False
    killed: bool = False
    ended: bool = False


class FleetAndProcesses(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.stage = Rehearsal()
        self.processes: dict[str, Process] = {}
        self.restarts: dict[tuple[str, int, int], list[float]] = defaultdict(list)

    # The world

    def act(self, event: FleetEvent) -> None:
        before = self.stage.fleet
        for action in self.stage.change(event):
            if isinstance(action, Order):
                self.obey(action)
        if isinstance(event, Renewal | Roll | Scale) or (isinstance(event, Want) and event.started):
            touched = event.module_ids if isinstance(event, Want) else (event.module_id,)
            self.restarts = defaultdict(
                list, {key: times for key, times in self.restarts.items() if key[0] not in touched}
            )
        for module_id, module in self.stage.fleet.modules.items():
            self.count_restarts(before.modules.get(module_id), module)

    def count_restarts(self, before: Module | None, after: Module) -> None:
        former = {one.key: one.history.restarts for one in before.replicas} if before else {}
        for replica in after.replicas:
            if replica.history.restarts > former.get(replica.key, 0):
                self.restarts[after.id, *replica.key].append(self.stage.now)

    def obey(self, order: Order) -> None:
        replica = order.replica
        match order.action:
            case events.Spawn(run):
                self.spawn(run, replica)
            case events.Terminate(run, _):
                assert not self.processes[run].ended
                self.processes[run].told_to_end = True
            case events.Kill(run):
                assert self.processes[run].told_to_end
                self.processes[run].killed = True
            case events.Forget(run):
                assert self.processes[run].ended, "forgotten while alive"
                del self.processes[run]

    def spawn(self, run: str, replica: Replica) -> None:
        module = self.stage.module(replica.module_id)
        key = (replica.module_id, *replica.key)
        assert run not in self.processes
        assert all(process.key != key for process in self.processes.values()), "two runs of one replica"
        assert module.wanted, "started though nobody wants it"
        beside = module.upgrade is not None and replica.generation == module.upgrade.generation
        same_place = [
            one for one in self.processes.values() if one.key[:2] == key[:2] and one.key[2] < key[2]
        ]
        assert beside or not same_place, "started beside another generation"
        for required in module.definition_of(replica).manifest.requires:
            assert self.stage.state(required) is ModuleState.STARTED, f"started before {required}"
        self.processes[run] = Process(key)

    def tell(self, run: str, kind: Any, *more: Any) -> None:
        module_id, *key = self.processes[run].key
        self.act(_news(module_id, (key[0], key[1]), kind(run, *more)))

    def be_well(self, run: str) -> None:
        """Ready, by its own word and by all checks that it may have."""
        self.tell(run, events.Spawned, 4711)
        self.tell(run, events.Ready)
        for purpose in (*Purpose, *Purpose):
            self.tell(run, events.Checked, purpose, Said("healthy"))

    def end(self, run: str, exit: Exit) -> None:
        self.processes[run].ended = True
        self.tell(run, events.Exited, exit)

    def let_pass(self, seconds: float) -> None:
        """As Rehearsal.pass_time, with every order obeyed."""
        stage, end = self.stage, self.stage.now + seconds
        while due := [one for one in stage.replicas() if (one.deadline or end + 1) <= end]:
            first = min(due, key=lambda replica: replica.deadline or 0.0)
            stage.now = max(stage.now, first.deadline or 0.0)
            self.act(_news(first.module_id, first.key, events.Expired()))
        stage.now = end

    def one_of(self, number: int, **wanted: bool) -> str | None:
        fit = [
            run
            for run, process in sorted(self.processes.items())
            if all(getattr(process, name) is value for name, value in wanted.items())
        ]
        return fit[number % len(fit)] if fit else None

    def put(self, found: Definition, count: int) -> None:
        module = Module(found.id, found.folder, found, self.stage.now, count=count)
        self.act(Put(found.id, module))

    # What may happen

    @initialize(found=st.tuples(*map(a_definition, IDS)), counts=st.tuples(*[st.integers(0, 2)] * len(IDS)))
    def load(self, found: tuple[Definition, ...], counts: tuple[int, ...]) -> None:
        for one, count in zip(found, counts, strict=True):
            self.put(one, count)

    @rule(module_ids=SOME_IDS)
    def want(self, module_ids: list[str]) -> None:
        there = tuple(one for one in module_ids if one in self.stage.fleet.modules)
        self.act(Want(there, True))

    @rule(module_ids=SOME_IDS)
    def unwant(self, module_ids: list[str]) -> None:
        there = tuple(one for one in module_ids if one in self.stage.fleet.modules)
        self.act(Want(there, False))

    @rule(number=st.integers(0, 9))
    def get_spawned(self, number: int) -> None:
        if (run := self.one_of(number, spawned=False)) is not None:
            self.processes[run].spawned = True
            self.tell(run, events.Spawned, 4711)
            self.tell(run, events.Running)

    @rule(number=st.integers(0, 9))
    def get_ready(self, number: int) -> None:
        if (run := self.one_of(number, spawned=True)) is not None:
            self.tell(run, events.Ready)

    @rule()
    def all_get_ready(self) -> None:
        for _ in IDS:
            for run in [run for run, process in self.processes.items() if not process.told_to_end]:
                if run in self.processes:
                    self.processes[run].spawned = True
                    self.be_well(run)

    @rule(number=st.integers(0, 9), purpose=st.sampled_from(Purpose), word=st.sampled_from(get_args(Word)))
    def be_checked(self, number: int, purpose: Purpose, word: Word) -> None:
        if (run := self.one_of(number, spawned=True)) is not None:
            self.tell(run, events.Checked, purpose, Said(word, "a reason"))

    @rule(number=st.integers(0, 9), text=st.sampled_from(["", "well"]))
    def say(self, number: int, text: str) -> None:
        if (run := self.one_of(number, spawned=True)) is not None:
            self.tell(run, events.Said, text)
            self.tell(run, events.Pinged)

    @rule(number=st.integers(0, 9), exit=EXITS)
    def exit(self, number: int, exit: Exit) -> None:
        if (run := self.one_of(number, spawned=True)) is not None:
            self.end(run, exit)

    @rule(number=st.integers(0, 9))
    def fail_to_spawn(self, number: int) -> None:
        if (run := self.one_of(number, spawned=False)) is not None:
            self.end(run, Exit(cause="cannot be started"))

    @rule(number=st.integers(0, 9))
    def end_as_told(self, number: int) -> None:
        if (run := self.one_of(number, told_to_end=True)) is not None:
            self.end(run, Exit(code=0))

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 5.0, 10.0, 31.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.let_pass(seconds)

    @rule(lost=st.integers(0, 255))
    def the_keeper_is_lost(self, lost: int) -> None:
        """Wishes that it had not carried out are lost with it; what ran goes on, or ended unseen (`lost`, by bits)."""
        for number, (run, process) in enumerate(sorted(self.processes.items())):
            if not process.spawned:
                del self.processes[run]
                self.act(_news(process.key[0], process.key[1:], events.NeverSpawned(run)))
            elif lost >> (number % 8) & 1:
                self.end(run, Exit())

    @rule(module_id=st.sampled_from(IDS), count=st.integers(0, 2))
    def scale(self, module_id: str, count: int) -> None:
        if module_id in self.stage.fleet.modules:
            self.act(Scale(module_id, count))

    @rule(module_id=st.sampled_from(IDS))
    def restart(self, module_id: str) -> None:
        if self.is_valid(module_id):
            self.act(Renewal(module_id))

    @rule(found=DEFINITIONS, beside=st.booleans())
    def reload(self, found: Definition, beside: bool) -> None:
        if self.is_valid(found.id):
            self.act(Renewal(found.id, found, beside))

    @rule(module_id=st.sampled_from(IDS), index=st.integers(0, 2))
    def restart_one(self, module_id: str, index: int) -> None:
        if self.is_valid(module_id):
            self.act(Renewal(module_id, index=index))

    @rule(found=DEFINITIONS)
    def roll(self, found: Definition) -> None:
        if self.is_valid(found.id):
            former = self.stage.module(found.id).definition
            assert former is not None
            self.act(Roll(found.id, found, replace(former, folder="/copy")))

    @rule(module_id=st.sampled_from(IDS), valid=st.booleans())
    def drop(self, module_id: str, valid: bool) -> None:
        """As the daemon does it: only what neither runs nor is wanted."""
        module = self.stage.fleet.modules.get(module_id)
        if module is None or module.is_active or module.wanted:
            return
        broken = replace(module, definition=None, replicas=(), upgrade=None, faults=(FAULT,))
        self.act(Put(module_id, None if valid else broken))

    @rule(found=DEFINITIONS, count=st.integers(0, 2))
    def put_back(self, found: Definition, count: int) -> None:
        if not self.is_valid(found.id):
            self.put(found, count)

    @precondition(lambda self: self.processes)
    @rule(module_id=st.sampled_from(IDS))
    def configure(self, module_id: str) -> None:
        if self.is_valid(module_id):
            module = replace(self.stage.module(module_id), configured={"key": self.stage.now})
            self.act(Put(module_id, module))

    def is_valid(self, module_id: str) -> bool:
        module = self.stage.fleet.modules.get(module_id)
        return module is not None and module.definition is not None

    # What is true nevertheless

    @invariant()
    def what_is_not_healthy_has_a_reason(self) -> None:
        for module in self.stage.fleet.modules.values():
            word, reasons = health_of(module)
            assert reasons or word is Health.HEALTHY

    @invariant()
    def nothing_of_a_former_run_is_remembered_of_its_checks(self) -> None:
        for replica in self.stage.replicas():
            if isinstance(replica.state, Starting):
                assert replica.checks.keys() <= {Purpose.STARTUP, Purpose.READINESS}

    @invariant()
    def every_process_is_claimed_and_every_claim_is_a_process(self) -> None:
        claims = [replica.run for replica in self.stage.replicas() if replica.run is not None]
        assert sorted(claims) == sorted(self.processes)

    @invariant()
    def nothing_wanted_is_forgotten(self) -> None:
        for module in self.stage.fleet.modules.values():
            if module.wanted and module.definition is not None:
                assert sorted(one.index for one in module.current) == list(range(module.count))
                assert all(map(_is_going_on, (*module.current, *module.successors)))

    @invariant()
    def nothing_unwanted_is_begun(self) -> None:
        for module in self.stage.fleet.modules.values():
            if not module.wanted:
                idle = (one for one in module.replicas if one.run is None)
                assert all(isinstance(one.state, Stopped) and not one.wanted for one in idle)

    @invariant()
    def nobody_is_restarted_more_often_than_allowed(self) -> None:
        for key, times in self.restarts.items():
            assert len([at for at in times if self.stage.now - at < WITHIN_S]) <= BUDGET, key

    @invariant()
    def a_rolling_reload_has_one_process_too_many_at_most(self) -> None:
        for module in self.stage.fleet.modules.values():
            if module.upgrade is not None and module.upgrade.rolling:
                begun = [one for one in module.successors if one.run is not None or one.wanted]
                assert len(begun) <= module.replaced + 1
                still_wanted = [one for one in module.replicas if one.wanted]
                assert len(still_wanted) <= module.count + 1

    @invariant()
    def the_rules_have_settled(self) -> None:
        """Whoever asks them again gets no new answer: no change was missed by a neighbour."""
        for module_id, module in self.stage.fleet.modules.items():
            before = self.stage.fleet
            assert self.stage.change(Put(module_id, module)) == ()
            assert self.stage.fleet.modules == before.modules

    @invariant()
    def the_graph_is_that_of_the_manifests_in_force(self) -> None:
        fleet = self.stage.fleet
        expected = graph_of(fleet.modules.values())
        for relation in ("requires", "after", "required_by", "before"):
            known, true = getattr(fleet.graph, relation), getattr(expected, relation)
            assert {one: known[one] for one in known if known[one]} == {
                one: true[one] for one in true if true[one]
            }

    def teardown(self) -> None:
        self.all_well_is_possible_again()
        self.all_can_be_stopped()

    def all_well_is_possible_again(self) -> None:
        """However it came about: when every module is there and its processes do as they should, all is started."""
        for module_id in IDS:
            if not self.is_valid(module_id):
                self.put(definition(module_id), 1)
        for module_id in IDS:
            if not self.stage.fleet.modules[module_id].count:
                self.act(Scale(module_id, 1))
        self.act(Want(IDS, True))
        for _ in range(20):
            for run, process in list(self.processes.items()):
                if run not in self.processes:
                    continue
                if process.told_to_end:
                    self.end(run, Exit(code=0))
                else:
                    self.be_well(run)
        states = {module_id: self.stage.state(module_id) for module_id in IDS}
        assert set(states.values()) == {ModuleState.STARTED}, states

    def all_can_be_stopped(self) -> None:
        """Even processes that end on SIGKILL only are gone after one stop time-out for each module."""
        self.act(Want(IDS, False))
        for _ in IDS:
            self.let_pass(STOP_TIMEOUT_S)
            for run in [run for run, process in self.processes.items() if process.killed]:
                self.end(run, Exit(signal=SIGKILL))
        assert self.processes == {}
        self.let_pass(3600)
        assert {self.stage.state(module_id) for module_id in IDS} == {ModuleState.STOPPED}


def _news(module_id: str, key: tuple[int, int], event: events.Event) -> FleetEvent:
    return News(module_id, key, event)


def _is_going_on(replica: Replica) -> bool:
    """Somebody, some time or some change will move it on; or it is where only a command moves it from."""
    match replica.state:
        case Waiting(obstacle=obstacle):
            moved_by = obstacle is not None
        case Stopped():
            moved_by = replica.history.last_exit is not None and replica.history.last_exit.is_clean
        case Failed():
            moved_by = True
        case _:
            moved_by = replica.run is not None or replica.deadline is not None
    return replica.wanted and moved_by


FleetAndProcesses.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class TestAFleetThatAnythingMayHappenTo(FleetAndProcesses.TestCase):
    """Collected by pytest from here."""
