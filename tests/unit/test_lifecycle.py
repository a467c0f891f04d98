"""The life of one replica, told as stories on fake time; and every pair of state and event, by a table."""

import signal
from itertools import product
from typing import Any, get_args

import pytest
from msgspec.structs import replace

from nexusd.domain import checks
from nexusd.domain.checks import Purpose
from nexusd.domain.events import (
    Action,
    Admit,
    Checked,
    Event,
    Exited,
    Expired,
    Forget,
    Hold,
    Kill,
    NeverSpawned,
    Pinged,
    Ready,
    Renew,
    Running,
    Said,
    Spawn,
    Spawned,
    Start,
    Stop,
    Terminate,
)
from nexusd.domain.lifecycle import TRANSITIONS, Moment, step
from nexusd.domain.policy import policy_of
from nexusd.domain.replica import (
    Backoff,
    Exit,
    Failed,
    History,
    Replica,
    Started,
    Starting,
    State,
    Stopped,
    Stopping,
    Stuck,
    Waiting,
)
from tests.fakes import CLEAN, CRASH, definition

SEGFAULT = Exit(signal=signal.SIGSEGV)
UNKNOWN = Exit()


class Life:
    """One replica of a module with such a manifest. It is admitted whenever it waits, as by a fleet without others."""

    def __init__(self, **manifest: Any) -> None:
        self.policy = policy_of(definition(**manifest).manifest)
        self.now = 100.0
        self.runs = 0
        self.replica = Replica("vitals/one", 0, 1, self.now)

    def tell(self, event: Event) -> tuple[Action, ...]:
        self.replica, actions = step(self.replica, event, self.policy, Moment(self.now))
        if isinstance(self.replica.state, Waiting):
            self.runs += 1
            actions += self.tell(Admit(f"run {self.runs}"))
        return actions

    @property
    def run(self) -> str:
        assert self.replica.run is not None
        return self.replica.run

    @property
    def state(self) -> type[State]:
        return type(self.replica.state)

    def start(self) -> tuple[Action, ...]:
        return self.tell(Start())

    def stop(self) -> tuple[Action, ...]:
        return self.tell(Stop())

    def ready(self) -> tuple[Action, ...]:
        return self.tell(Ready(self.run))

    def exits(self, exit: Exit = CRASH) -> tuple[Action, ...]:
        return self.tell(Exited(self.run, exit))

    def wait(self, seconds: float) -> tuple[Action, ...]:
        """Lets time pass; every deadline is told at its time."""
        actions: tuple[Action, ...] = ()
        end = self.now + seconds
        while self.replica.deadline is not None and self.replica.deadline <= end:
            self.now = self.replica.deadline
            actions += self.tell(Expired())
        self.now = end
        return actions

    @property
    def backs_off_for(self) -> float:
        return round(self.replica.deadline - self.now, 6) if isinstance(self.replica.state, Backoff) else 0.0

    @property
    def expires_in(self) -> float | None:
        return None if self.replica.deadline is None else round(self.replica.deadline - self.now, 6)


def started(**manifest: Any) -> Life:
    life = Life(**manifest)
    life.start()
    life.ready()
    return life


# The table

# What an operator's or the fleet's word means in every state is in TRANSITIONS, but for these, where it holds already
# or where the question does not arise.
WITHOUT_EFFECT_IN = {
    Hold: (Stopped, Starting, Started, Stopping, Stuck, Backoff, Failed),
    Admit: (Stopped, Starting, Started, Stopping, Stuck, Backoff, Failed),
    # Only a replica with a process can have news of it; `step` refuses the others by the run.
    Spawned: (Stopped, Waiting, Backoff, Failed, Started, Stuck),  # the keeper says it first of all
    Running: (Stopped, Waiting, Backoff, Failed, Started, Stopping, Stuck),
    Ready: (Stopped, Waiting, Backoff, Failed, Started, Stopping, Stuck),  # too late, or said again
    Pinged: (Stopped, Waiting, Backoff, Failed, Starting, Stopping, Stuck),  # no watchdog runs there
    Said: (Stopped, Waiting, Backoff, Failed, Stuck),
    Checked: (Stopped, Waiting, Backoff, Failed, Stopping, Stuck),  # what is stopped is not checked
    NeverSpawned: (Stopped, Waiting, Backoff, Failed, Started),
    Exited: (Stopped, Waiting, Backoff, Failed),
    Expired: (Stopped, Waiting, Stuck, Failed),  # no deadline
}


