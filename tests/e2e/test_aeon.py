"""AEON's functions against a real daemon, over its socket and in its own process: the same results, up and down."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.aeon_calls import Beside, Calls, Raised, start_inside
from tests.e2e.programs import SLEEPER
from tests.running_nexus import BOUND_S, Nexus

VOLATILE = {"timestamp", "uptime_seconds", "since", "at", "subscription"}
CONFIG = """critical = true
[config.interval_ms]
type = "int"
default = 1000
min = 100
"""


@pytest.fixture
def fleet(nexus: Nexus) -> Nexus:
    nexus.add_program("a/critical", SLEEPER, CONFIG)
    nexus.add_program("a/other", SLEEPER)
    nexus.add_program("a/invalid", SLEEPER, "replicas = -1\n")
    return nexus


@pytest.fixture(params=["socket", "inside"])
def calls(request: pytest.FixtureRequest, fleet: Nexus) -> Iterator[Calls]:
    if request.param == "inside":
        inside = start_inside(fleet)
        fleet.until_state("a/critical", "started")
        fleet.until_state("a/other", "started")
        yield inside
        inside.close()
        return
    fleet.start()
    fleet.until_state("a/critical", "started")
    fleet.until_state("a/other", "started")
    with Beside(fleet) as beside:
        yield beside


def settled(value: Any) -> Any:
    """Without what differs from one moment to the next."""
    if isinstance(value, dict):
        return {key: settled(one) for key, one in value.items() if key not in VOLATILE}
    return [settled(one) for one in value] if isinstance(value, list) else value


def outcome(calls: Calls, name: str, *args: Any) -> Any:
    try:
        return settled(calls(name, *args))
    except Raised as raised:
        return raised.classes, str(raised)


QUESTIONS: list[tuple[Any, ...]] = [
    ("get_status",),
    ("get_status", "a/critical"),
    ("get_status", "a/invalid"),
    ("get_status", "a/criticla"),
    ("get_status_now",),
    ("StatusInterface.get_status",),
    ("StatusInterface.get_module_status", "a/other"),
    ("StatusInterface.get_capability_level",),
    ("StatusInterface.get_features",),
    ("check_liveness",),
    ("check_readiness",),
    ("check_critical_modules",),
    ("check_readiness_now",),
    ("LivenessProbe.check_liveness",),
    ("LivenessProbe.check_critical_modules",),
    ("execute_command", "get_config", {"module_id": "a/critical"}),
    ("execute_command", "configure", {"module_id": "a/critical", "key": "interval_ms", "value": "long"}),
    ("execute_command", "configure", {"module_id": "a/critical", "key": "interval_ms", "value": 200}),
    (
        "execute_command",
        "configure",
        {"module_id": "a/critical", "key": "interval_ms", "value": float("nan")},
    ),
    ("execute_command", "start_module", {"module_id": "a/other"}),
    ("execute_command", "start_module", {"module_id": "no/such"}),
    ("execute_command", "start_module", {"modul_id": "a/other"}),
    ("execute_command", "stop_module", {"module_id": "a/other", "timeout": "soon"}),
    ("execute_command", "strat_module"),
    ("execute_command", "subscribe_events"),
    ("execute_command", "whoami"),
    ("execute_command", "rpc.discover"),
    ("CommandInterface.execute_command", "get_history", {"limit": 3}),
]


def test_every_call_gives_the_same_in_the_daemons_process_and_over_the_socket(fleet: Nexus) -> None:
    inside = start_inside(fleet)
    fleet.until_state("a/critical", "started")
    fleet.until_state("a/other", "started")
    inside("execute_command", "configure", {"module_id": "a/critical", "key": "interval_ms", "value": 200})
    with Beside(fleet) as beside:
        for question in QUESTIONS:
            assert outcome(inside, *question) == outcome(beside, *question), question
    inside.close()


def test_status_probes_and_commands_answer_as_the_contract_says(calls: Calls) -> None:
    status = calls("get_status")
    assert status["running"] is True
    assert status["health"]["statistics"] == {"total": 2, "healthy": 2, "degraded": 0, "unhealthy": 0}
    assert calls("get_status", "a/critical")["state"] == "started"
    assert calls("check_liveness").items() >= {"live": True, "daemon_running": True}.items()
    assert calls("check_readiness")["ready"] is True
    assert calls("check_critical_modules")["modules"] == {"a/critical": "healthy"}
    assert calls("StatusInterface.get_features") == {"cluster": False, "tracing": False, "compliance": False}
    assert calls("StatusInterface.get_capability_level") == "level-14.5-basic"
    stopped = calls("execute_command", "stop_module", {"module_id": "a/other"})
    assert (stopped["success"], stopped["result"]["stopped"]) == (True, True)


def test_a_failed_command_says_why_and_a_refused_value_names_itself(calls: Calls) -> None:
    failed = calls("execute_command", "start_module", {"module_id": "a/ohter"})
    assert (failed["success"], failed["error"], failed["code"]) == (False, "no such module: a/ohter", -32002)
    assert failed["data"]["hint"] == "did you mean a/other?"
    value = {"module_id": "a/critical", "key": "interval_ms", "value": 1}
    assert "100" in calls("execute_command", "configure", value)["error"]
    assert "no method 'strat_module'" in calls("execute_command", "strat_module")["error"]
    with pytest.raises(Raised, match="no such module: a/ohter"):
        calls("get_status", "a/ohter")


def test_a_subscription_of_one_call_ends_with_it(calls: Calls) -> None:
    for _ in range(3):
        assert calls("execute_command", "subscribe_events")["success"] is True
    assert calls("execute_command", "stop_module", {"module_id": "a/other"})["success"] is True


@pytest.mark.parametrize("mode", ["socket", "inside"])
def test_what_the_security_context_lacks_raises_permission_error(fleet: Nexus, mode: str) -> None:
    fleet.environment["CONTEXT"] = json.dumps(
        {"principal": "aeon-orchestrator", "roles": ["aeon"], "permissions": ["module.start"]}
    )
    inside = start_inside(fleet)
    fleet.until_state("a/other", "started")
    with Beside(fleet) as beside:
        calls = inside if mode == "inside" else beside
        assert calls("execute_command", "start_module", {"module_id": "a/other"})["success"] is True
        for name in ("execute_command", "execute_command_now", "CommandInterface.execute_command"):
            if mode == "inside" and name == "execute_command_now":
                continue  # a command that takes a while: the test below
            with pytest.raises(Raised, match=r"does not hold module\.stop") as refused:
                calls(name, "stop_module", {"module_id": "a/other"})
            assert "PermissionError" in refused.value.classes
        assert calls("get_status")["security"] == {"principal": "aeon-orchestrator", "roles": ["aeon"]}
    inside.close()


def test_commands_stand_in_the_audit_log_whichever_way_they_came(calls: Calls) -> None:
    calls("execute_command", "stop_module", {"module_id": "a/other"})
    calls("execute_command", "start_module", {"module_id": "no/such"})
    records = calls("execute_command", "get_audit", {"limit": 10})["result"]["records"]
    told = [(one["method"], one["outcome"]) for one in records]
    assert ("stop_module", "ok") in told
    assert ("start_module", "error") in told


def test_a_command_without_await_in_the_daemons_own_thread_is_refused_instead_of_hanging(
    fleet: Nexus,
) -> None:
    inside = start_inside(fleet)
    with pytest.raises(Raised, match="await it") as refused:
        inside("execute_command_now", "stop_module", {"module_id": "a/other"})
    assert refused.value.classes[0] == "RuntimeError"
    inside.close()


def test_a_daemon_that_was_killed_is_an_ordinary_answer_until_the_next_one_is_up(fleet: Nexus) -> None:
    fleet.start()
    fleet.until_state("a/critical", "started")
    fleet.until_state("a/other", "started")
    with Beside(fleet) as calls:
        known = calls("get_status")
        fleet.kill()

        live = calls("check_liveness")
        assert (live["live"], live["daemon_running"]) == (False, False)
        assert "left over" in live["error"]
        assert calls("check_readiness")["ready"] is False
        assert calls("check_critical_modules")["healthy"] is False
        down = calls("get_status")
        assert (down["running"], "left over" in down["error"]) == (False, True)
        assert down["modules"]["by_state"] == known["modules"]["by_state"]
        assert down["health"]["statistics"] == {"total": 2, "healthy": 0, "degraded": 0, "unhealthy": 2}
        assert {row["health"] for row in down["modules"]["items"]} == {"unhealthy"}
        module = calls("get_status", "a/other")
        assert (module["state"], module["health"], module["running"]) == ("unknown", "unhealthy", False)
        failed = calls("execute_command", "start_module", {"module_id": "a/other"})
        assert (failed["success"], "left over" in failed["error"]) == (False, True)

        fleet.start()
        assert calls("get_status")["running"] is True
        assert calls("get_status")["pid"] != known["pid"]
        assert calls("check_readiness")["ready"] is True


def test_a_daemon_that_was_never_heard_of_has_a_status_that_can_be_divided_by(nexus: Nexus) -> None:
    with Beside(nexus) as calls:
        status = calls("get_status")
        figures = status["health"]["statistics"]
        assert (status["running"], figures["unhealthy"] / figures["total"]) == (False, 1.0)
        assert calls("StatusInterface.get_capability_level") == "level-14.5-basic"


def test_an_attached_daemon_is_told_of_before_its_start_after_its_end_and_anew(fleet: Nexus) -> None:
    calls = start_inside(fleet)
    calls("@down")
    live = calls("check_liveness")
    assert (live["live"], live["daemon_running"], live["error"]) == (
        False,
        False,
        "no daemon: nexusd has shut down",
    )
    assert calls("get_status")["running"] is False
    assert calls("execute_command", "start_module", {"module_id": "a/other"})["success"] is False

    calls("@up", False)  # init_interfaces comes between initialize and start
    live = calls("check_liveness", timeout=BOUND_S)  # the first call makes the API, which takes a moment
    assert (live["live"], live["daemon_running"]) == (True, False)
    assert calls("get_status")["running"] is False
    assert calls("check_liveness_now")["live"] is True
    calls("@go_on")
    assert calls("check_liveness").items() >= {"live": True, "daemon_running": True}.items()
    calls.close()


def test_a_daemon_that_hangs_is_not_live_in_time(fleet: Nexus) -> None:
    fleet.start()
    with Beside(fleet) as calls:
        os.kill(fleet.pid, signal.SIGSTOP)
        try:
            live = calls("check_liveness", timeout=0.2)
            assert (live["live"], live["daemon_running"]) == (False, True)
            assert "not answered within 0.2 s" in live["error"]
            assert calls("check_readiness_now", timeout=0.2)["ready"] is False
            failed = calls("execute_command", "stop_module", {"module_id": "a/other"}, timeout=0.2)
            assert "not answered within 0.2 s" in failed["error"]
        finally:
            os.kill(fleet.pid, signal.SIGCONT)
