"""What the real daemon answers: the fields and types of the contract with AEON, and the table of methods."""

from __future__ import annotations

import os
import signal
from typing import Any

from tests.e2e.programs import SLEEPER
from tests.running_nexus import Fifo, Nexus

# The responses of the contract, as its text has them; a value stands for its type.
STATUS = {
    "running": True,
    "level": "level-20-enterprise",
    "uptime_seconds": 3600.5,
    "security": {"principal": "admin@company.com", "roles": ["admin"]},
    "features": {"cluster": True, "tracing": True, "compliance": False},
    "modules": {"total_discovered": 15, "total_loaded": 15, "by_state": {"started": 14, "stopped": 1}},
    "health": {"statistics": {"total": 15, "healthy": 14, "degraded": 1, "unhealthy": 0}},
}
LIVENESS = {"live": True, "timestamp": 1735689600.123, "daemon_running": True}
READINESS = {
    "ready": True,
    "timestamp": 1735689600.456,
    "details": {"total_modules": 15, "healthy_modules": 14, "unhealthy_modules": 0, "health_ratio": 0.93},
}
METHODS = {
    *("get_status", "check_liveness", "check_readiness", "check_critical_modules", "whoami", "rpc.discover"),
    *("start_module", "stop_module", "restart_module", "reload_module", "configure", "get_config"),
    *("scale_module", "trigger_healing", "unset_config"),
    *("get_logs", "subscribe_events", "get_history", "reload_daemon", "reexec", "shutdown", "get_metrics"),
    *("get_audit", "verify_audit"),
    *("trigger_chaos", "abort_chaos", "list_chaos", "get_chaos"),
}


def test_status_and_checks_have_the_contracts_fields_and_types(nexus: Nexus) -> None:
    nexus.add_program("a/fine", SLEEPER, "critical = true\n")
    nexus.add_program("a/stopped", SLEEPER)
    nexus.add_program("a/invalid", SLEEPER, "replicas = -1\n")
    nexus.start().until_state("a/fine", "started")
    nexus.call("stop_module", module_id="a/stopped")

    status = nexus.status()
    assert _lacks(STATUS, status) == []
    assert (status["modules"]["total_discovered"], status["modules"]["total_loaded"]) == (3, 2)
    assert status["modules"]["by_state"] == {"invalid": 1, "started": 1, "stopped": 1}
    assert status["health"]["statistics"] == {"total": 2, "healthy": 1, "degraded": 1, "unhealthy": 0}
    assert nexus.status("a/invalid")["faults"][0]["key"] == "replicas"

    assert _lacks(LIVENESS, nexus.call("check_liveness")) == []
    readiness = nexus.call("check_readiness")
    assert _lacks(READINESS, readiness) == []
    assert (readiness["ready"], readiness["details"]["health_ratio"]) == (True, 0.5)
    assert nexus.call("check_critical_modules")["modules"] == {"a/fine": "healthy"}


def _lacks(example: Any, found: Any, place: str = "") -> list[str]:
    """Where a field of the example is missing or of another type; more fields are allowed."""
    if type(example) is not type(found):
        return [f"{place} is {found!r}"]
    if not isinstance(example, dict) or place == ".modules.by_state":
        return []
    missing = [f"{place}.{name} is missing" for name in example.keys() - found.keys()]
    inner = (_lacks(example[name], found[name], f"{place}.{name}") for name in example.keys() & found.keys())
    return missing + [one for some in inner for one in some]


def test_the_daemon_describes_every_method_it_has(nexus: Nexus) -> None:
    document = nexus.start().call("rpc.discover")
    described = {method["name"]: method for method in document["methods"]}
    assert described.keys() == METHODS
    assert described["start_module"]["params"][0]["name"] == "module_id"
    assert all(method["summary"] for method in described.values())


# Rings with its pid when it starts, and with what a SIGHUP finds.
HEARS = """#!/bin/sh
trap 'echo "hup $$" >> "$BELL"' HUP
trap 'exit 0' TERM
echo "begun $$" >> "$BELL"
while :; do sleep 1000 & wait $!; done
"""


def test_a_reload_by_signal_keeps_the_process_and_an_immediate_one_replaces_it(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.add_program("a/one", HEARS)
    nexus.start()
    begun = nexus.bell.hear()
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    assert begun == f"begun {pid}"

    answer = nexus.call("reload_module", module_id="a/one", strategy="signal")
    assert (answer["reloaded"], answer["strategy"], answer["generation"]) == (True, "signal", 1)
    assert nexus.bell.hear() == f"hup {pid}"

    nexus.add_program("a/one", HEARS + "# newer\n")
    answer = nexus.call("reload_module", module_id="a/one", strategy="immediate")
    assert (answer["reloaded"], answer["generation"], answer["changed"]) == (True, 2, True)
    assert nexus.bell.hear() == f"begun {nexus.pid_of('a/one')}"
    assert nexus.replica("a/one")["last_exit"] is None
    assert nexus.pid_of("a/one") != pid


def test_sighup_has_the_daemon_find_what_is_new(nexus: Nexus) -> None:
    nexus.start()
    with nexus.events() as events:
        nexus.add_program("a/one", SLEEPER)
        os.kill(nexus.pid, signal.SIGHUP)
        events.find(lambda event: event["kind"] == "daemon.reloaded")
    nexus.until_state("a/one", "started")