@pytest.mark.parametrize("event", get_args(Event), ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("state", get_args(State), ids=lambda kind: kind.__name__)
def test_every_event_has_a_meaning_in_every_state_or_none_on_purpose(state, event):
    without_effect = state in WITHOUT_EFFECT_IN.get(event, ())
    assert ((state, event) in TRANSITIONS) is not without_effect


def test_the_table_has_states_and_events_only():
    assert TRANSITIONS.keys() <= set(product(get_args(State), get_args(Event)))


EVERY_STATE = [
    Stopped(),
    Waiting(),
    Starting("run 7", 130.0, 4711),
    Started("run 7", 4711, 130.0),
    Stopping("run 7", 4711, 110.0),
    Stopping("run 7", 4711, 110.0, killed=True, failure="hung"),
    Stuck("run 7", 4711),
    Backoff(104.0),
    Failed(),
]


@pytest.mark.parametrize("state", EVERY_STATE, ids=lambda state: type(state).__name__)
@pytest.mark.parametrize(
    "event",
    [
        Spawned("run 6", 1),
        Running("run 6"),
        Ready("run 6"),
        Pinged("run 6"),
        Said("run 6", "late"),
        Checked("run 6", Purpose.LIVENESS, checks.Said("unhealthy", "late")),
        NeverSpawned("run 6"),
        Exited("run 6", CRASH),
    ],
    ids=lambda event: type(event).__name__,
)
def test_news_of_a_former_run_change_nothing(state, event):
    replica = Replica("vitals/one", 0, 1, 100.0, wanted=True, state=state)
    assert step(replica, event, policy_of(definition().manifest), Moment(101.0)) == (replica, ())


@pytest.mark.parametrize("state", EVERY_STATE, ids=lambda state: type(state).__name__)
def test_start_and_stop_say_what_is_wanted_in_every_state(state):
    policy = policy_of(definition().manifest)
    for wanted_before in (True, False):
        replica = Replica("vitals/one", 0, 1, 100.0, wanted=wanted_before, state=state)
        assert step(replica, Start(), policy, Moment(101.0))[0].wanted
        assert step(replica, Renew(), policy, Moment(101.0))[0].wanted
        assert not step(replica, Stop(), policy, Moment(101.0))[0].wanted


def test_a_state_tells_its_name_run_pid_and_deadline():
    replica = Replica("vitals/one", 2, 3, 100.0, state=Starting("run 7", 130.0, 4711))
    assert (replica.name, replica.key, replica.state_name) == ("vitals/one#2", (2, 3), "starting")
    assert (replica.run, replica.pid, replica.deadline) == ("run 7", 4711, 130.0)
    idle = replace(replica, state=Stopped())
    assert (idle.run, idle.pid, idle.deadline) == (None, None, None)


@pytest.mark.parametrize(
    ("exit", "description", "clean"),
    [
        (Exit(code=0), "exit status 0", True),
        (Exit(code=3), "exit status 3", False),
        (Exit(signal=11), "killed by SIGSEGV", False),
        (Exit(signal=40), "killed by signal 40", False),
        (Exit(), "status unknown", False),
        (Exit(cause="cannot execute ./run"), "cannot execute ./run", False),
        (Exit(code=0, cause="no such user"), "no such user", False),
    ],
)
def test_an_exit_is_told_in_words(exit, description, clean):
    assert (exit.description, exit.is_clean) == (description, clean)


# Starting


def test_start_spawn_ready():
    life = Life()
    assert life.start() == (Spawn("run 1"),)
    assert life.state is Starting and life.expires_in == 30
    life.tell(Spawned("run 1", 4711))
    assert life.replica.pid == 4711
    life.tell(Running("run 1"))
    assert life.state is Starting  # its own READY=1 is what counts
    life.wait(2)
    assert life.ready() == ()
    assert life.replica.state == Started("run 1", 4711)
    assert life.replica.since == 102


def test_a_module_without_ready_is_ready_as_soon_as_its_code_is_reached():
    life = Life(run={"exec": ["./run"], "ready": "started"})
    life.start()
    life.tell(Spawned("run 1", 4711))
    assert life.state is Starting
    life.tell(Running("run 1"))
    assert life.state is Started


def test_what_waits_keeps_the_obstacle_and_the_time_it_waits_since():
    policy = policy_of(definition().manifest)
    waiting, _ = step(Replica("vitals/one", 0, 1, 50.0), Start(), policy, Moment(100.0))
    held, actions = step(waiting, Hold("waits for substrate/bus", False), policy, Moment(105.0))
    assert held.state == Waiting("waits for substrate/bus", False)
    assert (held.since, actions) == (100.0, ())


def test_the_last_status_text_is_kept_until_the_next_start():
    life = started(restart={"backoff": {"first": 1}})
    life.tell(Said(life.run, "12 peers"))
    assert life.replica.status_text == "12 peers"
    life.exits(CRASH)
    assert life.replica.status_text == "12 peers"  # its last words help to find out
    life.wait(1)
    assert life.replica.status_text is None


def test_a_spawn_lost_with_the_keeper_is_wished_again():
    life = Life()
    life.start()
    assert life.tell(NeverSpawned("run 1")) == (Spawn("run 2"),)
    assert life.replica.history.restarts == 0


def test_a_spawn_lost_while_it_was_to_stop_needs_no_process_to_end():
    life = Life()
    life.start()
    life.stop()
    life.tell(NeverSpawned("run 1"))
    assert life.state is Stopped


def test_a_spawn_lost_after_everything_was_tried_to_end_it_is_over():
    life = Life()
    life.start()
    life.stop()
    life.wait(20)
    assert life.state is Stuck
    life.tell(NeverSpawned("run 1"))
    assert life.state is Stopped


# Crashes and back-off


def test_start_crash_back_off_recover():
    life = started()
    assert life.exits(CRASH) == (Forget("run 1"), Spawn("run 2"))  # the first restart at once
    assert life.replica.reason == "exit status 1"
    assert life.exits(SEGFAULT) == (Forget("run 2"),)
    assert life.replica.reason == "killed by SIGSEGV before it was ready"
    assert life.backs_off_for == 0.5
    assert life.wait(0.5) == (Spawn("run 3"),)
    life.ready()
    assert life.state is Started
    assert life.replica.reason is None
    assert life.replica.history.restarts == 2
    assert life.replica.history.last_exit == SEGFAULT


def test_the_waits_grow_to_half_a_minute_and_no_further():
    life = started(restart={"intensity": {"restarts": 100}})
    waits = []
    for _ in range(10):
        life.exits(CRASH)
        waits.append(life.backs_off_for)
        life.wait(waits[-1])
    assert waits == [0, 0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@pytest.mark.parametrize(("ran_for", "wait"), [(29.9, 1), (30, 0)])
def test_after_half_a_minute_of_running_the_waits_begin_anew(ran_for, wait):
    life = started()
    for _ in range(2):
        life.exits(CRASH)
        life.wait(life.backs_off_for)
    life.ready()
    life.wait(ran_for)
    life.exits(CRASH)
    assert life.backs_off_for == wait


def test_time_spent_starting_does_not_count_as_running():
    life = started(start={"timeout": 120})
    life.exits(CRASH)
    life.wait(60)
    life.exits(CRASH)
    assert life.backs_off_for == 0.5


def test_five_restarts_within_a_minute_then_failed():
    life = started()
    for _ in range(5):
        life.exits(CRASH)
        life.wait(life.backs_off_for)
        life.ready()
    assert life.exits(CRASH) == (Forget("run 6"),)
    assert life.state is Failed
    assert life.replica.reason == "exit status 1; 5 restarts within 60 s did not help"
    assert life.wait(3600) == ()


def test_crashes_further_apart_never_add_up():
    life = started()
    for _ in range(50):
        life.wait(13)
        life.exits(CRASH)
        life.wait(life.backs_off_for)
        life.ready()
        assert life.state is Started


def test_a_start_by_hand_clears_what_is_behind():
    life = started()
    for _ in range(6):
        life.exits(CRASH)
        life.wait(life.backs_off_for)
    assert life.state is Failed
    life.start()
    assert life.replica.reason is None
    life.exits(CRASH)
    assert life.state is Starting  # again at once, and again five times
    assert life.replica.history.restarts == 6


@pytest.mark.parametrize("state", EVERY_STATE, ids=lambda state: type(state).__name__)
@pytest.mark.parametrize("event", [Start(), Renew()], ids=lambda event: type(event).__name__)
def test_failed_attempts_are_forgotten_by_a_start_in_every_state(state, event):
    history = History(restarts=4, in_a_row=4, times=(97.0, 98.0, 99.0), last_exit=CRASH)
    replica = Replica("vitals/one", 0, 1, 100.0, wanted=True, state=state, history=history)
    after, _ = step(replica, event, policy_of(definition().manifest), Moment(101.0))
    assert after.history == replace(history, in_a_row=0, times=())


def test_a_start_during_back_off_does_not_wait_any_longer():
    life = started(restart={"backoff": {"first": 10}})
    life.exits(CRASH)
    assert life.backs_off_for == 10
    assert life.start() == (Spawn("run 2"),)


def test_a_stop_during_back_off_is_done_at_once():
    life = started(restart={"backoff": {"first": 10}})
    life.exits(CRASH)
    assert life.stop() == ()
    assert life.state is Stopped
    assert life.wait(60) == ()


# Exits, by policy


@pytest.mark.parametrize("exit", [CLEAN, CRASH, UNKNOWN], ids=lambda exit: exit.description)
@pytest.mark.parametrize("policy", ["on-failure", "always"])
def test_an_end_before_ready_is_a_failed_start_and_tried_again(policy, exit):
    life = Life(restart={"policy": policy})
    life.start()
    assert life.exits(exit) == (Forget("run 1"), Spawn("run 2"))
    assert life.replica.reason == f"{exit.description} before it was ready"


@pytest.mark.parametrize("exit", [CLEAN, CRASH], ids=lambda exit: exit.description)
def test_an_end_before_ready_is_final_where_nothing_is_tried_again(exit):
    life = Life(restart={"policy": "never"})
    life.start()
    life.exits(exit)
    assert life.state is Failed
    assert life.replica.reason == f"{exit.description} before it was ready"


@pytest.mark.parametrize(
    ("policy", "exit", "state"),
    [
        ("on-failure", CLEAN, Stopped),
        ("on-failure", CRASH, Starting),
        ("on-failure", SEGFAULT, Starting),
        ("on-failure", UNKNOWN, Starting),
        ("always", CLEAN, Starting),
        ("always", CRASH, Starting),
        ("never", CLEAN, Stopped),
        ("never", CRASH, Failed),
        ("never", UNKNOWN, Failed),
    ],
)
def test_the_policy_says_what_follows_an_end_after_ready(policy, exit, state):
    life = started(restart={"policy": policy})
    life.wait(1)
    life.exits(exit)
    assert life.state is state
    assert life.replica.wanted
    assert life.replica.history.last_exit == exit
    assert life.replica.history.last_exit_at == 101


def test_a_clean_end_says_so():
    life = started()
    assert life.exits(CLEAN) == (Forget("run 1"),)
    assert life.replica.reason == "ended by itself, exit status 0"


# Stopping


def test_stop_ends_it_and_nothing_follows():
    life = started(stop={"signal": "SIGINT", "timeout": 7})
    assert life.stop() == (Terminate("run 1", signal.SIGINT),)
    assert life.state is Stopping and life.expires_in == 7
    life.wait(3)
    assert life.exits(SEGFAULT) == (Forget("run 1"),)  # how it ends does not matter now
    assert life.state is Stopped
    assert life.replica.reason is None
    assert life.wait(3600) == ()


def test_stop_time_out_sigkill_stuck_and_out_of_it():
    life = started()
    life.tell(Spawned(life.run, 4711))
    life.stop()
    assert life.wait(10) == (Kill("run 1"),)
    assert life.state is Stopping and life.expires_in == 10
    assert life.wait(10) == ()
    assert life.state is Stuck
    assert life.replica.reason is not None and "does not end on SIGKILL" in life.replica.reason
    assert life.wait(3600) == ()
    assert life.exits(Exit(signal=signal.SIGKILL)) == (Forget("run 1"),)
    assert life.state is Stopped
    assert life.replica.reason is None


def test_a_stop_during_the_start_is_not_forgotten():
    life = Life()
    life.start()
    assert life.stop() == (Terminate("run 1", signal.SIGTERM),)
    life.tell(Spawned("run 1", 4711))
    assert life.replica.pid == 4711
    life.ready()
    assert life.state is Stopping
    life.exits(CLEAN)
    assert life.state is Stopped


def test_a_start_during_the_stop_follows_it():
    life = started()
    life.stop()
    assert life.start() == ()
    assert life.state is Stopping
    assert life.exits(CLEAN) == (Forget("run 1"), Spawn("run 2"))
    assert life.replica.history.restarts == 0


def test_the_last_word_counts():
    life = started()
    for _ in range(3):
        life.stop()
        life.start()
    life.stop()
    life.exits(CLEAN)
    assert life.state is Stopped


def test_a_renewal_ends_one_process_and_starts_the_next():
    life = started()
    assert life.tell(Renew()) == (Terminate("run 1", signal.SIGTERM),)
    assert life.exits(CLEAN) == (Forget("run 1"), Spawn("run 2"))
    assert life.replica.history.restarts == 0


def test_what_is_stuck_is_started_again_when_it_ends_and_is_wanted():
    life = started()
    life.stop()
    life.wait(20)
    life.start()
    assert life.state is Stuck
    assert life.exits(Exit(signal=signal.SIGKILL)) == (Forget("run 1"), Spawn("run 2"))


# Time-outs that nobody asked for


def test_a_start_that_takes_too_long_is_ended_and_tried_again():
    life = Life(start={"timeout": 5})
    life.start()
    assert life.wait(5) == (Terminate("run 1", signal.SIGTERM),)
    assert life.state is Stopping
    assert life.exits(CLEAN) == (Forget("run 1"), Spawn("run 2"))
    assert life.replica.reason == "not ready within 5 s"
    assert life.replica.history.restarts == 1
    life.wait(5)
    life.exits(CLEAN)
    assert life.backs_off_for == 0.5


def test_a_watchdog_that_is_fed_stays_quiet():
    life = started(health={"watchdog": 3})
    for _ in range(10):
        life.wait(2.9)
        life.tell(Pinged(life.run))
    assert life.state is Started
    assert life.expires_in == 3


def test_a_watchdog_that_is_not_fed_aborts_and_restarts():
    life = started(health={"watchdog": 3})
    assert life.wait(3) == (Terminate("run 1", signal.SIGABRT),)
    assert life.exits(Exit(signal=signal.SIGABRT)) == (Forget("run 1"), Spawn("run 2"))
    assert life.replica.reason == "no WATCHDOG=1 within 3 s"
    assert life.replica.history.restarts == 1


def test_what_does_not_even_end_by_sigabrt_is_killed_and_restarted():
    life = started(health={"watchdog": 3})
    assert life.wait(13) == (Terminate("run 1", signal.SIGABRT), Kill("run 1"))
    assert life.exits(Exit(signal=signal.SIGKILL)) == (Forget("run 1"), Spawn("run 2"))


def test_a_module_that_hangs_once_an_hour_is_always_restarted_at_once():
    life = started(health={"watchdog": 3})
    for _ in range(5):
        for _ in range(1200):
            life.wait(2.9)
            life.tell(Pinged(life.run))
        life.wait(3)
        life.exits(Exit(signal=signal.SIGABRT))
        assert life.state is Starting
        life.ready()


def test_without_a_watchdog_nothing_has_to_be_said():
    life = started()
    assert life.wait(10**6) == ()


def test_a_stop_of_what_hangs_is_a_stop():
    life = started(health={"watchdog": 3})
    life.wait(3)
    life.stop()
    life.exits(Exit(signal=signal.SIGABRT))
    assert life.state is Stopped


def test_a_start_of_what_hangs_is_not_a_failed_attempt_of_it():
    life = started(health={"watchdog": 3}, restart={"policy": "never"})
    life.wait(3)
    assert life.start() == ()
    assert life.exits(Exit(signal=signal.SIGABRT)) == (Forget("run 1"), Spawn("run 2"))
    assert life.replica.history.in_a_row == 0


def test_what_hangs_and_is_never_restarted_has_failed():
    life = started(health={"watchdog": 3}, restart={"policy": "never"})
    life.wait(3)
    life.exits(Exit(signal=signal.SIGABRT))
    assert life.state is Failed
    assert life.replica.reason == "no WATCHDOG=1 within 3 s"
