"""live.py, status.py and command.py as programs: what they print, how they end, and that they end in time."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.programs import SLEEPER
from tests.fake_daemon import FakeDaemon, Refusal
from tests.running_nexus import Nexus

ROOT = Path(__file__).resolve().parents[2]
BARE_START_S = 10.0  # what a start of Python may take here on a bad day; without a deadline nothing would end
LIVE = {"live": True, "timestamp": 1.5, "daemon_running": True}
READY = {"ready": True, "timestamp": 1.5, "details": {}}
EXPOSITION = "# TYPE nexus_up gauge\nnexus_up 1.0\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "nexus.sock"


def shim(path: Path, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "aeon_interface" / f"{name}.py"), *arguments],
        env={**os.environ, "NEXUS_SOCKET": str(path)},
        capture_output=True,
        text=True,
        timeout=30,
    )


def refused(*_: object) -> Any:
    raise Refusal(-32001, "permission denied: nobody does not hold module.stop", kind="permission_denied")


# live.py


@pytest.mark.parametrize(
    ("question", "method", "answer"),
    [
        ("liveness", "check_liveness", LIVE),
        ("readiness", "check_readiness", READY),
        ("critical", "check_critical_modules", {"healthy": True, "modules": {}}),
    ],
)
def test_a_yes_is_exit_status_0_and_a_no_is_1(path: Path, question: str, method: str, answer: Any) -> None:
    no = {name: False if value is True else value for name, value in answer.items()}
    with FakeDaemon(path, {method: answer}) as daemon:
        yes = shim(path, "live", question)
        assert (json.loads(yes.stdout), yes.returncode, yes.stderr) == (answer, 0, "")
        daemon.answers[method] = no
        said = shim(path, "live", question)
        assert (json.loads(said.stdout), said.returncode, said.stderr) == (no, 1, "")


SLOW = {"socket", "json", "re", "enum", "asyncio", "selectors", "click", "argparse", "typing", "contextlib"}


def test_the_real_daemons_yes_is_taken_word_for_word_and_with_few_imports(nexus: Nexus) -> None:
    """It is not parsed: this fails when the daemon words its answers in another way, and the probe gets slow."""
    nexus.start()
    code = f"""
