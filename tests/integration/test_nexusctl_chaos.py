"""`nexusctl chaos` against a fake daemon on a real Unix socket: what is asked, said, and returned."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusctl.__main__ import run
from nexusctl.chaos_page import lasted, report_lines
from nexusctl.output import Page
from tests.fake_daemon import Connection, FakeDaemon, Params, Refusal

ROOT = Path(__file__).resolve().parents[2]
STEADY = {
    "at": 1.0,
    "steady": True,
    "state": "started",
    "replicas": {"wanted": 1, "ready": 1},
    "health": "healthy",
    "reasons": [],
}
WELL = {"recovered": True, "outcome": "recovered", "reason": "in its steady state again after 0.021 s"}
GAVE_UP = {"recovered": False, "outcome": "gave up", "reason": "mesh/echo#0: killed by SIGKILL"}
ABORTED = {"recovered": False, "outcome": "aborted", "reason": "aborted by root"}


def report(**other: Any) -> Params:
    target = {
        "replica": "mesh/echo#0",
        "pid": 4711,
        "run": "mesh/echo#0@1~aa",
        "detected_s": 0.002,
        "noticed": "killed by SIGKILL",
        "recovered_s": 0.021,
        "pid_after": 4712,
    }
    return {
        "id": "kill-1",
        "experiment": "kill",
        "module_id": "mesh/echo",
        "replicas": "1",
        "duration_s": 60.0,
        "seed": 7,
        "requested_by": "root",
        "phase": "over",
        "signal": "SIGKILL",
        "steady_before": STEADY,
        "injected_at": 1735689600.0,
        "targets": [target],
        "detected_s": 0.002,
        "recovered_s": 0.021,
        "gave_up": None,
        "rolled_back_at": 1735689600.1,
        "rolled_back_s": 0.021,
        "rollback": "there was nothing to undo",
        "steady_after": {**STEADY, "s": 0.021},
        "aborted": None,
        "interrupted": None,
        "verdict": WELL,
        "events": [],
        **other,
    }


BEGUN = report(phase="injected", verdict=None, steady_after=None)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    path = tmp_path / "nexus.sock"
    monkeypatch.setenv("NEXUS_SOCKET", str(path))
    answers = {"trigger_chaos": BEGUN, "get_chaos": report(), "abort_chaos": report(verdict=ABORTED)}
    with FakeDaemon(path, answers) as fake:
        yield fake


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command line: exit status, stdout, stderr."""

    def running(*arguments: str) -> tuple[int, str, str]:
        ended = run(["chaos", *arguments])
        output = capsys.readouterr()
        return ended, output.out, output.err

    return running


def test_run_begins_waits_as_long_as_it_may_take_and_is_0_when_the_module_recovered(
    said: Said, daemon: FakeDaemon
) -> None:
    ended, out, err = said("run", "kill", "mesh/echo")
    assert (ended, err) == (0, "")
    assert out.splitlines()[:5] == [
        "kill-1  kill of mesh/echo: recovered",
        "  in its steady state again after 0.021 s",
        "",
        "  REPLICA       PID  DETECTED  RECOVERED  NOTICED",
        "  mesh/echo#0  4711  2 ms      21 ms      killed by SIGKILL",
    ]
    assert daemon.asked_for("trigger_chaos") == [
        {"experiment": "kill", "module_id": "mesh/echo", "replicas": "1", "wait": False}
    ]
    assert daemon.asked_for("get_chaos") == [{"id": "kill-1", "wait": True, "timeout": 120.0}]


def test_all_that_was_said_is_asked(said: Said, daemon: FakeDaemon) -> None:
    options = ["--replicas", "50%", "--duration", "5m", "--seed", "7", "--timeout", "9"]
    said("run", "freeze", "mesh/echo", *options)
    assert daemon.asked_for("trigger_chaos") == [
        {
            "experiment": "freeze",
            "module_id": "mesh/echo",
            "replicas": "50%",
            "wait": False,
            "duration": "5m",
            "seed": 7,
        }
    ]
    assert daemon.asked_for("get_chaos")[0]["timeout"] == 9.0


def test_a_module_that_did_not_recover_is_1(said: Said, daemon: FakeDaemon) -> None:
    daemon.answers["get_chaos"] = report(verdict=GAVE_UP)
    ended, out, _ = said("run", "kill", "mesh/echo")
    assert ended == 1
    assert out.startswith("kill-1  kill of mesh/echo: gave up\n  mesh/echo#0: killed by SIGKILL\n")


def test_a_dry_run_says_whom_it_would_hit_and_how_to_hit_the_same(said: Said, daemon: FakeDaemon) -> None:
    daemon.answers["trigger_chaos"] = {**report(), "dry_run": True}
    ended, out, _ = said("run", "kill", "mesh/echo", "--dry-run")
    assert ended == 0
    assert out == (
        "kill of mesh/echo would send SIGKILL to mesh/echo#0 (pid 4711)\n  the same again: --seed 7\n"
    )
    assert daemon.asked_for("trigger_chaos")[0]["dry_run"] is True
    assert said("run", "kill", "mesh/echo", "--dry-run", "-o", "name")[1] == "mesh/echo#0\n"


def test_without_waiting_its_id_is_told(said: Said, daemon: FakeDaemon) -> None:
    ended, out, _ = said("run", "kill", "mesh/echo", "--no-wait")
    assert (ended, out) == (0, "kill-1 has begun; nexusctl chaos show kill-1\n")
    assert said("run", "kill", "mesh/echo", "--no-wait", "-o", "name")[1] == "kill-1\n"
    assert daemon.asked_for("get_chaos") == []


