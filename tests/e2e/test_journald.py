"""Output of modules in the journal, and nexusd's own log there: by a journald that listens, and by the real one."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest

from nexusd.system.own_log import log_to
from tests.journald import FakeJournald, RealJournald, real_journald
from tests.running_nexus import INTERPRETER, Fifo, Nexus

ID = "vitals/heartbeat-client"
NAME = f"nexus/{ID}"
TO_JOURNAL = "[log]\ntarget = 'journal'\n"
# Says what it is told through the fifo.
SPEAKER = (
    INTERPRETER
    + """import os, sys
print("begun", os.environ.get("JOURNAL_STREAM", "none"), flush=True)
with open(os.environ["GATE"]) as gate:
    for line in iter(gate.readline, ""):
        print(line, end="", flush=True)
"""
)


@pytest.fixture
def journald() -> Iterator[FakeJournald]:
    journald = FakeJournald()
    yield journald
    journald.close()


@pytest.fixture
def real() -> Iterator[RealJournald]:
    with real_journald() as journald:
        yield journald


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """As it was: log_to changes it for the whole process."""
    root = logging.getLogger("nexusd")
    before = root.handlers[:], root.propagate, root.level
    yield
    root.handlers[:], root.propagate, root.level = before


def use(nexus: Nexus, folder: object) -> None:
    nexus.settings.write_text(nexus.settings.read_text() + f'[daemon]\njournald = "{folder}"\n')


def test_a_module_writes_to_journald_itself(nexus: Nexus, gate: Fifo, journald: FakeJournald) -> None:
    use(nexus, journald.folder)
    nexus.add_program(ID, SPEAKER, TO_JOURNAL)
    nexus.start()
    assert nexus.status()["warnings"] == []
    stream = journald.stream()
    assert stream.header == [NAME, "", "6", "1", "0", "0", "0"]
    found = os.stat(f"/proc/{nexus.pid_of(ID)}/fd/1")
    assert stream.line() == f"begun {found.st_dev}:{found.st_ino}"
    gate.say("<3>as it is")
    assert stream.line() == "<3>as it is"
    assert nexus.status(ID)["journal"] == NAME
    assert nexus.log_lines(ID) == []


@pytest.mark.parametrize("fault", ["nexusd", "keeper", "both"])
def test_the_stream_outlives_nexusd_and_keeper(
    nexus: Nexus, gate: Fifo, journald: FakeJournald, fault: str
) -> None:
    use(nexus, journald.folder)
    nexus.add_program(ID, SPEAKER, TO_JOURNAL)
    nexus.start()
    stream, before = journald.stream(), nexus.pid_of(ID)
    stream.line()
    if fault != "keeper":
        kill = nexus.kill if fault == "nexusd" else nexus.kill_both
        kill()
        gate.say("alone")
        assert stream.line() == "alone"
        nexus.start()
    nexus.kill_keeper()
    gate.say("still here")
    assert stream.line() == "still here"
    assert (nexus.pid_of(ID), nexus.status(ID)["journal"]) == (before, NAME)
    nexus.call("stop_module", module_id=ID)
    assert stream.has_ended()


def test_who_asks_for_its_log_is_told_where_to_look(nexus: Nexus, gate: Fifo, journald: FakeJournald) -> None:
    use(nexus, journald.folder)
    (nexus.logs / ID).mkdir(parents=True)
    (nexus.logs / ID / "0.log").write_text("of another time\n")
    nexus.add_program(ID, SPEAKER, TO_JOURNAL)
    nexus.start()
    told = nexus.ctl("logs", ID)
    assert (told.returncode, told.stdout) == (0, "")
    assert f"{ID} logs to the journal: journalctl -t {NAME}" in told.stderr
    assert f"journalctl -f -t {NAME}" in nexus.ctl("logs", "-f", ID).stderr
    assert f"journalctl -t {NAME}" in nexus.ctl("status", ID).stdout


def test_without_journald_it_logs_to_its_file_and_nexusd_says_so(nexus: Nexus, gate: Fifo) -> None:
    use(nexus, nexus.home / "nowhere")
    nexus.add_program(ID, SPEAKER, TO_JOURNAL)
    nexus.start()
    assert nexus.wait_log(ID, "begun") == "begun none"
    assert nexus.status(ID)["journal"] is None
    assert f"{NAME} logs to its file: journald does not answer (No such file or directory)" in nexus.log()


def test_journalctl_finds_a_module_by_its_name(nexus: Nexus, gate: Fifo, real: RealJournald) -> None:
    use(nexus, real.folder)
    nexus.add_program(ID, SPEAKER, TO_JOURNAL)
    nexus.start()
    gate.say("<3>it hurts")
    real.until("it hurts", "-t", NAME, "-p", "err")
    assert any(line.startswith("begun ") for line in real.lines("-t", NAME, f"_PID={nexus.pid_of(ID)}"))


def test_journalctl_finds_what_nexusd_says_of_a_module(nexus: Nexus, gate: Fifo, real: RealJournald) -> None:
    use(nexus, real.folder)
    nexus.settings.write_text('log_format = "journal"\n' + nexus.settings.read_text())
    nexus.add_program(ID, SPEAKER)
    nexus.start().until_state(ID, "started")
    real.until(f"{ID} starting → started", "-t", "nexusd", f"MODULE={ID}", "EVENT=module.state")
    assert nexus.log() == ""


# nexusd's own log


def test_a_record_says_what_it_is_about_in_fields(journald: FakeJournald) -> None:
    log_to(log_format="journal", journald=str(journald.folder))
    about = {"module": "a/b", "replica": "a/b#0", "event": "replica.state", "reason": None}
    logging.getLogger("nexusd.events").warning("it %s", "fell", extra={"fields": about})
    assert journald.record() == {
        "MESSAGE": "it fell",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "nexusd",
        "LOGGER": "nexusd.events",
        "MODULE": "a/b",
        "REPLICA": "a/b#0",
        "EVENT": "replica.state",
    }


def test_lines_and_lengths_that_a_datagram_does_not_take_arrive_whole(journald: FakeJournald) -> None:
    log_to(log_format="journal", journald=str(journald.folder))
    log = logging.getLogger("nexusd")
    for text in ("two\nlines=here", "\udc80 is no UTF-8", "long " * 200_000):
        log.info("%s", text)
        assert journald.record()["MESSAGE"] == text.encode(errors="backslashreplace").decode()


def test_where_journald_is_not_there_the_lines_go_to_stderr_with_their_level(
    capsys: pytest.CaptureFixture[str], journald: FakeJournald
) -> None:
    log_to(sys.stderr, "journal", str(journald.folder / "nowhere"))
    logging.getLogger("nexusd").error("one\ntwo")
    assert capsys.readouterr().err == "<3>one\n two\n"