import sys
sys.path.append({str(ROOT)!r})
from nexusctl.probe import main
main([sys.argv[1]])
print(*sys.modules)
"""
    for question, yes in (("liveness", "live"), ("readiness", "ready"), ("critical", "healthy")):
        ran = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, question],
            env={**nexus.environment, "NEXUS_SOCKET": str(nexus.socket)},
            capture_output=True,
            text=True,
            timeout=30,
        )
        answer, imported = ran.stdout.splitlines()
        assert json.loads(answer)[yes] is True
        assert not SLOW & set(imported.split())


def test_without_a_daemon_the_answer_is_a_no_that_says_why(path: Path) -> None:
    live = shim(path, "live", "liveness")
    assert live.returncode == 1
    told = json.loads(live.stdout)
    assert (told["live"], told["daemon_running"]) == (False, False)
    assert told["error"] == f"no daemon: {path} does not exist"
    ready = json.loads(shim(path, "live", "readiness").stdout)
    assert (ready["ready"], ready["details"]["total_modules"]) == (False, 0)
    assert json.loads(shim(path, "live", "critical").stdout)["healthy"] is False


@pytest.mark.parametrize(
    "answer", [refused, {"live": "true"}, "yes", [], {"dead": False, "live": False}, {"x": 1, "live": 1}]
)
def test_whatever_is_not_a_plain_true_is_a_no(path: Path, answer: Any) -> None:
    with FakeDaemon(path, {"check_liveness": answer}):
        assert shim(path, "live", "liveness").returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["alive"],
        ["liveness", "readiness"],
        ["liveness", "--timeout"],
        ["liveness", "--timeout", "0"],
        ["liveness", "--timeout=-1"],
        ["liveness", "--timeout", "nan"],
        ["liveness", "--timeout", "soon"],
        ["--verbose", "liveness"],
    ],
)
def test_a_wrong_argument_is_usage_on_stderr_and_exit_status_2(path: Path, arguments: list[str]) -> None:
    said = shim(path, "live", *arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("usage: live.py liveness|readiness|critical")


@contextmanager
def listening(path: Path, backlog: int = 8) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(backlog)
        yield listener


@contextmanager
def accepts_and_is_silent(path: Path) -> Iterator[None]:
    with listening(path):
        yield


@contextmanager
def drips(path: Path) -> Iterator[None]:
    """A byte now and then: each recv of the probe succeeds, and the answer never ends."""
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            while not over.wait(0.05):
                try:
                    connection.send(b" ")
                except OSError:
                    return

    with listening(path) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        yield
        over.set()
        thread.join()


@contextmanager
def accepts_nobody(path: Path) -> Iterator[None]:
    """The queue of connections is full: connect() itself would wait."""
    with listening(path, backlog=0):
        waiting = []
        while True:
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            waiting.append(one)
            try:
                one.connect(str(path))
            except BlockingIOError:
                break
        yield
        for one in waiting:
            one.close()


@pytest.mark.parametrize("world", [accepts_and_is_silent, drips, accepts_nobody])
@pytest.mark.parametrize("question", ["liveness", "readiness", "critical"])
def test_a_daemon_that_hangs_is_a_no_in_time(path: Path, world: Callable[[Path], Any], question: str) -> None:
    with world(path):
        began = time.monotonic()
        said = shim(path, "live", question, "--timeout", "0.3")
        took = time.monotonic() - began
    assert said.returncode == 1
    assert "was not answered within 0.3 s" in json.loads(said.stdout)["error"]
    assert 0.3 <= took < 0.3 + BARE_START_S


def test_without_a_timeout_it_is_a_second(path: Path) -> None:
    with accepts_and_is_silent(path):
        said = shim(path, "live", "liveness")
    told = json.loads(said.stdout)
    assert (told["live"], told["daemon_running"]) == (False, True)
    assert "within 1 s" in told["error"]


def test_a_real_daemon_that_was_stopped_is_not_live_and_is_again_when_it_goes_on(nexus: Nexus) -> None:
    nexus.start()
    os.kill(nexus.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        said = shim(nexus.socket, "live", "liveness", "--timeout=0.5")
        took = time.monotonic() - began
    finally:
        os.kill(nexus.pid, signal.SIGCONT)
    assert (said.returncode, took < 0.5 + BARE_START_S) == (1, True)
    assert shim(nexus.socket, "live", "liveness").returncode == 0


def test_the_verdict_holds_where_nobody_reads_what_is_said(path: Path) -> None:
    command = f'"{sys.executable}" "{ROOT}/aeon_interface/live.py" liveness'
    with FakeDaemon(path, {"check_liveness": LIVE}):
        environment = {**os.environ, "NEXUS_SOCKET": str(path)}
        for where in (">&-", "> /dev/full"):
            ended = subprocess.run(["sh", "-c", f"{command} {where}"], env=environment, capture_output=True)
            assert ended.returncode == 0


# status.py


def test_status_prints_the_daemon_or_one_module(path: Path) -> None:
    def status(params: dict[str, Any], _connection: object) -> Any:
        if params.get("module_id") == "no/such":
            raise Refusal(-32002, "no such module: no/such", kind="no_such_module")
        return {"id": params["module_id"]} if params else {"running": True}

    with FakeDaemon(path, {"get_status": status}):
        whole, one, none = (shim(path, "status", *words) for words in ([], ["a/b"], ["no/such"]))
    assert (json.loads(whole.stdout), whole.returncode) == ({"running": True}, 0)
    assert (json.loads(one.stdout), one.returncode) == ({"id": "a/b"}, 0)
    assert (none.stdout, none.stderr, none.returncode) == ("", "status.py: no such module: no/such\n", 1)


def test_status_of_a_daemon_that_is_down_is_an_answer_and_exit_status_1(path: Path) -> None:
    whole, one = shim(path, "status"), shim(path, "status", "a/b")
    assert (json.loads(whole.stdout)["running"], whole.returncode) == (False, 1)
    assert (json.loads(one.stdout)["health"], one.returncode) == ("unhealthy", 1)


# command.py


def test_a_command_prints_success_and_result(path: Path) -> None:
    with FakeDaemon(path, {"reload_module": {"reloaded": True}}) as daemon:
        done = shim(path, "command", "reload_module", '{"module_id": "a/b"}')
        assert daemon.asked == [("reload_module", {"module_id": "a/b"})]
    assert (json.loads(done.stdout), done.returncode) == ({"success": True, "result": {"reloaded": True}}, 0)


def test_a_failure_is_printed_and_exit_status_1_and_a_refusal_is_77(path: Path) -> None:
    def fails(*_: object) -> Any:
        raise Refusal(-32602, "Invalid params", kind="invalid_params", reason="module_id: missing")

    with FakeDaemon(path, {"start_module": fails, "stop_module": refused}):
        failed, denied = shim(path, "command", "start_module"), shim(path, "command", "stop_module")
    told = json.loads(failed.stdout)
    assert (told["success"], told["error"], failed.returncode) == (
        False,
        "Invalid params: module_id: missing",
        1,
    )
    assert (denied.stdout, "does not hold module.stop" in denied.stderr, denied.returncode) == ("", True, 77)


def test_metrics_are_printed_as_the_bare_text_and_never_an_error(path: Path) -> None:
    answer = {"content_type": "text/plain; version=0.0.4", "text": EXPOSITION}
    with FakeDaemon(path, {"get_metrics": answer}):
        done = shim(path, "command", "get_metrics", '{"module_id": "a/b"}')
    assert (done.stdout, done.returncode) == (EXPOSITION, 0)
    down = shim(path, "command", "get_metrics")
    assert (down.stdout, json.loads(down.stderr)["success"], down.returncode) == ("", False, 1)


@pytest.mark.parametrize(
    "arguments",
    [[], ["get_status", "{"], ["get_status", "[1]"], ["get_status", "{}", "more"], ["x", "--timeout", "0"]],
)
def test_a_wrong_command_line_is_usage_and_exit_status_2(path: Path, arguments: list[str]) -> None:
    said = shim(path, "command", *arguments)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("usage: command.py")


@pytest.mark.parametrize("world", [accepts_and_is_silent, drips, accepts_nobody])
def test_status_and_command_have_a_hard_deadline_too(path: Path, world: Callable[[Path], Any]) -> None:
    with world(path):
        began = time.monotonic()
        said = shim(path, "status", "--timeout", "0.3")
        assert (json.loads(said.stdout)["running"], said.returncode) == (False, 1)
    path.unlink()
    with world(path):
        failed = shim(path, "command", "stop_module", '{"module_id": "a/b"}', "--timeout", "0.3")
        assert json.loads(failed.stdout)["success"] is False
    assert time.monotonic() - began < 0.6 + 2 * BARE_START_S


def test_the_shims_work_for_who_has_asyncio_nowhere_near(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    code = """
import sys
import aeon_interface
aeon_interface.check_liveness_now(); aeon_interface.get_status_now("a/one")
aeon_interface.execute_command_now("stop_module", {"module_id": "a/one"})
aeon_interface.NexusClient().get_status()
print(*sorted({"asyncio", "click", "msgspec", "nexusd"} & set(sys.modules)))
"""
    environment = {**nexus.environment, "NEXUS_SOCKET": str(nexus.socket)}
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=30
    )
    assert (ran.stdout, ran.stderr) == ("\n", "")


@pytest.mark.parametrize(("name", "arguments"), [("status", ()), ("command", ("get_status",))])
def test_who_reads_no_further_gets_no_traceback(path: Path, name: str, arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with FakeDaemon(path, {"get_status": {"running": True}}):
        ended = subprocess.run(
            [sys.executable, str(ROOT / "aeon_interface" / f"{name}.py"), *arguments],
            env={**os.environ, "NEXUS_SOCKET": str(path)},
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (141, "")


def test_a_command_that_was_not_answered_in_time_may_still_be_carried_out(path: Path) -> None:
    is_over = threading.Event()
    with FakeDaemon(path, {"stop_module": lambda params, connection: {"late": is_over.wait(30)}}):
        ended = shim(path, "command", "stop_module", '{"module_id": "a/b"}', "--timeout", "0.2")
        is_over.set()
    told = json.loads(ended.stdout)
    assert (ended.returncode, told["success"], told["data"]) == (1, False, {"kind": "timed_out"})
    assert told["error"].endswith("it may still be carried out")
