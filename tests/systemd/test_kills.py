"""A hundred deaths at random moments, under load, and nothing of it reaches a module: docs/reliability.md shows it."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable

import pytest

from tests.systemd.population import SCENES, Population
from tests.systemd.reliability import DOCUMENT, Asker, Faults, claims, table, write
from tests.systemd.service import SOCKET, UNIT, Service

SETTINGS = '[daemon]\non_stop = "leave-modules"\n'
QUICK = "[Service]\nWatchdogSec=3s\nTimeoutAbortSec=2s\n"
WITHIN_S = 0.25  # what is under way in a scene is over by then
GO_ON = "modules go on, requests wait"


class Killer:
    """Each fault ends when nexusd and its keeper are there again, and of whom it was meant to replace nobody is."""

    def __init__(self, service: Service, chance: random.Random) -> None:
        self._service = service
        self._chance = chance

    def nexusd(self) -> None:
        self._kill(self._pids()[0])

    def keeper(self) -> None:
        self._kill(self._pids()[1])

    def both(self) -> None:
        self._kill(*self._pids())

    def again(self) -> None:
        """nexusd, and the next one somewhere on its way up."""
        former = self._pids()[0]
        self._kill(former)
        self._service.await_other_main(former)
        time.sleep(self._chance.uniform(0, 0.6))
        self._kill(self._service.main_pid)

    def hang(self) -> None:
        former = self._pids()[0]
        self._kill(former, number=signal.SIGSTOP)
        self._service.await_other_main(former)

    def restart(self) -> None:
        self._service.systemctl("restart", UNIT)

    def _kill(self, *pids: int, number: int = signal.SIGKILL) -> None:
        self._service.machine.try_run("kill", f"-{number}", *pids)

    def _pids(self) -> tuple[int, int]:
        status = self._service.read("get_status")
        return status["pid"], status["keeper"]["pid"]


def planned(killer: Killer) -> list[tuple[Faults, Callable[[], None], int]]:
    """Kinds of faults, and how many of each: as many for every scene."""
    return [
        (Faults("SIGKILL of nexusd", GO_ON), killer.nexusd, 6),
        (Faults("SIGKILL of the keeper", "modules and API go on"), killer.keeper, 10),
        (Faults("SIGKILL of both at once", GO_ON), killer.both, 5),
        (Faults("SIGKILL of nexusd, and again while it comes back", GO_ON), killer.again, 1),
        (Faults("nexusd hangs, killed by the watchdog (here after 3 s)", GO_ON), killer.hang, 1),
        (Faults("`systemctl restart` with `leave-modules`", GO_ON), killer.restart, 2),
    ]


def test_a_hundred_deaths_cost_no_module_its_process_no_line_and_no_request(
    service: Service, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = int(os.environ.get("NEXUS_TEST_SEED", random.randrange(1_000_000)))
    with capsys.disabled():
        sys.stdout.write(f"\nNEXUS_TEST_SEED={seed}\n")
    chance = random.Random(seed)
    service.configure(SETTINGS)
    service.drop_in(QUICK)
    population = Population(service)
    service.start()
    population.settled()
    plan = planned(Killer(service, chance))
    strikes = [(faults, strike, scene) for faults, strike, count in plan for scene in SCENES * count]
    chance.shuffle(strikes)
    with Asker(service.machine.path(SOCKET)) as asker:
        for faults, strike, scene in strikes:
            begun = time.monotonic()
            population.begin(scene)
            time.sleep(chance.uniform(0, WITHIN_S))
            strike()
            service.await_keeper()
            population.end(scene)
            faults.scenes.append(scene)
            faults.waits_s.append(asker.longest_since(begun))
            population.restore(scene)
    restarted = population.restarts()
    service.nexusctl("shutdown")
    service.machine.await_active(UNIT, "inactive")
    lost = population.lines_lost()
    measured = table(faults.row(restarted, lost) for faults, _, _ in plan)
    with capsys.disabled():
        sys.stdout.write(f"{len(asker.waits)} requests, none failed\n{measured}")
    assert asker.failures == []
    assert (restarted, lost) == (0, 0)
    assert service.processes() == []
    assert len(strikes) >= 100
    if pytestconfig.getoption("write_reliability"):
        write(measured)
    assert claims(DOCUMENT.read_text()) == claims(measured)
