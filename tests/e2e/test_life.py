"""The life of modules under a real nexusd: start, crash, back off, recover, give up, stop; and among others."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest

from nexusctl.client import Client, RpcError
from tests.e2e.programs import DEAF, OBEDIENT, READY_LATER, SLEEPER
from tests.running_nexus import BOUND_S, INTERPRETER, Fifo, Nexus, Status, is_alive, ticking, wait_gone

QUICK = '[restart]\nbackoff = { first = "0s", initial = "50ms", max = "50ms" }\n'
SOON_GIVEN_UP = QUICK + 'intensity = { restarts = 2, within = "60s" }\n'
HAND_STARTED = "autostart = false\n"

# Fails as often as it is told in a file beside it, then stays.
FLAKY = """#!/bin/sh
left=$(cat left)
[ "$left" -gt 0 ] || exec sleep 1000
echo $((left - 1)) > left
echo "$left failures to come"
exit 3
"""


def test_start_crash_back_off_recover(nexus: Nexus) -> None:
    folder = nexus.add_program("a/flaky", FLAKY, QUICK)
    (folder / "left").write_text("3")
    nexus.start()

    status = nexus.until("a/flaky", lambda status: status["restarts"] == 3 and status["state"] == "started")

    assert nexus.states("a/flaky") == [
        *("starting", "started", "starting", "started"),  # the first restart is at once
        *("backoff", "starting", "started") * 2,
    ]
    assert status["instances"][0]["last_exit"]["code"] == 3
    assert status["health"] == "healthy"
    assert nexus.log_lines("a/flaky") == [f"{left} failures to come" for left in (3, 2, 1)]


def test_a_module_that_crashes_more_often_than_allowed_has_failed_until_it_is_started_by_hand(
    nexus: Nexus,
) -> None:
    folder = nexus.add_program("a/flaky", FLAKY, SOON_GIVEN_UP)
    (folder / "left").write_text("3")
    nexus.start()

    status = nexus.until_state("a/flaky", "failed")
    assert status["reason"] == "exit status 3; 2 restarts within 60 s did not help"
    assert (status["restarts"], status["health"], status["wanted"]) == (2, "unhealthy", "started")

    assert nexus.call("start_module", module_id="a/flaky")["state"] == "started"


def test_a_module_that_has_failed_is_not_tried_anew_when_nexusd_is_killed(nexus: Nexus) -> None:
    nexus.add_program("a/flaky", "#!/bin/sh\nexit 3\n", SOON_GIVEN_UP)
    nexus.start().until_state("a/flaky", "failed")
    nexus.kill()
    status = nexus.start().status("a/flaky")
    assert (status["state"], status["restarts"]) == ("failed", 2)


def test_nexusd_leaves_with_10_when_a_module_it_must_not_outlive_has_failed(nexus: Nexus) -> None:
    nexus.add_program("a/vital", "#!/bin/sh\nexit 1\n", 'on_give_up = "exit"\n' + SOON_GIVEN_UP)
    nexus.add_program("a/other", SLEEPER)
    process = nexus.launch()
    assert nexus.wait() == 10
    assert process.returncode == 10
    assert "a/vital has failed for good" in nexus.log()


def test_a_start_that_never_gets_ready_times_out(nexus: Nexus, gate: Fifo) -> None:
    manifest = HAND_STARTED + '[start]\ntimeout = "300ms"\n[restart]\npolicy = "never"\n'
    nexus.add_program("a/slow", READY_LATER, manifest, 'ready = "notify"')
    nexus.start()
    with pytest.raises(RpcError, match=r"a/slow did not start: not ready within 0\.3 s") as refused:
        nexus.call("start_module", module_id="a/slow")
    assert refused.value.code == -32008
    assert refused.value.data["exit"]["signal"] == "SIGTERM"
    assert nexus.status("a/slow")["state"] == "failed"


def test_a_caller_that_waits_no_longer_is_told_so_and_the_start_goes_on(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/slow", READY_LATER, HAND_STARTED, 'ready = "notify"')
    nexus.start()
    with pytest.raises(RpcError, match="still starting") as refused:
        nexus.call("start_module", module_id="a/slow", timeout=0.1)
    assert refused.value.code == -32005
    gate.say()
    nexus.until_state("a/slow", "started")


def test_a_clean_exit_before_ready_is_a_failed_start(nexus: Nexus) -> None:
    manifest = HAND_STARTED + '[restart]\npolicy = "never"\n'
    nexus.add_program("a/one", "#!/bin/sh\necho nothing to do\n", manifest, 'ready = "notify"')
    nexus.start()
    with pytest.raises(RpcError, match="exit status 0 before it was ready") as refused:
        nexus.call("start_module", module_id="a/one")
    data = refused.value.data
    assert (data["kind"], data["exit"]["code"], data["log"]) == ("start_failed", 0, ["nothing to do"])


@pytest.mark.parametrize("policy", ["on-failure", "never"])
def test_a_module_that_is_done_is_not_started_again(nexus: Nexus, gate: Fifo, policy: str) -> None:
    nexus.add_program("a/one", OBEDIENT, f'[restart]\npolicy = "{policy}"\n')
    nexus.start()
    nexus.bell.hear()
    gate.say("0")
    status = nexus.until_state("a/one", "stopped")
    assert (status["reason"], status["restarts"]) == ("ended by itself, exit status 0", 0)


def test_a_module_that_is_always_to_run_is_started_again_after_a_clean_end(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", OBEDIENT, '[restart]\npolicy = "always"\n')
    nexus.start()
    nexus.bell.hear()
    gate.say("0")
    nexus.bell.hear()
    assert nexus.until_state("a/one", "started")["restarts"] == 1


def test_a_program_that_ignores_sigterm_is_killed_with_its_whole_tree(nexus: Nexus) -> None:
    nexus.add_program("a/deaf", DEAF, '[stop]\ntimeout = "300ms"\n')
    nexus.start()
    leader, child = map(int, nexus.bell.hear().split())

    assert nexus.call("stop_module", module_id="a/deaf")["state"] == "stopped"

    assert not is_alive(leader) and not is_alive(child)
    assert nexus.replica("a/deaf")["last_exit"]["signal"] == "SIGKILL"


RUNAWAYS = {
    "setsid": '#!/bin/sh\nsetsid sleep 1000 &\necho $! >> "$BELL"\nwait\n',
    "double fork": "#!/bin/sh\n(sh -c 'echo $$ >> \"$BELL\"; exec sleep 1000' &)\nexec sleep 1000\n",
    "double fork and setsid": "#!/bin/sh\n(setsid sh -c 'echo $$ >> \"$BELL\"; exec sleep 1000' &)\nexec sleep 1000\n",
    "deaf double fork and setsid": (
        '#!/bin/sh\n(setsid sh -c \'trap "" TERM; echo $$ >> "$BELL"; exec sleep 1000\' &)\nexec sleep 1000\n'
    ),
}


@pytest.mark.parametrize("way", RUNAWAYS)
def test_a_child_that_ran_away_is_gone_after_stop(nexus: Nexus, way: str) -> None:
    nexus.add_program("a/one", RUNAWAYS[way])
    nexus.start()
    runaway = int(nexus.bell.hear())
    nexus.until_state("a/one", "started")
    nexus.call("stop_module", module_id="a/one")
    assert not is_alive(runaway)


FORKING = """
import os, time
from nexusd.sdk import Module
class It(Module):
    async def start(self):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                with open(os.environ["BELL"], "a") as bell:
                    print(os.getpid(), file=bell)
                time.sleep(1000)
            os._exit(0)
        os.wait()
