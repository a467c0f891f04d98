"""nexusd under a real systemd: installed, started, asked, reloaded, stopped."""

from __future__ import annotations

import re
import sys
import time

import pytest

from nexusctl.unreachable import Unreachable
from tests.systemd.booted import Machine
from tests.systemd.service import NEXUSCTL, SOCKET, UNIT, Service

# Ignores SIGTERM, and has a child in a session of its own and one that was forked twice.
TENACIOUS = """#!/bin/sh
trap '' TERM
setsid sleep 100001 &
(setsid sh -c 'trap "" TERM; sleep 100002; sleep 100003' &)
while :; do sleep 100004; done
"""
TOLD = ("WATCHDOG_", "LISTEN_", "JOURNAL_", "INVOCATION_", "SYSTEMD_")
QUICK_STOP = '[stop]\ntimeout = "300ms"\n'


def test_the_system_is_booted_in_time(machine: Machine) -> None:
    assert machine.boot_s < 15


@pytest.mark.parametrize("drop_in", [(), ("--unprivileged",)])
def test_systemd_finds_no_fault_in_the_units(
    machine: Machine, service: Service, drop_in: tuple[str, ...]
) -> None:
    machine.run(NEXUSCTL, "systemd", "install", *drop_in)
    for unit in (UNIT, "nexusd.socket", "nexusd-sweep.service", "nexus-health.service", "nexus-health.timer"):
        ran = machine.try_run("systemd-analyze", "verify", "--man=no", f"/etc/systemd/system/{unit}")
        assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


@pytest.mark.parametrize(("drop_in", "most"), [((), 5.0), (("--unprivileged",), 2.5)])
def test_the_unit_is_exposed_no_further_than_need_be(
    machine: Machine,
    service: Service,
    drop_in: tuple[str, ...],
    most: float,
    capsys: pytest.CaptureFixture[str],
) -> None:
    machine.run(NEXUSCTL, "systemd", "install", *drop_in)
    told = machine.run("systemd-analyze", "security", "--no-pager", UNIT).splitlines()[-1]
    with capsys.disabled():
        sys.stdout.write(f"\n{' '.join(drop_in) or 'as root'}: {told}\n")
    (score,) = re.findall(r"(\d+\.\d+)", told)
    assert float(score) <= most


def test_a_started_service_is_active_and_says_how_its_modules_are(service: Service) -> None:
    service.module("a/one")
    service.module("a/two")
    service.start()
    assert service.machine.shown(UNIT, "ActiveState") == "active"
    assert service.machine.shown(UNIT, "StatusText") == "2/2 modules healthy"
    assert "2/2 modules healthy" in service.systemctl("status", UNIT)
    assert service.main_pid == service.status()["pid"]


def test_a_module_that_fails_holds_up_no_start_and_is_named(service: Service) -> None:
    service.module("a/good")
    service.module("a/flaky", "#!/bin/sh\nexit 7\n", "[restart]\npolicy = 'never'\n", ready="notify")
    service.module("a/needy", manifest="requires = ['a/flaky']\n")
    service.start()
    expected = "1/3 modules healthy, a/flaky failed, a/needy failed"
    service.machine.await_("all are judged", lambda: service.machine.shown(UNIT, "StatusText") == expected)


def test_nexusd_is_ready_when_its_slow_module_is_however_short_the_time_to_start(service: Service) -> None:
    service.drop_in("[Service]\nTimeoutStartSec=3s\n")
    slow = "#!/bin/sh\nsleep 4\nsystemd-notify --ready\nexec sleep 100000\n"
    service.module("a/slow", slow, ready="notify")
    service.start()
    assert service.machine.shown(UNIT, "StatusText") == "1/1 module healthy"


def test_a_reload_finds_new_modules_and_leaves_the_service_active(service: Service) -> None:
    service.module("a/one")
    service.start()
    pid = service.main_pid
    service.module("a/two")
    service.systemctl("reload", UNIT)
    service.machine.await_active(UNIT)
    service.machine.await_(
        "the new module is counted",
        lambda: service.machine.shown(UNIT, "StatusText") == "2/2 modules healthy",
    )
    assert service.main_pid == pid


@pytest.mark.parametrize("command", ["reload", "systemctl reload"])
def test_systemd_is_told_when_a_reload_began_and_takes_it_for_over_no_sooner_than_nexusd_does(
    service: Service, command: str
) -> None:
    service.module("a/one")
    service.start()
    with service.machine.debugged() as told:
        before_us = time.monotonic_ns() // 1000
        if command == "reload":
            service.nexusctl("reload")
        else:
            service.systemctl("reload", UNIT)
        after_us = time.monotonic_ns() // 1000
        over = "Changed reload -> running"
        service.machine.await_("the reload is over", lambda: over in told(UNIT))
    (began,) = re.findall(r"RELOADING=1, MONOTONIC_USEC=(\d+)", told(UNIT))
    assert before_us <= int(began) <= after_us
    words = ("RELOADING=1", "Changed running -> reload", "(READY=1", over)
    places = [told(UNIT).rindex(word) for word in words]
    if command == "systemctl reload":  # it is systemd that began
        places[:2] = reversed(places[:2])
    assert places == sorted(places), told(UNIT)
    assert service.machine.shown(UNIT, "SubState") == "running"


def test_a_faulty_configuration_fails_the_reload_and_nothing_else(service: Service) -> None:
    service.module("a/one")
    service.start()
    service.configure("[daemonn]\n")
    ran = service.machine.try_run("systemctl", "reload", UNIT)
    assert ran.returncode != 0
    service.machine.await_active(UNIT)
    assert service.status()["pid"] == service.main_pid


