"""The status pages as an operator reads them, line by line."""

from __future__ import annotations

from typing import Any

import pytest

from nexusctl.output import Page
from nexusctl.status_page import fleet_page, module_page
from tests.fake_daemon import detail, replica, status, summary

NOW = 1735689600.0 + 93784
PIPE = Page(False, None)


def lines(items: list[dict], page: Page = PIPE, **other: object) -> list[str]:
    return fleet_page(status(items, **other), items, page, NOW)


def test_a_healthy_fleet_is_a_header_and_a_line_each_without_a_reason_column() -> None:
    assert lines([summary("mesh/echo"), summary("substrate/bus", replicas={"wanted": 2, "ready": 2})]) == [
        "nexusd 2.0.0, up 3d 4h, 2/2 modules healthy",
        "",
        "MODULE         STATE    HEALTH   REPLICAS  UPTIME  RESTARTS",
        "mesh/echo      started  healthy       1/1  1d 2h          0",
        "substrate/bus  started  healthy       2/2  1d 2h          0",
    ]


def test_reasons_stand_beside_the_modules_that_have_one() -> None:
    told = lines([summary("a/b", "failed", reason="exit status 1\n"), summary("c/d")])
    assert told[2].endswith("RESTARTS  REASON")
    assert told[3].endswith("0  exit status 1")
    assert told[4].endswith("0")


def test_in_a_narrow_window_the_reason_goes_below_its_module() -> None:
    told = lines([summary("mesh/echo", "failed", reason="exit status 1")], Page(False, 70))
    assert told[-1] == "    exit status 1"
    assert max(map(len, told)) <= 70


def test_a_wider_window_never_shows_less_of_a_reason() -> None:
    reason = "it last said: " + "word " * 20 + "end"
    items = [
        summary("mesh/echo", "failed", reason=reason),
        summary("mesh/x", "failed", reason="exit status 1"),
    ]
    for width in (60, 80, 120, 200):
        told = lines(items, Page(False, width))
        assert max(map(len, told)) <= width
        assert " ".join(" ".join(told).split()).count(reason) == 1


def test_a_reason_without_end_is_cut_after_three_lines() -> None:
    told = lines([summary("mesh/echo", "failed", reason="why " * 400)], Page(False, 80))
    assert len(told) == 7 and told[-1].endswith("…")
    assert max(map(len, told)) <= 80


def test_a_long_id_pushes_out_the_last_columns_rather_than_wrapping() -> None:
    told = lines([summary("group/" + "long-" * 10, "failed", reason="why " * 40)], Page(False, 80))
    assert "group/" + "long-" * 10 in told[3]
    assert max(map(len, told)) <= 80


def test_a_daemon_without_modules_says_so_and_what_to_do() -> None:
    where = "/etc/nexus/modules", "/srv/more"
    told = ["no modules", "next: nexusctl new GROUP/NAME --into /etc/nexus/modules"]
    assert lines([], module_paths=where)[2:] == told
    assert lines([], module_paths=["/my modules"])[-1].endswith("--into '/my modules'")
    assert lines([], module_paths=[])[-1].endswith("--into DIR")


def test_three_hundred_modules_are_three_hundred_lines() -> None:
    assert len(lines([summary(f"g{i}/m{i}") for i in range(300)])) == 303


def test_a_lost_keeper_and_the_daemons_warnings_head_the_table() -> None:
    told = lines([], keeper={"pid": None, "connected": False}, warnings=["port 9090 is taken"])
    assert told[1:3] == ["warning: the keeper is not connected", "warning: port 9090 is taken"]


