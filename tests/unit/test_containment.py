"""What the status says of limits and cgroups: of the replicas that run, else of the next one to be born."""

from dataclasses import dataclass, field

import pytest

from nexusd.domain.module import Module
from nexusd.rpc import containment
from tests.fakes import Rehearsal, module

ONE = "mesh/one"
LIMITS = {"memory": "64M", "cpu": 0.5, "tasks": 7, "files": 100}


@dataclass
class FakeContainment:
    """Implements ports.Containment. leaves: by run; limits: what each of them holds."""

    reason: str | None = None
    possible: frozenset[str] = frozenset()
    leaves: dict[str, str] = field(default_factory=dict)
    limits: frozenset[str] = frozenset()

    def leaf_of(self, run: str) -> str | None:
        return self.leaves.get(run)

    def held(self, run: str) -> frozenset[str]:
        return self.limits if run in self.leaves else frozenset()


def running(count: int) -> Module:
    fleet = Rehearsal(module(ONE, limits=LIMITS, replicas=count))
    fleet.want(ONE)
    return fleet.fleet.modules[ONE]


def leaves(one: Module, count: int) -> dict[str, str]:
    return {str(replica.run): f"/leaf/{replica.index}" for replica in one.replicas[:count]}


HOLDERS = {
    "rlimits": (
        FakeContainment("no"),
        {"memory": "rlimits", "cpu": "none", "tasks": "none", "files": "rlimits"},
    ),
    "every controller": (
        FakeContainment(None, frozenset(("memory", "cpu", "tasks"))),
        {"memory": "cgroup", "cpu": "cgroup", "tasks": "cgroup", "files": "rlimits"},
    ),
    "pids alone": (
        FakeContainment(None, frozenset(("tasks",))),
        {"memory": "rlimits", "cpu": "none", "tasks": "cgroup", "files": "rlimits"},
    ),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_of_a_module_that_does_not_run_it_tells_what_would_hold(name: str) -> None:
    held_by, by = HOLDERS[name]
    told = containment.limits(module(ONE, limits=LIMITS), held_by)
    assert told["by"] == by
    assert told["not_enforced"] == [limit for limit, holder in by.items() if holder == "none"]
    assert told["enforced_by"] == ("cgroup" if "cgroup" in by.values() else "rlimits")
    assert (told["memory"], told["files"]) == (64 << 20, 100)


def test_no_limits_are_enforced_by_nobody() -> None:
    told = containment.limits(module(ONE), FakeContainment())
    assert told == {"enforced_by": "none", "by": {}, "not_enforced": []}


def test_one_replica_without_a_leaf_and_the_limit_does_not_hold() -> None:
    two = running(2)
    held_by = FakeContainment(None, frozenset(("tasks",)), leaves(two, 1), frozenset(("tasks",)))
    assert containment.limits(two, held_by)["by"]["tasks"] == "none"
    held_by.leaves = leaves(two, 2)
    assert containment.limits(two, held_by)["by"]["tasks"] == "cgroup"


def test_what_the_kernel_does_not_hold_is_not_claimed_though_it_would_be_possible() -> None:
    one = running(1)
    held_by = FakeContainment(None, frozenset(("tasks",)), leaves(one, 1))
    assert containment.limits(one, held_by)["by"]["tasks"] == "none"


def test_old_and_new_replicas_are_told_apart() -> None:
    two, held_by = running(2), FakeContainment()
    assert containment.shown(two, held_by) == {"by": "walk", "reason": "started before cgroups were in force"}
    held_by.leaves = leaves(two, 1)
    assert containment.shown(two, held_by)["by"] == "mixed"
    held_by.leaves = leaves(two, 2)
    assert containment.shown(two, held_by) == {"by": "cgroup", "reason": None}


def test_where_there_are_none_the_reason_is_told() -> None:
    assert containment.shown(running(1), FakeContainment("not delegated")) == {
        "by": "walk",
        "reason": "not delegated",
    }
    assert containment.shown(module(ONE), FakeContainment()) == {"by": "cgroup", "reason": None}