def test_what_takes_longer_than_was_allowed_is_75_and_goes_on(said: Said, daemon: FakeDaemon) -> None:
    def late(_params: Params, _connection: Connection) -> Params:
        raise Refusal(
            -32005, "kill-1 is still under way after 1 s", kind="timed_out", hint="nexusctl chaos show kill-1"
        )

    daemon.answers["get_chaos"] = late
    ended, _, err = said("run", "kill", "mesh/echo", "--timeout", "1")
    assert ended == 75
    assert "next: nexusctl chaos show kill-1" in err
    assert daemon.asked_for("abort_chaos") == []


def test_ctrl_c_aborts_the_experiment_and_shows_its_report(daemon: FakeDaemon) -> None:
    waiting = threading.Event()
    over = threading.Event()

    def wait(_params: Params, _connection: Connection) -> Params:
        waiting.set()
        over.wait(20)
        return report()

    daemon.answers["get_chaos"] = wait
    command = [sys.executable, "-m", "nexusctl", "chaos", "run", "freeze", "mesh/echo"]
    environment = {**os.environ, "NEXUS_SOCKET": str(daemon.path)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        assert waiting.wait(20)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=20)
        over.set()
    assert (running.returncode, err) == (130, "")
    assert "aborted by root" in out
    assert daemon.asked_for("abort_chaos") == [{"id": "kill-1", "timeout": 60.0}]


@pytest.mark.parametrize(
    ("word", "asked"),
    [([], {}), (["kill-1"], {"id": "kill-1"}), (["mesh/echo"], {"module_id": "mesh/echo"})],
)
def test_abort_takes_an_id_a_module_or_nothing(
    said: Said, daemon: FakeDaemon, word: list[str], asked: Params
) -> None:
    ended, out, _ = said("abort", *word)
    assert ended == 0
    assert "aborted by root" in out
    assert daemon.asked_for("abort_chaos") == [{**asked, "timeout": 60.0}]


def test_an_abort_that_leaves_the_module_unwell_is_1(said: Said, daemon: FakeDaemon) -> None:
    after = {
        **STEADY,
        "steady": False,
        "s": 31.0,
        "state": "failed",
        "reasons": ["it is failed: exit status 1"],
    }
    daemon.answers["abort_chaos"] = report(verdict=ABORTED, steady_after=after)
    ended, out, _ = said("abort")
    assert ended == 1
    assert "no: failed, 1/1 ready, healthy; it is failed: exit status 1" in out


def test_list_has_a_line_each(said: Said, daemon: FakeDaemon) -> None:
    rows = [report(), BEGUN]
    daemon.answers["list_chaos"] = {"experiments": rows}
    lines = said("list", "mesh/echo", "-n", "5")[1].splitlines()
    assert lines[0].split() == ["ID", "MODULE", "OUTCOME", "DETECTED", "RECOVERED", "INJECTED", "BY"]
    assert lines[1].split()[:6] == ["kill-1", "mesh/echo", "recovered", "2", "ms", "21"]
    assert "under way" in lines[2]
    assert daemon.asked_for("list_chaos") == [{"limit": 5, "module_id": "mesh/echo"}]
    assert said("list", "-o", "name")[1] == "kill-1\nkill-1\n"
    assert json.loads(said("list", "-o", "json")[1]) == rows
    daemon.answers["list_chaos"] = {"experiments": []}
    assert said("list")[1] == "no experiments yet\n"


def test_show_gives_the_report_as_it_is(said: Said) -> None:
    assert json.loads(said("show", "kill-1", "-o", "json")[1]) == report()


def test_a_refusal_names_what_is_missing(said: Said, daemon: FakeDaemon) -> None:
    def refuse(_params: Params, _connection: Connection) -> Params:
        said_so = {"kind": "not_possible", "module_id": "mesh/echo", "reason": "no [chaos] allow = true"}
        raise Refusal(-32003, "mesh/echo allows no experiments", **said_so, hint="add it")

    daemon.answers["trigger_chaos"] = refuse
    ended, _, err = said("run", "kill", "mesh/echo")
    assert ended == 1
    assert err == "nexusctl: mesh/echo allows no experiments\n  no [chaos] allow = true\nnext: add it\n"


@pytest.mark.parametrize(
    ("word", "meant"),
    [("ls", "list"), ("status", "show"), ("stop", "abort"), ("start", "run"), ("sho", "show")],
)
def test_a_word_that_is_not_there_names_the_one_that_is(said: Said, word: str, meant: str) -> None:
    ended, _, err = said(word)
    assert ended == 2
    assert f"did you mean {meant}?" in err


@pytest.mark.parametrize(
    ("seconds", "told"), [(None, "-"), (0.0004, "0 ms"), (0.021, "21 ms"), (61.25, "61.2 s")]
)
def test_a_time_is_short(seconds: float | None, told: str) -> None:
    assert lasted(seconds) == told


def test_what_a_module_says_commands_no_terminal() -> None:
    target = {**report()["targets"][0], "noticed": "it said \x1b[2J"}
    told = report_lines(report(targets=[target], verdict={**WELL, "reason": "\x1b[2J"}), Page(True, 80))
    assert "\x1b[2J" not in "\n".join(told)
