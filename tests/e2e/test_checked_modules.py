"""Health checks under a real nexusd: found out, reported, restarted, waited for.

Through deaths of nexusd and keeper, too.
"""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from nexusctl.client import RpcError
from tests.e2e.programs import SLEEPER
from tests.running_nexus import BOUND_S, Nexus, Status, ticking, wait_gone

QUICK = 'interval = "100ms"\ntimeout = "2s"\nfailures = 2\n'
NO_WAIT = '[restart]\nbackoff = { first = "0s", initial = "10ms", max = "10ms" }\n'

# Says of itself what stands in the file beside it.
SAYS = """
from pathlib import Path
from nexusd.sdk import Module
class It(Module):
    async def start(self): pass
    async def health(self):
        word, _, reason = (Path(__file__).parent / "word").read_text().strip().partition(" ")
        return (word, reason)
"""


class Server:
    """An HTTP server whose answer the test decides."""

    def __init__(self) -> None:
        self.status = 200
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = b"the database is away"
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nobody reads it."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/healthz"
        Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def until_health(nexus: Nexus, module_id: str, word: str) -> Status:
    return nexus.until(module_id, lambda status: status["health"] == word)


def health_history(nexus: Nexus, module_id: str) -> list[str]:
    return [event["to"] for event in nexus.history(module_id) if event["kind"] == "module.health"]


def test_a_module_whose_http_check_fails_is_unhealthy_and_is_not_restarted(
    nexus: Nexus, server: Server
) -> None:
    nexus.add_program("a/web", SLEEPER, f'[health]\ncheck = {{ http = "{server.url}" }}\n{QUICK}')
    nexus.start()
    pid = until_health(nexus, "a/web", "healthy")["instances"][0]["pid"]
    server.status = 503

    with nexus.events() as events:
        told = events.find(lambda event: event["kind"] == "module.health" and event["to"] == "unhealthy")
    reason, _, count = told["reason"].rpartition(", ")
    assert reason == f'http check {server.url}: 503 Service Unavailable: "the database is away"'
    assert count.endswith(" times in a row")
    status = nexus.status("a/web")
    assert (status["state"], status["health"], status["restarts"]) == ("started", "unhealthy", 0)
    assert status["reason"] is not None and status["reason"].startswith(f"http check {server.url}: 503")
    (check,) = status["instances"][0]["checks"]
    assert (check["purpose"], check["verdict"], check["result"]) == ("readiness", "unhealthy", "unhealthy")
    assert check["failures"] >= 2 and check["at"] > 0
    assert nexus.call("check_readiness")["reasons"] == ["1 of 1 modules are unhealthy"]

    server.status = 302
    assert until_health(nexus, "a/web", "healthy")["instances"][0]["pid"] == pid
    assert health_history(nexus, "a/web") == ["degraded", "healthy", "unhealthy", "healthy"]


def test_failing_liveness_restarts_and_says_which_check_it_was(nexus: Nexus, server: Server) -> None:
    nexus.add_program("a/web", SLEEPER, f'{NO_WAIT}[health]\nliveness = {{ http = "{server.url}" }}\n{QUICK}')
    nexus.start()
    first = until_health(nexus, "a/web", "healthy")["instances"][0]["pid"]
    server.status = 500
    status = nexus.until("a/web", lambda status: status["restarts"] == 1)
    server.status = 200
    wait_gone(first)
    status = until_health(nexus, "a/web", "healthy")
    assert status["instances"][0]["last_exit"]["signal"] == "SIGTERM"
    (stopping,) = [
        event
        for event in nexus.history("a/web")
        if event["kind"] == "module.state" and event["to"] == "stopping"
    ]
    assert stopping["reason"].startswith(
        f'liveness http check {server.url}: 500 Internal Server Error: "the database is away", '
    )


