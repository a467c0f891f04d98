"""Experiments on real processes: whatever ends in the middle of one, nothing stays frozen and nothing stays down."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from nexusctl.client import Client, RpcError, Unreachable
from tests.e2e.programs import SLEEPER
from tests.running_nexus import BOUND_S, INTERPRETER, Nexus, is_alive, ticking, wait_gone

ALLOWED = "[chaos]\nallow = true\n"
Report = dict[str, Any]

# With a child of its own; both end on SIGTERM, and the module says so.
FAMILY = """#!/bin/sh
sleep 1000 &
child=$!
trap 'kill "$child"; echo ended >> "$BELL"; exit 0' TERM
echo "$$ $child" >> "$BELL"
while :; do wait "$child"; done
"""

# Pings its watchdog, which nexusd then holds it to.
WATCHED = (
    INTERPRETER
    + """
import os, socket, time
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.connect(os.environ["NOTIFY_SOCKET"])
    notify.send(b"READY=1")
    while True:
        notify.send(b"WATCHDOG=1")
        time.sleep(0.05)
"""
)
# Ends well on SIGTERM, which under `on-failure` is no reason to start it again.
POLITE = "#!/bin/sh\ntrap 'exit 0' TERM\nsleep 1000 & wait\n"


def state_of(pid: int) -> str:
    """As the kernel has it; T: held by SIGSTOP."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def await_state(pid: int, wanted: bool) -> None:
    """Until the process is held, or is no more."""
    for _ in ticking(BOUND_S, f"process {pid} is {state_of(pid)}"):
        if (state_of(pid) == "T") is wanted:
            return


def running(nexus: Nexus, program: str = SLEEPER, more: str = "", count: int = 1) -> Nexus:
    nexus.add_program("a/one", program, f"replicas = {count}\n{ALLOWED}{more}")
    nexus.start().until_state("a/one", "started")
    return nexus


def frozen(nexus: Nexus, duration: str = "1h", program: str = SLEEPER) -> tuple[str, int]:
    """The id of an experiment that has frozen the module, and the module's pid."""
    running(nexus, program)
    pid = nexus.pid_of("a/one")
    begun = nexus.call("trigger_chaos", experiment="freeze", module_id="a/one", duration=duration, wait=False)
    await_state(pid, True)
    return begun["id"], pid


def test_a_killed_replica_is_detected_and_back_within_moments(nexus: Nexus) -> None:
    pid = running(nexus).pid_of("a/one")
    report = nexus.call("trigger_chaos", experiment="kill", module_id="a/one", seed=7)

    assert report["verdict"]["outcome"] == "recovered", report
    assert (report["seed"], report["signal"]) == (7, "SIGKILL")
    (target,) = report["targets"]
    assert (target["replica"], target["pid"], target["noticed"]) == ("a/one#0", pid, "killed by SIGKILL")
    assert target["pid_after"] == nexus.pid_of("a/one") != pid
    assert 0 < report["detected_s"] <= report["recovered_s"] < 5
    assert report["steady_before"]["steady"] and report["steady_after"]["steady"]
    assert report["rollback"] == "there was nothing to undo"
    kinds = [event["kind"] for event in nexus.history("a/one") if event["kind"].startswith("chaos")]
    assert kinds == ["chaos.started", "chaos.injected", "chaos.rolled_back", "chaos.ended"]
    assert nexus.call("get_chaos", id=report["id"]) == report


def test_a_percentage_of_the_replicas_is_hit_and_the_same_seed_hits_the_same(nexus: Nexus) -> None:
    running(nexus, count=4)
    asked = {"experiment": "kill", "module_id": "a/one", "replicas": "50%", "seed": 11}
    planned = nexus.call("trigger_chaos", **asked, dry_run=True)
    report = nexus.call("trigger_chaos", **asked)
    names = [target["replica"] for target in report["targets"]]
    assert len(names) == 2
    assert names == [target["replica"] for target in planned["targets"]]
    assert report["verdict"]["recovered"], report
    assert nexus.call("trigger_chaos", **asked, dry_run=True)["targets"][0]["replica"] == names[0]