def test_a_module_in_backoff_shows_why_and_where_to_look() -> None:
    last = {"code": None, "signal": "SIGSEGV", "description": "killed by SIGSEGV", "at": NOW - 4}
    one = replica("mesh/echo", state="backoff", ready=False, pid=None, uptime_seconds=None, last_exit=last)
    told = module_page(
        detail(
            "mesh/echo",
            "backoff",
            reason="killed by SIGSEGV",
            requires=["substrate/bus"],
            config={"interval_ms": 1000, "name": "x"},
            instances=[{**one, "next_attempt_in_s": 2.04, "restarts": 3}],
            limits={"enforced_by": "rlimits", "memory": 256 * 2**20, "cpu": 0.5, "not_enforced": ["cpu"]},
        ),
        PIPE,
        NOW,
    )
    assert told == [
        "mesh/echo  backoff (started is wanted), unhealthy",
        "  The module mesh/echo",
        "",
        "  reason    killed by SIGSEGV",
        told[4],
        "  version   2.0.0, generation 1",
        "  requires  substrate/bus",
        "  limits    memory 256 MiB (rlimits, each process), cpu 0.5 (not enforced)",
        "  config    interval_ms = 1000",
        "            name = x",
        "  folder    /etc/nexus/modules/mesh/echo",
        "",
        "  REPLICA  STATE    PID  UPTIME  RESTARTS  LAST EXIT                  STATUS",
        "  #0       backoff  -    -              3  killed by SIGSEGV, 4s ago  next attempt in 2.0s",
        "",
        "next: nexusctl logs mesh/echo; correct it, then nexusctl restart mesh/echo",
    ]
    assert told[4].startswith("  since     20") and told[4].endswith("(1d 2h)")


def test_an_invalid_module_shows_every_fault_and_names_the_folder_to_check() -> None:
    folder = "/etc/nexus/modules/a/b"
    mistyped = {"key": "restart.polcy", "expected": "a key of [restart]", "found": "polcy"}
    faults = [
        {"file": f"{folder}/module.toml", **mistyped, "hint": "did you mean policy?"},
        {"file": "module.toml", "key": "", "expected": "a table", "found": "nothing", "hint": None},
    ]
    told = module_page(detail("a/b", "invalid", faults=faults), PIPE, NOW)
    assert told[0] == "a/b  invalid, unhealthy"
    assert told[-4:] == [
        "    module.toml: restart.polcy: expected a key of [restart], found polcy; did you mean policy?",
        "    module.toml: expected a table, found nothing",
        "",
        "next: nexusctl check /etc/nexus/modules, and nexusctl reload once it is correct",
    ]


def test_a_stopped_module_is_offered_a_start_and_a_healthy_one_nothing() -> None:
    assert module_page(detail("a/b", "stopped"), PIPE, NOW)[-1] == "next: nexusctl start a/b"
    assert not module_page(detail("a/b"), PIPE, NOW)[-1].startswith("next:")
    assert module_page(detail("a/b", pending_reload=True), PIPE, NOW)[-1] == "next: nexusctl reload a/b"


SENTENCE = (
    "exit status 1 before it was ready; it last said: mod.py line 4: ValueError: no such upstream server"
)


def test_one_sentence_is_said_once_though_reason_health_and_replica_have_it() -> None:
    last = {"code": 1, "signal": None, "description": "exit status 1", "at": NOW - 4}
    failed: dict[str, Any] = {
        "state": "failed",
        "ready": False,
        "pid": None,
        "uptime_seconds": None,
        "last_exit": last,
    }
    one = replica("a/b", status_text="mod.py line 4: ValueError: no such upstream server", **failed)
    health = [f"failed: {SENTENCE}", "the disk is full"]
    page = detail("a/b", "failed", reason=SENTENCE, health_reasons=health, instances=[one])
    told = "\n".join(module_page(page, PIPE, NOW))
    assert told.count("no such upstream server") == 1
    assert "  health   the disk is full\n" in told
    assert "STATUS" not in told


def test_a_long_value_goes_on_below_itself_within_the_window() -> None:
    told = module_page(
        detail("a/b", "failed", reason=SENTENCE, config={"key": "v" * 100}), Page(False, 60), NOW
    )
    assert told[3:5] == [
        "  reason   exit status 1 before it was ready; it last",
        "             said: mod.py line 4: ValueError: no such",
    ]
    assert max(map(len, told[:-1])) <= 60


