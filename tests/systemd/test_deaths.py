"""What happens to nexusd under systemd happens to nexusd alone: its modules keep their processes, its callers wait."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from nexusctl.client import RpcError
from nexusctl.unreachable import Unreachable
from tests.systemd.service import UNIT, Service, Status

QUICK = "[Service]\nWatchdogSec=2s\nTimeoutAbortSec=2s\n"
LEAVES = '[daemon]\non_stop = "leave-modules"\n'


@pytest.fixture
def running(service: Service) -> Service:
    service.drop_in(QUICK)
    service.module("a/one", manifest="replicas = 2\n")
    service.module("a/two")
    return service.start()


def of_nexusd(service: Service) -> None:
    service.kill(service.main_pid)


def of_the_keeper(service: Service) -> None:
    service.kill(service.keeper_pid)


def of_both(service: Service) -> None:
    pids = (service.main_pid, service.keeper_pid)
    service.machine.run("kill", "-9", *pids)


@pytest.mark.parametrize("death", [of_nexusd, of_the_keeper, of_both])
def test_a_sudden_death_changes_no_module(running: Service, death: Callable[[Service], None]) -> None:
    before, began, main = running.replicas(), running.began(), running.main_pid
    death(running)
    if death is not of_the_keeper:
        running.await_other_main(main)
    running.machine.await_active(UNIT)
    running.await_keeper()
    assert running.replicas() == before
    assert running.began() == pytest.approx(began, abs=0.5)
    assert running.copies("sleep 100000") == len(before)


READY = "#!/bin/bash\nsystemd-notify --ready\nexec sleep 100000\n"


@pytest.mark.parametrize("programs", [("nexusd",), ("nexus-keeper",), ("nexusd", "nexus-keeper")])
def test_a_death_in_the_middle_of_a_birth_is_no_restart(service: Service, programs: tuple[str, ...]) -> None:
    """As soon as nexusd has taken the wish: the process is then being made, at its gate, or about to say READY=1."""
    service.module("a/late", READY, manifest="autostart = false\n", ready="notify")
    service.start()
    for _ in range(6):
        doomed = service.processes_named(*programs)
        assert len(doomed) == len(programs)
        service.call("start_module", module_id="a/late", wait=False)
        for pid in doomed:
            os.kill(pid, signal.SIGKILL)
        service.await_keeper()
        service.machine.await_("it is started", lambda: _late(service)["state"] == "started")
        assert _late(service)["restarts"] == 0
        service.machine.await_("it runs once", lambda: service.modules_running() == {"a/late": 1})
        service.call("stop_module", module_id="a/late")
        assert not service.modules_running()


def _late(service: Service) -> Status:
    (late,) = service.read("get_status", module_id="a/late")["instances"]
    found: Status = late
    return found


def test_a_listening_socket_outlives_the_death_of_both(service: Service) -> None:
    """Its last holder is the module itself, from which the next keeper takes it: the hardening must allow that."""
    listening = "replicas = 1\nmax_replicas = 2\n"
    service.module("a/net", manifest=listening, run='listen = ["tcp:127.0.0.1:7801"]')
    service.start()
    of_both(service)
    service.await_keeper()
    service.nexusctl("scale", "a/net", "2")
    pids = [pid for pid, _ in service.replicas().values()]
    sockets = {os.readlink(service.machine.path(f"/proc/{pid}/fd/3")) for pid in pids}
    assert (len(pids), len(sockets)) == (2, 1)


def test_a_second_death_during_the_recovery_changes_no_module(running: Service) -> None:
    before = running.replicas()
    for _ in range(3):
        main = running.main_pid
        running.kill(main)
        running.await_other_main(main)  # begun, and not yet ready
    running.machine.await_active(UNIT)
    assert running.replicas() == before
    assert running.copies("sleep 100000") == len(before)


def test_a_nexusd_that_hangs_is_replaced_by_systemd_and_no_module_notices(running: Service) -> None:
    before, main = running.replicas(), running.main_pid
    begun = time.monotonic()
    running.kill(main, signal.SIGSTOP)
    running.await_other_main(main)
    assert time.monotonic() - begun < 2 + 2 + 5  # the watchdog, its patience with SIGABRT, a busy machine
    running.machine.await_active(UNIT)
    assert running.replicas() == before
    assert "watchdog" in running.machine.journal(200).lower()


def test_a_nexusd_at_work_is_left_alone_by_its_watchdog(running: Service) -> None:
    """Three intervals, with a keeper that is lost in between."""
    main = running.main_pid
    until = time.monotonic() + 6
    running.kill(running.keeper_pid)
    while time.monotonic() < until:
        assert running.status()["pid"] == main
        time.sleep(0.2)
    assert running.main_pid == main


def test_a_nexusd_whose_keepers_die_one_after_the_other_is_left_alone_and_so_are_its_clients(
    running: Service,
) -> None:
    """The pauses before it starts yet another come to be longer than the watchdog's patience."""
    before, main, keeper = running.replicas(), running.main_pid, 0
    with running.client() as client:

        def another() -> int:
            found = client.call("get_status")["keeper"]
            return found["pid"] if found["connected"] and found["pid"] != keeper else 0

        for _ in range(8):
            keeper = running.machine.await_("another keeper is connected", another)
            running.kill(keeper)
        lost = time.monotonic()
        running.machine.await_("another keeper is connected", another)
    assert time.monotonic() - lost > 2
    assert (running.main_pid, running.replicas()) == (main, before)