def test_a_dry_run_touches_nothing_and_leaves_nothing_behind(nexus: Nexus) -> None:
    pid = running(nexus).pid_of("a/one")
    planned = nexus.call("trigger_chaos", experiment="kill", module_id="a/one", dry_run=True)
    assert planned["targets"] == [{"replica": "a/one#0", "pid": pid, "run": planned["targets"][0]["run"]}]
    assert nexus.call("list_chaos")["experiments"] == []
    assert nexus.pid_of("a/one") == pid and is_alive(pid)
    assert not [event for event in nexus.history("a/one") if event["kind"].startswith("chaos")]


def test_a_frozen_replica_with_a_watchdog_is_detected_and_replaced(nexus: Nexus) -> None:
    manifest = f'{ALLOWED}[health]\nwatchdog = "500ms"\n'
    nexus.add_program("a/one", WATCHED, manifest, run='ready = "notify"')
    pid = nexus.start().until_state("a/one", "started")["instances"][0]["pid"]

    report = nexus.call("trigger_chaos", experiment="freeze", module_id="a/one", duration="15s")

    (target,) = report["targets"]
    assert target["noticed"] == "no WATCHDOG=1 within 0.5 s"
    assert 0 < target["detected_s"] < report["recovered_s"] < 15
    assert report["verdict"]["recovered"], report
    assert target["pid_after"] != pid and not is_alive(pid)


def test_that_nothing_noticed_a_freeze_is_said_and_the_replica_goes_on(nexus: Nexus) -> None:
    running(nexus, FAMILY)
    leader, child = map(int, nexus.bell.hear().split())
    report = nexus.call("trigger_chaos", experiment="freeze", module_id="a/one", duration="300ms")

    assert (report["detected_s"], report["targets"][0]["noticed"]) == (None, None)
    assert "nothing noticed that a/one#0 did not work" in report["verdict"]["reason"]
    assert report["rolled_back_s"] >= 0.3
    assert report["targets"][0]["pid_after"] == leader == nexus.pid_of("a/one")
    assert "T" not in (state_of(leader), state_of(child))


def test_an_abort_thaws_the_whole_family_at_once(nexus: Nexus) -> None:
    running(nexus, FAMILY)
    leader, child = map(int, nexus.bell.hear().split())
    begun = nexus.call("trigger_chaos", experiment="freeze", module_id="a/one", duration="1h", wait=False)
    await_state(leader, True)
    await_state(child, True)

    report = nexus.call("abort_chaos", id=begun["id"])

    assert "T" not in (state_of(leader), state_of(child))
    assert report["verdict"]["outcome"] == "aborted"
    assert report["steady_after"]["steady"]
    assert nexus.call("list_chaos")["experiments"][0]["verdict"]["outcome"] == "aborted"


@pytest.mark.parametrize("death", ["kill", "kill_both"])
def test_what_was_frozen_when_nexusd_was_killed_is_thawed_by_the_next_one(nexus: Nexus, death: str) -> None:
    experiment, pid = frozen(nexus)
    getattr(nexus, death)()
    assert state_of(pid) == "T"

    nexus.start()

    report = nexus.call("get_chaos", id=experiment, wait=True)
    assert state_of(pid) != "T"
    assert report["verdict"]["outcome"] == "interrupted"
    assert "rolled back at its next start" in report["interrupted"]["reason"]
    assert report["rollback"] == "SIGCONT to a/one#0"
    assert report["steady_after"]["steady"]
    assert nexus.pid_of("a/one") == pid
    assert nexus.call("trigger_chaos", experiment="kill", module_id="a/one")["verdict"]["recovered"]
    assert nexus.call("list_chaos")["experiments"][-1]["id"] == "kill-2"


def test_a_module_that_had_given_up_when_nexusd_was_killed_is_started_again(nexus: Nexus) -> None:
    running(nexus, SLEEPER, '[restart]\nbackoff = { first = "1h", max = "1h" }\n')
    nexus.call("trigger_chaos", experiment="kill", module_id="a/one", duration="1h", wait=False)
    nexus.until_state("a/one", "backoff")
    nexus.kill()
    nexus.start()
    report = nexus.call("get_chaos", id="kill-1", wait=True)
    assert report["rollback"].startswith("started again: killed by SIGKILL")
    assert nexus.status("a/one")["state"] == "started"
    assert report["steady_after"]["steady"]


