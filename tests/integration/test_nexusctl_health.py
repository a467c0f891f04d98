"""`nexusctl health` against a fake daemon: what it prints, its status as Nagios has it, and that it always ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusctl.__main__ import plain_health, run
from nexusctl.client import RpcError
from nexusctl.health import CRITICAL, OK, UNKNOWN, WARNING, judged
from tests.fake_daemon import FakeDaemon, Params, Refusal, status, summary
from tests.running_nexus import as_user

WELL = [summary("mesh/echo"), summary("substrate/bus", critical=True)]
SICK = summary(
    "mesh/echo", health="unhealthy", health_reasons=["http check http://h/: 503, 3 times in a row"]
)
STOPPED = summary("a/idle", "stopped", health_reasons=["stopped"])
Said = Callable[..., tuple[int, str, str]]


def readiness(ready: bool = True, *reasons: str) -> Params:
    return {"ready": ready, "timestamp": 1.0, "details": {}, "reasons": list(reasons)}


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    path = tmp_path / "nexus.sock"
    monkeypatch.setenv("NEXUS_SOCKET", str(path))
    with FakeDaemon(path, {"get_status": status(WELL), "check_readiness": readiness()}) as fake:
        yield fake


@pytest.fixture
def said(daemon: FakeDaemon, capsys: pytest.CaptureFixture[str]) -> Said:
    def running(*arguments: str) -> tuple[int, str, str]:
        ended = run(["health", *arguments])
        output = capsys.readouterr()
        return ended, output.out, output.err

    return running


def test_it_is_silent_when_all_is_well(said: Said) -> None:
    assert said() == (OK, "", "")


def test_it_says_that_all_is_well_when_it_is_to_say_something(said: Said) -> None:
    assert said("--verbose") == (OK, "OK: 2 of 2 modules healthy\n", "")
    figures = "total=2 healthy=2 degraded=0 unhealthy=0"
    assert said("--perfdata") == (OK, f"OK: 2 of 2 modules healthy | {figures}\n", "")


def test_what_is_not_healthy_is_a_warning_that_names_it(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["get_status"] = status([SICK, STOPPED, *WELL[1:]])
    line = (
        "WARNING: 1 of 3 modules unhealthy: mesh/echo (http check http://h/: 503, 3 times in a row); "
        "1 of 3 modules degraded: a/idle (stopped)"
    )
    assert said() == (WARNING, f"{line}\n", "")
    rows = "mesh/echo: unhealthy, http check http://h/: 503, 3 times in a row\na/idle: degraded, stopped\n"
    assert said("-v") == (WARNING, f"{line}\n{rows}", "")
    assert said("-o", "name") == (WARNING, "mesh/echo\na/idle\n", "")


def test_a_daemon_that_is_not_ready_is_critical_and_says_why(daemon: FakeDaemon, said: Said) -> None:
    bus = summary("substrate/bus", "starting", critical=True, health="degraded", reason="waits for a/b")
    daemon.answers |= {
        "get_status": status([WELL[0], bus]),
        "check_readiness": readiness(False, "critical module substrate/bus is degraded"),
    }
    told = "critical module substrate/bus is degraded; 1 of 2 modules degraded: substrate/bus (waits for a/b)"
    assert said() == (CRITICAL, f"CRITICAL: {told}\n", "")


def test_of_many_only_the_worst_are_named(daemon: FakeDaemon, said: Said) -> None:
    items = [summary(f"a/m{number}", "failed", reason="exit status 1") for number in range(9)]
    daemon.answers |= {
        "get_status": status(items),
        "check_readiness": readiness(False, "9 of 9 modules are unhealthy"),
    }
    ended, out, _ = said()
    assert (ended, out.count("exit status 1"), out.count("\n")) == (CRITICAL, 5, 1)
    assert out.startswith("CRITICAL: 9 of 9 modules unhealthy: a/m0 (exit status 1), ")
    assert out.endswith(" and 4 more\n")


def test_a_faulty_manifest_and_a_lost_keeper_are_warnings(daemon: FakeDaemon, said: Said) -> None:
    broken = summary("a/broken", "invalid", critical=False, reason="1 fault in its manifest")
    figures = {"health": {"statistics": {"total": 2, "healthy": 2, "degraded": 0, "unhealthy": 0}}}
    daemon.answers["get_status"] = status([*WELL, broken], keeper={"connected": False}, **figures)
    told = "1 with a faulty manifest: a/broken (1 fault in its manifest); the keeper is not connected"
    assert said() == (WARNING, f"WARNING: {told}\n", "")


def test_nothing_that_a_module_says_breaks_the_line_or_the_figures(daemon: FakeDaemon, said: Said) -> None:
    evil = summary("a/evil", health="unhealthy", health_reasons=["\x1b[2J|healthy=99\nOK: all well"])
    daemon.answers["get_status"] = status([evil])
    ended, out, _ = said("--perfdata")
    assert (ended, out.count("\n"), out.count("|"), "\x1b" in out) == (WARNING, 1, 1, False)


def test_programs_get_an_object(daemon: FakeDaemon, said: Said) -> None:
    daemon.answers["get_status"] = status([SICK])
    ended, out, _ = said("-o", "json")
    told = json.loads(out)
    assert (ended, told["status"], told["exit_status"], told["modules"]) == (WARNING, "WARNING", 1, [SICK])


@pytest.mark.parametrize(
    ("code", "kind", "expected"),
    [(-32001, "permission_denied", UNKNOWN), (-32601, "method_not_found", UNKNOWN), (-32009, "x", CRITICAL)],
)
def test_an_error_of_the_daemon_is_unknown_unless_it_is_leaving(
    daemon: FakeDaemon, said: Said, code: int, kind: str, expected: int
) -> None:
    def refuse(*_: Any) -> Params:
        raise Refusal(code, "the words of the daemon", kind=kind)

    daemon.answers["get_status"] = refuse
    ended, out, _ = said()
    assert (ended, out.partition(": ")[2]) == (expected, "the words of the daemon\n")


@pytest.mark.parametrize("answer", [[], {}, {"health": {}}, None, "well", {"health": {"statistics": []}}])
def test_an_answer_of_another_shape_is_unknown(answer: Any) -> None:
    assert judged(readiness(), answer).status == UNKNOWN


def test_an_error_in_either_answer_counts() -> None:
    denied = RpcError(-32001, "no")
    assert judged(denied, status(WELL)).status == judged(readiness(), denied).status == UNKNOWN


# The way to the daemon


def ctl(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nexusctl", "health", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, **more)


def test_no_daemon_is_critical(tmp_path: Path) -> None:
    ended = ctl("--socket", f"{tmp_path}/no.sock")
    assert (ended.returncode, ended.stdout) == (
        CRITICAL,
        f"CRITICAL: no daemon: {tmp_path}/no.sock does not exist\n",
    )


def test_what_is_no_daemon_of_ours_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert ctl("--socket", f"{tmp_path}/file").returncode == UNKNOWN


@pytest.mark.skipif(os.getuid() != 0, reason="another user is needed")
def test_who_may_not_connect_does_not_know(daemon: FakeDaemon) -> None:
    daemon.path.chmod(0o600)
    command = [*as_user(65534), sys.executable, "-m", "nexusctl", "health", "--socket", str(daemon.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert (ended.returncode, ended.stderr) == (UNKNOWN, "")
    assert ended.stdout.startswith("UNKNOWN: you are ")


@pytest.mark.parametrize("trickle", [False, True])
def test_a_daemon_that_hangs_or_trickles_is_critical_in_time(tmp_path: Path, trickle: bool) -> None:
    path = f"{tmp_path}/nexus.sock"
    done = threading.Event()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            accepted, _ = listener.accept()
            with accepted:
                while trickle and not done.wait(0.02):
                    try:
                        accepted.sendall(b" ")
                    except OSError:
                        return
                done.wait()

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        ended = ctl("--socket", path, "--timeout", "0.4")
        took_s = time.monotonic() - began
        done.set()
        thread.join()
    assert (ended.returncode, ended.stdout) == (CRITICAL, "CRITICAL: nexusd has not answered within 0.4 s\n")
    assert took_s < 10


def test_a_wrong_option_is_unknown_and_not_critical() -> None:
    ended = ctl("--quiet")
    assert (ended.returncode, ended.stdout) == (UNKNOWN, "")
    assert "No such option" in ended.stderr


# Quick


@pytest.mark.parametrize(
    ("arguments", "plain"),
    [
        (["health"], ({}, set())),
        (["health", "-v", "--perfdata"], ({}, {"verbose", "perfdata"})),
        (["--timeout", "1.5", "health", "--verbose"], ({"timeout": "1.5"}, {"verbose"})),
        (["--socket", "/s", "health", "-o", "json"], ({"socket": "/s", "output": "json"}, set())),
        (["health", "--timeout", "soon"], None),
        (["health", "--timeout", "0"], None),
        (["health", "--timeout", "nan"], None),
        (["health", "--timeout"], None),
        (["health", "mesh/echo"], None),
        (["status", "-v"], None),
    ],
)
def test_only_a_plain_health_goes_without_click(arguments: list[str], plain: object) -> None:
    assert plain_health(arguments) == plain


def test_it_loads_neither_click_nor_asyncio(daemon: FakeDaemon) -> None:
    program = "import sys; from nexusctl.__main__ import run; run(['health']); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
    assert not {"click", "asyncio", "typing", "nexusd"}.intersection(loaded.stdout.split())
