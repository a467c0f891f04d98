"""Scaling, healing, rolling reloads and single restarts under a real nexusd."""

from __future__ import annotations

import os
import signal
import socket

import pytest

from nexusctl.client import RpcError
from tests.e2e.programs import SLEEPER
from tests.running_nexus import BOUND_S, INTERPRETER, Nexus, Status, is_alive

# Answers each connection with one word and its replica's number, as long as it runs.
ANSWERS = """
import asyncio
from nexusd.sdk import Module
class It(Module):
    async def start(self):
        if {broken} == self.replica:
            raise RuntimeError("broken on purpose")
        self.server = await asyncio.start_server(self.answer, sock=self.sockets["word"])
    async def answer(self, reader, writer):
        writer.write(b"{word} %d" % self.replica)
        writer.close()
"""
LISTENING = (
    'replicas = {count}\nmax_replicas = 5\n[restart]\npolicy = "never"\n[run]\npython = "module_code:It"\n'
)


def write(nexus: Nexus, word: str, broken: int | None = None, count: int = 3) -> None:
    manifest = LISTENING.format(count=count) + f'listen = ["word=unix:{nexus.home}/word"]\n'
    nexus.add_module("a/one", manifest, {"module_code.py": ANSWERS.format(word=word, broken=broken)})


def words(nexus: Nexus, asked: int = 30) -> set[str]:
    """What is answered by whoever of the replicas accepts."""
    found = set()
    for _ in range(asked):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(BOUND_S)
            client.connect(f"{nexus.home}/word")
            found.add(client.recv(100).decode().split()[0])
    return found


@pytest.fixture
def old(nexus: Nexus) -> Nexus:
    write(nexus, "old")
    nexus.start().until_state("a/one", "started")
    return nexus


def pids(status: Status) -> dict[int, int]:
    return {one["index"]: one["pid"] for one in status["instances"]}


def test_scaling_touches_nobody_else_and_is_kept(old: Nexus) -> None:
    before = pids(old.status("a/one"))
    told = old.call("scale_module", module_id="a/one", replicas=5)
    assert (told["previous"], told["state"]) == (3, "started")
    grown = pids(old.status("a/one"))
    assert len(grown) == 5 and before.items() <= grown.items()
    old.call("scale_module", module_id="a/one", replicas=2)
    shrunk = pids(old.status("a/one"))
    assert shrunk == {0: before[0], 1: before[1]}
    assert not any(is_alive(pid) for index, pid in grown.items() if index > 1)

    old.kill()
    old.start().until_state("a/one", "started")
    assert pids(old.status("a/one")) == shrunk
    old.restart().until_state("a/one", "started")
    assert len(old.status("a/one")["instances"]) == 2


def test_more_than_the_manifest_allows_is_refused(old: Nexus) -> None:
    with pytest.raises(RpcError, match="0 to 5 replicas, not 6") as refused:
        old.call("scale_module", module_id="a/one", replicas=6)
    assert (refused.value.code, refused.value.data["max_replicas"]) == (-32004, 5)
    ran = old.ctl("scale", "a/one", "6")
    assert ran.returncode == 1 and "next: nexusctl scale a/one 5" in ran.stderr


def test_scaled_to_none_it_is_stopped_and_comes_back(old: Nexus) -> None:
    told = old.call("scale_module", module_id="a/one", replicas=0)
    assert (told["state"], old.status("a/one")["instances"]) == ("stopped", [])
    assert "next: nexusctl scale a/one 1" in old.ctl("status", "a/one").stdout
    assert old.restart().status("a/one")["reason"] == "scaled to 0 replicas"
    assert old.ctl("scale", "a/one", "2").stdout == "a/one scaled from 0 to 2 replicas\n"
    assert words(old) == {"old"}


def test_one_replica_is_restarted_alone(old: Nexus) -> None:
    before = pids(old.status("a/one"))
    assert old.ctl("restart", "a/one#1").stdout == "a/one#1 restarted\n"
    after = pids(old.status("a/one"))
    assert {index for index in before if before[index] != after[index]} == {1}


def test_what_was_killed_too_often_is_healed_and_what_was_stopped_is_not(old: Nexus) -> None:
    old.add_program("a/two", "#!/bin/sh\nexec sleep 1000\n")
    old.call("reload_daemon")
    old.until_state("a/two", "started")
    old.call("stop_module", module_id="a/two")
    before = pids(old.status("a/one"))
    os.kill(before[1], signal.SIGKILL)
    old.until_state("a/one", "failed")
    told = old.call("trigger_healing")
    assert (told["healed"], told["replicas"], told["helped"]) == (["a/one"], ["a/one#1"], True)
    assert told["skipped"] == {"a/two": "stopped by an operator"}
    after = pids(old.status("a/one"))
    assert {index for index in before if before[index] != after[index]} == {1}
    assert old.status("a/two")["state"] == "stopped"


def test_healing_what_fails_again_says_so(old: Nexus) -> None:
    os.kill(old.status("a/one")["instances"][2]["pid"], signal.SIGKILL)
    old.until_state("a/one", "failed")
    write(old, "new", broken=2)
    ran = old.ctl("heal")
    assert ran.returncode == 1
    assert "a/one not healed" in ran.stdout and "broken on purpose" in ran.stdout


def test_a_rolling_reload_replaces_one_after_the_other(old: Nexus) -> None:
    write(old, "new")
    with old.events() as events:
        told = old.call("reload_module", module_id="a/one", strategy="rolling")
        assert (told["reloaded"], told["generation"]) == (True, 2)
        running = most = 3
        seen = 0
        while seen < 6:  # three starts, three ends
            event = events.next()
            if event["kind"] == "replica.state" and event["to"] in ("starting", "stopping"):
                seen += 1
                running += 1 if event["to"] == "starting" else -1
                most = max(most, running)
    assert most == 4
    assert words(old) == {"new"}