"""


def test_a_python_module_s_daemonised_child_is_gone_after_stop(nexus: Nexus) -> None:
    nexus.add_python("a/one", FORKING)
    nexus.start()
    runaway = int(nexus.bell.hear())
    nexus.until_state("a/one", "started")
    nexus.call("stop_module", module_id="a/one")
    assert not is_alive(runaway)


LEAVES_CHILDREN = """#!/bin/sh
if [ -f children ]; then
    for child in $(cat children); do kill -0 $child 2> /dev/null && alive="$alive $child"; done
    echo "alive:$alive" >> "$BELL"
    exec sleep 1000
fi
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    setsid sleep 1000 &
    echo $! >> children
done
echo born >> "$BELL"
read -r _ < "$GATE"
exit 1
"""


def test_children_left_over_from_a_crash_are_gone_before_the_successor_runs(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", LEAVES_CHILDREN)
    nexus.start()
    assert nexus.bell.hear() == "born"
    gate.say()
    assert nexus.bell.hear() == "alive:"


def test_what_a_module_requires_is_ready_first_and_the_rest_starts_at_the_same_time(
    nexus: Nexus, gate: Fifo
) -> None:
    notify = 'ready = "notify"'
    nexus.add_program("a/bus", READY_LATER, run=notify)
    for name in ("left", "right"):
        nexus.add_program(f"a/{name}", READY_LATER, 'requires = ["a/bus"]\n', notify)
    nexus.add_program(
        "a/top", READY_LATER, 'requires = ["a/left"]\nafter = ["a/right", "a/not-there"]\n', notify
    )
    nexus.start()

    assert nexus.bell.hear() == "begun"
    assert nexus.status()["modules"]["by_state"] == {"starting": 4}
    assert nexus.status("a/left")["reason"] == "waits for a/bus, which is starting"
    gate.say()
    assert [nexus.bell.hear() for _ in range(3)] == ["ready", "begun", "begun"]  # left and right together
    gate.say()
    gate.say()
    assert [nexus.bell.hear() for _ in range(3)] == ["ready", "ready", "begun"]
    gate.say()
    nexus.until_state("a/top", "started")
    order = [one["module_id"] for one in _started(nexus)]
    assert (order[0], order[-1]) == ("a/bus", "a/top")


def _started(nexus: Nexus) -> list[dict[str, str]]:
    events = nexus.call("get_history", limit=1000)["events"]
    return [one for one in events if one["kind"] == "module.state" and one["to"] == "started"]


SAYS_GOODBYE = """#!/bin/sh
trap 'echo "$NEXUS_MODULE_ID" >> "$BELL"; exit 0' TERM
while :; do sleep 1000 & wait $!; done
"""


def test_on_shutdown_what_others_require_is_stopped_last(nexus: Nexus) -> None:
    nexus.add_program("a/bus", SAYS_GOODBYE)
    nexus.add_program("a/middle", SAYS_GOODBYE, 'requires = ["a/bus"]\n')
    nexus.add_program("a/top", SAYS_GOODBYE, 'requires = ["a/middle"]\n')
    nexus.start().until_state("a/top", "started")
    nexus.kill(signal.SIGTERM)
    assert [nexus.bell.hear() for _ in range(3)] == ["a/top", "a/middle", "a/bus"]


def test_modules_that_require_each_other_in_a_circle_are_told_the_whole_circle(nexus: Nexus) -> None:
    for name, required in (("x", "y"), ("y", "z"), ("z", "x")):
        nexus.add_program(f"a/{name}", SLEEPER, f'requires = ["a/{required}"]\n')
    nexus.add_program("a/bystander", SLEEPER)
    nexus.start().until_state("a/bystander", "started")
    for name in "xyz":
        status = nexus.status(f"a/{name}")
        assert status["state"] == "invalid"
        circle = status["faults"][0]["found"].split(" → ")
        assert {"a/x", "a/y", "a/z"} <= set(circle)
    with pytest.raises(RpcError, match="a/x is invalid") as refused:
        nexus.call("start_module", module_id="a/x")
    assert "a/y → a/z" in refused.value.data["reason"]


def test_a_dependent_waits_while_what_it_requires_is_started_again(nexus: Nexus, gate: Fifo) -> None:
    backoff = '[restart]\nbackoff = { first = "300ms", initial = "300ms" }\n'
    nexus.add_program("a/bus", OBEDIENT, backoff)
    nexus.add_program("a/top", SLEEPER, 'autostart = false\nrequires = ["a/bus"]\n')
    nexus.start()
    nexus.bell.hear()
    gate.say("1")
    nexus.until_state("a/bus", "backoff")

    answer = nexus.call("start_module", module_id="a/top")
    assert (answer["state"], answer["also"]) == ("started", [])
    assert nexus.status("a/bus")["state"] == "started"
    reasons = [event["reason"] for event in nexus.history("a/top")]
    assert nexus.status("a/top")["restarts"] == 0, reasons


def test_what_requires_a_module_that_has_failed_says_which_and_why(nexus: Nexus) -> None:
    nexus.add_program("a/bus", "#!/bin/sh\nexit 4\n", HAND_STARTED + SOON_GIVEN_UP, 'ready = "notify"')
    nexus.add_program("a/top", SLEEPER, HAND_STARTED + 'requires = ["a/bus"]\n')
    nexus.start()
    with pytest.raises(
        RpcError, match="cannot start a/top: requires a/bus, which has failed: exit status 4"
    ) as no:
        nexus.call("start_module", module_id="a/top")
    assert no.value.code == -32006


def test_a_stop_is_refused_with_the_names_of_who_requires_it_unless_it_cascades(nexus: Nexus) -> None:
    nexus.add_program("a/bus", SLEEPER)
    nexus.add_program("a/middle", SLEEPER, 'requires = ["a/bus"]\n')
    nexus.add_program("a/top", SLEEPER, 'requires = ["a/middle"]\n')
    nexus.start().until_state("a/top", "started")

    with pytest.raises(RpcError, match="cannot stop a/bus: a/middle, a/top require it") as refused:
        nexus.call("stop_module", module_id="a/bus")
    assert refused.value.code == -32003
    assert refused.value.data["required_by"] == ["a/middle", "a/top"]
    assert nexus.status()["modules"]["by_state"] == {"started": 3}

    answer = nexus.call("stop_module", module_id="a/bus", cascade=True)
    assert answer["also"] == ["a/middle", "a/top"]
    assert nexus.status()["modules"]["by_state"] == {"stopped": 3}


def test_a_start_brings_what_it_requires_with_it(nexus: Nexus) -> None:
    nexus.add_program("a/bus", SLEEPER, HAND_STARTED)
    nexus.add_program("a/top", SLEEPER, HAND_STARTED + 'requires = ["a/bus"]\n')
    nexus.start()
    assert nexus.call("start_module", module_id="a/top")["also"] == ["a/bus"]
    assert nexus.status()["modules"]["by_state"] == {"started": 2}


def test_two_starts_and_a_stop_at_once_end_with_one_process_or_none(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER, HAND_STARTED)
    nexus.start()
    wishes = ["start_module", "start_module", "stop_module", "start_module", "restart_module", "start_module"]
    outcomes = dict(nexus.client.call_many([(wish, {"module_id": "a/one"}) for wish in wishes]))
    assert len(outcomes) == len(wishes)
    nexus.until_state("a/one", "started")
    assert len([line for line in nexus.processes().values() if line.startswith("sleep ")]) == 1


def test_a_replica_finds_the_environment_that_is_promised_and_nothing_of_nexusd_s_own(nexus: Nexus) -> None:
    nexus.environment |= {"WATCHDOG_USEC": "5", "LISTEN_FDS": "0", "LISTEN_PID": "1"}
    program = (
        INTERPRETER
        + """
