"""nexusd in a cgroup that is delegated to it: a leaf for each replica, from the first instruction to the last end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.own_cgroup import delegated, entered, need
from tests.running_nexus import INTERPRETER, Nexus, as_user, is_alive, wait_gone

# Its child forks twice, drops session and environment, and tells its pid; then both ignore SIGTERM.
RUNAWAY = (
    INTERPRETER
    + """import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execve(sys.executable, [sys.executable, "-ISsc", '''
import os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("away", os.getpid(), flush=True)
signal.pause()
'''], {})
    os._exit(0)
os.wait()
signal.pause()
"""
)
USER = 12345
SLEEPER = "#!/bin/sh\nexec sleep 1000\n"
BRIEF = "[stop]\ntimeout = '200ms'\n"


@pytest.fixture
def cgroup() -> Iterator[Path]:
    with delegated() as place:
        yield place


@pytest.fixture
def nexus(cgroup: Path) -> Iterator[Nexus]:
    nexus = Nexus()
    enter(nexus, cgroup)
    try:
        yield nexus
    finally:
        nexus.close()


def enter(nexus: Nexus, cgroup: Path) -> None:
    """Have it started in there, as systemd does it."""
    nexus.program = entered(cgroup, sys.executable, "-m", "nexusd")


def in_subgroup(nexus: Nexus, cgroup: Path) -> None:
    """As with DelegateSubgroup=: where limits can be held, too."""
    (cgroup / "nexusd").mkdir()
    enter(nexus, cgroup / "nexusd")


def cgroup_of(pid: int) -> str:
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return next(line[3:] for line in lines if line.startswith("0::"))


def leaves(cgroup: Path) -> list[str]:
    return sorted(one.name for one in (cgroup / "modules").iterdir() if one.is_dir())


def away(nexus: Nexus, module_id: str) -> int:
    return int(nexus.wait_log(module_id, "away").split()[1])


def test_each_replica_has_a_leaf_and_nexusd_one_of_its_own(nexus: Nexus, cgroup: Path) -> None:
    nexus.add_program("mesh/plain", SLEEPER, "replicas = 2\n")
    nexus.add_python(
        "mesh/warm", "from nexusd.sdk import Module\nclass It(Module):\n    async def start(self): ...\n"
    )
    nexus.start()
    for module_id in ("mesh/plain", "mesh/warm"):
        status = nexus.until_state(module_id, "started")
        assert status["containment"] == {"by": "cgroup", "reason": None}
        for one in status["instances"]:
            assert Path(one["cgroup"]).parent == cgroup / "modules"
            assert one["cgroup"].endswith(cgroup_of(one["pid"]))
    assert len(leaves(cgroup)) == 3
    assert cgroup_of(nexus.pid) == cgroup_of(nexus.keeper_pid)
    assert cgroup_of(nexus.pid).endswith(f"{cgroup.name}/daemon")
    assert (cgroup / "cgroup.procs").read_text() == ""
    told = nexus.ctl("status", "mesh/plain").stdout
    assert "a cgroup for each replica" in told


def test_what_got_away_with_neither_session_nor_environment_is_killed_with_its_run(
    nexus: Nexus, cgroup: Path
) -> None:
    nexus.add_program("mesh/runaway", RUNAWAY, BRIEF)
    nexus.start()
    runaway = away(nexus, "mesh/runaway")
    nexus.call("stop_module", module_id="mesh/runaway")
    assert not is_alive(runaway)
    assert leaves(cgroup) == []


def test_it_is_killed_when_the_first_process_crashes_too(nexus: Nexus, cgroup: Path) -> None:
    nexus.add_program("mesh/runaway", RUNAWAY, "[restart]\npolicy = 'never'\n")
    nexus.start()
    runaway = away(nexus, "mesh/runaway")
    os.kill(nexus.pid_of("mesh/runaway"), signal.SIGKILL)
    nexus.until_state("mesh/runaway", "failed")
    assert not is_alive(runaway)
    assert leaves(cgroup) == []


@pytest.mark.parametrize("fault", ["nexusd", "keeper", "both"])
def test_leaves_outlive_those_who_made_them_and_are_known_again(
    nexus: Nexus, cgroup: Path, fault: str
) -> None:
    nexus.add_program("mesh/runaway", RUNAWAY, BRIEF)
    nexus.start()
    runaway, before = away(nexus, "mesh/runaway"), nexus.replica("mesh/runaway")
    if fault == "keeper":
        nexus.kill_keeper()
    elif fault == "nexusd":
        nexus.kill()
        nexus.start()
    else:
        nexus.kill_both()
        nexus.start()
    after = nexus.replica("mesh/runaway")
    assert (after["pid"], after["cgroup"]) == (before["pid"], before["cgroup"])
    assert nexus.status("mesh/runaway")["containment"]["by"] == "cgroup"
    nexus.call("stop_module", module_id="mesh/runaway")
    assert not is_alive(runaway)
    assert leaves(cgroup) == []


def test_what_died_while_nobody_looked_leaves_nothing_behind(nexus: Nexus, cgroup: Path) -> None:
    nexus.add_program("mesh/runaway", RUNAWAY, "[restart]\npolicy = 'never'\n")
    nexus.start()
    runaway, first = away(nexus, "mesh/runaway"), nexus.pid_of("mesh/runaway")
    nexus.kill_both()
    os.kill(first, signal.SIGKILL)
    nexus.start()
    nexus.until_state("mesh/runaway", "failed")
    wait_gone(runaway)
    assert leaves(cgroup) == []


def test_an_empty_leaf_of_a_keeper_that_was_killed_is_taken_away(nexus: Nexus, cgroup: Path) -> None:
    (cgroup / "modules" / "mesh:gone#0~0123abcd" / "below").mkdir(parents=True)
    nexus.start()
    assert leaves(cgroup) == []


def test_where_nothing_is_delegated_the_status_says_so_and_the_walk_does_it(
    nexus: Nexus, cgroup: Path
) -> None:
    os.removexattr(cgroup, "user.delegate")
    nexus.add_program("mesh/plain", SLEEPER, "[limits]\nmemory = '256M'\ntasks = 64\n")
    nexus.start()
    status = nexus.until_state("mesh/plain", "started")
    assert status["containment"] == {
        "by": "walk",
        "reason": "its cgroup is not delegated to it (systemd: Delegate=yes)",
    }
    assert status["limits"]["by"] == {"memory": "rlimits", "tasks": "none"}
    assert status["limits"]["not_enforced"] == ["tasks"]
    assert status["instances"][0]["cgroup"] is None
    assert not (cgroup / "modules").exists()
    told = nexus.ctl("status", "mesh/plain").stdout
    assert "memory 256 MiB (rlimits, each process), tasks 64 (not enforced)" in told
    assert "found by a walk; its cgroup is not delegated" in " ".join(told.split())


def test_it_can_be_switched_off(nexus: Nexus, cgroup: Path) -> None:
    nexus.settings.write_text(nexus.settings.read_text() + '[daemon]\ncgroups = "off"\n')
    nexus.add_program("mesh/plain", SLEEPER)
    nexus.start()
    held = nexus.until_state("mesh/plain", "started")["containment"]
    assert held == {"by": "walk", "reason": 'cgroups = "off" in nexusd.toml'}


def test_who_started_before_leaves_were_made_is_adopted_and_told_apart(nexus: Nexus, cgroup: Path) -> None:
    os.removexattr(cgroup, "user.delegate")
    nexus.add_program("mesh/plain", SLEEPER)
    nexus.start()
    before = nexus.pid_of("mesh/plain")
    nexus.kill()
    os.setxattr(cgroup, "user.delegate", b"1")
    nexus.start()
    status = nexus.status("mesh/plain")
    assert status["instances"][0]["pid"] == before
    assert status["containment"] == {"by": "walk", "reason": "started before cgroups were in force"}
    assert (cgroup / "cgroup.procs").read_text() == ""
    nexus.call("restart_module", module_id="mesh/plain")
    assert nexus.status("mesh/plain")["containment"]["by"] == "cgroup"


def test_a_limit_counts_as_held_only_where_its_controller_is(nexus: Nexus, cgroup: Path) -> None:
    in_subgroup(nexus, cgroup)
    nexus.add_program(
        "mesh/plain", SLEEPER, "[limits]\nmemory = '256M'\ntasks = 64\ncpu = 0.5\nfiles = 100\n"
    )
    nexus.start()
    limits = nexus.until_state("mesh/plain", "started")["limits"]
    on = set((cgroup / "modules" / "cgroup.subtree_control").read_text().split())
    assert limits["by"] == {
        "memory": "cgroup" if "memory" in on else "rlimits",
        "cpu": "cgroup" if "cpu" in on else "none",
        "tasks": "cgroup" if "pids" in on else "none",
        "files": "rlimits",
    }


@pytest.mark.parametrize(
    ("controller", "limit", "file", "text"),
    [
        ("memory", "memory = '64M'", "memory.max", str(64 << 20)),
        ("cpu", "cpu = 0.5", "cpu.max", "50000 100000"),
        ("pids", "tasks = 7", "pids.max", "7"),
    ],
)
def test_the_kernel_is_told_the_limit(
    nexus: Nexus, cgroup: Path, controller: str, limit: str, file: str, text: str
) -> None:
    need(cgroup, controller)
    in_subgroup(nexus, cgroup)
    nexus.add_program("mesh/plain", SLEEPER, f"[limits]\n{limit}\n")
    nexus.start()
    status = nexus.until_state("mesh/plain", "started")
    assert (Path(status["instances"][0]["cgroup"]) / file).read_text().strip() == text
    assert status["limits"]["enforced_by"] == "cgroup"


def test_all_processes_of_a_replica_together_stay_below_its_tasks(nexus: Nexus, cgroup: Path) -> None:
    need(cgroup, "pids")
    in_subgroup(nexus, cgroup)
    program = INTERPRETER + (
        "import os, signal\nn = 0\ntry:\n    while n < 50:\n        if os.fork() == 0: signal.pause()\n        n += 1\n"
        "except OSError: pass\nprint('forked', n, flush=True)\nsignal.pause()\n"
    )
    nexus.add_program("mesh/forks", program, "[limits]\ntasks = 7\n")
    nexus.start()
    assert nexus.wait_log("mesh/forks", "forked") == "forked 6"


def test_the_metrics_count_what_a_replica_forked_and_lost(nexus: Nexus, cgroup: Path) -> None:
    busy = "import os, time, signal\nif os.fork() == 0:\n    while time.process_time() < 0.3: pass\n    os._exit(0)\n"
    nexus.add_program(
        "mesh/busy", INTERPRETER + busy + "os.wait(); print('done', flush=True); signal.pause()\n"
    )
    nexus.start()
    nexus.wait_log("mesh/busy", "done")
    text = nexus.call("get_metrics", module_id="mesh/busy")["text"]
    (line,) = (line for line in text.splitlines() if line.startswith("nexus_replica_cpu_seconds_total{"))
    assert float(line.split()[1]) >= 0.3


def test_a_subgroup_that_nexusd_was_started_in_is_its_leaf(nexus: Nexus, cgroup: Path) -> None:
    in_subgroup(nexus, cgroup)
    nexus.add_program("mesh/plain", SLEEPER)
    nexus.start()
    leaf = nexus.until_state("mesh/plain", "started")["instances"][0]["cgroup"]
    assert Path(leaf).parent == cgroup / "modules"
    assert cgroup_of(nexus.pid) == cgroup_of(nexus.keeper_pid)
    assert cgroup_of(nexus.pid).endswith(f"{cgroup.name}/nexusd")
    assert not (cgroup / "daemon").exists()


def test_no_leaf_can_be_made_and_the_start_is_refused_with_the_reason(nexus: Nexus, cgroup: Path) -> None:
    nexus.add_program("mesh/plain", SLEEPER, "autostart = false\n[restart]\npolicy = 'never'\n")
    nexus.start()
    (cgroup / "modules" / "cgroup.max.descendants").write_text("0")
    nexus.ctl("start", "mesh/plain")
    assert (
        "cannot be started (cgroup): Resource temporarily unavailable" in nexus.status("mesh/plain")["reason"]
    )
    (cgroup / "modules" / "cgroup.max.descendants").write_text("max")
    nexus.call("start_module", module_id="mesh/plain")
    assert nexus.status("mesh/plain")["containment"]["by"] == "cgroup"


def test_an_ordinary_user_has_leaves_where_the_cgroup_is_his(nexus: Nexus, cgroup: Path) -> None:
    for place in (cgroup, cgroup / "cgroup.procs", cgroup / "cgroup.subtree_control"):
        os.chown(place, USER, USER)
    for place in (nexus.home, nexus.modules, nexus.settings):
        os.chown(place, USER, USER)
    nexus.program = entered(cgroup, *as_user(USER), sys.executable, "-m", "nexusd")
    nexus.add_program("mesh/runaway", RUNAWAY, BRIEF)
    nexus.start()
    runaway = away(nexus, "mesh/runaway")
    assert nexus.status("mesh/runaway")["containment"] == {"by": "cgroup", "reason": None}
    nexus.call("stop_module", module_id="mesh/runaway")
    assert not is_alive(runaway)
    assert leaves(cgroup) == []
