"""nexusctl reexec under systemd: main pid, watchdog and socket stay what they are; a stop afterwards leaves nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from nexusctl.client import RpcError
from nexusctl.unreachable import Unreachable
from tests.systemd.booted import BOUND_S
from tests.systemd.population import SCENES, Population
from tests.systemd.service import NEXUSCTL, UNIT, Service

QUICK = "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=2s\n"
SLOW = "#!/bin/sh\nexec sleep 100000\n"


@pytest.fixture
def upgraded(service: Service) -> Iterator[Service]:
    """Running, with another version installed that has not been put in force."""
    service.drop_in(QUICK)
    service.module("a/one", manifest="replicas = 2\n")
    service.module("a/two")
    service.start()
    version = f"9.{time.monotonic_ns()}"
    service.upgrade(version)
    try:
        yield service
    finally:
        service.downgrade()


def test_another_version_takes_over_with_the_same_main_pid_and_its_watchdog_is_fed(upgraded: Service) -> None:
    service = upgraded
    before, main, keeper = service.replicas(), service.main_pid, service.keeper_pid
    told: list[str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                told.append(service.status()["version"])
            except (Unreachable, RpcError) as error:
                told.append(str(error))

    callers = [threading.Thread(target=ask) for _ in range(2)]
    for caller in callers:
        caller.start()
    said = service.nexusctl("reexec")
    over.set()
    for caller in callers:
        caller.join(BOUND_S)
    assert "reexec: 2.0.0 -> 9." in said
    assert said.endswith("2 modules untouched")
    assert {one.partition(".")[0] for one in told} <= {"2", "9"}
    service.machine.await_active(UNIT)
    assert (service.main_pid, service.status()["pid"], service.keeper_pid) == (main, main, keeper)
    assert service.replicas() == before
    assert f"Main PID: {main}" in service.systemctl("status", UNIT)
    assert "2/2 modules healthy" in service.systemctl("status", UNIT)

    until = time.monotonic() + 5  # more than two intervals of the watchdog
    while time.monotonic() < until:
        assert service.main_pid == main
        time.sleep(0.2)
    service.machine.await_active(UNIT)
    assert service.machine.shown(UNIT, "NRestarts") == "0"

    service.systemctl("stop", UNIT, "nexusd.socket")
    service.machine.await_active(UNIT, "inactive")
    assert service.copies("sleep 100000") == 0
    assert service.processes() == []
    assert not service.machine.path("/run/nexus.sock").exists()


def test_after_it_a_nexusd_that_hangs_is_still_replaced_by_its_watchdog(upgraded: Service) -> None:
    service = upgraded
    service.nexusctl("reexec")
    before, main = service.replicas(), service.main_pid
    service.kill(main, 19)
    service.await_other_main(main)
    service.machine.await_active(UNIT)
    assert service.replicas() == before


def test_after_it_the_death_of_nexusd_and_keeper_both_loses_nothing(service: Service) -> None:
    """systemd has what the former version gave it, and what this one did: lines, words and ends of modules."""
    population = Population(service)
    service.start()
    population.settled()
    version = f"9.{time.monotonic_ns()}"
    service.upgrade(version)
    try:
        service.nexusctl("reexec")
        for scene in SCENES:
            population.begin(scene)
            main = service.main_pid
            service.machine.run("kill", "-9", main, service.keeper_pid)
            service.await_other_main(main)
            service.await_keeper()
            population.end(scene)
            population.restore(scene)
        assert service.read("get_status")["version"] == version
        assert population.restarts() == 0
        service.nexusctl("shutdown")
        service.machine.await_active(UNIT, "inactive")
        assert population.lines_lost() == 0
    finally:
        service.downgrade()


def test_systemd_takes_it_for_a_reload_also_while_a_module_is_starting(service: Service) -> None:
    """READY=1 must come before systemd's patience ends, and does not wait for the module."""
    service.drop_in("[Service]\nTimeoutStartSec=6s\nWatchdogSec=2s\n")
    service.module("a/one")
    service.module("a/late", SLOW, manifest='autostart = false\n[start]\ntimeout = "100s"', ready="notify")
    service.start()
    main = service.main_pid
    service.call("start_module", module_id="a/late", wait=False)
    service.nexusctl("reexec")
    until = time.monotonic() + 8
    while time.monotonic() < until:
        assert (service.main_pid, service.machine.shown(UNIT, "ActiveState")) == (main, "active")
        time.sleep(0.2)


def test_a_version_that_does_not_work_changes_nothing(service: Service) -> None:
    service.module("a/one")
    service.start()
    before, instance = service.replicas(), service.status()["instance"]
    service.upgrade(f"9.{time.monotonic_ns()}", broken="import nosuch\n")
    try:
        ran = service.machine.try_run(NEXUSCTL, "reexec")
    finally:
        service.downgrade()
    assert ran.returncode == 1
    assert "No module named 'nosuch'" in ran.stderr
    assert (service.replicas(), service.status()["instance"]) == (before, instance)
