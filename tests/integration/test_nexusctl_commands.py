"""nexusctl's commands against a fake daemon on a real Unix socket: what is asked, said, and returned."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusctl.__main__ import run
from nexusctl.cli import run_command
from nexusctl.invocation import Invocation
from nexusctl.output import Page
from nexusd.domain import chain
from tests.fake_daemon import (
    Connection,
    FakeDaemon,
    Params,
    Refusal,
    detail,
    replica,
    status,
    status_of,
    summary,
)

ROOT = Path(__file__).resolve().parents[2]
NEXUSCTL = [sys.executable, "-m", "nexusctl"]
FLEET = [summary("mesh/echo"), summary("mesh/router", "stopped"), summary("substrate/bus")]
START = "start nexusd, or name the socket of the one that runs with --socket or NEXUS_SOCKET"
PAGES = [detail("mesh/echo"), detail("mesh/router", "stopped"), detail("autonomic/x", "starting")]


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    path = tmp_path / "nexus.sock"
    monkeypatch.setenv("NEXUS_SOCKET", str(path))
    with FakeDaemon(path, {"get_status": status_of(FLEET, PAGES)}) as fake:
        yield fake


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Said:
    """Run a command line: exit status, stdout, stderr."""

    def running(*arguments: str) -> tuple[int, str, str]:
        ended = run(list(arguments))
        output = capsys.readouterr()
        return ended, output.out, output.err

    return running


def started(params: Params, connection: Connection) -> Params:
    return {
        "module_id": params["module_id"],
        "started": True,
        "state": "started",
        "changed": True,
        "also": [],
    }


# ------------------------------------------------------------------------------------------------ status


def test_status_lists_the_modules_and_is_0_whatever_their_state(said: Said) -> None:
    ended, out, err = said("status")
    assert (ended, err) == (0, "")
    assert out.startswith("nexusd 2.0.0, up 3d 4h, 2/3 modules healthy\n\nMODULE")
    assert said("status", "-o", "name") == (0, "mesh/echo\nmesh/router\nsubstrate/bus\n", "")
    assert json.loads(said("status", "-o", "json")[1])["modules"]["total_loaded"] == 3
    assert [json.loads(line)["id"] for line in said("status", "-o", "jsonl")[1].splitlines()] == [
        "mesh/echo",
        "mesh/router",
        "substrate/bus",
    ]


@pytest.mark.parametrize(
    ("words", "ended"),
    [
        (["mesh/echo"], 0),
        (["mesh/router"], 3),
        (["autonomic/x"], 3),
        (["mesh/*"], 3),
        (["mesh/echo", "substrate/*"], 0),
        (["mesh/ecko"], 4),
        (["mesh/echo", "mesh/ecko"], 4),
        (["meh/*"], 4),
    ],
)
def test_status_of_modules_says_by_its_exit_status_whether_they_run(
    said: Said, words: list[str], ended: int
) -> None:
    assert said("status", *words)[0] == ended


def test_a_module_that_is_not_there_is_named_with_the_near_one(said: Said) -> None:
    ended, out, err = said("status", "mesh/ecko")
    assert (ended, out) == (4, "")
    assert err == "nexusctl: no such module: mesh/ecko; did you mean mesh/echo?\nnext: nexusctl modules\n"


PLAIN = [
    ["status"],
    ["status", "mesh/echo"],
    ["status", "mesh/*"],
    ["status", "mesh/ecko"],
    ["status", "x/*"],
]
FORMS = [[], ["-o", "json"], ["-o", "jsonl"], ["-o", "name"]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arguments", PLAIN)
def test_the_plain_way_and_clicks_way_agree_byte_for_byte(
    daemon: FakeDaemon, capsys: pytest.CaptureFixture[str], arguments: list[str], form: list[str]
) -> None:
    plain = run([*arguments, *form]), capsys.readouterr()
    click = run_command([*form, *arguments]), capsys.readouterr()
    assert plain == click
    assert plain[1].out or plain[1].err


def test_the_plain_way_does_not_import_click(daemon: FakeDaemon) -> None:
    program = (
        "import sys; from nexusctl.__main__ import run; run(['status']); print(*sys.modules, file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert not {"click", "asyncio", "dataclasses", "nexusd", "shutil"}.intersection(ran.stderr.split())


def test_status_of_a_replica_is_the_modules_page_with_it_alone(daemon: FakeDaemon, said: Said) -> None:
    replicas = [replica("mesh/echo", index) for index in range(2)]
    daemon.answers["get_status"] = status_of(FLEET, [detail("mesh/echo", instances=replicas)])
    ended, out, _ = said("status", "mesh/echo#1")
    assert ended == 0
    assert "#1" in out and "#0" not in out
    ended, out, err = said("status", "mesh/echo#7")
    assert (ended, out) == (4, "")
    assert err.startswith("nexusctl: mesh/echo has no replica #7; it has #0, #1\n")


@pytest.mark.parametrize("verb", ["start", "stop", "reload"])
def test_what_takes_whole_modules_says_what_takes_a_replica(
    daemon: FakeDaemon, said: Said, verb: str
) -> None:
    ended, _, err = said(verb, "mesh/echo#1")
    assert (ended, daemon.asked) == (2, [])
    assert f"{verb} takes whole modules only, not mesh/echo#1; nexusctl restart mesh/echo#1 restarts" in err


def test_modules_lists_what_was_found(said: Said) -> None:
    assert said("modules", "mesh/*", "-o", "name") == (0, "mesh/echo\nmesh/router\n", "")
    assert said("modules")[1].splitlines()[2].split() == [
        "mesh/router",
        "2.0.0",
        "1",
        "stopped",
        "stopped",
        "no",
    ]
    assert said("modules", "no/such")[0] == 4


# ----------------------------------------------------------------------------------------------- actions


def test_start_waits_for_the_outcome_with_the_given_time(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["start_module"] = started
    assert said("start", "mesh/echo", "--timeout", "7") == (0, "mesh/echo started\n", "")
    assert daemon.asked == [("start_module", {"module_id": "mesh/echo", "wait": True, "timeout": 7.0})]


def test_no_wait_only_asks(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["restart_module"] = {"module_id": "mesh/echo", "restarted": False, "state": "stopping"}
    assert said("restart", "--no-wait", "mesh/echo") == (0, "mesh/echo is to restart, now stopping\n", "")
    assert daemon.asked == [("restart_module", {"module_id": "mesh/echo", "wait": False})]


def test_what_came_along_and_what_was_done_before_is_said(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["start_module"] = lambda params, connection: {
        **started(params, connection),
        "also": ["substrate/bus"],
        "changed": params["module_id"] == "mesh/echo",
    }
    assert said("start", "mesh/echo")[1] == "mesh/echo started, and with it substrate/bus\n"
    assert said("start", "mesh/router")[1] == "mesh/router was started already\n"


def test_several_are_started_at_once_and_told_as_they_come(
    daemon: FakeDaemon, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    last_is_told = threading.Event()

    def answer(params: Params, connection: Connection) -> Params:
        if params["module_id"] == "mesh/router":
            connection.afterwards(last_is_told.set)
        else:
            assert last_is_told.wait(10)
        return started(params, connection)

    daemon.answers["start_module"] = answer
    ended, out, _ = said("start", "mesh/*")
    assert (ended, out) == (0, "mesh/router started\nmesh/echo started\n")


def test_the_worst_of_several_outcomes_is_the_exit_status(daemon: FakeDaemon, said: Said) -> None:
    def answer(params: Params, connection: Connection) -> Params:
        module_id = params["module_id"]
        if module_id == "mesh/echo":
            return started(params, connection)
        if module_id == "mesh/slow":
            raise Refusal(
                -32005, f"{module_id} has not started in 1 s", kind="timed_out", module_id=module_id
            )
        raise Refusal(-32002, f"no such module: {module_id}", kind="no_such_module", module_id=module_id)

    daemon.answers["start_module"] = answer
    ended, out, err = said("start", "mesh/echo", "mesh/slow", "mesh/ecko")
    assert (ended, out) == (75, "mesh/echo started\n")
    assert "next: nexusctl status mesh/slow" in err
    assert "did you mean mesh/echo?" in err


def test_the_forms_of_an_outcome(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["start_module"] = started
    assert json.loads(said("start", "mesh/echo", "-o", "json")[1])["state"] == "started"
    several = json.loads(said("start", "mesh/*", "-o", "json")[1])
    assert sorted(one["module_id"] for one in several) == ["mesh/echo", "mesh/router"]
    assert json.loads(said("-o", "jsonl", "start", "mesh/echo")[1])["module_id"] == "mesh/echo"
    assert said("start", "mesh/echo", "-o", "name")[1] == "mesh/echo\n"


def failed_start(params: Params, connection: Connection) -> Params:
    raise Refusal(
        -32008,
        "cannot start mesh/echo: mesh/echo#0 left with exit status 3",
        kind="start_failed",
        module_id="mesh/echo",
        reason=None,
        hint=None,
        exit={"code": 3, "signal": None, "description": "exit status 3"},
        log=["ValueError: no route"],
        replica="mesh/echo#0",
    )


def test_a_failed_start_is_told_on_stderr_with_the_last_lines(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["start_module"] = failed_start
    ended, out, err = said("start", "mesh/echo")
    assert (ended, out) == (1, "")
    assert err == (
        "nexusctl: cannot start mesh/echo: mesh/echo#0 left with exit status 3\n"
        "  once it is corrected: nexusctl restart mesh/echo\n"
        "  last lines of mesh/echo#0:\n"
        "    | ValueError: no route\n"
        "next: nexusctl logs mesh/echo\n"
    )


def test_with_json_an_error_is_an_object_on_stderr(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["start_module"] = failed_start
    ended, out, err = said("start", "mesh/echo", "-o", "json")
    error = json.loads(err)["error"]
    assert (ended, out, error["code"], error["kind"], error["exit_status"]) == (
        1,
        "",
        -32008,
        "start_failed",
        1,
    )
    assert error["next"] == "nexusctl logs mesh/echo"


def stops_in_order(stopped: list[str]) -> Callable[[Params, Connection], Params]:
    """substrate/bus is required by mesh/echo, and that by nobody."""

    def answer(params: Params, connection: Connection) -> Params:
        module_id = params["module_id"]
        if module_id == "substrate/bus" and "mesh/echo" not in stopped:
            data = {"kind": "not_possible", "module_id": module_id, "required_by": ["mesh/echo"]}
            raise Refusal(-32003, "substrate/bus is required by mesh/echo", **data)
        stopped.append(module_id)
        return {"module_id": module_id, "stopped": True, "state": "stopped", "changed": True, "also": []}

    return answer


def test_stopping_all_needs_no_cascade(daemon: FakeDaemon, said: Said) -> None:
    stopped: list[str] = []
    daemon.answers["stop_module"] = stops_in_order(stopped)
    ended, out, err = said("stop", "substrate/bus", "mesh/echo")
    assert (ended, out, err) == (0, "mesh/echo stopped\nsubstrate/bus stopped\n", "")
    assert not any(params["cascade"] for params in daemon.asked_for("stop_module"))


def test_a_cascade_tells_the_way_back(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["stop_module"] = lambda params, connection: {**params, "also": ["mesh/echo", "a/b"]}
    ended, out, err = said("stop", "substrate/bus", "--cascade")
    assert (ended, out) == (0, "substrate/bus stopped, and with it mesh/echo, a/b\n")
    assert err == "next: nexusctl start substrate/bus mesh/echo a/b  (all that was stopped)\n"


def test_what_others_require_is_not_stopped_in_passing(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["stop_module"] = stops_in_order([])
    ended, out, err = said("stop", "substrate/bus", "mesh/router")
    assert (ended, out) == (1, "mesh/router stopped\n")
    assert err.endswith("next: nexusctl stop --cascade substrate/bus\n")


def test_a_pattern_without_a_match_keeps_the_rest_from_being_done(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["stop_module"] = stops_in_order([])
    ended, out, err = said("stop", "mesh/echo", "meh/*")
    assert (ended, out, daemon.asked_for("stop_module")) == (4, "", [])
    assert "no module matches meh/*; did you mean 'mesh/*'?" in err


def test_reload_of_a_module_and_of_the_daemon(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["reload_module"] = {
        "module_id": "mesh/echo",
        "strategy": "rolling",
        "generation": 2,
        "changed": True,
    }
    assert (
        said("reload", "mesh/echo", "--strategy", "rolling")[1]
        == "mesh/echo reloaded (rolling), generation 2\n"
    )
    assert daemon.asked_for("reload_module")[0]["strategy"] == "rolling"
    nothing: Params = {"reloaded": True, "added": [], "changed": [], "removed": [], "invalid": []}
    daemon.answers["reload_daemon"] = nothing
    assert said("reload") == (0, "nexusd reloaded, nothing had changed\n", "")
    assert said("reload", "--no-wait")[0] == 2


def test_reload_says_what_of_nexusd_toml_is_in_force_and_what_waits(daemon: FakeDaemon, said: Said) -> None:
    told = {"in_force": ["access"], "waits_for_restart": ["metrics"]}
    daemon.answers["reload_daemon"] = {"reloaded": True, "config": told}
    assert said("reload")[1].splitlines() == [
        "nexusd reloaded",
        "  [access] of nexusd.toml is in force",
        "  metrics of nexusd.toml waits for a restart of nexusd",
    ]


def test_scale_says_from_what_to_what(daemon: FakeDaemon, said: Said) -> None:
    scaled: Params = {
        "module_id": "mesh/echo",
        "replicas": 3,
        "previous": 1,
        "changed": True,
        "state": "started",
    }
    daemon.answers["scale_module"] = scaled
    assert said("scale", "mesh/echo", "3") == (0, "mesh/echo scaled from 1 to 3 replicas\n", "")
    assert daemon.asked_for("scale_module")[0]["replicas"] == 3
    daemon.answers["scale_module"] = {**scaled, "previous": 3, "changed": False, "state": "stopped"}
    assert said("scale", "mesh/echo", "3")[1] == (
        "mesh/echo has 3 replicas already; it is stopped, they start with it\n"
    )
    daemon.answers["scale_module"] = {**scaled, "replicas": 0, "previous": 3, "state": "stopped"}
    assert said("scale", "mesh/echo", "0")[1] == "mesh/echo scaled from 3 to 0 replicas\n"


def test_scale_to_a_number_that_is_none_is_a_wrong_command_line(daemon: FakeDaemon, said: Said) -> None:
    assert said("scale", "mesh/echo", "many")[0] == 2


HEALED: Params = {
    "healed": ["mesh/echo"],
    "not_healed": {"mesh/router": "failed: exit status 1"},
    "restarted": ["mesh/echo", "mesh/router"],
    "skipped": {"substrate/bus": "stopped by an operator"},
    "helped": False,
    "message": "1 of 2 healed",
}


def test_heal_says_of_each_what_was_done_and_is_1_when_it_did_not_help(
    daemon: FakeDaemon, said: Said
) -> None:
    daemon.answers["trigger_healing"] = HEALED
    ended, out, _ = said("heal")
    assert (ended, out.splitlines()) == (
        1,
        [
            "mesh/echo healed",
            "mesh/router not healed: failed: exit status 1",
            "substrate/bus left alone: stopped by an operator",
            "1 of 2 healed",
        ],
    )
    assert "module_id" not in daemon.asked_for("trigger_healing")[0]


def test_heal_of_a_module_speaks_of_it_first(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["trigger_healing"] = {
        **HEALED,
        "module_id": "mesh/echo",
        "state": "started",
        "not_healed": {},
        "helped": True,
    }
    assert said("heal", "mesh/echo") == (
        0,
        "mesh/echo healed; substrate/bus left alone: stopped by an operator\n",
        "",
    )


def test_heal_with_nothing_to_do_is_0(daemon: FakeDaemon, said: Said) -> None:
    nothing: Params = {"healed": [], "not_healed": {}, "skipped": {}, "helped": None}
    message = "nothing that is to run is failed or unhealthy"
    daemon.answers["trigger_healing"] = {**nothing, "restarted": [], "message": message}
    assert said("heal") == (0, f"{message}\n", "")


@pytest.mark.parametrize("words", [["mesh/echo#1"], ["mesh/echo", "--replica", "1"]])
def test_restart_of_one_replica(daemon: FakeDaemon, said: Said, words: list[str]) -> None:
    daemon.answers["restart_module"] = {"module_id": "mesh/echo", "restarted": True, "state": "started"}
    assert said("restart", *words) == (0, "mesh/echo#1 restarted\n", "")
    asked = daemon.asked_for("restart_module")[0]
    assert (asked["module_id"], asked["replica"]) == ("mesh/echo", 1)


def test_a_reload_with_faults_is_1_and_tells_each_at_once(daemon: FakeDaemon, said: Said) -> None:
    faults = ["module.toml: versoin: expected a known key", "module.toml: run: expected a table"]
    changes = {
        "added": ["a/b"],
        "changed": ["a/c"],
        "removed": ["a/gone", "a/left"],
        "running_on": ["a/gone"],
    }
    daemon.answers["reload_daemon"] = {
        "reloaded": True,
        **changes,
        "invalid": ["c/d"],
        "faults": {"c/d": faults},
    }
    ended, out, err = said("reload")
    assert (ended, out.splitlines()) == (
        1,
        [
            "nexusd reloaded",
            "  added  a/b",
            "  changed  a/c  (nexusctl reload a/c puts it in force)",
            "  removed  a/gone",
            "  removed  a/left",
        ],
    )
    assert err.splitlines() == [
        "nexusctl: c/d is invalid",
        f"  {faults[0]}",
        f"  {faults[1]}",
        "next: correct it, then nexusctl reload",
        "next: nexusctl stop a/gone  (it runs on until it is stopped)",
    ]
    ended, out, err = said("reload", "-o", "json")
    assert (ended, json.loads(out)["faults"], err) == (1, {"c/d": faults}, "")


@pytest.mark.parametrize(
    ("module_id", "strategy", "told"),
    [
        ("mesh/echo", "graceful", "started anew from the same files (graceful), generation 2"),
        ("mesh/router", "graceful", "reloaded from the same files (graceful), generation 2; it is stopped"),
        ("no/look", "graceful", "reloaded from the same files (graceful), generation 2"),
        ("mesh/echo", "signal", "got its reload signal (signal), generation 2"),
    ],
)
def test_a_reload_of_unchanged_files_says_what_was_done_all_the_same(
    daemon: FakeDaemon, said: Said, module_id: str, strategy: str, told: str
) -> None:
    result = {"module_id": module_id, "strategy": strategy, "generation": 2, "changed": False}
    daemon.answers["reload_module"] = result
    assert said("reload", module_id)[1] == f"{module_id} {told}\n"


# --------------------------------------------------------------------------------------- logs and events


def log_lines(*names: str) -> Callable[[Params, Connection], Params]:
    def answer(params: Params, connection: Connection) -> Params:
        lines = [{"replica": name, "line": f"\tline of {name}"} for name in names]
        return {"module_id": params["module_id"], "lines": lines, "subscription": None}

    return answer


def test_the_log_of_one_replica_is_printed_as_it_stands(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["get_logs"] = log_lines("mesh/echo#0")
    assert said("logs", "mesh/echo", "-n", "5") == (0, "\tline of mesh/echo#0\n", "")
    assert daemon.asked_for("get_logs") == [{"module_id": "mesh/echo", "lines": 5, "follow": False}]
    line = {"replica": "mesh/echo#0", "line": "\tline of mesh/echo#0"}
    assert json.loads(said("logs", "mesh/echo", "-o", "jsonl")[1]) == line
    assert json.loads(said("logs", "mesh/echo", "-o", "json")[1])["lines"] == [line]


def test_lines_of_several_replicas_begin_with_their_names(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["get_logs"] = log_lines("mesh/echo#0", "mesh/echo#1")
    assert said("logs", "mesh/echo")[1].startswith("mesh/echo#0 | \tline of mesh/echo#0\nmesh/echo#1 | ")


def test_a_module_with_two_replicas_has_names_even_while_one_is_silent(
    daemon: FakeDaemon, said: Said
) -> None:
    daemon.answers["get_logs"] = log_lines("mesh/echo#0")
    two = [replica("mesh/echo"), replica("mesh/echo", 1)]
    daemon.answers["get_status"] = detail("mesh/echo", instances=two)
    assert said("logs", "mesh/echo")[1].startswith("mesh/echo#0 | ")
    assert said("logs", "mesh/echo#0")[1].startswith("\tline")
    assert daemon.asked_for("get_logs")[-1]["replica"] == 0


def test_following_logs_goes_on_until_ctrl_c_and_ends_quietly_with_0(daemon: FakeDaemon) -> None:
    def answer(params: Params, connection: Connection) -> Params:
        later = {"subscription": 1, "replica": "mesh/echo#0", "lines": ["second"]}
        connection.afterwards(lambda: connection.notify("log", **later))
        first = {"replica": "mesh/echo#0", "line": "first"}
        return {"module_id": "mesh/echo", "lines": [first], "subscription": 1}

    daemon.answers["get_logs"] = answer
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([*NEXUSCTL, "logs", "-f", "mesh/echo"], cwd=ROOT, **pipes) as following:
        assert [following.stdout.readline(), following.stdout.readline()] == ["first\n", "second\n"]
        following.send_signal(signal.SIGINT)
        assert (following.wait(10), following.stderr.read()) == (0, "")


def test_following_a_daemon_that_shuts_down_says_so_and_is_69(daemon: FakeDaemon, said: Said) -> None:
    def leave(params: Params, connection: Connection) -> Params:
        def go() -> None:
            daemon.path.unlink()
            connection.close()

        connection.afterwards(go)
        return {"module_id": "mesh/echo", "lines": [], "subscription": 1}

    daemon.answers["get_logs"] = leave
    assert said("logs", "-f", "mesh/echo#0") == (69, "", "nexusctl: nexusd has shut down\n")


def happened(seq: int, module_id: str | None, **other: Any) -> Params:
    base = {"seq": seq, "time": 1735689600.0 + seq, "kind": "module.state", "module_id": module_id}
    return {**base, "replica": None, "from": "started", "to": "backoff", "reason": None, **other}


def test_past_events_read_like_a_log(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["get_history"] = {
        "events": [
            happened(1, "mesh/echo", reason="exit status 1"),
            happened(
                2, "mesh/echo", kind="replica.state", replica="mesh/echo#0", to="started", **{"from": None}
            ),
            happened(3, None, kind="keeper.lost", to=None),
        ]
    }
    ended, out, _ = said("events", "-n", "3")
    assert ended == 0
    assert [line[21:] for line in out.splitlines()] == [
        "mesh/echo  started -> backoff: exit status 1",
        "mesh/echo#0  started",
        "nexusd  keeper.lost",
    ]
    assert [json.loads(line)["seq"] for line in said("events", "-o", "jsonl", "-n", "2")[1].splitlines()] == [
        2,
        3,
    ]


def test_what_only_repeats_another_event_is_shown_on_request_and_to_programs(
    daemon: FakeDaemon, said: Said
) -> None:
    events = [
        happened(1, "mesh/echo", kind="replica.state", replica="mesh/echo#0", minor=True),
        happened(2, "mesh/echo", minor=False),
        happened(3, "mesh/echo", kind="module.health", minor=True),
        happened(4, "mesh/echo", to="started", minor=False),
    ]
    daemon.answers["get_history"] = lambda params, _: {"events": events[-params["limit"] :]}
    assert [line[21:] for line in said("events", "-n", "2")[1].splitlines()] == [
        "mesh/echo  started -> backoff",
        "mesh/echo  started -> started",
    ]
    assert len(said("events", "-n", "4", "--all")[1].splitlines()) == 4
    assert len(json.loads(said("events", "-o", "json")[1])) == 4


def test_following_events_misses_none_and_repeats_none(daemon: FakeDaemon) -> None:
    def subscribe(params: Params, connection: Connection) -> Params:
        for seq in (3, 4):
            connection.afterwards(
                lambda seq=seq: connection.notify("event", subscription=1, event=happened(seq, "mesh/echo"))
            )
        return {"subscription": 1, "events": [happened(2, "mesh/echo"), happened(3, "mesh/echo")]}

    daemon.answers["get_history"] = {"events": [happened(1, "mesh/echo"), happened(2, "mesh/echo")]}
    daemon.answers["subscribe_events"] = subscribe
    command = [*NEXUSCTL, "events", "-f", "-o", "jsonl", "mesh/echo"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert [json.loads(following.stdout.readline())["seq"] for _ in range(4)] == [1, 2, 3, 4]
        following.send_signal(signal.SIGINT)
        assert following.wait(10) == 0
    assert daemon.asked_for("subscribe_events") == [{"module_id": "mesh/echo", "since": 2}]


# ------------------------------------------------------------------------------ config, rpc, the daemon


INTERVAL = {
    "value": 1000,
    "default": 1000,
    "type": "int",
    "min": 100,
    "max": None,
    "apply": "live",
    "secret": False,
}


def test_config_get_shows_all_keys_or_the_value_of_one(daemon: FakeDaemon, said: Said) -> None:
    entries = {"interval_ms": {**INTERVAL, "source": "default", "description": "how often"}}
    daemon.answers["get_config"] = {"module_id": "mesh/echo", "config": entries}
    ended, out, _ = said("config", "get", "mesh/echo")
    assert (ended, out.splitlines()[1]) == (0, "interval_ms  1000            int   100 …  live   how often")
    assert said("config", "get", "mesh/echo", "interval_ms")[1] == "1000\n"
    assert json.loads(said("config", "get", "mesh/echo", "-o", "json")[1]) == entries
    assert said("config", "get", "mesh/echo", "-o", "name")[1] == "interval_ms\n"


def test_config_set_sends_json_values_and_tells_how_they_are_applied(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["configure"] = lambda params, connection: {**params, "previous": 1000, "applied": "live"}
    ended, out, _ = said("config", "set", "mesh/echo", "interval_ms", "5000")
    assert (ended, out) == (0, "mesh/echo interval_ms: 1000 -> 5000, applied at once\n")
    assert daemon.asked_for("configure") == [{"module_id": "mesh/echo", "key": "interval_ms", "value": 5000}]


def test_rpc_calls_any_method_with_parameters_from_the_line_or_stdin(
    daemon: FakeDaemon, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["echo"] = lambda params, connection: params
    assert json.loads(said("rpc", "echo", '{"a": [1]}')[1]) == {"a": [1]}
    monkeypatch.setattr("sys.stdin", io.StringIO("[1, 2]"))
    assert said("-o", "jsonl", "rpc", "echo", "-")[1] == "[1, 2]\n"
    assert said("rpc", "echo", "{")[0] == 2
    assert said("rpc", "echo", "5")[0] == 2
    assert said("rpc", "no_such")[0] == 1


@pytest.mark.parametrize(
    ("kind", "text", "from_stdin", "value"),
    [
        ("str", "12345678", True, "12345678"),
        ("str", '"quoted"', True, '"quoted"'),
        ("str", "12345678", False, "12345678"),
        ("str", '"5000"', False, "5000"),
        ("int", "5000", True, 5000),
        ("list", '["a"]', False, ["a"]),
    ],
)
def test_text_for_a_str_is_not_taken_for_json(
    daemon: FakeDaemon,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    text: str,
    from_stdin: bool,
    value: object,
) -> None:
    daemon.answers["get_config"] = {"module_id": "a/b", "config": {"password": {"type": kind}}}
    daemon.answers["configure"] = lambda params, connection: {**params, "applied": "live"}
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{text}\n"))
    assert said("config", "set", "a/b", "password", "-" if from_stdin else text)[0] == 0
    assert daemon.asked_for("configure")[0]["value"] == value


def configured(params: Params, connection: Connection) -> Params:
    module_id, key = params["module_id"], params.get("key")
    entry = {**INTERVAL, "source": "default", "description": "how often " * 6}
    if "value" not in params:
        return {
            "module_id": module_id,
            "config": {"interval_ms": entry} if module_id != "mesh/router" else {},
        }
    if module_id == "mesh/router":
        raise Refusal(-32004, f"{module_id} has no configuration key {key}", kind="bad_value")
    return {**params, "previous": 1000, "applied": "live"}


def test_config_get_takes_a_pattern(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["get_config"] = configured
    ended, out, _ = said("config", "get", "*/*")
    assert ended == 0
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["MODULE", "KEY", "VALUE"],
        ["mesh/echo", "interval_ms", "1000"],
        ["substrate/bus", "interval_ms", "1000"],
    ]
    assert said("config", "get", "*/*", "interval_ms", "-o", "name")[1] == "mesh/echo\nsubstrate/bus\n"
    assert [one["module_id"] for one in json.loads(said("config", "get", "*/*", "-o", "json")[1])] == [
        "mesh/echo",
        "mesh/router",
        "substrate/bus",
    ]
    assert json.loads(said("config", "get", "mesh/*", "-o", "jsonl")[1])["module_id"] == "mesh/echo"
    ended, _, err = said("config", "get", "*/*", "intervl")
    assert (ended, err.splitlines()[0]) == (
        1,
        "nexusctl: no module that matches */* has a configuration key intervl",
    )
    assert said("config", "get", "x/*")[0] == 4


def test_config_set_takes_a_pattern_and_tells_of_each(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["configure"] = configured
    ended, out, err = said("config", "set", "*/*", "interval_ms", "500")
    assert (ended, out.splitlines()) == (
        1,
        [
            "mesh/echo interval_ms: 1000 -> 500, applied at once",
            "substrate/bus interval_ms: 1000 -> 500, applied at once",
        ],
    )
    assert err.startswith("nexusctl: mesh/router has no configuration key interval_ms\n")


def test_the_configuration_fits_the_window(
    daemon: FakeDaemon, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["get_config"] = configured
    monkeypatch.setattr(Invocation, "page", Page(False, 60))
    out = said("config", "get", "mesh/echo")[1].splitlines()
    assert max(map(len, out)) <= 60
    assert " ".join(" ".join(out[2:]).split()) == ("how often " * 6).strip()


def test_new_says_truly_what_has_the_daemon_find_the_module(
    daemon: FakeDaemon, said: Said, tmp_path: Path
) -> None:
    err = said("new", "a/b", "--into", str(tmp_path))[2]
    assert err == "next: move it below /etc/nexus/modules, then nexusctl reload\n"
    daemon.answers["get_status"] = status([], module_paths=["/etc/nexus/modules", str(tmp_path)])
    assert said("new", "a/c", "--into", str(tmp_path))[2] == "next: nexusctl reload\n"
    daemon.close()
    err = said("new", "a/d", "--into", str(tmp_path))[2]
    assert err.startswith(f"next: nexusctl check {tmp_path}; ")


def test_whoami_shows_who_one_is(daemon: FakeDaemon, said: Said) -> None:
    who = {
        "principal": "ada",
        "uid": 1000,
        "gid": 1000,
        "groups": ["nexus"],
        "roles": ["operator"],
        "permissions": [],
    }
    daemon.answers["whoami"] = who
    assert said("whoami")[1].splitlines()[2:4] == ["groups       nexus", "roles        operator"]
    assert json.loads(said("whoami", "-o", "json")[1]) == who


def test_shutdown_waits_until_the_daemon_has_gone(daemon: FakeDaemon, said: Said) -> None:
    def answer(params: Params, connection: Connection) -> Params:
        connection.afterwards(connection.close)
        return {"shutting_down": True}

    daemon.answers["shutdown"] = answer
    assert said("shutdown") == (0, "nexusd has shut down\n", "")
    daemon.answers["shutdown"] = {"shutting_down": True}
    assert said("shutdown", "--no-wait")[1] == "nexusd is shutting down\n"
    ended, out, err = said("shutdown", "--timeout", "0.05")
    assert (ended, out) == (75, "")
    assert "shutdown was not answered within 0.05 s" in err


def replaced(daemon: FakeDaemon, pids: dict[str, int], **status: Any) -> None:
    """From the answer to `reexec` on the daemon is another, with these processes."""
    former = {"instance": "one", "replaced": None, "version": "2.0.0", "pid": 1}
    now = [former, {"mesh/echo": 11, "mesh/router": 12}]

    def get_status(params: Params, connection: Connection) -> Params:
        module_id = params.get("module_id")
        if module_id is None:
            return {**now[0], "modules": {"items": [{"id": one} for one in now[1]]}}
        return {"id": module_id, "instances": [{"name": f"{module_id}#0", "pid": now[1][module_id]}]}

    def reexec(params: Params, connection: Connection) -> Params:
        now[:] = [{**former, "replaced": {"from": "2.0.0", "failure": None}, **status}, pids]
        return {"reexec": True, "from": "2.0.0", "to": "2.1.0", "keeper": "stays"}

    daemon.answers |= {"get_status": get_status, "reexec": reexec}


def test_reexec_waits_for_the_other_one_and_counts_what_is_as_it_was(daemon: FakeDaemon, said: Said) -> None:
    replaced(daemon, {"mesh/echo": 11, "mesh/router": 12}, instance="two", version="2.1.0")
    ended, out, err = said("reexec")
    assert (ended, err) == (0, "")
    assert re.fullmatch(r"reexec: 2\.0\.0 -> 2\.1\.0 in \d+ ms, 2 modules untouched\n", out)
    assert ("reexec", {"force": False}) in daemon.asked
    replaced(daemon, {"mesh/echo": 11, "mesh/router": 12}, instance="two")
    told = json.loads(said("reexec", "--force", "--timeout", "7", "-o", "json")[1])
    assert (told["untouched"], told["touched"]) == (2, [])
    assert daemon.asked[-4][1] == {"force": True, "timeout": 7.0}


def test_reexec_names_the_modules_that_did_not_stay_as_they_were(daemon: FakeDaemon, said: Said) -> None:
    replaced(daemon, {"mesh/echo": 11, "mesh/router": 99}, instance="two")
    ended, out, err = said("reexec")
    assert (ended, "1 module untouched" in out) == (1, True)
    assert err.startswith("nexusctl: other processes than before: mesh/router\n")


def test_reexec_tells_of_a_new_one_that_could_not_be_executed(daemon: FakeDaemon, said: Said) -> None:
    failed = {"from": "2.0.0", "failure": "/opt/nexusd: No such file or directory"}
    replaced(daemon, {"mesh/echo": 11, "mesh/router": 12}, instance="two", replaced=failed)
    told = "nexusd 2.1.0 could not be executed, 2.0.0 goes on: /opt/nexusd: No such file or directory"
    assert said("reexec") == (1, "", f"nexusctl: {told}\n")


def test_reexec_does_not_wait_for_ever(daemon: FakeDaemon, said: Said) -> None:
    replaced(daemon, {"mesh/echo": 11, "mesh/router": 12})
    ended, out, err = said("reexec", "--timeout", "0.3")
    assert (ended, out) == (75, "")
    assert "reexec was not answered within 0.3 s" in err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_completion_script(said: Said, shell: str) -> None:
    ended, out, _ = said("completion", shell)
    assert (ended, "_NEXUSCTL_COMPLETE" in out) == (0, True)


def completed(*words: str) -> list[str]:
    line = " ".join(["nexusctl", *words])
    asked = {"_NEXUSCTL_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words))}
    ran = subprocess.run(NEXUSCTL, cwd=ROOT, env={**os.environ, **asked}, capture_output=True, text=True)
    assert ran.stderr == ""
    return [one.partition(",")[2] for one in ran.stdout.splitlines() if one]


def test_module_ids_complete_from_the_running_daemon_and_quietly_without(daemon: FakeDaemon) -> None:
    assert completed("start", "mesh/") == ["mesh/echo", "mesh/router"]
    daemon.answers["get_config"] = {"module_id": "mesh/echo", "config": {"interval_ms": INTERVAL}}
    assert completed("config", "get", "mesh/echo", "int") == ["interval_ms"]
    daemon.close()
    daemon.path.unlink()
    assert completed("start", "mesh/") == []


# ------------------------------------------------------------------------------------ how commands end


def test_a_wrong_command_line_is_2_and_says_where_to_read(said: Said) -> None:
    assert said("start") == (2, "", "nexusctl: Missing argument 'MODULE...'.\nnext: nexusctl start --help\n")
    assert said()[0] == 2
    assert said("no-such")[0] == 2
    assert said("status", "-o", "yaml")[0] == 2
    assert said("status", "--timeout", "0")[0] == 2


def test_without_a_daemon_it_is_69_and_says_which_command_starts_one(
    tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "none"
    told = f"nexusctl: cannot connect: no daemon: {path} does not exist\nnext: {START}\n"
    assert said("--socket", str(path), "status") == (69, "", told)
    assert said("start", "a/b", "--socket", str(path)) == (69, "", told)
    ended, _, err = said("status", "--socket", str(path), "-o", "json")
    error = json.loads(err)["error"]
    assert (ended, error["kind"], error["cause"], error["socket"]) == (
        69,
        "unreachable",
        "no daemon",
        str(path),
    )


def test_a_silent_daemon_is_75_and_a_refusing_one_77(daemon: FakeDaemon, said: Said) -> None:
    asked_enough = threading.Event()
    daemon.answers["whoami"] = lambda params, connection: asked_enough.wait(10)
    assert said("whoami", "--timeout", "0.05")[0] == 75
    asked_enough.set()

    def refuse(params: Params, connection: Connection) -> Params:
        raise Refusal(-32001, "bob may not shut nexusd down", kind="permission_denied")

    daemon.answers["shutdown"] = refuse
    assert said("shutdown") == (77, "", "nexusctl: bob may not shut nexusd down\nnext: nexusctl whoami\n")


def test_a_reader_that_has_gone_ends_the_command_quietly(daemon: FakeDaemon) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run([*NEXUSCTL, "status"], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (141, b"")


def test_ctrl_c_while_waiting_is_quiet_and_130(daemon: FakeDaemon) -> None:
    asked = threading.Event()
    over = threading.Event()

    def answer(params: Params, connection: Connection) -> Params:
        asked.set()
        assert over.wait(10)
        return started(params, connection)

    daemon.answers["start_module"] = answer
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*NEXUSCTL, "start", "mesh/echo"], cwd=ROOT, **pipes) as waiting:
        assert asked.wait(10)
        waiting.send_signal(signal.SIGINT)
        assert (waiting.wait(10), *waiting.communicate()) == (130, b"", b"")
    over.set()


def test_progress_is_drawn_on_a_terminal_and_taken_away_again(daemon: FakeDaemon) -> None:
    drawn = threading.Event()
    subscribed = threading.Event()

    def subscribe(params: Params, connection: Connection) -> Params:
        told = happened(1, "mesh/echo", kind="replica.state", replica="mesh/echo#0", to="starting")
        connection.afterwards(lambda: connection.notify("event", subscription=1, event=told))
        connection.afterwards(subscribed.set)
        return {"subscription": 1, "events": []}

    def answer(params: Params, connection: Connection) -> Params:
        assert subscribed.wait(10) and drawn.wait(10)
        return started(params, connection)

    daemon.answers |= {"start_module": answer, "subscribe_events": subscribe}
    terminal, other_end = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "80"}
    with subprocess.Popen(
        [*NEXUSCTL, "start", "mesh/echo"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=other_end
    ) as starting:
        os.close(other_end)
        seen = b""
        while b"#0 starting" not in seen:
            seen += os.read(terminal, 1000)
        drawn.set()
        assert starting.communicate()[0] == b"mesh/echo started\n"
    rest = os.read(terminal, 1000)
    os.close(terminal)
    assert (starting.returncode, (seen + rest).endswith(b"\x1b[1A\x1b[J")) == (0, True)


CONFIGURED = {"module_id": "a/b", "key": "password", "value": "********", "previous": "", "applied": "stored"}


def test_a_value_can_be_kept_out_of_the_command_line(
    daemon: FakeDaemon, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.answers["configure"] = CONFIGURED
    monkeypatch.setattr(sys, "stdin", io.StringIO("hunter2\n"))
    assert said("config", "set", "a/b", "password", "-")[0] == 0
    assert daemon.asked[-1] == ("configure", {"module_id": "a/b", "key": "password", "value": "hunter2"})
    monkeypatch.setattr(sys, "stdin", io.StringIO("hunter2\n"))
    ended, _, err = said("config", "set", "a/b", "password")
    assert (ended, "- reads it from stdin" in err) == (2, True)


def test_a_value_is_asked_for_on_a_terminal_and_not_shown(daemon: FakeDaemon) -> None:
    daemon.answers["configure"] = CONFIGURED
    terminal, other_end = pty.openpty()
    with subprocess.Popen(
        [*NEXUSCTL, "config", "set", "a/b", "password"],
        stdin=other_end,
        stdout=other_end,
        stderr=other_end,
        start_new_session=True,  # no terminal of its own: then getpass takes stdin
        cwd=ROOT,
    ) as process:
        seen = b""
        while b"a/b password: " not in seen:
            seen += os.read(terminal, 1000)
        os.write(terminal, b"hunter2\n")
        while b"applied" not in seen and b"stored" not in seen:
            seen += os.read(terminal, 1000)
        assert process.wait(20) == 0
    os.close(other_end)
    os.close(terminal)
    assert daemon.asked[-1][1]["value"] == "hunter2"
    assert b"hunter2" not in seen


# The audit log


def record(seq: int, outcome: str = "ok", **more: Any) -> Params:
    return {
        "seq": seq,
        "time": "2026-01-02T03:04:05.000000Z",
        "principal": "alice",
        "uid": 1000,
        "pid": 7,
        "method": "stop_module",
        "params": {"module_id": "mesh/echo", "cascade": False},
        "outcome": outcome,
        "prev": "0" * 64,
        "hash": "f" * 64,
        **more,
    }


RECORDS = [
    record(1, "begun"),
    record(2, begun=1, duration_s=0.0123),
    record(3, "denied", permission="module.stop", duration_s=0.0),
    record(4, "error", error="not_possible", duration_s=1.5),
    record(5, "begun"),
]


def test_the_audit_log_is_shown_a_line_for_each_command(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["get_audit"] = {"records": RECORDS, "subscription": None}
    ended, out, _ = said("audit", "tail")
    assert ended == 0
    command = "alice  stop_module mesh/echo cascade=false"
    assert [line.split("  ", 1)[1] for line in out.splitlines()] == [
        f"{command}  ok  12 ms",
        f"{command}  denied: lacks module.stop  0 ms",
        f"{command}  error: not_possible  1500 ms",
        f"{command}  begun",
    ]
    assert json.loads(said("-o", "json", "audit", "tail", "mesh/echo", "-n", "7")[1]) == RECORDS
    assert daemon.asked[-1] == ("get_audit", {"module_id": "mesh/echo", "limit": 7})
    assert len(said("audit", "tail", "-n", "2")[1].splitlines()) == 2
    assert daemon.asked[-1] == ("get_audit", {"limit": 4})


def test_no_records_of_a_mistyped_module_are_no_answer(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["get_audit"] = {"records": [], "subscription": None}
    ended, out, err = said("audit", "tail", "mesh/ecko")
    assert (ended, out) == (4, "")
    assert "no such module: mesh/ecko; did you mean mesh/echo?" in err
    assert said("audit", "tail", "mesh/echo") == (0, "", "")
    assert said("audit", "tail", "mesh/*")[0] == 2


def test_following_the_audit_log_shows_each_record_once(daemon: FakeDaemon) -> None:
    def answer(params: Params, connection: Connection) -> Params:
        if not params.get("follow"):
            return {"records": RECORDS[:2], "subscription": None}
        assert params["since"] == 2
        for one in RECORDS[2:4]:
            connection.afterwards(lambda one=one: connection.notify("audit", subscription=-1, record=one))
        connection.afterwards(connection.close)
        return {"records": RECORDS[2:3], "subscription": -1}

    daemon.answers["get_audit"] = answer
    ran = subprocess.run(
        [*NEXUSCTL, "-o", "jsonl", "audit", "tail", "-f"],
        capture_output=True,
        text=True,
        timeout=20,
        cwd=ROOT,
    )
    assert [json.loads(line)["seq"] for line in ran.stdout.splitlines()] == [1, 2, 3, 4]


def test_verify_names_what_was_found_and_fails(daemon: FakeDaemon, said: Said) -> None:
    found = {"file": "audit.log", "line": 7, "problem": "missing", "text": "record 7 is missing"}
    told = {"whole": False, "records": 9, "first": 1, "last": {"seq": 10, "hash": "f" * 64}, "after_head": 0}
    daemon.answers["verify_audit"] = {**told, "findings": [found], "findings_total": 3}
    ended, out, _ = said("audit", "verify", "--anchor", f"3:{'a' * 64}")
    assert (ended, out.splitlines()) == (
        1,
        [
            "audit.log line 7: record 7 is missing",
            "and 2 findings more",
            "NOT whole: 9 records, 1 to 10",
            f"last: 10:{'f' * 64}",
        ],
    )
    assert daemon.asked[-1] == ("verify_audit", {"anchors": {"3": "a" * 64}})
    assert said("audit", "verify", "--anchor", "3")[0] == 2


def test_files_are_verified_without_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NEXUS_SOCKET", str(tmp_path / "nothing"))
    first, mark = chain.sealed(b'{"method":"x"}', chain.Mark())
    second, last = chain.sealed(b'{"method":"y"}', mark)
    (tmp_path / "audit.000000000001.log").write_bytes(first + b"\n")
    (tmp_path / "audit.log").write_bytes(second + b"\n")
    head = tmp_path / "head"
    head.write_text(chain.head_text(chain.Head(last)))
    assert run(["audit", "verify", str(tmp_path), "--head", str(head)]) == 0
    assert capsys.readouterr().out == f"whole: 2 records, 1 to 2\nlast: 2:{last.hash}\n"
    (tmp_path / "audit.log").write_bytes(second.replace(b'"y"', b'"z"') + b"\n")
    assert run(["audit", "verify", str(tmp_path)]) == 1
    assert f"{tmp_path}/audit.log line 1: record 2 was changed" in capsys.readouterr().out
    assert run(["audit", "verify", str(tmp_path / "not-there")]) == 1
    assert "No such file" in capsys.readouterr().err
