"""The jump into another program in the same process: what it is handed, what it is not, what is left when it fails."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nexusd.domain.replacing import Command
from nexusd.system import handover
from nexusd.system.handover import Bound, Client, Handover

BOUND_S = 20.0

# Before the jump: holds a socket, a lock, a client, and a file that is nobody's business; SIGTERM comes in between.
BEFORE = """
import os, signal, socket, sys
from nexusd.domain.replacing import Command
from nexusd.system.handover import *
ours, theirs = socket.socketpair()
lock, other = os.open(os.devnull, os.O_RDONLY), os.open(os.devnull, os.O_RDONLY)
handed = Handover(version="2.0.0", target="2.1.0", left_at=1.5, was_ready=True, locks={"/lock": lock},
    clients=(Client(ours.fileno(), b'{"half\\xff' * 100_000),))
theirs.send(b"hello")
hold_signals_back()
os.kill(os.getpid(), signal.SIGTERM)
print(os.getpid(), other, flush=True)
after = Command(sys.executable, (sys.executable, "-c", sys.argv[1]))
raise jump(after, handed, os.environ, {"FROM_SYSTEMD": "1"}, ())
"""
AFTER = """
import os, signal, socket
from nexusd.system.handover import *
handed = taken(os.environ)
print(os.getpid(), handed.version, handed.was_ready, len(handed.clients[0].rest))
print(socket.socket(fileno=handed.clients[0].fd).recv(100), "NEXUS_HANDOVER" in os.environ, os.environ["FROM_SYSTEMD"])
print([os.get_inheritable(number) for number in handed.locks.values()])
print([int(number) for number in os.listdir("/proc/self/fd") if int(number) > 2])
print(taken(os.environ), flush=True)
signal.signal(signal.SIGTERM, lambda *_: print("SIGTERM"))
let_signals_come()
"""


def test_what_was_handed_over_is_there_in_the_same_process_and_nothing_else() -> None:
    command = [sys.executable, "-c", BEFORE, AFTER]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=BOUND_S, check=True)
    before, *after = ran.stdout.splitlines()
    pid, other = map(int, before.split())
    assert after[0] == f"{pid} 2.0.0 True {700_000}"
    assert after[1] == "b'hello' False 1"
    assert after[2] == "[False]"
    assert other not in map(int, after[3].strip("[]").split(", "))
    assert after[4:] == ["None", "SIGTERM"]


def handed(*descriptors: int) -> Handover:
    clients = tuple(Client(number, b"") for number in descriptors)
    return Handover(version="1", target="2", left_at=0.0, was_ready=False, clients=clients)


def test_a_jump_that_fails_leaves_every_descriptor_as_it_was(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        before = set(os.listdir("/proc/self/fd"))
        nowhere = Command(str(tmp_path / "nexusd"), ("nexusd",))
        error = handover.jump(nowhere, handed(sock.fileno()), os.environ, {}, ())
        assert error.strerror == "No such file or directory"
        assert not os.get_inheritable(sock.fileno())
        assert set(os.listdir("/proc/self/fd")) == before


def test_an_environment_that_the_kernel_does_not_take_is_such_a_failure() -> None:
    error = handover.jump(
        Command(sys.executable, (sys.executable,)), handed(), {"A": "x" * (1 << 22)}, {}, ()
    )
    assert error.strerror == "Argument list too long"


@pytest.mark.parametrize("text", ["", "1:5", "5", f"{os.getpid()}:", f"{os.getpid()}:x"])
def test_what_is_not_for_this_process_is_taken_out_and_left_alone(text: str) -> None:
    environment = {"NEXUS_HANDOVER": text, "PATH": "/bin"}
    assert handover.taken(environment) is None
    assert environment == {"PATH": "/bin"}


def test_all_that_goes_on_is_counted() -> None:
    given = Handover("1", "2", 0.0, False, Bound(5, "/s", 1, 2), (6, 7), "", {"/lock": 8}, (Client(9, b""),))
    assert given.descriptors == (5, 6, 7, 8, 9)


def test_sockets_of_the_metrics_that_are_wanted_elsewhere_now_are_closed() -> None:
    kept, closed = (socket.create_server(("127.0.0.1", 0)).detach() for _ in range(2))
    given = Handover("1", "2", 0.0, False, metrics=(kept,), metrics_at="127.0.0.1:9090")
    (sock,) = handover.sockets_of(given, "127.0.0.1:9090")
    assert sock.fileno() == kept
    sock.close()
    assert (
        handover.sockets_of(Handover("1", "2", 0.0, False, metrics=(closed,), metrics_at="a:1"), "off") == []
    )
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(closed)


def test_a_signal_is_kept_for_who_comes_next() -> None:
    handover.hold_signals_back()
    try:
        handover.keep_for_successor(signal.SIGHUP)
        assert signal.SIGHUP in signal.sigpending()
        assert signal.sigwait({signal.SIGHUP}) == signal.SIGHUP
    finally:
        handover.let_signals_come()
