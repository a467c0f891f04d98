"""nexusd as PID 1 of a PID namespace, as in a container: it reaps what it is handed, works, and ends on SIGTERM."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.e2e.programs import OBEDIENT
from tests.running_nexus import BOUND_S, Fifo, Nexus, ticking

UNSHARE = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]


def _may_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True, timeout=BOUND_S).returncode == 0
    except OSError:
        return False


@pytest.fixture
def container(nexus: Nexus, gate: Fifo) -> Iterator[Nexus]:
    """A nexusd that is PID 1, with a module that rings its pid and obeys."""
    if not _may_unshare():
        pytest.skip("no PID namespace can be made here (unshare --pid)")
    nexus.program = [*UNSHARE, *nexus.program]
    nexus.add_program("a/one", OBEDIENT)
    nexus.start()
    nexus.bell.hear()
    yield nexus
    if nexus.process is not None and nexus.process.poll() is None:
        os.kill(_host_pid(nexus), signal.SIGTERM)
        nexus.wait()


def _host_pid(nexus: Nexus) -> int:
    """nexusd as it is known outside: the child of unshare."""
    with open(f"/proc/{nexus.pid}/task/{nexus.pid}/children") as file:
        return int(file.read())


def _inside(nexus: Nexus, script: str) -> str:
    entered = ["nsenter", f"--target={_host_pid(nexus)}", "--pid", "--mount", "sh", "-c", script]
    return subprocess.run(entered, capture_output=True, text=True, timeout=BOUND_S, check=True).stdout


def _wait_reaped(nexus: Nexus, pid: int) -> None:
    for _ in ticking(BOUND_S, f"{pid} is not reaped"):
        if not _inside(nexus, f"ls -d /proc/{pid} 2> /dev/null || true"):
            return
        select.select([], [], [], 0.01)


def test_it_works_as_anywhere_else(container: Nexus, gate: Fifo) -> None:
    assert container.status()["pid"] == 1
    gate.say("3")
    container.bell.hear()
    status = container.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    assert status["instances"][0]["last_exit"]["code"] == 3
    assert container.ctl("restart", "a/one").returncode == 0


def test_orphans_of_others_are_reaped(container: Nexus) -> None:
    fifo = container.home / "orphan"
    os.mkfifo(fifo)
    orphan = int(_inside(container, f"(cat {fifo} > /dev/null 2>&1 & echo $!)"))
    fifo.write_text("end\n")
    _wait_reaped(container, orphan)
    assert "Z" not in _inside(container, "ps -e -o stat= | cut -c1").split()


def test_the_exit_of_a_replica_is_real_after_its_keeper_was_killed(container: Nexus, gate: Fifo) -> None:
    with container.events() as events:
        _inside(container, f"kill -9 {container.keeper_pid}")
        events.find(lambda event: event["kind"] == "keeper.connected")
    gate.say("7")
    container.bell.hear()
    status = container.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    assert status["instances"][0]["last_exit"]["code"] == 7
    assert "Z" not in _inside(container, "ps -e -o stat= | cut -c1").split()


def test_it_is_replaced_by_reexec_and_stays_pid_one(container: Nexus, gate: Fifo) -> None:
    before, pid = container.status(), container.pid_of("a/one")
    ran = container.ctl("reexec")
    assert ran.returncode == 0, ran.stderr
    after = container.status()
    assert (after["pid"], after["replaced"]["failure"]) == (1, None)
    assert after["instance"] != before["instance"]
    assert container.pid_of("a/one") == pid
    gate.say("7")
    container.bell.hear()
    status = container.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    assert status["instances"][0]["last_exit"]["code"] == 7
    assert "Z" not in _inside(container, "ps -e -o stat= | cut -c1").split()


def test_it_ends_cleanly_on_sigterm(container: Nexus) -> None:
    os.kill(_host_pid(container), signal.SIGTERM)
    assert container.wait() == 0
    assert "a/one stopping → stopped" in container.log()
    assert not container.socket.exists()
