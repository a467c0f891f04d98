"""What nexusctl makes of words: plain statuses, patterns, values, exit statuses, complaints, progress."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nexusd
from nexusctl.__main__ import plain_status
from nexusctl.cli import run_command
from nexusctl.client import PermissionDenied, RpcError
from nexusctl.commands.config import as_value
from nexusctl.complaint import lines, tell
from nexusctl.exits import FROM_GOOD_TO_BAD, MEANINGS, exit_status, worst
from nexusctl.output import Page
from nexusctl.progress import UP_AND_CLEAR, Board
from nexusctl.selection import matching, nearest, no_match
from nexusctl.unreachable import NO_DAEMON, SYSTEM_SOCKET, Unreachable, unanswered
from nexusctl.wire import error_of

KNOWN = ["mesh/echo", "mesh/router", "vitals/heartbeat-client"]


@pytest.mark.parametrize(
    ("arguments", "plain"),
    [
        (["status"], ({}, [])),
        (["status", "-o", "json"], ({"output": "json"}, [])),
        (["--socket", "/s", "status", "a/b", "c/*"], ({"socket": "/s"}, ["a/b", "c/*"])),
        (["-o", "json", "status", "-o", "name"], ({"output": "name"}, [])),
        (["status", "-o", "yaml"], None),
        (["status", "-o"], None),
        (["status", "--socket", ""], None),
        (["status", "--help"], None),
        (["status", "--timeout", "1"], None),
        (["status", ""], None),
        (["start", "status"], None),
        ([], None),
    ],
)
def test_only_a_plain_status_goes_without_click(arguments: list[str], plain: object) -> None:
    assert plain_status(arguments) == plain


def test_completion_is_never_answered_by_the_plain_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_NEXUSCTL_COMPLETE", "bash_complete")
    assert plain_status(["status"]) is None


def test_patterns_pick_from_the_known_ids_and_each_is_meant_once() -> None:
    assert matching(["mesh/*", "mesh/echo", "no/such"], KNOWN) == ["mesh/echo", "mesh/router", "no/such"]


def test_a_pattern_without_a_match_names_the_near_one() -> None:
    with pytest.raises(RpcError, match=r"no module matches meh/\*; did you mean 'mesh/\*'\?") as raised:
        matching(["mesh/*", "meh/*"], KNOWN)
    assert exit_status(raised.value) == 4


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("mesh/ecko", "mesh/echo"),
        ("heartbeat", "vitals/heartbeat-client"),
        ("router", "mesh/router"),
        ("vitals", "vitals/*"),
        ("vitals/", "vitals/*"),
        ("all", "*"),
        ("zzzzz", None),
        ("mehs", "mesh/*"),
        ("nope", None),
        ("ruin", None),
    ],
)
def test_the_nearest_id_is_found_without_its_group_too(word: str, near: str | None) -> None:
    assert nearest(word, KNOWN) == near


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5000", 5000),
        ("true", True),
        ('"5000"', "5000"),
        ("[1,2]", [1, 2]),
        ("10s", "10s"),
        ("NaN", "NaN"),
        ("", ""),
    ],
)
def test_a_value_is_json_where_it_reads_as_json(text: str, value: object) -> None:
    assert as_value(text) == value


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (-32001, 77),
        (-32002, 4),
        (-32003, 1),
        (-32004, 1),
        (-32005, 75),
        (-32006, 1),
        (-32007, 1),
        (-32008, 1),
        (-32009, 69),
        (-32601, 1),
        (-32603, 1),
    ],
)
def test_each_code_of_the_daemon_has_its_exit_status(code: int, status: int) -> None:
    assert exit_status(RpcError(code, "x")) == status


@pytest.mark.parametrize(
    ("cause", "status"),
    [
        ("no daemon", 69),
        ("shut down", 69),
        ("not our protocol", 69),
        ("no permission", 77),
        ("timed out", 75),
    ],
)
def test_each_way_of_not_reaching_the_daemon_has_its_exit_status(cause: str, status: int) -> None:
    assert exit_status(Unreachable(cause, "x", "/s")) == status


def test_the_worst_of_several_outcomes_is_the_one_to_hear_about_first() -> None:
    assert worst([0, 3, 4]) == 4
    assert worst([75, 1, 0]) == 1
    assert worst([]) == 0
    assert set(FROM_GOOD_TO_BAD) < set(MEANINGS)


def test_a_refusal_for_want_of_permission_is_a_permission_error_too() -> None:
    error = error_of(
        {"error": {"code": -32001, "message": "not allowed", "data": {"kind": "permission_denied"}}}
    )
    assert isinstance(error, PermissionError) and isinstance(error, PermissionDenied)
    assert (str(error), error.kind) == ("not allowed", "permission_denied")


def test_an_error_without_shape_is_still_an_error() -> None:
    assert str(error_of({"error": "boom"})) == "an error without shape: 'boom'"


def complaint(code: int, message: str, **data: Any) -> list[str]:
    return lines(RpcError(code, message, data), "start", "mesh/echo")


def test_a_failed_dependency_reads_as_a_sentence_about_the_module() -> None:
    told = complaint(-32006, "substrate/bus has failed", kind="dependency_failed", module_id="mesh/echo")
    assert told == ["cannot start mesh/echo: substrate/bus has failed", "next: nexusctl status mesh/echo"]


def test_invalid_params_says_which_and_what_was_meant() -> None:
    data = {
        "kind": "invalid_params",
        "reason": "unknown parameter 'module'",
        "hint": "did you mean 'module_id'?",
    }
    told = lines(RpcError(-32602, "Invalid params", data))
    assert told == ["unknown parameter 'module'; did you mean 'module_id'?"]


def test_a_guess_is_part_of_the_sentence_and_the_next_step_a_command() -> None:
    about = {
        "kind": "bad_value",
        "module_id": "mesh/echo",
        "key": "intervl",
        "hint": "did you mean interval?",
    }
    assert complaint(-32004, "mesh/echo has no configuration key intervl", **about) == [
        "mesh/echo has no configuration key intervl; did you mean interval?",
        "next: nexusctl config get mesh/echo",
    ]


def test_a_pattern_that_was_meant_is_quoted_for_the_shell() -> None:
    assert str(no_match("all", KNOWN)) == "no such module: all; did you mean '*'?"
    assert str(no_match("mesh", KNOWN)) == "no such module: mesh; did you mean 'mesh/*'?"
    assert str(no_match("all", [])) == "no such module: all"


def test_a_module_that_lies_on_disk_wants_a_reload(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert "on disk" not in str(no_match("a/b", KNOWN, [str(tmp_path)]))
    (tmp_path / "a" / "b" / "module.toml").touch()
    error = no_match("a/b", KNOWN, ["/nowhere", str(tmp_path)])
    assert lines(error) == [
        "no such module: a/b; it is on disk: nexusctl reload loads it",
        "next: nexusctl reload",
    ]
    for word in ("a/../a/b", "../a", "a/b/", "b", ".."):
        assert "on disk" not in str(no_match(word, KNOWN, [str(tmp_path)]))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["ps"], "status or modules"),
        (["ls"], "status or modules"),
        (["tail", "a/b"], "logs"),
        (["enable"], "start"),
        (["disable"], "stop"),
        (["update"], "reload"),
        (["show"], "status"),
        (["help"], "--help"),
        (["strat"], "start"),
        (["config", "show"], "get"),
        (["config", "ste"], "set"),
        (["shutdwn"], None),
        (["zzzzz"], None),
    ],
)
def test_a_foreign_or_mistyped_command_names_ours_but_never_a_shutdown(
    words: list[str], meant: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(words) == 2
    first = capsys.readouterr().err.splitlines()[0].partition("; ")
    assert first[2] == (f"did you mean {meant}?" if meant else "")


def test_the_version_is_the_daemons(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--version"]) == 0
    assert capsys.readouterr().out == f"nexusctl {nexusd.__version__}\n"


def test_the_help_names_the_socket_that_would_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NEXUS_SOCKET", "/one.sock")
    run_command(["--help"])
    assert "[now: /one.sock]" in capsys.readouterr().out
    run_command(["--socket", "/two.sock", "status", "--help"])
    assert "[now: /two.sock]" in capsys.readouterr().out


def test_a_long_error_is_broken_on_a_terminal_but_never_its_next_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("nexusctl.complaint.page_of", lambda stream: Page(False, 40))
    step = "next: nexusctl stop a/module-with-a-long-name"
    tell(["nexusctl: a/b was not reloaded: it has faults", "  file: a key that is unknown there", step])
    assert capsys.readouterr().err.splitlines() == [
        "nexusctl: a/b was not reloaded: it has",
        "  faults",
        "  file: a key that is unknown there",
        step,
    ]


def test_a_sentence_that_names_the_module_is_not_said_twice() -> None:
    told = complaint(-32006, "cannot start mesh/echo: substrate/bus has failed", kind="dependency_failed")
    assert told[0] == "cannot start mesh/echo: substrate/bus has failed"


def test_a_failed_start_shows_the_exit_the_last_lines_and_what_to_try() -> None:
    ended = {"code": None, "signal": "SIGSEGV", "description": "killed by SIGSEGV"}
    about = {"kind": "start_failed", "module_id": "mesh/echo", "replica": "mesh/echo#0"}
    assert complaint(-32008, "it did not get ready", exit=ended, log=["one", "two\x07"], **about) == [
        "cannot start mesh/echo: it did not get ready",
        "  once it is corrected: nexusctl restart mesh/echo",
        "  mesh/echo#0 ended: killed by SIGSEGV",
        "  last lines of mesh/echo#0:",
        "    | one",
        "    | two?",
        "next: nexusctl logs mesh/echo",
    ]


def test_a_daemon_that_is_slow_was_connected_to() -> None:
    told = lines(unanswered("/run/x.sock", "get_status", 5))
    assert told[0].startswith("get_status was not answered within 5 s")
    assert told[1] == "next: try it again with a longer --timeout"


def test_a_unit_is_recommended_only_where_one_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = Unreachable(NO_DAEMON, "no daemon", SYSTEM_SOCKET)
    monkeypatch.setattr("nexusctl.complaint.UNITS", (str(tmp_path / "nexusd.service"),))
    assert "systemctl" not in lines(error)[-1]
    (tmp_path / "nexusd.service").touch()
    assert lines(error)[-1].startswith("next: systemctl start nexusd")


def test_a_refused_stop_offers_the_cascade_unless_the_daemon_has_a_better_hint() -> None:
    data = {"kind": "not_possible", "module_id": "substrate/bus", "required_by": ["mesh/echo"]}
    assert complaint(-32003, "substrate/bus is required", **data)[1:] == [
        "  required by mesh/echo",
        "next: nexusctl stop --cascade substrate/bus",
    ]
    assert complaint(-32003, "substrate/bus is required", **data, hint="ask Ada")[-1] == "next: ask Ada"


def event(kind: str, to: str, replica: str | None = None, reason: str | None = None) -> dict[str, Any]:
    return {"kind": kind, "module_id": "a/b", "replica": replica, "to": to, "reason": reason}


def test_the_progress_of_a_module_shows_its_replicas_as_the_events_tell() -> None:
    board = Board(["a/b", "c/d"])
    board.take(event("replica.state", "starting", "a/b#1"))
    board.take(event("replica.state", "started", "a/b#0"))
    board.take(event("module.state", "starting", reason="waits for x/y"))
    page = Page(False, 80)
    assert board.lines(page, 10, 2.5) == [
        "a/b  starting  2s  #0 started  #1 starting  waits for x/y",
        "c/d  waiting  2s",
    ]
    board.done("c/d")
    assert len(board.lines(page, 10, 2.5)) == 1


def test_the_progress_says_no_word_twice() -> None:
    board = Board(["a/b"])
    board.take(event("replica.state", "stopping", "a/b#0", reason="stopping"))
    assert board.lines(Page(False, 80), 10, 2) == ["a/b  2s  #0 stopping"]


def test_the_progress_of_an_experiment_says_its_id_its_phase_and_the_way_out() -> None:
    board = Board(["a/b"])
    board.take({"kind": "chaos.injected", "module_id": "a/b", "reason": "c12: SIGSTOP to a/b#0"})
    assert board.lines(Page(False, 80), 10, 2) == ["a/b  waiting  2s  c12 injected, Ctrl-C rolls back"]
    board.take({"kind": "chaos.rolled_back", "module_id": "a/b", "reason": "c12: SIGCONT"})
    assert board.lines(Page(False, 80), 10, 2) == ["a/b  waiting  2s  c12 rolled back"]


def test_the_progress_is_erased_from_the_beginning_of_the_line() -> None:
    assert UP_AND_CLEAR.format(lines=2).startswith("\r")  # the terminal may have echoed ^C there


def test_the_progress_of_many_modules_fits_the_window() -> None:
    told = Board([f"group/{'m' * 90}{i}" for i in range(50)]).lines(Page(False, 40), 5, 0)
    assert told[-1] == "and 46 more"
    assert len(told) == 5 and max(map(len, told)) < 40