import json, os
fds = [int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")]
with open(os.environ["BELL"], "a") as bell:
    print(json.dumps([dict(os.environ), fds]), file=bell)
os.read(os.open(os.environ["BELL"] + "-never", os.O_RDONLY), 1)
"""
    )
    os.mkfifo(f"{nexus.bell.path}-never")
    nexus.add_program("a/one", program, '[run.environment]\nMINE = "yes"\n')
    nexus.start()
    found, fds = json.loads(nexus.bell.hear())
    assert (found["NEXUS_MODULE_ID"], found["NEXUS_REPLICA"], found["MINE"]) == ("a/one", "0", "yes")
    assert not {"WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID"} & found.keys()
    assert json.loads(Path(found["NEXUS_CONFIG"]).read_text()) == {}
    assert sorted(fds) == [0, 1, 2, int(found["NEXUS_CONTROL_FD"])]


def test_a_module_may_open_as_many_files_as_what_nexusd_was_started_with(nexus: Nexus) -> None:
    """nexusd raises its own limit; a module that gets it so may not work: select() ends at 1,024."""
    nexus.program = ["sh", "-c", 'ulimit -Sn 300; exec "$@"', "sh", *nexus.program]
    nexus.add_program("a/one", '#!/bin/sh\nulimit -Sn >> "$BELL"\nexec sleep 1000\n')
    nexus.start()
    assert nexus.bell.hear() == "300"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_module_runs_as_its_user_and_group_and_reads_its_own_configuration(nexus: Nexus) -> None:
    program = '#!/bin/sh\necho "$(id -u) $(id -g) $(cat "$NEXUS_CONFIG") $HOME" >> "$BELL"\nexec sleep 1000\n'
    secret = '[config.token]\ntype = "str"\ndefault = "t"\nsecret = true\n'
    nexus.add_program("a/user", program, secret, 'user = "nobody"')
    nexus.add_program("a/group", program, secret, 'user = "nobody"\ngroup = "daemon"')
    nexus.start()
    said = sorted(nexus.bell.hear() for _ in range(2))
    home = pwd.getpwnam("nobody").pw_dir
    gids = sorted((grp.getgrnam("daemon").gr_gid, pwd.getpwnam("nobody").pw_gid))
    assert said == [f'65534 {gid} {{"token": "t"}} {home}' for gid in gids]


def test_no_zombie_is_left_under_the_keeper(nexus: Nexus) -> None:
    program = (
        "#!/bin/sh\nfor n in 1 2 3; do (sh -c 'exit 0' &); done\necho on >> \"$BELL\"\nexec sleep 1000\n"
    )
    nexus.add_program("a/one", program)
    nexus.start()
    nexus.bell.hear()
    nexus.call("restart_module", module_id="a/one")
    nexus.call("stop_module", module_id="a/one")
    keeper = nexus.keeper_pid
    with open(f"/proc/{keeper}/task/{keeper}/children") as file:
        for pid in map(int, file.read().split()):
            wait_gone(pid)
    nexus.call("start_module", module_id="a/one")
    for _ in ticking(BOUND_S, "zombies stay under the keeper"):
        if not _zombies_of(keeper):
            break


def _zombies_of(parent: int) -> list[int]:
    with open(f"/proc/{parent}/task/{parent}/children") as file:
        return [
            int(pid)
            for pid in file.read().split()
            if not is_alive(int(pid)) and os.path.exists(f"/proc/{pid}")
        ]


def _is_up(status: Status, count: int) -> bool:
    return len(status["instances"]) == count and status["state"] == "started"


def test_a_number_of_replicas_that_was_edited_is_in_force_after_the_reload(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    for count in (3, 1):
        nexus.add_program("a/one", SLEEPER, f"replicas = {count}\n")
        nexus.call("reload_module", module_id="a/one")
        nexus.until("a/one", lambda status, count=count: _is_up(status, count))
        nexus.kill()
        assert len(nexus.start().status("a/one")["instances"]) == count


def test_a_crash_reads_as_its_end_and_its_restart_in_one_line_each(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    began = nexus.history("a/one")[-1]["seq"]
    with nexus.events() as events:
        os.kill(nexus.pid_of("a/one"), signal.SIGKILL)
        events.find(lambda event: event["kind"] == "module.state" and event["to"] == "started")
    listed = nexus.ctl("events", "a/one", "-n", "2").stdout.splitlines()
    assert [line[21:] for line in listed] == [
        "a/one  started -> starting: killed by SIGKILL",
        "a/one  starting -> started",
    ]
    told = [event for event in nexus.history("a/one") if event["seq"] > began]
    assert {event["kind"] for event in told} == {"replica.state", "module.state", "module.health"}
    assert [event["kind"] for event in told if not event["minor"]] == ["module.state"] * 2


@pytest.mark.parametrize("command", ["start", "restart"])
def test_a_start_that_was_let_in_before_the_end_keeps_nexusd_from_leaving_no_more(
    nexus: Nexus, command: str
) -> None:
    folder = nexus.add_program("a/slow", SLEEPER, HAND_STARTED)
    (folder / "large.py").touch()
    os.truncate(folder / "large.py", 256 << 20)  # to look whether it was edited takes a while
    nexus.start()
    with Client(nexus.socket, timeout=BOUND_S) as watching:
        watching.call("get_audit", {"follow": True})
        asking = subprocess.Popen(nexus.ctl_command("--socket", str(nexus.socket), command, "a/slow"))
        while watching.next_notification(timeout=BOUND_S)["record"]["method"] != f"{command}_module":
            pass
        nexus.kill(signal.SIGTERM)
    asking.wait(BOUND_S)
    assert not nexus.processes()
