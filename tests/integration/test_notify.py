"""What systemd gives nexusd, and the way back: sdnotify's weak spots, each against a real socket."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusd.system.notify import Given, Notifier, take

TALE = """
import os, socket, sys
os.environ["LISTEN_PID"] = str(os.getpid())
from nexusd.system.notify import take
given = take(os.environ)
print(given.api.getsockname() if given.api else None)
print([number for number in (3, 4) if os.path.exists(f"/proc/self/fd/{number}")])
print(os.get_inheritable(given.api.fileno()) if given.api else None)
print(given.stored)
"""


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    """The other end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.settimeout(10)
        yield ear


def heard(ear: socket.socket) -> str:
    return ear.recv(65536).decode()


def test_words_that_are_not_latin_arrive_as_utf_8(ear: socket.socket) -> None:
    Notifier(ear.getsockname()).say("READY=1", "STATUS=14/15 — größtenteils ✓")
    assert heard(ear) == "READY=1\nSTATUS=14/15 — größtenteils ✓"


def test_a_line_break_in_a_status_adds_no_word_of_its_own(ear: socket.socket) -> None:
    Notifier(ear.getsockname()).say("STATUS=bad\nWATCHDOG=1")
    assert heard(ear) == "STATUS=bad WATCHDOG=1"


def test_an_abstract_address_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0nexus-test-{os.getpid()}")
        ear.settimeout(10)
        Notifier(f"@nexus-test-{os.getpid()}").say("READY=1")
        assert heard(ear) == "READY=1"


def test_nobody_who_does_not_read_makes_nexusd_wait_and_what_was_kept_comes_in_order(
    ear: socket.socket,
) -> None:
    notifier = Notifier(ear.getsockname())
    for number in range(2000):
        notifier.say(f"STATUS={number}")
    told = []
    ear.setblocking(False)
    for _ in range(2000):
        try:
            told.append(int(heard(ear).removeprefix("STATUS=")))
        except BlockingIOError:
            notifier.flush()
    assert told == sorted(set(told))
    assert told[-1] == 1999


def test_a_socket_that_is_made_anew_is_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = str(tmp_path / "notify")
    notifier = Notifier(place)
    notifier.say("READY=1")
    notifier.say("STATUS=one")
    assert [one.getMessage() for one in caplog.records].count(
        "systemd cannot be told anything: No such file or directory"
    ) == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(place)
        notifier.say("STATUS=two")
        assert [heard(ear) for _ in range(3)] == ["READY=1", "STATUS=one", "STATUS=two"]


def test_the_variable_is_not_left_behind_for_children(
    ear: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    Notifier(ear.getsockname()).say("READY=1")
    assert "NOTIFY_SOCKET" not in os.environ


def test_without_systemd_nothing_is_said_and_nothing_complained_of(caplog: pytest.LogCaptureFixture) -> None:
    given = take({"PATH": "/bin"})
    assert given == Given()
    notifier = Notifier(given.variables.get("NOTIFY_SOCKET", ""))
    notifier.say("READY=1")
    assert (notifier.is_heard, caplog.records) == (False, [])


def test_what_systemd_gave_is_taken_out_of_the_environment() -> None:
    environment = {
        "NOTIFY_SOCKET": "/run/systemd/notify",
        "WATCHDOG_USEC": "30000000",
        "WATCHDOG_PID": str(os.getpid()),
        "STATE_DIRECTORY": "/var/lib/nexus",
        "PATH": "/bin",
    }
    given = take(environment)
    assert environment == {"PATH": "/bin"}
    assert (given.watchdog_s, given.variables["NOTIFY_SOCKET"]) == (30.0, "/run/systemd/notify")


@pytest.mark.parametrize("usec", ["", "0", "soon", "-1"])
def test_a_watchdog_that_makes_no_sense_is_none(usec: str) -> None:
    assert take({"WATCHDOG_USEC": usec}).watchdog_s is None


def test_a_watchdog_of_another_process_is_none_of_ours() -> None:
    assert take({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}).watchdog_s is None


def test_descriptors_of_another_process_are_left_alone() -> None:
    assert take({"LISTEN_FDS": "1", "LISTEN_PID": "1"}).api is None


def test_of_the_descriptors_the_listening_socket_is_taken_and_kept_from_children(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api:
        api.bind(str(tmp_path / "api"))
        api.listen()
        told = _told(api.fileno(), os.open(os.devnull, os.O_RDONLY))
    assert told == [str(tmp_path / "api"), "[3]", "False", "{}"]


def test_what_a_former_nexusd_had_kept_is_known_by_its_name(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api:
        api.bind(str(tmp_path / "api"))
        api.listen()
        told = _told(api.fileno(), os.open(os.devnull, os.O_RDONLY), "api:log%3Da/b#0@1~x")
    assert told == [str(tmp_path / "api"), "[3, 4]", "False", "{'log=a/b#0@1~x': 4}"]


def test_a_socket_that_does_not_listen_is_not_taken(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as idle:
        assert _told(idle.fileno(), os.open(os.devnull, os.O_RDONLY)) == ["None", "[]", "None", "{}"]


def _told(third: int, fourth: int, names: str = "") -> list[str]:
    """What a process says that is given these as descriptors 3 and 4."""
    os.dup2(third, spare := 200)
    os.dup2(fourth, spare + 1)
    script = f'exec "$0" -c "$1" 3<&{spare} 4<&{spare + 1} {spare}<&- {spare + 1}<&-'
    environment = {**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": names}
    try:
        ran = subprocess.run(
            ["bash", "-c", script, sys.executable, TALE],
            stdout=subprocess.PIPE,
            env=environment,
            pass_fds=(spare, spare + 1),
            timeout=30,
            check=True,
        )
    finally:
        for number in (spare, spare + 1, fourth):
            os.close(number)
    return ran.stdout.decode().splitlines()


def test_who_replaces_this_process_is_told_the_same_as_it_was(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api:
        variables = {"NOTIFY_SOCKET": "/n", "LISTEN_FDS": "2", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a:b"}
        assert Given(variables).again() == {"NOTIFY_SOCKET": "/n"}
        given = Given(variables, None, api).again()
    assert given == {"NOTIFY_SOCKET": "/n", "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}


def test_a_listening_socket_that_comes_second_takes_the_first_place(tmp_path: Path) -> None:
    """Where it stays, so that it can be given again."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as api:
        api.bind(str(tmp_path / "api"))
        api.listen()
        told = _told(os.open(os.devnull, os.O_RDONLY), os.dup(api.fileno()))
    assert told == [str(tmp_path / "api"), "[3]", "False", "{}"]