def test_the_keepers_death_in_the_middle_leaves_nothing_frozen(nexus: Nexus) -> None:
    experiment, pid = frozen(nexus)
    nexus.kill_keeper()
    assert state_of(pid) == "T"
    report = nexus.call("abort_chaos", id=experiment)
    assert state_of(pid) != "T"
    assert report["steady_after"]["steady"]


def test_a_stop_of_nexusd_in_the_middle_thaws_first_and_ends_all_in_good_order(nexus: Nexus) -> None:
    running(nexus, FAMILY)
    leader, _ = map(int, nexus.bell.hear().split())
    nexus.call("trigger_chaos", experiment="freeze", module_id="a/one", duration="1h", wait=False)
    await_state(leader, True)
    begun = time.monotonic()
    nexus.kill(signal.SIGTERM)
    assert time.monotonic() - begun < 8  # its stop time-out is 10 s
    assert nexus.bell.hear() == "ended"
    nexus.start()
    report = nexus.call("get_chaos", id="freeze-1")
    assert report["interrupted"]["reason"] == "nexusd was stopped in the middle"


@pytest.mark.parametrize("command", ["stop_module", "restart_module", "reload_module"])
def test_an_operator_who_stops_restarts_or_reloads_a_frozen_module_is_not_held_up(
    nexus: Nexus, command: str
) -> None:
    experiment, pid = frozen(nexus, program=FAMILY)
    begun = time.monotonic()
    nexus.call(command, module_id="a/one")
    assert time.monotonic() - begun < 8  # its stop time-out is 10 s
    wait_gone(pid)
    report = nexus.call("get_chaos", id=experiment, wait=True)
    assert report["verdict"]["outcome"] == "aborted"
    assert "a/one" in report["aborted"]["reason"] or "the module" in report["aborted"]["reason"]


HANDS_OVER = """
import os
from nexusd.sdk import Module
class It(Module):
    async def start(self):
        pass
    async def export_state(self):
        return "what it knew"
    async def import_state(self, state):
        with open(os.environ["BELL"], "a") as bell:
            print(state, file=bell)
"""


def test_a_frozen_module_is_thawed_in_time_to_hand_its_state_over(nexus: Nexus) -> None:
    nexus.add_python("a/one", HANDS_OVER, ALLOWED)
    pid = nexus.start().until_state("a/one", "started")["instances"][0]["pid"]
    nexus.call("trigger_chaos", experiment="freeze", module_id="a/one", duration="1h", wait=False)
    await_state(pid, True)
    assert nexus.call("reload_module", module_id="a/one", strategy="graceful")["reloaded"]
    assert nexus.bell.hear() == "what it knew"
    report = nexus.call("get_chaos", id="freeze-1", wait=True)
    assert report["aborted"]["reason"] == "the module is being reloaded"


def test_a_module_that_gives_up_is_found_and_started_again_by_the_rollback(nexus: Nexus) -> None:
    running(nexus, SLEEPER, '[restart]\npolicy = "never"\n')
    report = nexus.call("trigger_chaos", experiment="kill", module_id="a/one")
    assert report["verdict"]["outcome"] == "gave up"
    assert report["gave_up"] == "a/one#0: killed by SIGKILL"
    assert report["rollback"] == "started again: killed by SIGKILL"
    assert report["steady_after"]["steady"]
    assert nexus.status("a/one")["state"] == "started"


def test_a_module_that_ends_well_on_sigterm_stays_down_and_the_report_says_so(nexus: Nexus) -> None:
    running(nexus, POLITE)
    report = nexus.call("trigger_chaos", experiment="terminate", module_id="a/one")
    assert report["verdict"]["outcome"] == "gave up"
    assert "ended by itself, exit status 0" in report["gave_up"]
    assert report["steady_after"]["steady"]


def test_who_lacks_the_permission_is_refused_and_nothing_is_touched(nexus: Nexus) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root to become somebody else")
    nexus.settings.write_text(nexus.settings.read_text() + '[access.users]\n"65534" = ["operator"]\n')
    pid = running(nexus).pid_of("a/one")
    nexus.socket.chmod(0o666)
    done = nexus.ctl("chaos", "run", "kill", "a/one", uid=65534)
    assert done.returncode == 77, done
    assert "chaos.trigger" in done.stderr
    assert nexus.pid_of("a/one") == pid


