"""The audit log of a real nexusd: who did what, over kills, tampering and a disk that takes nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
from typing import Any

import pytest

from nexusctl.client import Client, RpcError
from tests.e2e.programs import READY_LATER, SLEEPER
from tests.running_nexus import Fifo, Nexus

HAND_STARTED = "autostart = false\n"
NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def records(nexus: Nexus) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = nexus.call("get_audit", limit=10_000)["records"]
    return found


def told(nexus: Nexus) -> list[tuple[str, str]]:
    return [(one["method"], one["outcome"]) for one in records(nexus)]


def test_every_command_leaves_its_lines(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER, HAND_STARTED)
    nexus.start()
    nexus.call("start_module", module_id="a/one")
    nexus.status("a/one")
    assert nexus.ctl("stop", "a/none").returncode == 4
    assert told(nexus) == [
        ("nexusd.start", "ok"),
        *(("start_module", outcome) for outcome in ("begun", "ok")),
        *(("stop_module", outcome) for outcome in ("begun", "error")),
    ]
    started = records(nexus)[2]
    assert (started["principal"], started["uid"], started["pid"]) == (
        "root" if os.getuid() == 0 else started["principal"],
        os.getuid(),
        os.getpid(),
    )
    assert started["params"] == {"module_id": "a/one"}
    assert nexus.ctl("audit", "verify").returncode == 0


@as_root
def test_a_refused_command_exits_with_77_says_what_is_missing_and_is_in_the_log(nexus: Nexus) -> None:
    common = '[metrics]\nlisten = "off"\n[api]\ngroup = "nogroup"\n'
    nexus.settings.write_text(common + '[access.users]\nnobody = ["viewer"]\n')
    nexus.add_program("a/one", SLEEPER)
    nexus.start()

    refused = nexus.ctl("stop", "a/one", uid=NOBODY)
    assert refused.returncode == 77
    assert "nobody does not hold module.stop" in refused.stderr
    assert "ask root for a role that holds it (admin, operator)" in refused.stderr
    assert nexus.ctl("status", uid=NOBODY).returncode == 0
    assert nexus.ctl("audit", "tail", uid=NOBODY).returncode == 77
    denied = [one for one in records(nexus) if one["outcome"] == "denied"]
    assert [(one["principal"], one["uid"], one["method"], one["permission"]) for one in denied] == [
        ("nobody", NOBODY, "stop_module", "module.stop"),
        ("nobody", NOBODY, "get_audit", "audit.read"),
    ]
    assert nexus.status("a/one")["state"] == "started"


def test_a_command_in_which_nexusd_was_killed_is_told_as_interrupted(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/slow", READY_LATER, HAND_STARTED, 'ready = "notify"')
    nexus.start()
    with socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(nexus.socket))
        params = {"module_id": "a/slow"}
        request = {"jsonrpc": "2.0", "id": 1, "method": "start_module", "params": params}
        waiting.sendall(json.dumps(request).encode() + b"\n")
        assert nexus.bell.hear() == "begun"
        nexus.kill()
    nexus.start()
    interrupted = [one for one in records(nexus) if one["outcome"] == "interrupted"]
    assert [(one["method"], one["params"]) for one in interrupted] == [
        ("start_module", {"module_id": "a/slow"})
    ]
    gate.say("go")
    nexus.until_state("a/slow", "started")


def test_tampering_is_found_named_and_warned_of(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER, HAND_STARTED)
    nexus.start()
    for command in ("start_module", "stop_module"):
        nexus.call(command, module_id="a/one")
    nexus.kill(signal.SIGTERM)
    folder, head = nexus.logs / "audit", nexus.state / "audit.head"
    proof = ("audit", "verify", str(folder), "--head", str(head))
    whole = nexus.ctl(*proof)
    assert (whole.returncode, whole.stdout.splitlines()[0]) == (0, "whole: 6 records, 1 to 6")
    anchor = whole.stdout.splitlines()[1].removeprefix("last: ")

    path = folder / "audit.log"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines[:2], lines[2].replace("start_module", "get_status"), *lines[3:5]]))
    found = nexus.ctl(*proof)
    assert found.returncode == 1
    assert f"{path} line 3: record 3 was changed" in found.stdout
    assert f"{path} line 5: the end is cut off: record 6 is missing after this line" in found.stdout

    nexus.start()
    assert "the audit log is not as it was left (missing: records 6 to 6)" in nexus.ctl("status").stdout
    over_the_api = nexus.ctl("audit", "verify", "--anchor", anchor, "-o", "json")
    assert over_the_api.returncode == 1
    assert [(one["line"], one["problem"]) for one in json.loads(over_the_api.stdout)["findings"]] == [
        (3, "changed"),
        (6, "missing"),
    ]


def test_while_the_log_takes_no_line_commands_are_refused_and_modules_go_on(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    folder = nexus.logs / "audit"
    folder.rename(nexus.logs / "away")
    folder.write_text("a file in its place")

    refused = nexus.ctl("stop", "a/one")
    assert refused.returncode == 1
    assert "the audit log cannot be written" in refused.stderr
    assert "commands are refused" in nexus.ctl("status").stdout
    with pytest.raises(RpcError) as raised:
        nexus.call("shutdown")
    assert raised.value.kind == "not_possible"
    assert nexus.status("a/one")["state"] == "started"

    folder.unlink()
    (nexus.logs / "away").rename(folder)
    assert nexus.ctl("stop", "a/one").returncode == 0
    assert nexus.ctl("audit", "verify").returncode == 0
    assert [outcome for method, outcome in told(nexus) if method == "shutdown"] == ["error"]


def test_a_log_that_is_turned_over_and_bounded_stays_whole(nexus: Nexus) -> None:
    nexus.settings.write_text(
        '[metrics]\nlisten = "off"\n[audit]\nmax_size = "8k"\nfiles = 3\nreads = true\n'
    )
    nexus.start()
    for _ in range(100):
        nexus.call("get_status")
    assert ("get_status", "ok") in told(nexus)
    nexus.restart()
    assert len(list((nexus.logs / "audit").iterdir())) == 3
    verified = json.loads(nexus.ctl("audit", "verify", "-o", "json").stdout)
    assert verified["whole"] and verified["first"] > 1


def test_the_log_can_be_followed(nexus: Nexus) -> None:
    nexus.start()
    with Client(nexus.socket) as client:
        first = client.call("get_audit", {"follow": True})
        nexus.call("reload_daemon")
        outcomes = [
            client.next_notification(first["subscription"], 20)["record"]["outcome"] for _ in range(2)
        ]
    assert outcomes == ["begun", "ok"]
