"""nexusd and its keeper are killed at bad moments; modules must not notice, and nothing may be forgotten."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.programs import (
    COUNTER,
    OBEDIENT,
    READY_LATER,
    READY_LATER_IN_PYTHON,
    RELUCTANT,
    SLEEPER,
    TOLD_LATE,
    TOLD_LATE_KEYS,
)
from tests.kernel import PIDFDS_TELL
from tests.running_nexus import BOUND_S, INTERPRETER, Fifo, Nexus, is_alive, ticking, wait_gone


def test_a_started_module_keeps_pid_uptime_and_restarts_when_nexusd_is_killed(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.add_program("a/one", OBEDIENT)
    nexus.start()
    nexus.bell.hear()
    gate.say("3")
    nexus.bell.hear()
    before = nexus.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")

    nexus.kill()
    after = nexus.start().status("a/one")

    assert after["state"] == "started"
    assert after["restarts"] == 1
    assert after["uptime_seconds"] >= before["uptime_seconds"]
    old, new = before["instances"][0], after["instances"][0]
    assert (new["pid"], new["last_exit"]["code"]) == (old["pid"], 3)
    assert abs(new["since"] - old["since"]) < 0.1
    assert nexus.call("stop_module", module_id="a/one")["stopped"]
    assert not is_alive(old["pid"])


def test_a_module_that_is_starting_gets_ready_while_nexusd_is_away_and_is_known_to_be(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.add_program("a/one", READY_LATER, run='ready = "notify"')
    nexus.start()
    assert nexus.bell.hear() == "begun"
    pid = nexus.pid_of("a/one")

    nexus.kill()
    gate.say()
    assert nexus.bell.hear() == "ready"
    nexus.start()

    status = nexus.until_state("a/one", "started")
    assert status["instances"][0]["pid"] == pid
    assert status["instances"][0]["status_text"] == "open for business"
    assert status["restarts"] == 0


def test_that_it_got_ready_is_known_though_the_keeper_that_heard_it_was_killed_before_the_next_nexusd(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.add_program("a/one", READY_LATER, "[start]\ntimeout = '1h'\n", run='ready = "notify"')
    nexus.start()
    assert nexus.bell.hear() == "begun"
    pid, keeper = nexus.pid_of("a/one"), nexus.keeper_pid

    nexus.kill()
    gate.say()
    for _ in ticking(BOUND_S, "the keeper does not hear it"):
        if '"ready":true' in (nexus.runtime / "keeper.journal").read_text():
            break
    os.kill(keeper, signal.SIGKILL)
    nexus.start()

    assert nexus.until_state("a/one", "started")["instances"][0]["pid"] == pid


def test_a_python_module_whose_word_that_it_is_ready_nobody_read_is_asked_again(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.add_python("a/one", READY_LATER_IN_PYTHON, "[start]\ntimeout = '1h'\n")
    nexus.start()
    assert nexus.bell.hear() == "begun"
    pid, keeper = nexus.pid_of("a/one"), nexus.keeper_pid

    os.kill(keeper, signal.SIGSTOP)
    nexus.kill()
    gate.say()
    (path,) = (nexus.runtime / "r").glob("*.control")
    assert b"healthy" in _answer(path, b'{"jsonrpc":"2.0","id":1,"method":"health"}\n')  # so READY=1 was sent
    os.kill(keeper, signal.SIGKILL)
    wait_gone(keeper)
    nexus.start()

    status = nexus.until_state("a/one", "started")
    assert (status["instances"][0]["pid"], status["restarts"]) == (pid, 0)


def _answer(path: Path, question: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND_S)
        sock.connect(str(path))
        sock.sendall(question)
        return sock.recv(4096)


@pytest.mark.parametrize("when", ["while nexusd is away", "afterwards"])
def test_a_value_reaches_a_module_that_was_starting_when_it_was_set_though_nexusd_is_killed_in_between(
    nexus: Nexus, gate: Fifo, when: str
) -> None:
    nexus.add_python("a/one", TOLD_LATE, TOLD_LATE_KEYS)
    nexus.start()
    assert nexus.bell.hear() == "begun"
    assert nexus.call("configure", module_id="a/one", key="rate", value=7)["applied"] == "stored"
    nexus.kill()
    if when == "afterwards":
        nexus.start()
    gate.say()
    if when != "afterwards":
        nexus.start()
    assert nexus.bell.hear() == "rate 7"
    assert nexus.until_state("a/one", "started")["restarts"] == 0


def test_a_module_that_is_still_starting_is_waited_for_by_the_next_nexusd(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", READY_LATER, run='ready = "notify"')
    nexus.start()
    nexus.bell.hear()
    pid = nexus.pid_of("a/one")

    nexus.kill()
    assert nexus.start().status("a/one")["state"] == "starting"
    gate.say()

    assert nexus.until_state("a/one", "started")["instances"][0]["pid"] == pid


def test_a_module_that_is_stopping_goes_on_stopping(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", RELUCTANT)
    nexus.start()
    nexus.bell.hear()
    pid = nexus.pid_of("a/one")
    nexus.call("stop_module", module_id="a/one", wait=False)
    assert nexus.bell.hear() == "asked"

    nexus.kill()
    status = nexus.start().status("a/one")
    assert (status["state"], status["wanted"], status["instances"][0]["pid"]) == ("stopping", "stopped", pid)
    gate.say()

    assert nexus.until_state("a/one", "stopped")["instances"][0]["pid"] is None
    assert not is_alive(pid)


def test_a_module_that_was_stopping_is_killed_by_the_next_nexusd_when_its_time_is_up(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.add_program("a/one", RELUCTANT, '[stop]\ntimeout = "1s"')
    nexus.start()
    nexus.bell.hear()
    pid = nexus.pid_of("a/one")
    nexus.call("stop_module", module_id="a/one", wait=False)
    nexus.bell.hear()

    nexus.kill()
    nexus.start()

    assert nexus.until_state("a/one", "stopped")["instances"][0]["last_exit"]["signal"] == "SIGKILL"
    assert not is_alive(pid)


def test_a_module_in_back_off_waits_on_and_is_started_at_the_same_time(nexus: Nexus, gate: Fifo) -> None:
    backoff = '[restart]\nbackoff = { first = "5s", initial = "5s", jitter = 0.0 }\n'
    nexus.add_program("a/one", OBEDIENT, backoff)
    nexus.start()
    nexus.bell.hear()
    gate.say("1")
    due = time.time() + nexus.until_state("a/one", "backoff")["instances"][0]["next_attempt_in_s"]

    nexus.kill()
    replica = nexus.start().replica("a/one")
    assert (replica["state"], replica["restarts"]) == ("backoff", 1)
    assert abs(time.time() + replica["next_attempt_in_s"] - due) < 0.2

    started = nexus.until_state("a/one", "started")
    assert started["restarts"] == 1
    assert started["since"] >= due - 0.2


def test_a_module_in_back_off_can_be_stopped_after_nexusd_was_killed(nexus: Nexus) -> None:
    nexus.add_program("a/one", "#!/bin/sh\nexit 1\n", '[restart]\nbackoff = { first = "1h" , max = "1h" }\n')
    nexus.start().until_state("a/one", "backoff")
    nexus.kill()
    nexus.start()
    assert nexus.status("a/one")["state"] == "backoff"
    assert nexus.call("stop_module", module_id="a/one")["stopped"]
    assert nexus.restart().status("a/one")["state"] == "stopped"


def test_a_graceful_reload_that_nexusd_did_not_survive_leaves_the_old_generation_alone(
    nexus: Nexus, gate: Fifo
) -> None:
    ready = 'ready = "notify"'
    nexus.add_program("a/one", READY_LATER, run=ready)
    nexus.start()
    nexus.bell.hear()
    gate.say()
    nexus.bell.hear()
    old = nexus.until_state("a/one", "started")["instances"][0]["pid"]

    nexus.add_program("a/one", READY_LATER + "# newer\n", run=ready)
    nexus.call("reload_module", module_id="a/one", wait=False)
    assert nexus.bell.hear() == "begun"
    successor = next(one["pid"] for one in nexus.status("a/one")["instances"] if one["pid"] != old)
    nexus.kill()
    nexus.start()

    wait_gone(successor)
    status = nexus.until("a/one", lambda status: len(status["instances"]) == 1)
    assert (status["state"], status["instances"][0]["pid"]) == ("started", old)
    assert status["pending_reload"]

    gate.say()  # the next one need not wait
    nexus.call("reload_module", module_id="a/one")
    status = nexus.status("a/one")
    assert (status["state"], len(status["instances"]), status["pending_reload"]) == ("started", 1, False)
    assert status["instances"][0]["pid"] not in (old, successor)


@pytest.mark.parametrize(
    ("said", "description"),
    [("7", "exit status 7"), ("-11", "killed by SIGSEGV"), ("-9", "killed by SIGKILL")],
)
def test_an_exit_while_nexusd_was_away_is_told_with_its_status(
    nexus: Nexus, gate: Fifo, said: str, description: str
) -> None:
    nexus.add_program("a/one", OBEDIENT)
    nexus.start()
    nexus.bell.hear()
    pid = nexus.pid_of("a/one")

    nexus.kill()
    gate.say(said)
    wait_gone(pid)
    nexus.start()

    status = nexus.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    assert status["instances"][0]["last_exit"]["description"] == description
    assert status["instances"][0]["pid"] != pid
    ends = [event for event in nexus.history("a/one") if event["reason"] == description]
    assert ends and ends[0]["kind"] == "replica.state"


def test_replicas_go_on_when_the_keeper_is_killed_and_their_exit_status_is_real(
    nexus: Nexus, gate: Fifo
) -> None:
    nexus.add_program("a/one", OBEDIENT, "replicas = 2\n")
    nexus.start()
    nexus.bell.hear(), nexus.bell.hear()
    before = nexus.until_state("a/one", "started")

    nexus.kill_keeper()
    after = nexus.status("a/one")
    assert [one["pid"] for one in after["instances"]] == [one["pid"] for one in before["instances"]]
    assert after["uptime_seconds"] >= before["uptime_seconds"]
    assert after["restarts"] == 0
    gate.say("9")
    nexus.bell.hear()

    status = nexus.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    ends = [one["last_exit"]["description"] for one in status["instances"] if one["last_exit"]]
    assert ends == ["exit status 9"]
    assert nexus.call("stop_module", module_id="a/one")["stopped"]


def test_a_replica_that_ends_between_two_keepers_is_told_with_its_status(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", OBEDIENT)
    nexus.start()
    nexus.bell.hear()
    pid, keeper = nexus.pid_of("a/one"), nexus.keeper_pid

    with nexus.events() as events:
        os.kill(keeper, signal.SIGSTOP)
        gate.say("5")
        wait_gone(pid)
        os.kill(keeper, signal.SIGKILL)
        events.find(lambda event: event["kind"] == "keeper.connected")

    status = nexus.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    assert status["instances"][0]["last_exit"]["description"] == "exit status 5"


def test_replicas_go_on_when_both_are_killed_and_there_is_no_second_copy(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", OBEDIENT, "replicas = 3\n")
    nexus.add_python(
        "a/two", "from nexusd.sdk import Module\nclass It(Module):\n    async def start(self): pass\n"
    )
    nexus.start()
    pids = {one["pid"] for one in nexus.until_state("a/one", "started")["instances"]}
    two = nexus.until_state("a/two", "started")["instances"][0]["pid"]
    rung = {int(nexus.bell.hear().split()[1]) for _ in pids}
    assert rung == pids

    nexus.kill_both()
    assert all(map(is_alive, [*pids, two]))
    nexus.start()

    status = nexus.status("a/one")
    assert {one["pid"] for one in status["instances"]} == pids
    assert (status["state"], status["restarts"]) == ("started", 0)
    assert nexus.pid_of("a/two") == two
    programs = [pid for pid, line in nexus.processes().items() if line.endswith("/program ")]
    assert sorted(programs) == sorted(pids)

    gate.say("1")
    assert int(nexus.bell.hear().split()[1]) not in pids
    status = nexus.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    (description,) = (one["last_exit"]["description"] for one in status["instances"] if one["last_exit"])
    # Else it is known only if nobody has reaped the process before nexusd looks.
    assert description in (("exit status 1",) if PIDFDS_TELL else ("exit status 1", "status unknown"))
    for module_id in ("a/one", "a/two"):
        assert nexus.call("stop_module", module_id=module_id)["stopped"]
    assert not any(map(is_alive, [*pids, two]))


@pytest.mark.parametrize("moment", ["at once", "lock", "keeper", "socket"])
def test_a_second_kill_during_recovery_costs_nothing(nexus: Nexus, gate: Fifo, moment: str) -> None:
    nexus.add_program("a/one", OBEDIENT, "replicas = 2\n")
    nexus.start()
    pids = {int(nexus.bell.hear().split()[1]) for _ in range(2)}
    nexus.until_state("a/one", "started")

    nexus.kill_both()
    keepers = _keepers(nexus)
    process = nexus.launch()
    for _ in ticking(BOUND_S, moment):
        if moment == "at once" or process.poll() is not None:
            break
        if moment == "lock" and (nexus.runtime / "nexusd.lock").read_text() == f"{process.pid}\n":
            break
        if moment == "keeper" and _keepers(nexus) != keepers:
            break
        if moment == "socket" and _accepts(nexus):
            break
    nexus.kill()
    nexus.start()

    status = nexus.until_state("a/one", "started")
    assert {one["pid"] for one in status["instances"]} == pids
    assert status["restarts"] == 0
    programs = [pid for pid, line in nexus.processes().items() if line.endswith("/program ")]
    assert sorted(programs) == sorted(pids)
    assert nexus.call("stop_module", module_id="a/one")["stopped"]


def _keepers(nexus: Nexus) -> list[int]:
    title = f"nexus-keeper {nexus.runtime}"
    return [pid for pid, line in nexus.processes().items() if line.startswith(title)]


def _accepts(nexus: Nexus) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(nexus.socket)) == 0


def test_no_line_is_lost_or_doubled_over_all_these_deaths(nexus: Nexus) -> None:
    nexus.add_program("a/one", COUNTER, '[log]\nmax_size = "64k"\nfiles = 500\n')
    nexus.start()
    nexus.wait_log("a/one", "line ")
    for kill in (nexus.kill, nexus.kill_keeper, nexus.kill_both, nexus.kill_keeper, nexus.kill):
        kill()
        if nexus.process is not None and nexus.process.poll() is not None:
            nexus.start()
        last = int(nexus.log_lines("a/one")[-2].split()[1])
        nexus.wait_log("a/one", f"line {last + 500}")
    nexus.call("stop_module", module_id="a/one")

    *numbered, end = nexus.log_lines("a/one")
    assert end == f"end {len(numbered)}"
    assert numbered == [f"line {number}" for number in range(len(numbered))]


# A nexusd that gives its keeper one second instead of ten.
IMPATIENT = """
from functools import partial
from nexusd import __main__, composition
composition.KeeperClient = partial(composition.KeeperClient, hung_s=1.0)
__main__.main()
"""


def test_a_stopped_keeper_is_noticed_and_replaced(nexus: Nexus, gate: Fifo) -> None:
    nexus.program = [sys.executable, "-c", IMPATIENT]
    nexus.add_program("a/one", OBEDIENT)
    nexus.start()
    nexus.bell.hear()
    pid, keeper = nexus.pid_of("a/one"), nexus.keeper_pid

    with nexus.events() as events:
        os.kill(keeper, signal.SIGSTOP)
        events.find(lambda event: event["kind"] == "keeper.lost")
        events.find(lambda event: event["kind"] == "keeper.connected")

    assert not is_alive(keeper)
    assert nexus.pid_of("a/one") == pid
    gate.say("4")
    status = nexus.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    assert status["instances"][0]["last_exit"]["description"] == "exit status 4"


LISTENER = """
import asyncio, os
from nexusd.sdk import Module
class It(Module):
    async def start(self):
        (sock,) = self.sockets.values()
        sock.setblocking(False)
        self.server = await asyncio.start_unix_server(self.answer, sock=sock)
    async def answer(self, reader, writer):
        writer.write(b"%d" % os.getpid())
        await writer.drain()
        writer.close()