def test_status_tells_of_an_edit_that_nobody_asked_to_reload_and_a_restart_takes_all_of_it(
    old: Nexus,
) -> None:
    assert old.status("a/one")["pending_reload"] is False
    write(old, "new")
    assert old.status("a/one")["pending_reload"] is True
    assert "files have changed: nexusctl reload a/one" in old.ctl("status", "a/one").stdout
    write(old, "old")  # taken back
    assert old.status("a/one")["pending_reload"] is False

    write(old, "new", count=2)
    assert old.call("restart_module", module_id="a/one")["restarted"] is True
    status = old.status("a/one")
    assert (status["generation"], status["pending_reload"], len(status["instances"])) == (2, False, 2)
    assert words(old) == {"new"}


def test_after_a_failed_rolling_reload_all_answer_as_before_although_the_files_are_new(old: Nexus) -> None:
    write(old, "new", broken=2)
    with pytest.raises(RpcError, match="all replicas are the old one's") as refused:
        old.call("reload_module", module_id="a/one", strategy="rolling")
    assert "broken on purpose" in refused.value.message
    assert any("broken on purpose" in line for line in refused.value.data["log"])
    status = old.status("a/one")
    assert (status["state"], status["generation"], status["pending_reload"]) == ("started", 1, True)
    assert [one["generation"] for one in status["instances"]] == [1, 1, 1]
    assert words(old, 60) == {"old"}

    old.call("restart_module", module_id="a/one")  # of the same code, until a reload works
    assert words(old) == {"old"}
    old.kill()
    old.start().until_state("a/one", "started")
    os.kill(old.status("a/one")["instances"][0]["pid"], signal.SIGKILL)
    old.until_state("a/one", "failed")
    old.call("trigger_healing")
    assert words(old) == {"old"}

    write(old, "newer")
    assert old.call("reload_module", module_id="a/one", strategy="rolling")["reloaded"]
    assert words(old) == {"newer"}


# Rings with its word; the one whose number is said ends before it is ready. Its words stand in a file beside it.
PROGRAM = (
    INTERPRETER
    + """
import os, signal, socket, sys
word, broken = open(sys.argv[1]).read().split()
if os.environ["NEXUS_REPLICA"] == broken:
    sys.exit(1)
with open(os.environ["BELL"], "a") as bell:
    print(word, os.environ["NEXUS_REPLICA"], file=bell)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
signal.pause()
"""
)


def test_a_program_goes_back_with_the_files_that_its_command_names(nexus: Nexus) -> None:
    folder = nexus.add_module(
        "a/two",
        'replicas = 2\n[run]\nexec = ["./program", "words"]\nready = "notify"\n',
        {"program": PROGRAM, "words": "old none\n"},
    )
    nexus.start().until_state("a/two", "started")
    assert sorted([nexus.bell.hear(), nexus.bell.hear()]) == ["old 0", "old 1"]
    (folder / "words").write_text("new 1\n")
    with pytest.raises(RpcError, match="all replicas are the old one's"):
        nexus.call("reload_module", module_id="a/two", strategy="rolling")
    assert [nexus.bell.hear(), nexus.bell.hear()] == ["new 0", "old 0"]


def test_a_nexusd_that_is_killed_half_way_leaves_the_old_generation_in_force(old: Nexus) -> None:
    text = ANSWERS.format(word="new", broken=None)
    waits = text.replace(
        "        self.server", "        await asyncio.sleep(1000 * self.replica)\n        self.server"
    )
    write(old, "new")
    (old.modules / "a/one/module_code.py").write_text(waits)
    old.call("reload_module", module_id="a/one", strategy="rolling", wait=False)
    old.until(
        "a/one",
        lambda status: any(one["generation"] == 2 and one["index"] == 1 for one in status["instances"]),
    )
    old.kill()
    old.start()
    old.until(
        "a/one",
        lambda status: (
            status["state"] == "started" and [one["generation"] for one in status["instances"]] == [1, 1, 1]
        ),
    )
    assert words(old, 60) == {"old"}
    kinds = [event for event in old.call("get_history")["events"] if event["kind"] == "module.reload_refused"]
    assert kinds[-1]["reason"] == "nexusd ended in the middle of it; generation 1 stays in force"


def test_a_program_that_ends_at_once_does_not_take_the_place_of_the_old_one(nexus: Nexus) -> None:
    """It says nothing of its readiness: that it runs is all there is, and that for longer than a moment."""
    nexus.add_program("a/plain", SLEEPER)
    nexus.start()
    pid = nexus.pid_of("a/plain")
    (nexus.modules / "a/plain/program").write_text("#!/bin/sh\necho out of order\nexit 3\n")
    for _ in range(2):
        with pytest.raises(RpcError, match="the new generation failed") as refused:
            nexus.call("reload_module", module_id="a/plain")
        assert refused.value.data["log"][-1] == "out of order"
        assert nexus.pid_of("a/plain") == pid
    (nexus.modules / "a/plain/program").write_text(SLEEPER)
    assert nexus.call("reload_module", module_id="a/plain")["reloaded"]


def test_healing_what_ends_again_at_once_says_that_it_did_not_help(nexus: Nexus) -> None:
    nexus.add_program(
        "a/plain", "#!/bin/sh\nexit 3\n", '[restart]\nintensity = { restarts = 1, within = "1h" }\n'
    )
    nexus.start().until_state("a/plain", "failed")
    assert nexus.call("trigger_healing")["helped"] is False