def test_ready_by_health_waits_for_its_check(nexus: Nexus) -> None:
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{port.getsockname()[1]}"
        nexus.add_program(
            "a/slow", SLEEPER, f'[health]\ncheck = {{ tcp = "{address}" }}\n{QUICK}', 'ready = "health"'
        )
        nexus.add_program("a/after", SLEEPER, 'requires = ["a/slow"]\n')
        nexus.start()
        with pytest.raises(RpcError, match="still starting"):
            nexus.call("start_module", module_id="a/slow", timeout=0.3)
        assert nexus.status("a/after")["reason"] == "waits for a/slow, which is starting"
        port.listen()
        nexus.until_state("a/slow", "started")
        nexus.until_state("a/after", "started")


def test_ready_by_health_that_never_passes_tells_the_check_when_its_time_is_over(nexus: Nexus) -> None:
    manifest = (
        'autostart = false\n[start]\ntimeout = "500ms"\n[restart]\npolicy = "never"\n'
        '[health]\ncheck = { unix = "no.sock" }\ninterval = "100ms"\n'
    )
    nexus.add_program("a/never", SLEEPER, manifest, 'ready = "health"')
    nexus.start()
    with pytest.raises(
        RpcError, match=r"not ready within 0\.5 s; unix check no\.sock: no such file or directory"
    ):
        nexus.call("start_module", module_id="a/never")


def test_a_module_s_own_word_is_its_health(nexus: Nexus) -> None:
    folder = nexus.add_python("a/says", SAYS, f"[health]\ncheck = {{ control = true }}\n{QUICK}")
    (folder / "word").write_text("degraded the queue is long")
    nexus.start()
    degraded = ("degraded", ["control check: the queue is long"])
    for _ in ticking(BOUND_S, "its own word is not heard"):  # another reason for the same health is no event
        status = nexus.status("a/says")
        if (status["health"], status["health_reasons"]) == degraded:
            break
    (folder / "word").write_text("unhealthy the queue is full")
    status = until_health(nexus, "a/says", "unhealthy")
    assert status["health_reasons"][0].startswith("control check: the queue is full, ")
    (folder / "word").write_text("healthy")
    until_health(nexus, "a/says", "healthy")


# Exec checks


def with_exec(nexus: Nexus, check: str, timeout: str = "2s") -> Path:
    manifest = f'[health]\ncheck = {{ exec = ["./check", "s3cret"] }}\n{QUICK}'.replace(
        '"2s"', f'"{timeout}"'
    )
    return nexus.add_module(
        "a/one", f'{manifest}[run]\nexec = ["./program"]\nenvironment = {{ COLOUR = "blue" }}\n',
        {"program": SLEEPER, "check": f"#!/bin/sh\n{check}\n"},
    )  # fmt: skip


def test_an_exec_check_runs_as_the_module_would_and_its_last_line_is_the_reason(nexus: Nexus) -> None:
    with_exec(nexus, 'echo "$COLOUR $NEXUS_MODULE_ID $1 in $(basename "$PWD")"; exit 4')
    nexus.start()
    status = until_health(nexus, "a/one", "unhealthy")
    assert status["health_reasons"][0].startswith(
        "exec check ./check: exit status 4, blue a/one s3cret in one, "
    )


@pytest.mark.skipif(os.getuid() != 0, reason="only root may run a module as somebody else")
def test_an_exec_check_runs_as_the_module_s_user(nexus: Nexus) -> None:
    folder = with_exec(nexus, 'echo "$(id -un) $HOME" > /dev/stdout; exit 1')
    manifest = (folder / "module.toml").read_text()
    (folder / "module.toml").write_text(manifest.replace("[run]", '[run]\nuser = "nobody"'))
    nexus.start()
    home = pwd.getpwnam("nobody").pw_dir
    told = until_health(nexus, "a/one", "unhealthy")["health_reasons"][0]
    assert told.startswith(f"exec check ./check: exit status 1, nobody {home}, ")