"""


def _asked(path: str) -> int:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(BOUND_S)
        sock.connect(path)
        return int(sock.recv(100))


@pytest.mark.parametrize("death", ["kill", "kill_keeper", "kill_both"])
def test_a_listening_socket_answers_over_each_death_and_a_graceful_reload_after_it(
    nexus: Nexus, death: str
) -> None:
    path = f"{nexus.home}/web.sock"
    manifest = f'[run]\npython = "module_code:It"\nlisten = ["web=unix:{path}"]\n'
    nexus.add_module("a/one", manifest, {"module_code.py": LISTENER})
    nexus.start()
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    assert _asked(path) == pid

    getattr(nexus, death)()
    assert _asked(path) == pid
    if death != "kill_keeper":
        nexus.start()
    assert _asked(path) == pid
    assert nexus.call("reload_module", module_id="a/one", strategy="graceful")["reloaded"]

    assert _asked(path) == nexus.pid_of("a/one") != pid


def test_what_may_start_at_last_is_started_once(nexus: Nexus, gate: Fifo) -> None:
    folder = nexus.add_program("a/one", READY_LATER, run='ready = "notify"')
    nexus.add_program("a/two", SLEEPER, 'after = ["a/one"]\n')
    nexus.start()
    assert nexus.bell.hear() == "begun"

    nexus.kill()
    folder.rename(nexus.home / "elsewhere")
    nexus.start()

    pid = nexus.until_state("a/two", "started")["instances"][0]["pid"]
    nexus.call("stop_module", module_id="a/two")  # by now the keeper has done all that it was asked before
    nexus.call("start_module", module_id="a/two")
    sleeping = [other for other, line in nexus.processes().items() if line.startswith("sleep")]
    assert sleeping == [nexus.pid_of("a/two")] != [pid]


TALKATIVE = (
    INTERPRETER
    + """