def test_an_exit_that_takes_a_sentence_stands_below_the_table() -> None:
    last = {
        "code": None,
        "signal": None,
        "description": "it was killed by the kernel, which had no memory left",
    }
    one = replica("a/b", last_exit={**last, "at": NOW - 4})
    table = module_page(detail("a/b", instances=[one]), Page(False, 80), NOW)[-3:]
    assert table == [
        "  REPLICA  STATE    PID   UPTIME  RESTARTS",
        "  #0       started  4711  1d 2h          0",
        f"      last exit: {last['description']}, 4s ago",
    ]


def test_while_two_generations_run_each_replica_says_of_which_it_is() -> None:
    both = [replica("a/b", generation=1), replica("a/b", generation=2, state="starting", ready=False)]
    table = module_page(detail("a/b", instances=both), PIPE, NOW)[-3:]
    assert [line.split()[:3] for line in table] == [
        ["REPLICA", "GENERATION", "STATE"],
        ["#0", "1", "started"],
        ["#0", "2", "starting"],
    ]


def test_a_refused_reload_and_changed_files_are_told_with_what_to_do() -> None:
    refused = {"reason": "the new generation failed (exit status 1)", "at": NOW - 125}
    told = module_page(detail("a/b", refused_reload=refused), PIPE, NOW)
    assert "  reload   refused 2m 5s ago: the new generation failed (exit status 1)" in told
    assert told[-1] == "next: correct it, then nexusctl reload a/b"
    told = module_page(detail("a/b", refused_reload=refused, pending_reload=True), PIPE, NOW)
    assert "           files have changed: nexusctl reload a/b applies them" in told
    assert told[-1] == "next: correct it, then nexusctl reload a/b"


CHECK = {
    "purpose": "readiness",
    "check": "http check http://127.0.0.1/",
    "verdict": "healthy",
    "failures": 0,
    "result": "healthy",
    "reason": None,
    "at": 1735689690.0,
    "took_seconds": 0.002,
}
FAILING = CHECK | {
    "verdict": "unhealthy",
    "failures": 3,
    "result": "unhealthy",
    "reason": "connection refused",
}
UNASKED = CHECK | {"verdict": None, "result": None, "at": None}


def checks_of(*replicas: list[dict[str, Any]]) -> list[str]:
    instances = [replica("a/b", index, checks=checks) for index, checks in enumerate(replicas)]
    page = module_page(detail("a/b", instances=instances), PIPE, 1735689700.0)
    return [line.strip().removeprefix("checks").strip() for line in page if "http check" in line]


def test_the_last_word_of_each_check_is_shown_with_its_age() -> None:
    assert checks_of([CHECK]) == ["readiness, http check http://127.0.0.1/: healthy, 10s ago"]
    assert checks_of([UNASKED]) == ["readiness, http check http://127.0.0.1/: not asked yet"]
    failing = (
        "readiness, http check http://127.0.0.1/: unhealthy, connection refused, 3 times in a row, 10s ago"
    )
    assert checks_of([FAILING], [CHECK]) == [f"#0 {failing}", f"#1 {checks_of([CHECK])[0]}"]


@pytest.mark.parametrize(
    ("result", "verdict", "word"),
    [
        ("unhealthy", None, "failing, no verdict yet"),
        ("unhealthy", "healthy", "failing, still healthy"),
        ("healthy", "unhealthy", "passing, still unhealthy"),
    ],
)
def test_a_check_whose_last_answer_is_not_its_verdict_says_both(
    result: str, verdict: str | None, word: str
) -> None:
    told = checks_of([CHECK | {"result": result, "verdict": verdict}])
    assert told == [f"readiness, http check http://127.0.0.1/: {word}, 10s ago"]


def test_of_many_replicas_only_checks_that_are_not_well_are_shown() -> None:
    assert [line.partition(" ")[0] for line in checks_of(*[[CHECK]] * 5, [FAILING])] == ["#5"]


def test_the_table_of_replicas_fits_a_narrow_window_and_loses_no_exit() -> None:
    last = {"description": "exit status 3", "at": NOW - 4, "code": 3, "signal": None}
    instances = [replica("a/b", index, last_exit=last, restarts=2) for index in range(2)]
    told = module_page(detail("a/b", instances=instances), Page(False, 50), NOW)
    assert max(map(len, told)) <= 50
    assert sum("exit status 3" in line for line in told) == 2