def test_an_exec_check_that_hangs_is_killed_with_all_that_it_started(nexus: Nexus) -> None:
    with_exec(nexus, 'echo begun $$ >> "$BELL"; sleep 1000 & echo child $! >> "$BELL"; wait', timeout="400ms")
    nexus.start()
    pids = [int(nexus.bell.hear().split()[1]) for _ in range(2)]
    for pid in pids:
        wait_gone(pid)
    status = until_health(nexus, "a/one", "unhealthy")
    assert status["health_reasons"][0].startswith("exec check ./check: not done within 0.4 s, ")


def test_an_exec_check_that_is_not_there_is_a_failed_check(nexus: Nexus) -> None:
    folder = with_exec(nexus, "exit 0")
    (folder / "check").unlink()
    nexus.start()
    status = until_health(nexus, "a/one", "unhealthy")
    told = f"exec check ./check: cannot execute {folder}/./check: No such file or directory, "
    assert status["health_reasons"][0].startswith(told)


def test_what_is_stopped_is_not_checked(nexus: Nexus) -> None:
    with_exec(nexus, 'echo checked >> "$BELL"; exit 0')
    nexus.start()
    assert nexus.bell.hear() == "checked"
    nexus.call("stop_module", module_id="a/one")
    status = nexus.status("a/one")
    assert (status["health"], status["health_reasons"], status["instances"][0]["checks"]) == (
        "degraded",
        ["stopped"],
        [],
    )
    assert status["instances"][0]["health"] == "degraded"


# Deaths in between


@pytest.mark.parametrize("death", ["kill", "kill_both"])
def test_health_is_remembered_and_checks_go_on_when_nexusd_was_killed(nexus: Nexus, death: str) -> None:
    folder = with_exec(nexus, '[ -e well ] || { echo "not well"; exit 1; }')
    (folder / "well").touch()
    nexus.start()
    pid = until_health(nexus, "a/one", "healthy")["instances"][0]["pid"]
    (folder / "well").unlink()
    until_health(nexus, "a/one", "unhealthy")
    getattr(nexus, death)()
    nexus.start()
    status = nexus.status("a/one")
    assert (status["health"], status["instances"][0]["pid"]) == ("unhealthy", pid)
    assert status["health_reasons"][0].startswith("exec check ./check: exit status 1, not well, ")
    (folder / "well").touch()
    until_health(nexus, "a/one", "healthy")


def test_checks_go_on_when_the_keeper_was_killed_and_that_is_nobody_s_failure(nexus: Nexus) -> None:
    folder = with_exec(nexus, 'echo checked >> "$BELL"; exec cat well')
    (folder / "well").touch()
    nexus.start()
    until_health(nexus, "a/one", "healthy")
    nexus.kill_keeper()
    for _ in range(3):
        nexus.bell.hear()
    (folder / "well").unlink()
    until_health(nexus, "a/one", "unhealthy")
    assert health_history(nexus, "a/one") == ["degraded", "healthy", "unhealthy"]


# Reload


def test_a_new_generation_that_is_not_healthy_is_refused_and_the_old_one_stays(nexus: Nexus) -> None:
    folder = with_exec(nexus, 'test "$NEXUS_GENERATION" = 1 || { echo "no data"; exit 1; }')
    nexus.start()
    pid = until_health(nexus, "a/one", "healthy")["instances"][0]["pid"]
    (folder / "program").write_text("#!/bin/sh\nexec sleep 2000\n")
    with pytest.raises(RpcError, match=r"exec check \./check: exit status 1, no data, \d times in a row"):
        nexus.call("reload_module", module_id="a/one")
    status = nexus.status("a/one")
    assert (status["health"], status["generation"], status["instances"][0]["pid"]) == ("healthy", 1, pid)


def test_reloading_the_daemon_takes_a_new_share_of_unhealthy_modules(nexus: Nexus) -> None:
    folder = with_exec(nexus, "exit 1")
    assert folder.exists()
    nexus.start()
    until_health(nexus, "a/one", "unhealthy")
    assert not nexus.call("check_readiness")["ready"]
    nexus.settings.write_text(nexus.settings.read_text() + "[health]\nmost_unhealthy = 1.0\n")
    nexus.call("reload_daemon")
    assert nexus.call("check_readiness")["ready"]
