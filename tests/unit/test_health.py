"""From states to healthy, degraded, unhealthy; and to readiness."""

import pytest
from msgspec.structs import replace

from nexusd.domain import health
from nexusd.domain.health import Health, Statistics
from nexusd.domain.manifest import Fault
from nexusd.domain.module import Module
from nexusd.domain.replica import Backoff, Failed, Replica, Started, Starting, State, Stopping, Stuck, Waiting
from tests.fakes import module

RUNNING = Started("run 1", 1)
FAILED = Failed()


def with_replicas(*states: State, module_id: str = "vitals/one", **manifest: object) -> Module:
    replicas = tuple(
        Replica(module_id, index, 1, 0.0, wanted=True, state=state, reason="exit status 1")
        for index, state in enumerate(states)
    )
    one = module(module_id, **manifest)
    return replace(one, wanted=True, asked=True, count=len(states), replicas=replicas)


INVALID = replace(
    module("vitals/broken"), definition=None, faults=(Fault("module.toml", "run", "one", "none"),)
)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (with_replicas(RUNNING), ("healthy", ())),
        (with_replicas(), ("degraded", ("stopped: scaled to 0 replicas",))),
        (with_replicas(Starting("run 1", 9.0)), ("degraded", ("starting: exit status 1",))),
        (with_replicas(Waiting("waits for a/b")), ("degraded", ("starting: waits for a/b",))),
        (with_replicas(Stopping("run 1", 1, 9.0)), ("degraded", ("stopping: exit status 1",))),
        (with_replicas(Backoff(9.0)), ("unhealthy", ("backoff: exit status 1",))),
        (with_replicas(FAILED), ("unhealthy", ("failed: exit status 1",))),
        (with_replicas(Stuck("run 1", 1)), ("unhealthy", ("failed: exit status 1",))),
        (with_replicas(Waiting("requires a/b", True)), ("unhealthy", ("failed: requires a/b",))),
        (with_replicas(RUNNING, FAILED), ("degraded", ("failed: exit status 1",))),
        (with_replicas(RUNNING, Backoff(9.0)), ("degraded", ("backoff: exit status 1",))),
        (replace(module(), asked=True), ("degraded", ("stopped",))),
        (module(), ("healthy", ("loaded: nobody has asked it to run",))),
        (module(critical=True), ("degraded", ("loaded: it is critical, and nobody has started it",))),
        (INVALID, ("unhealthy", ("invalid: 1 fault in its manifest",))),
    ],
)  # fmt: skip
def test_health_follows_from_the_state_and_says_why(one, expected):
    assert health.health_of(one) == expected


def test_the_specifications_example_counts_fourteen_healthy_and_one_degraded():
    fleet = [with_replicas(RUNNING) for _ in range(14)] + [replace(module(), asked=True)]
    assert health.statistics(fleet) == Statistics(15, 14, 1, 0)
    told = health.readiness(fleet)
    assert (told.ready, told.ratio, told.reasons) == (True, 0.93, ())


def test_what_is_invalid_is_discovered_and_not_counted():
    assert health.statistics([with_replicas(RUNNING), INVALID]) == Statistics(1, 1, 0, 0)
    assert health.readiness([with_replicas(RUNNING), INVALID]).ready


@pytest.mark.parametrize(("unhealthy", "ready"), [(0, True), (1, True), (2, True), (3, False), (10, False)])
def test_one_module_in_five_may_be_unhealthy(unhealthy, ready):
    fleet = [with_replicas(FAILED)] * unhealthy + [with_replicas(RUNNING)] * (10 - unhealthy)
    told = health.readiness(fleet)
    assert (told.ready, told.ratio) == (ready, (10 - unhealthy) / 10)
    assert told.reasons == (() if ready else (f"{unhealthy} of 10 modules are unhealthy",))


@pytest.mark.parametrize("state", [FAILED, Starting("run 1", 9.0)])
def test_every_critical_module_has_to_be_healthy(state):
    fleet = [with_replicas(RUNNING)] * 9 + [with_replicas(state, module_id="vitals/heart", critical=True)]
    told = health.readiness(fleet)
    assert not told.ready
    assert told.reasons == (f"critical module vitals/heart is {health.health_of(fleet[-1])[0]}",)
    assert [one.id for one in health.critical(fleet)] == ["vitals/heart"]


@pytest.mark.parametrize(("allowed", "ready"), [(0.0, False), (0.29, False), (0.3, True), (1.0, True)])
def test_how_many_may_be_unhealthy_can_be_said(allowed, ready):
    fleet = [with_replicas(FAILED)] * 3 + [with_replicas(RUNNING)] * 7
    assert health.readiness(fleet, allowed).ready is ready


def test_what_nobody_asked_to_run_is_counted_among_the_healthy_and_the_sum_is_the_total():
    fleet = [with_replicas(RUNNING), module("a/idle"), replace(module("a/two"), asked=True)]
    assert health.statistics(fleet) == Statistics(3, 2, 1, 0)


def test_without_modules_the_daemon_is_ready():
    told = health.readiness([])
    assert (told.ready, told.reasons, told.ratio) == (True, (), 1.0)


def test_health_is_a_word_on_the_wire():
    assert f"{Health.HEALTHY} {Health.DEGRADED} {Health.UNHEALTHY}" == "healthy degraded unhealthy"