def test_a_stop_leaves_no_process_however_it_was_started(service: Service) -> None:
    service.module("a/plain")
    service.module("a/tenacious", TENACIOUS, QUICK_STOP)
    service.start()
    service.machine.await_("all of it runs", lambda: len(service.processes()) >= 7)
    service.systemctl("stop", UNIT)
    assert service.processes() == []
    assert service.machine.try_run("pgrep", "-f", "sleep 10000").stdout == ""
    assert service.machine.shown(UNIT, "Result") == "success"


def test_a_slow_module_is_given_its_time_to_stop_however_short_that_of_the_service(service: Service) -> None:
    service.drop_in("[Service]\nTimeoutStopSec=1s\n")
    slow = "#!/bin/sh\ntrap 'sleep 3; echo >/run/done; exit 0' TERM\nwhile :; do sleep 0.1; done\n"
    service.module("a/slow", slow)
    service.start()
    service.systemctl("stop", UNIT)
    assert service.machine.path("/run/done").exists()
    assert (service.machine.shown(UNIT, "Result"), service.processes()) == ("success", [])


def test_a_stop_of_service_and_socket_leaves_no_socket(service: Service) -> None:
    service.module("a/plain")
    service.start()
    service.systemctl("stop", UNIT, "nexusd.socket")
    assert not service.machine.path(SOCKET).exists()
    ran = service.machine.try_run("sh", "-c", "ss -xl 2>/dev/null | grep nexus; find /run/nexus -type s")
    assert ran.stdout == ""


def test_a_module_sees_nothing_of_what_systemd_told_nexusd(service: Service) -> None:
    service.module(
        "a/curious",
        "#!/bin/sh\nenv >/run/nexus/seen.new\nmv /run/nexus/seen.new /run/seen\nexec sleep 100000\n",
    )
    service.start()
    seen = service.machine.await_("it has looked", lambda: _text(service.machine, "/run/seen"))
    names = {line.partition("=")[0] for line in seen.splitlines()}
    (notify,) = re.findall(r"^NOTIFY_SOCKET=(.*)$", seen, flags=re.MULTILINE)
    assert notify.startswith("/run/nexus/")
    assert not [name for name in names if name.endswith("_DIRECTORY") or name.startswith(TOLD)]


def _text(machine: Machine, path: str) -> str:
    place = machine.path(path)
    return place.read_text() if place.exists() else ""


def test_who_asks_the_socket_first_starts_nexusd(service: Service) -> None:
    service.module("a/one")
    service.systemctl("start", "nexusd.socket")
    assert service.status()["pid"] == service.main_pid


def test_a_shutdown_is_not_undone(service: Service) -> None:
    service.module("a/one")
    service.start()
    service.nexusctl("shutdown")
    service.machine.await_active(UNIT, "inactive")
    assert service.processes() == []


def test_the_socket_is_for_root_and_the_group_and_user_and_folders_are_made(service: Service) -> None:
    run = service.machine.run
    run("rm", "-rf", "/etc/nexus")
    run(NEXUSCTL, "systemd", "install")
    assert run("id", "-un", "nexus") == "nexus"
    assert run("stat", "-c", "%U %a", "/etc/nexus/modules") == "root 755"
    service.configure("")
    service.module("a/one")
    service.start()
    assert run("stat", "-c", "%U:%G %a", SOCKET) == "root:nexus 660"
    asked = ("runuser", "-u", "nexus", "--", NEXUSCTL, "status")
    assert "a/one" in run(*asked)
    assert service.machine.try_run("runuser", "-u", "nobody", *asked[3:]).returncode == 77


def test_the_timer_looks_after_the_health_while_nexusd_is_wanted(service: Service) -> None:
    service.module("a/one")
    service.start()
    service.systemctl("start", "nexus-health.timer")
    shown = service.machine.shown
    assert shown("nexus-health.timer", "Unit") == "nexus-health.service"
    assert shown("nexus-health.timer", "NextElapseUSecMonotonic") not in ("", "0", "infinity")
    service.systemctl("stop", UNIT)
    service.machine.await_active("nexus-health.timer", "inactive")


def test_health_of_the_modules_is_a_unit_that_fails(service: Service) -> None:
    service.module("a/one")
    service.start()
    service.systemctl("start", "nexus-health.service")
    service.nexusctl("stop", "a/one")
    assert service.machine.try_run("systemctl", "start", "nexus-health.service").returncode != 0
    assert "a/one" in service.machine.run("journalctl", "-u", "nexus-health.service", "-n", "5", "-o", "cat")


def test_without_root_the_service_does_the_same_as_far_as_it_can(service: Service) -> None:
    service.machine.run(NEXUSCTL, "systemd", "install", "--unprivileged")
    service.module("a/one", "#!/bin/sh\nid -un >/run/nexus/who\nexec sleep 100000\n")
    service.start()
    assert service.status()["pid"] == service.main_pid
    assert (
        service.machine.await_("it says who it is", lambda: _text(service.machine, "/run/nexus/who"))
        == "nexus\n"
    )
    service.systemctl("reload", UNIT)
    service.systemctl("stop", UNIT)
    assert service.processes() == []


def test_uninstalled_is_what_was_installed(service: Service) -> None:
    service.start()
    service.nexusctl("systemd", "status")
    service.nexusctl("systemd", "uninstall")
    assert service.machine.try_run("systemctl", "cat", UNIT).returncode != 0
    assert not service.machine.path("/etc/sysusers.d/nexus.conf").exists()
    assert service.machine.try_run(NEXUSCTL, "systemd", "status").returncode == 3


def test_nobody_answers_where_neither_service_nor_socket_is_started(service: Service) -> None:
    with pytest.raises(Unreachable):
        service.status()
