"""When another nexusd may take over: how it is to be started, what stands in its way, what its trial says."""

from __future__ import annotations

import msgspec
import pytest

from nexusd.domain import replacing
from nexusd.domain.errors import Busy, NotPossible
from nexusd.domain.fleet import Fleet, Module, Upgrade
from nexusd.domain.replacing import Command, Commanded, Here, Report, Trial, command
from tests.fakes import definition

PYTHON = "/opt/nexus/bin/python"
SCRIPT = "/opt/nexus/bin/nexusd"
HERE = Here("/run/nexus", "/var/lib/nexus", "/run/nexus.sock")
GOOD = Report("2.1.0", 5, replacing.FORMAT, "/run/nexus", "/var/lib/nexus", "/run/nexus.sock")


@pytest.mark.parametrize(
    ("started_with", "argv", "first_line", "expected"),
    [
        (  # a console script: executed itself, its first line says with what
            [PYTHON, SCRIPT, "--config", "x"],
            [SCRIPT, "--config", "x"],
            f"#!{PYTHON}\n",
            Command(SCRIPT, (SCRIPT, "--config", "x")),
        ),
        (  # the same with an option for the interpreter
            [PYTHON, "-P", SCRIPT],
            [SCRIPT],
            f"#!{PYTHON} -P\n",
            Command(SCRIPT, (SCRIPT,)),
        ),
        (  # called by another interpreter than it names: that one again
            ["python3", SCRIPT, "--socket", "s"],
            [SCRIPT, "--socket", "s"],
            "#!/usr/bin/python3\n",
            Command(PYTHON, (PYTHON, SCRIPT, "--socket", "s")),
        ),
        (  # behind a line of sh, as pip writes it for long paths
            [PYTHON, SCRIPT],
            [SCRIPT],
            "#!/bin/sh\n",
            Command(PYTHON, (PYTHON, SCRIPT)),
        ),
        (  # python -m nexusd
            ["python", "-P", "-m", "nexusd", "--config", "x"],
            ["/src/nexusd/__main__.py", "--config", "x"],
            '"""argv and configuration in."""\n',
            Command(PYTHON, (PYTHON, "-P", "-m", "nexusd", "--config", "x")),
        ),
        (
            ["python", "-c", "main()", "--config", "x"],
            ["-c", "--config", "x"],
            "",
            Command(PYTHON, (PYTHON, "-c", "main()", "--config", "x")),
        ),
    ],
)
def test_it_is_started_again_as_it_was_started(
    started_with: list[str], argv: list[str], first_line: str, expected: Command
) -> None:
    assert command(PYTHON, started_with, argv, first_line) == expected


def fleet(*reloading: str) -> Fleet:
    upgrade = Upgrade(definition("a/b"), definition("a/b"), 2)
    modules = {
        name: Module(
            name, "/m", definition(name), 0.0, True, True, upgrade=upgrade if name in reloading else None
        )
        for name in ("a/b", "a/c")
    }
    return Fleet(modules)


def test_nothing_under_way_is_nothing_to_refuse() -> None:
    assert replacing.under_way(fleet(), [], {}) == []
    replacing.refuse_while([])


def test_what_is_under_way_is_named_once_with_who_waits_for_it() -> None:
    commanded = [Commanded("reload_module", "a/b", "root"), Commanded("reload_daemon", None, "ann")]
    told = replacing.under_way(fleet("a/b", "a/c"), commanded, {"freeze-3": "a/c", "kill-1": "a/b"})
    assert told == ["reload_module a/b (root)", "reload_daemon (ann)", "a reload of a/c", "freeze-3 of a/c"]


def test_a_value_that_a_replica_has_yet_to_hear_of_is_under_way_once() -> None:
    told = replacing.under_way(fleet(), [], {}, ["a/b#0", "a/b#0", "a/b#1"])
    assert told == [f"a value that a/b#{index} is to hear of once it is started" for index in (0, 1)]


def test_a_refusal_names_some_and_has_all() -> None:
    told = [f"a reload of a/{number}" for number in range(7)]
    with pytest.raises(Busy, match=r"a/4, 2 more$") as refusal:
        replacing.refuse_while(told)
    assert refusal.value.details["operations"] == told
    assert "--force" in str(refusal.value.hint)


def said(report: Report, before: str = "") -> Trial:
    return Trial(0, before + msgspec.json.encode(report).decode() + "\n")


def test_the_last_line_is_its_word_whatever_came_before() -> None:
    assert replacing.judged(said(GOOD, "DeprecationWarning: old\n"), HERE, 20) == GOOD


def test_fields_of_a_later_version_are_passed_over() -> None:
    told = {**msgspec.to_builtins(GOOD), "mood": "good"}
    assert replacing.judged(Trial(0, msgspec.json.encode(told).decode()), HERE, 20) == GOOD


def test_a_socket_of_systemd_is_not_compared() -> None:
    report = msgspec.structs.replace(GOOD, socket="/elsewhere")
    assert replacing.judged(said(report), HERE._replace(socket=None), 20) == report


@pytest.mark.parametrize(
    ("trial", "reason"),
    [
        (Trial(None, "", refusal="No such file or directory: /opt/x"), "No such file or directory: /opt/x"),
        (Trial(None, "", timed_out=True), "it was tried for 20 s and came to no end"),
        (Trial(1, "Traceback\nSyntaxError: invalid syntax\n"), "its trial ended with status 1"),
        (Trial(2, "nexusd: error: unrecognized arguments: --successor x"), "its trial ended with status 2"),
        (Trial(-11, ""), "its trial ended with signal 11"),
        (Trial(None, ""), "its trial ended with an unknown status"),
        (Trial(0, "hello\n"), "its trial ended with status 0"),
        (Trial(1, said(GOOD).output), "its trial ended with status 1"),
        (said(msgspec.structs.replace(GOOD, takes_over=2)), "2.1.0 takes over in another way (2, not 1)"),
        (
            said(msgspec.structs.replace(GOOD, runtime="/run/other")),
            "its runtime would be /run/other, and is /run/nexus",
        ),
        (said(msgspec.structs.replace(GOOD, socket="/x")), "its socket would be /x, and is /run/nexus.sock"),
        (
            said(msgspec.structs.replace(GOOD, unread=("a/b",))),
            "2.1.0 cannot read what is remembered of a/b",
        ),
    ],
)
def test_a_trial_that_shows_no_successor_is_a_refusal_with_its_reason(trial: Trial, reason: str) -> None:
    with pytest.raises(NotPossible) as refusal:
        replacing.judged(trial, HERE, 20)
    assert refusal.value.message == f"nexusd is not replaced: {reason}"


def test_a_refusal_has_the_last_lines_of_what_was_said() -> None:
    output = "".join(f"line {number}\n\n" for number in range(9))
    with pytest.raises(NotPossible) as refusal:
        replacing.judged(Trial(1, output), HERE, 20)
    assert refusal.value.details["log"] == [f"line {number}" for number in range(4, 9)]
    assert refusal.value.reason == "line 8"
