"""nexusctl against the real daemon: exit statuses, what a failure shows, following, new modules, permissions."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.e2e.programs import OBEDIENT, READY_LATER, SLEEPER
from tests.running_nexus import BOUND_S, Fifo, Nexus

HAND_STARTED = "autostart = false\n"
NEVER_AGAIN = '[restart]\npolicy = "never"\n'
NOBODY = 65534
as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")


def test_each_exit_status_means_what_the_help_says(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/fine", SLEEPER, HAND_STARTED)
    nexus.add_program("a/broken", "#!/bin/sh\nexit 3\n", HAND_STARTED + NEVER_AGAIN, 'ready = "notify"')
    nexus.add_program("a/slow", READY_LATER, HAND_STARTED, 'ready = "notify"')
    assert nexus.ctl("status").returncode == 69
    nexus.start()

    assert nexus.ctl("status").returncode == 0
    assert nexus.ctl("status", "a/fine").returncode == 3
    assert nexus.ctl("start", "a/fine").returncode == 0
    assert nexus.ctl("status", "a/fine").returncode == 0
    assert nexus.ctl("start", "a/broken").returncode == 1
    assert nexus.ctl("start").returncode == 2
    assert nexus.ctl("start", "a/fien").returncode == 4
    assert nexus.ctl("start", "a/slow", "--timeout", "0.2").returncode == 75
    assert nexus.ctl("start", "a/broken", "a/fine").returncode == 1


def test_a_failed_start_shows_the_end_the_last_lines_and_the_next_command(nexus: Nexus) -> None:
    ends = {"status": ("exit 3", "exit status 3"), "signal": ("kill -SEGV $$", "killed by SIGSEGV")}
    for name, (end, _) in ends.items():
        program = f"#!/bin/sh\necho opening the store\necho no such store >&2\n{end}\n"
        nexus.add_program(f"a/{name}", program, HAND_STARTED + NEVER_AGAIN, 'ready = "notify"')
    nexus.start()
    for name, (_, description) in ends.items():
        ran = nexus.ctl("start", f"a/{name}")
        assert ran.returncode == 1
        assert ran.stdout == ""
        first, *rest = ran.stderr.splitlines()
        assert first == f"nexusctl: a/{name} did not start: {description} before it was ready"
        assert [line.strip() for line in rest[-4:]] == [
            f"last lines of a/{name}#0:",
            "| opening the store",
            "| no such store",
            f"next: nexusctl logs a/{name}",
        ]


def test_a_pattern_starts_and_stops_all_at_the_same_time(nexus: Nexus, gate: Fifo) -> None:
    for name in ("one", "two", "three"):
        nexus.add_program(f"a/{name}", READY_LATER, HAND_STARTED, 'ready = "notify"')
    nexus.add_program("b/other", SLEEPER, HAND_STARTED)
    nexus.start()
    with _running(nexus, "start", "a/*") as start:
        assert [nexus.bell.hear() for _ in range(3)] == ["begun"] * 3  # none of them is ready yet
        for _ in range(3):
            gate.say()
        out, _ = start.communicate(timeout=BOUND_S)
    assert sorted(out.splitlines()) == ["a/one started", "a/three started", "a/two started"]
    assert start.returncode == 0
    assert nexus.status("b/other")["state"] == "loaded"
    assert nexus.ctl("stop", "*").returncode == 0
    assert nexus.status()["modules"]["by_state"] == {"stopped": 4}


@contextmanager
def _running(nexus: Nexus, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        nexus.ctl_command(*arguments),
        env={**nexus.environment, "NEXUS_SOCKET": str(nexus.socket)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    hung = threading.Timer(BOUND_S, process.kill)
    hung.start()
    try:
        yield process
    finally:
        hung.cancel()
        if process.poll() is None:
            process.kill()
        process.communicate()


WRITES_ON_DEMAND = '#!/bin/sh\necho before\nwhile read -r line; do echo "heard $line"; done < "$GATE"\n'


def test_logs_follow_what_comes_and_end_with_0_on_ctrl_c(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", WRITES_ON_DEMAND)
    nexus.start().wait_log("a/one", "before")
    with _running(nexus, "logs", "-f", "a/one") as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == "before\n"
        gate.say("first")
        assert logs.stdout.readline() == "heard first\n"
        gate.say("second")
        assert logs.stdout.readline() == "heard second\n"
        logs.send_signal(signal.SIGINT)
        assert logs.wait(BOUND_S) == 0


def test_events_follow_what_happens_and_end_with_0_on_ctrl_c(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")
    with _running(nexus, "events", "-f", "-n", "1") as events:
        assert events.stdout is not None
        events.stdout.readline()
        nexus.call("stop_module", module_id="a/one")
        seen = ""
        while "stopped" not in seen:
            seen = events.stdout.readline()
            assert seen
        assert "a/one" in seen
        events.send_signal(signal.SIGINT)
        assert events.wait(BOUND_S) == 0


def test_following_ends_with_69_when_the_daemon_is_killed(nexus: Nexus) -> None:
    nexus.add_program("a/one", "#!/bin/sh\necho here\nexec sleep 1000\n")
    nexus.start().wait_log("a/one", "here")
    with _running(nexus, "logs", "-f", "a/one") as logs:
        assert logs.stdout is not None and logs.stderr is not None
        assert logs.stdout.readline() == "here\n"
        nexus.kill()
        assert logs.wait(BOUND_S) == 69
        assert "cannot connect" in logs.stderr.read()


@pytest.mark.parametrize("kind", [[], ["--exec"]])
def test_a_new_module_works_as_it_stands(nexus: Nexus, kind: list[str]) -> None:
    nexus.start()
    assert nexus.ctl("new", "mine/first-try", *kind, "--into", str(nexus.modules)).returncode == 0
    assert nexus.ctl("check", str(nexus.modules)).returncode == 0
    assert "added  mine/first-try" in nexus.ctl("reload").stdout
    assert nexus.ctl("start", "mine/first-try").returncode == 0
    nexus.wait_log("mine/first-try", "alive")
    assert nexus.ctl("config", "set", "mine/first-try", "interval_ms", "100").returncode == 0
    assert nexus.until_state("mine/first-try", "started")["config"] == {"interval_ms": 100}
    assert nexus.ctl("stop", "mine/first-try").returncode == 0


def test_check_names_each_fault_with_its_file_and_the_near_match(nexus: Nexus) -> None:
    nexus.add_program("a/one", SLEEPER, 'versoin = "1"\nreplicas = "many"\n')
    ran = nexus.ctl("check", str(nexus.modules))
    assert ran.returncode == 1
    assert len(ran.stdout.splitlines()) == 2
    assert all(f"{nexus.modules}/a/one/module.toml" in line for line in ran.stdout.splitlines())
    assert '"version"' in ran.stdout


def test_shutdown_waits_until_everything_is_gone(nexus: Nexus, gate: Fifo) -> None:
    nexus.add_program("a/one", OBEDIENT)
    nexus.start()
    nexus.bell.hear()
    ran = nexus.ctl("shutdown")
    assert (ran.returncode, ran.stdout) == (0, "nexusd has shut down\n")
    assert nexus.wait() == 0
    assert not nexus.socket.exists()
    assert nexus.ctl("status").returncode == 69


@as_root
def test_a_user_without_the_socket_s_group_cannot_connect(nexus: Nexus) -> None:
    nexus.start()
    ran = nexus.ctl("status", uid=NOBODY)
    assert ran.returncode == 77
    assert "you are nobody (uid 65534)" in ran.stderr
    assert "is srw-rw---- and belongs to root" in ran.stderr


@as_root
def test_a_viewer_may_look_but_not_touch(nexus: Nexus) -> None:
    nexus.settings.write_text(
        '[metrics]\nlisten = "off"\n[api]\ngroup = "nogroup"\n[access.groups]\nnogroup = ["viewer"]\n'
    )
    nexus.add_program("a/one", SLEEPER)
    nexus.start().until_state("a/one", "started")

    assert nexus.ctl("status", "a/one", uid=NOBODY).returncode == 0
    assert "viewer" in nexus.ctl("whoami", uid=NOBODY).stdout
    for command in (["stop", "a/one"], ["reload", "a/one"], ["shutdown"], ["reload"]):
        ran = nexus.ctl(*command, uid=NOBODY)
        assert ran.returncode == 77, ran
        assert "permission denied: nobody does not hold" in ran.stderr
    assert nexus.status("a/one")["state"] == "started"


@as_root
def test_a_grant_that_is_taken_away_is_gone_after_a_reload(nexus: Nexus) -> None:
    common = '[metrics]\nlisten = "off"\n[api]\ngroup = "nogroup"\n'
    nexus.settings.write_text(common + '[access.users]\nnobody = ["operator"]\n')
    nexus.add_program("a/one", SLEEPER, HAND_STARTED)
    nexus.start()
    assert nexus.ctl("start", "a/one", uid=NOBODY).returncode == 0
    nexus.settings.write_text(common)
    assert nexus.ctl("reload").returncode == 0
    assert nexus.ctl("stop", "a/one", uid=NOBODY).returncode == 77