import os, signal, socket
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
    notify.sendto(b"READY=1" + bytes([10]) + b"STATUS=" + bytes([1]) * 4000, os.environ["NOTIFY_SOCKET"])
signal.pause()
"""
)


def test_replicas_that_say_all_they_can_are_adopted_all_the_same(nexus: Nexus) -> None:
    nexus.add_program("a/one", TALKATIVE, "replicas = 16\n", run='ready = "notify"')
    nexus.start()
    first = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    os.kill(first, signal.SIGKILL)
    before = nexus.until("a/one", lambda status: status["restarts"] == 1 and status["state"] == "started")
    nexus.kill()
    after = nexus.start().status("a/one")
    assert [one["pid"] for one in after["instances"]] == [one["pid"] for one in before["instances"]]


def test_what_a_killed_nexusd_left_in_the_runtime_folder_is_cleared_away(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER, "replicas = 2\n")
    nexus.start().until_state("a/one", "started")
    in_use = sorted(nexus.runtime.glob("r/*")), sorted(nexus.runtime.glob("config/*"))
    nexus.kill()
    for left in ("r/0123abcd.notify", "r/0123abcd.control", "config/a@one.7.json"):
        (nexus.runtime / left).touch()
    nexus.start()
    assert (sorted(nexus.runtime.glob("r/*")), sorted(nexus.runtime.glob("config/*"))) == in_use
    assert nexus.call("restart_module", module_id="a/one")["restarted"]


def test_what_was_deleted_from_disk_meanwhile_is_stopped(nexus: Nexus) -> None:
    folder = nexus.add_program("a/one", SLEEPER)
    nexus.add_program("a/two", SLEEPER)
    nexus.start()
    one, two = (nexus.until_state(name, "started")["instances"][0]["pid"] for name in ("a/one", "a/two"))

    nexus.kill()
    folder.rename(nexus.home / "elsewhere")
    nexus.start()

    wait_gone(one)
    assert nexus.pid_of("a/two") == two
    assert [item["id"] for item in nexus.status()["modules"]["items"]] == ["a/two"]


def test_a_leftover_grandchild_of_a_module_that_ended_meanwhile_is_gone(nexus: Nexus, gate: Fifo) -> None:
    program = '#!/bin/sh\nsetsid sleep 1000 &\necho "$$ $!" >> "$BELL"\nread -r status < "$GATE"\nexit 6\n'
    nexus.add_program("a/one", program)
    nexus.start()
    leader, child = map(int, nexus.bell.hear().split())

    nexus.kill()
    gate.say()
    wait_gone(leader)
    wait_gone(child)
    nexus.start()
    assert int(nexus.bell.hear().split()[0]) != leader


@pytest.mark.parametrize("death", ["kill_keeper", "kill_both"])
def test_a_leftover_grandchild_is_gone_when_its_leader_ends_later(
    nexus: Nexus, gate: Fifo, death: str
) -> None:
    program = '#!/bin/sh\nsetsid sleep 1000 &\necho "$$ $!" >> "$BELL"\nread -r status < "$GATE"\nexit 6\n'
    nexus.add_program("a/one", program)
    nexus.start()
    leader, child = map(int, nexus.bell.hear().split())

    getattr(nexus, death)()
    if death == "kill_both":
        nexus.start()
    assert nexus.pid_of("a/one") == leader
    gate.say()
    wait_gone(leader)
    wait_gone(child)


def test_what_a_former_boot_left_in_the_runtime_folder_is_no_crash(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start()
    pid = nexus.until_state("a/one", "started")["instances"][0]["pid"]
    nexus.kill_both()
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    journal = nexus.runtime / "keeper.journal"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    journal.write_text(journal.read_text().replace(boot, "of-a-former-boot"))

    status = nexus.start().until_state("a/one", "started")
    assert (status["restarts"], status["instances"][0]["last_exit"]) == (0, None)


def test_the_keeper_shows_itself_by_its_name(nexus: Nexus) -> None:
    nexus.start()
    process = Path(f"/proc/{nexus.keeper_pid}")
    assert (process / "comm").read_text() == "nexus-keeper\n"
    assert (process / "cmdline").read_bytes().startswith(b"nexus-keeper ")