def test_a_module_whose_manifest_says_nothing_is_left_alone(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    pid = nexus.start().until_state("a/one", "started")["instances"][0]["pid"]
    with pytest.raises(RpcError) as refused:
        nexus.call("trigger_chaos", experiment="kill", module_id="a/one")
    assert refused.value.kind == "not_possible"
    assert f"{nexus.modules}/a/one/module.toml" in refused.value.data["hint"]
    assert "[chaos] allow = true" in refused.value.data["hint"]
    assert nexus.pid_of("a/one") == pid


def test_two_experiments_on_one_module_do_not_mix(nexus: Nexus) -> None:
    experiment, _ = frozen(nexus)
    with pytest.raises(RpcError) as refused:
        nexus.call("trigger_chaos", experiment="kill", module_id="a/one")
    assert refused.value.kind == "busy"
    assert experiment in refused.value.data["hint"]
    nexus.call("abort_chaos", module_id="a/one")


def test_nothing_is_touched_where_the_lease_can_not_be_stored(nexus: Nexus) -> None:
    pid = running(nexus).pid_of("a/one")
    other = sqlite3.connect(nexus.state / "nexus.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # as a disk that takes nothing: nexusd's own write waits, then fails
    try:
        with pytest.raises(RpcError) as refused:
            nexus.call("trigger_chaos", experiment="freeze", module_id="a/one")
    finally:
        other.close()
    assert refused.value.kind == "not_possible"
    assert refused.value.message.startswith("nothing was touched")
    assert nexus.pid_of("a/one") == pid and state_of(pid) != "T"
    assert nexus.call("list_chaos")["experiments"] == []
    assert nexus.call("trigger_chaos", experiment="kill", module_id="a/one")["verdict"]["recovered"]


def test_on_the_command_line_the_exit_status_says_whether_it_recovered(nexus: Nexus) -> None:
    nexus.add_program("a/two", SLEEPER, f'{ALLOWED}[restart]\npolicy = "never"\n')
    running(nexus).until_state("a/two", "started")
    done = nexus.ctl("chaos", "run", "kill", "a/one")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "kill-1  kill of a/one: recovered")
    done = nexus.ctl("chaos", "run", "kill", "a/two")
    assert (done.returncode, done.stdout.splitlines()[0]) == (1, "kill-2  kill of a/two: gave up")
    assert nexus.ctl("chaos", "list", "-o", "name").stdout.split() == ["kill-1", "kill-2"]


def test_ctrl_c_thaws_what_was_frozen(nexus: Nexus) -> None:
    pid = running(nexus).pid_of("a/one")
    with nexus.events() as events:
        command = nexus.ctl_command("--socket", str(nexus.socket), "chaos", "run", "freeze", "a/one")
        with subprocess.Popen(
            [*command, "--duration", "1h"], env=nexus.environment, stdout=subprocess.PIPE, text=True
        ) as asking:
            events.find(lambda event: event["kind"] == "chaos.injected")
            await_state(pid, True)
            asking.send_signal(signal.SIGINT)
            said, _ = asking.communicate(timeout=BOUND_S)
            events.find(lambda event: event["kind"] == "chaos.ended")
    assert state_of(pid) != "T"
    assert asking.returncode == 130
    assert "freeze of a/one: aborted" in said


def test_a_client_that_is_killed_leaves_the_experiment_to_nexusd(nexus: Nexus) -> None:
    pid = running(nexus).pid_of("a/one")
    with nexus.events() as events, Client(nexus.socket, timeout=BOUND_S) as client:
        asked = {"experiment": "freeze", "module_id": "a/one", "duration": "200ms"}
        with pytest.raises(Unreachable):
            client.call("trigger_chaos", asked, timeout=0.05)
        client.close()
        events.find(lambda event: event["kind"] == "chaos.ended")
    assert state_of(pid) != "T"
    assert nexus.call("list_chaos")["experiments"][0]["verdict"]["recovered"]


def test_reports_outlive_nexusd(nexus: Nexus) -> None:
    running(nexus)
    report = nexus.call("trigger_chaos", experiment="kill", module_id="a/one")
    nexus.restart()
    assert nexus.call("get_chaos", id=report["id"]) == report