def test_a_socket_file_that_somebody_removed_is_told_and_nobody_is_killed_for_it(running: Service) -> None:
    main = running.main_pid
    running.machine.run("rm", "/run/nexus.sock")
    told = "the file /run/nexus.sock is gone"
    running.machine.await_("it is told", lambda: told in running.machine.journal())
    until = time.monotonic() + 4  # two intervals
    while time.monotonic() < until:
        assert running.main_pid == main
        time.sleep(0.2)


def test_a_keeper_that_hangs_does_not_pass_for_a_completed_pass(running: Service) -> None:
    """nexusd would replace it after 10 s; here systemd has less patience, and the new nexusd finds it as it is."""
    before, main, keeper = running.replicas(), running.main_pid, running.keeper_pid
    running.kill(keeper, signal.SIGSTOP)
    running.await_other_main(main)
    running.kill(keeper, signal.SIGCONT)
    running.machine.await_active(UNIT)
    assert running.replicas() == before


def test_requests_wait_for_the_next_nexusd(running: Service) -> None:
    main = running.main_pid
    running.kill(main)
    assert running.status()["pid"] not in (0, main)


def test_a_restart_begins_with_fresh_modules_by_default(running: Service) -> None:
    before = running.replicas()
    running.systemctl("restart", UNIT)
    after = running.replicas()
    assert after.keys() == before.keys()
    assert not {pid for pid, _ in before.values()} & {pid for pid, _ in after.values()}
    assert running.copies("sleep 100000") == len(before)


def test_a_restart_leaves_the_modules_where_that_was_chosen(service: Service) -> None:
    service.configure(LEAVES)
    service.module("a/one", manifest="replicas = 2\n")
    before, main, keeper = service.start().replicas(), service.main_pid, service.keeper_pid
    service.systemctl("restart", UNIT)
    assert service.main_pid != main
    assert (service.replicas(), service.keeper_pid) == (before, keeper)
    service.systemctl("stop", UNIT)
    assert service.copies("sleep 100000") == 2
    service.systemctl("start", UNIT)
    assert service.replicas() == before
    service.nexusctl("shutdown")
    service.machine.await_active(UNIT, "inactive")
    assert service.processes() == []


@pytest.mark.parametrize("settings", ["", LEAVES])
def test_callers_that_ask_all_the_time_are_all_answered_over_a_restart(
    service: Service, settings: str
) -> None:
    service.configure(settings)
    service.module("a/one")
    first = service.start().main_pid
    told: list[int | str] = []
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                told.append(service.status()["pid"])
            except (Unreachable, RpcError) as error:
                told.append(str(error))

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    service.systemctl("restart", UNIT)
    second = service.main_pid
    service.machine.await_("the new one answers them", lambda: told[-1] == second)
    over.set()
    for caller in callers:
        caller.join()
    assert set(told) == {first, second}


FORKS = "#!/bin/sh\nsetsid sleep 100001 &\nexec sleep 100000\n"


def hangs(service: Service) -> None:
    service.kill(service.main_pid, signal.SIGSTOP)


def is_dead(service: Service) -> None:
    of_nexusd(service)
    service.machine.await_active(UNIT, "activating")  # waits to be started again


def is_dead_with_its_keeper(service: Service) -> None:
    of_both(service)
    service.machine.await_active(UNIT, "activating")


@pytest.mark.parametrize("trouble", [hangs, is_dead, is_dead_with_its_keeper])
def test_a_stop_leaves_no_process_when_nexusd_cannot_see_to_it(
    service: Service, trouble: Callable[[Service], None]
) -> None:
    service.drop_in("[Service]\nTimeoutStopSec=1s\nRestartSec=1h\n")
    service.module("a/one", FORKS, manifest="replicas = 2\n")
    service.start()
    trouble(service)
    service.systemctl("stop", UNIT)
    service.machine.await_("nothing is left", lambda: service.processes() == [])
    assert service.machine.try_run("pgrep", "-f", "sleep 10000").stdout == ""
    service.machine.await_active("nexusd-sweep.service", "inactive")
    assert len(service.start().replicas()) == 2


def test_what_is_to_be_left_is_left_also_by_a_nexusd_that_hangs(service: Service) -> None:
    service.configure(LEAVES)
    service.drop_in("[Service]\nTimeoutStopSec=1s\n")
    service.module("a/one")
    before = service.start().replicas()
    hangs(service)
    service.systemctl("stop", UNIT)
    service.machine.await_active("nexusd-sweep.service", "inactive")
    assert service.start().replicas() == before


def test_a_faulty_configuration_that_keeps_nexusd_from_coming_back_costs_no_module(service: Service) -> None:
    service.module("a/one")
    before = service.start().replicas()
    service.configure("[daemonn]\n")
    of_nexusd(service)
    service.machine.await_active(UNIT, "failed")
    service.machine.await_(
        "the sweep is over",
        lambda: (
            "inactive" in service.machine.try_run("systemctl", "is-active", "nexusd-sweep.service").stdout
            or "failed" in service.machine.try_run("systemctl", "is-active", "nexusd-sweep.service").stdout
        ),
    )
    assert service.copies("sleep 100000") == 1
    service.configure("")
    assert service.start().replicas() == before


def test_systemd_holds_three_descriptors_of_each_replica_and_lets_them_go_with_it(service: Service) -> None:
    def await_held(count: str) -> None:
        machine = service.machine
        machine.await_(f"{count} are held", lambda: machine.shown(UNIT, "NFileDescriptorStore") == count)

    service.module("a/one", manifest="replicas = 2\n")
    service.start()
    await_held("6")
    of_both(service)
    service.await_keeper()
    service.nexusctl("restart", "a/one#0")
    await_held("6")
    service.nexusctl("stop", "a/one")
    await_held("0")
