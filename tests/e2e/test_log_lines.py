"""What modules write: not a line is lost or cut, over rotation, under load, and while nexusd or its keeper die."""

from __future__ import annotations

from pathlib import Path

from tests.running_nexus import INTERPRETER, Fifo, Nexus

LINES = 200_000

# Writes as fast as the pipe takes it, in pieces that end anywhere.
TORRENT = (
    INTERPRETER
    + f"""
import os, signal
text = b"".join(b"line %d\\n" % number for number in range({LINES}))
with open(os.environ["BELL"], "a") as bell:
    print("begun", file=bell)
for at in range(0, len(text), 5003):
    piece = text[at:at + 5003]
    while piece:
        piece = piece[os.write(1, piece):]
with open(os.environ["BELL"], "a") as bell:
    print("done", file=bell)
signal.pause()
"""
)


def _numbers(lines: list[str]) -> list[int]:
    return [int(line.removeprefix("line ")) for line in lines]


def _files(nexus: Nexus, index: int = 0) -> list[Path]:
    newest = nexus.logs / "a" / "one" / f"{index}.log"
    return [newest, *newest.parent.glob(f"{index}.log.*")]


def test_nothing_is_lost_or_cut_when_files_are_turned_over_under_load(nexus: Nexus) -> None:
    nexus.add_program("a/one", TORRENT, '[log]\nmax_size = "32k"\nfiles = 1000\n')
    nexus.start()
    assert [nexus.bell.hear(), nexus.bell.hear()] == ["begun", "done"]
    nexus.call("stop_module", module_id="a/one")

    assert _numbers(nexus.log_lines("a/one")) == list(range(LINES))
    files = _files(nexus)
    assert len(files) > 50
    assert all(path.read_bytes().endswith(b"\n") for path in files)
    assert all(path.stat().st_size < 32 * 1024 + 100 for path in files)


def test_nothing_is_lost_under_load_while_nexusd_and_its_keeper_are_killed(nexus: Nexus) -> None:
    nexus.add_program("a/one", TORRENT, '[log]\nmax_size = "64k"\nfiles = 1000\n')
    nexus.start()
    assert nexus.bell.hear() == "begun"
    nexus.kill()
    nexus.start()
    nexus.kill_both()
    nexus.start()
    nexus.kill_keeper()
    assert nexus.bell.hear() == "done"
    nexus.call("stop_module", module_id="a/one")
    assert _numbers(nexus.log_lines("a/one")) == list(range(LINES))


def test_each_replica_has_a_file_of_its_own(nexus: Nexus) -> None:
    program = '#!/bin/sh\necho "I am $NEXUS_REPLICA"\necho on >> "$BELL"\nexec sleep 1000\n'
    nexus.add_program("a/one", program, "replicas = 3\n")
    nexus.start()
    for _ in range(3):
        nexus.bell.hear()
    nexus.call("stop_module", module_id="a/one")
    assert [nexus.log_lines("a/one", index) for index in range(3)] == [
        [f"I am {index}"] for index in range(3)
    ]
    shown = nexus.call("get_logs", module_id="a/one")["lines"]
    assert shown == [{"replica": f"a/one#{index}", "line": f"I am {index}"} for index in range(3)]
    assert nexus.call("get_logs", module_id="a/one", replica=1)["lines"] == shown[1:2]


def test_no_more_files_are_kept_than_allowed(nexus: Nexus) -> None:
    nexus.add_program("a/one", TORRENT, '[log]\nmax_size = "32k"\nfiles = 3\n')
    nexus.start()
    assert [nexus.bell.hear(), nexus.bell.hear()] == ["begun", "done"]
    nexus.call("stop_module", module_id="a/one")
    assert sorted(path.name for path in _files(nexus)) == ["0.log", "0.log.1", "0.log.2"]
    kept = _numbers(nexus.log_lines("a/one"))
    assert kept == list(range(kept[0], LINES))


def test_the_log_goes_on_in_the_same_file_over_restarts(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", '#!/bin/sh\necho "life of $$"\necho on >> "$BELL"\nexec sleep 1000\n')
    nexus.start()
    nexus.bell.hear()
    nexus.restart()
    nexus.bell.hear()
    assert len(nexus.log_lines("a/one")) == 2


def test_a_follower_sees_every_line_over_a_rotation(nexus: Nexus, gate: Fifo) -> None:
    program = TORRENT.replace(f"range({LINES})", "range(20000)").replace(
        'print("begun"', 'os.read(os.open(os.environ["GATE"], os.O_RDONLY), 3)\n    print("begun"'
    )
    nexus.add_program("a/one", program, '[log]\nmax_size = "64k"\nfiles = 10\n')
    nexus.start().until_state("a/one", "started")
    subscription = nexus.client.subscribe("get_logs", {"module_id": "a/one", "lines": 0, "follow": True})
    gate.say()
    seen: list[str] = []
    while len(seen) < 20000:
        seen += subscription.next(20)["lines"]
    assert _numbers(seen) == list(range(20000))
