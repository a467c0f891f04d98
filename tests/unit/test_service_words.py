"""What a service manager is told of the fleet: when the start is over, how long to wait on, the line for people."""

from typing import Any

import pytest

from nexusd.domain import service
from nexusd.domain.fleet import Fleet
from nexusd.domain.manifest import Definition
from nexusd.domain.module import Module
from nexusd.domain.replica import (
    Backoff,
    Exit,
    Failed,
    History,
    Replica,
    Started,
    Starting,
    State,
    Stopping,
    Waiting,
)
from nexusd.domain.runs import RunKey
from tests.fakes import definition

NOW = 100.0
RUN = RunKey("a/b", 0, 1, "00000000").text()
STARTED = Started(RUN, 1)
STARTING = Starting(RUN, NOW + 20)
WAITING = Waiting("waits for another")
LASTING = Waiting("requires another, which has failed", lasting=True)
BACKOFF = Backoff(NOW + 1)
STOPPING = Stopping(RUN, 1, NOW + 30)
FAILED = Failed()
FRESH = History()
BEFORE = History(last_exit=Exit(code=1))


def module(
    module_id: str,
    *states: State,
    history: History = FRESH,
    wanted: bool = True,
    **manifest: Any,
) -> Module:
    replicas = tuple(
        Replica(module_id, index, 1, 0.0, wanted, state, history) for index, state in enumerate(states)
    )
    count = max(1, len(states))
    kept: Definition = definition(module_id, **manifest)
    return Module(module_id, "/m", kept, 0.0, wanted, wanted, count, replicas=replicas)


def fleet(*modules: Module) -> Fleet:
    return Fleet({one.id: one for one in modules})


@pytest.mark.parametrize("state", [STARTED, BACKOFF, FAILED, LASTING])
def test_a_module_that_runs_or_has_failed_holds_up_no_start(state: State) -> None:
    assert service.unsettled(fleet(module("a/b", state))) == []


@pytest.mark.parametrize("state", [STARTING, WAITING])
def test_a_module_on_its_way_is_waited_for(state: State) -> None:
    assert service.unsettled(fleet(module("a/b", state))) == ["a/b"]


def test_a_second_attempt_is_not_waited_for() -> None:
    assert service.unsettled(fleet(module("a/b", STARTING, history=BEFORE))) == []


def test_every_replica_counts_those_that_are_not_there_yet_too() -> None:
    assert service.unsettled(fleet(module("a/b", STARTED, STARTING))) == ["a/b"]
    assert service.unsettled(fleet(module("a/b"))) == ["a/b"]


def test_what_nobody_wants_is_not_waited_for() -> None:
    assert service.unsettled(fleet(module("a/b", STARTING, wanted=False))) == []


def test_who_waits_for_one_that_backs_off_is_not_waited_for_nor_is_who_waits_for_him() -> None:
    assert (
        service.unsettled(
            fleet(
                module("a/first", BACKOFF),
                module("a/second", WAITING, requires=["a/first"]),
                module("a/third", WAITING, requires=["a/second"]),
            )
        )
        == []
    )


def test_who_waits_for_one_that_is_starting_is_waited_for() -> None:
    started = fleet(module("a/first", STARTING), module("a/second", WAITING, requires=["a/first"]))
    assert service.unsettled(started) == ["a/first", "a/second"]


def test_patience_reaches_beyond_the_last_deadline_of_what_moves() -> None:
    moving = fleet(module("a/b", STARTING), module("a/c", STOPPING), module("a/d", BACKOFF))
    assert service.patience_s(moving, NOW) == 30 + service.MARGIN_S
    assert service.patience_s(fleet(module("a/b", STARTED)), NOW) is None


def test_the_line_names_what_is_not_well() -> None:
    assert (
        service.line(fleet(module("a/b", STARTED), module("a/c", FAILED)))
        == "1/2 modules healthy, a/c failed"
    )
    assert service.line(fleet(module("a/b", STARTED))) == "1/1 module healthy"
    assert service.line(fleet()) == "0/0 modules healthy"


def test_the_line_names_three_and_counts_the_rest() -> None:
    many = fleet(*(module(f"a/{name}", BACKOFF) for name in "bcdef"))
    assert service.line(many) == "0/5 modules healthy, a/b backoff, a/c backoff, a/d backoff, 2 more"


def test_an_invalid_module_is_named_and_not_counted() -> None:
    broken = Module("a/x", "/m", None, 0.0)
    assert service.line(fleet(module("a/b", STARTED), broken)) == "1/1 module healthy, a/x invalid"


def test_the_lines_of_start_and_stop_say_who_is_waited_for() -> None:
    assert service.starting_line(fleet(module("a/b", STARTING))) == "starting: waiting for a/b"
    assert service.stopping_line(fleet(module("a/b", STOPPING))) == "stopping: a/b still to end"
    assert service.stopping_line(fleet()) == "stopping"
