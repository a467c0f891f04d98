"""Deaths between the fork of a process and its module's first instruction: it goes on as the module, or never was."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from kept import Kept, await_end, is_alive

SCRIPT = "echo born; read line < go; exit 6"


class AtTheGate:
    """A run whose keeper stands still between fork and gate: the file of its leaf that takes a pid is a fifo."""

    def __init__(self, kept: Kept) -> None:
        self.kept = kept
        self.leaf = kept.home / "leaf"
        limit = kept.home / "limit"
        os.mkfifo(limit)
        os.mkfifo(kept.home / "go")
        leaf = {"path": str(self.leaf), "limits": {str(limit): "any"}}
        kept.spawn("one", "/bin/sh", "-c", SCRIPT, leaf=leaf)
        kept.wait(self.leaf.exists)
        os.mkfifo(self.leaf / "cgroup.procs")
        limit.read_text()  # the keeper goes on, to the next fifo
        kept.wait(lambda: journalled(kept))
        self.pid: int = journalled(kept)[-1]["pid"]

    def open(self) -> None:
        """The keeper goes on, with this and all that follows."""
        (self.leaf / "cgroup.procs").read_text()
        self.clear_away()

    def clear_away(self) -> None:
        """A kernel's folder would not hold a fifo: only without it can it be removed."""
        (self.leaf / "cgroup.procs").unlink()


def journalled(kept: Kept) -> list[dict[str, Any]]:
    journal = kept.home / "keeper.journal"
    lines = journal.read_text().splitlines() if journal.exists() else []
    return [found["run"] for found in map(json.loads, lines) if "run" in found]


@pytest.fixture
def kept() -> Iterator[Kept]:
    with Kept() as kept:
        yield kept


@pytest.fixture
def gate(kept: Kept) -> AtTheGate:
    return AtTheGate(kept)


def rows_of(table: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["run"]: row for row in table if row["say"] == "run"}


def end_nexusd(kept: Kept) -> None:
    kept.leave()


def kill_keeper(kept: Kept) -> None:
    keeper = kept.keeper
    kept.kill_keeper()
    await_end(keeper)


def kill_both(kept: Kept) -> None:
    keeper = kept.keeper
    kept.leave()
    os.kill(keeper, signal.SIGKILL)
    await_end(keeper)


def table_after(kept: Kept) -> dict[str, dict[str, Any]]:
    """Of the next keeper, or told to the next nexusd."""
    if kept.client is None:
        return rows_of(kept.connect())
    kept.until("lost")
    return rows_of(kept.table())


def assert_goes_on_as_the_module(kept: Kept, rows: dict[str, dict[str, Any]], pid: int) -> None:
    assert rows["one"]["entry"]["pid"] == pid and rows["one"]["ended"] is None
    (kept.home / "go").write_text("now\n")
    assert os.waitstatus_to_exitcode(kept.until("exited", "one")["status"]) == 6
    assert kept.log("one") == "born\n"


@pytest.mark.parametrize("death", [kill_keeper, kill_both])
def test_a_process_whose_keeper_dies_while_it_is_at_its_gate_never_was(
    kept: Kept, gate: AtTheGate, death: Any
) -> None:
    death(kept)
    gate.clear_away()
    assert table_after(kept) == {} and kept.keys() == []
    assert not is_alive(gate.pid) and kept.log("one") == ""
    kept.wait(lambda: not gate.leaf.exists())
    kept.settle()
    assert not [message for message in kept.unheard if message["say"] == "exited"]
    kept.start("another", "/bin/sleep", "1000")
    assert kept.keys() == ["another"]


def test_a_process_that_is_at_its_gate_when_nexusd_is_killed_is_born_all_the_same(
    kept: Kept, gate: AtTheGate
) -> None:
    kept.leave()
    gate.open()
    assert_goes_on_as_the_module(kept, rows_of(kept.connect()), gate.pid)


@pytest.mark.parametrize("death", [end_nexusd, kill_keeper, kill_both])
def test_a_process_that_was_let_through_is_the_module_whoever_dies_before_its_first_instruction(
    kept: Kept, gate: AtTheGate, death: Any
) -> None:
    os.kill(gate.pid, signal.SIGSTOP)
    gate.open()
    assert not kept.until("spawned", "one")["running"]
    death(kept)
    os.kill(gate.pid, signal.SIGCONT)
    assert_goes_on_as_the_module(kept, table_after(kept), gate.pid)


def test_a_process_that_comes_through_its_gate_while_the_next_keeper_looks_at_it_is_the_module(
    kept: Kept, gate: AtTheGate
) -> None:
    os.kill(gate.pid, signal.SIGSTOP)
    gate.open()
    kept.until("spawned", "one")
    kill_both(kept)
    as_if_it_had_not_been_let_through(kept)
    threading.Timer(0.3, os.kill, (gate.pid, signal.SIGCONT)).start()
    assert_goes_on_as_the_module(kept, rows_of(kept.connect()), gate.pid)


HOSTED = """
from nexusd.sdk import Module
class It(Module):
    async def start(self):
        print("born", flush=True)
"""


def test_a_python_module_that_runs_when_its_keeper_dies_over_its_birth_goes_on(kept: Kept) -> None:
    (kept.home / "it.py").write_text(HOSTED)
    (kept.home / "config.json").write_text("{}")
    pid = kept.start("one", python="it:It", folder=str(kept.home))
    kept.wait(lambda: "born" in kept.log("one"))
    kill_both(kept)
    as_if_it_had_not_been_let_through(kept)
    row = rows_of(kept.connect())["one"]
    assert (row["entry"]["pid"], row["ended"]) == (pid, None) and is_alive(pid)


def as_if_it_had_not_been_let_through(kept: Kept) -> None:
    """As a keeper leaves the journal that dies between its word to the process and the next line."""
    journal = kept.home / "keeper.journal"
    assert journalled(kept)[-1]["begun"] is True
    journal.write_text(journal.read_text().replace('"begun":true', '"begun":false'))
    assert journalled(kept)[-1]["begun"] is False
