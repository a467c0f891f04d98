"""The keeper as parent of runs: it starts them, tells how they end, and ends all that belongs to them."""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kept import Kept, await_end, is_alive, open_fds, processes_of

from nexusd.keeper import protocol


@pytest.fixture
def kept() -> Iterator[Kept]:
    with Kept() as kept:
        yield kept


def journal_runs(kept: Kept) -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in (kept.home / "keeper.journal").read_text().splitlines()]
    return {line["run"]["key"]: line["run"] for line in lines if "run" in line}


def raw(kept: Kept) -> socket.socket:
    """A connection beside the client's, which it replaces."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(kept.home / "keeper.sock"))
    return sock


# Starting


FORKED = {"limits": {"memory": 1 << 30}}  # what posix_spawn can't give


def test_a_run_is_written_down_and_told_before_its_first_instruction(kept: Kept) -> None:
    journal = kept.home / "keeper.journal"
    seen = kept.sh("one", f"cat {journal}; echo $$", **FORKED).splitlines()
    spawned = json.loads(seen[0])["run"]
    assert (spawned["key"], spawned["pid"]) == ("one", int(seen[-1]))
    kept.spawn("two", "/bin/true", **FORKED)
    heard = [kept.next() for _ in range(3)]
    assert [message["say"] for message in heard] == ["spawned", "running", "exited"]
    assert heard[0]["entry"]["pid"] == journal_runs(kept)["two"]["pid"]


def test_a_plain_programs_key_is_written_down_before_its_first_instruction(kept: Kept) -> None:
    seen = kept.sh("one", f"head -n 1 {kept.home / 'keeper.journal'}")
    spawned = json.loads(seen)["run"]
    assert (spawned["key"], spawned["pid"]) == ("one", 0)
    kept.spawn("two", "/bin/true")
    heard = [kept.next() for _ in range(2)]
    assert [message["say"] for message in heard] == ["spawned", "exited"]
    assert heard[0]["running"] and heard[0]["entry"]["pid"] == journal_runs(kept)["two"]["pid"]


def test_a_program_gets_its_arguments_and_its_folder(kept: Kept) -> None:
    (kept.home / "sub").mkdir()
    assert kept.sh("one", 'echo "$0|$1"; pwd', directory=str(kept.home / "sub")).splitlines() == [
        "/bin/sh|",
        str(kept.home / "sub"),
    ]


def test_a_program_without_a_slash_is_looked_up_in_the_modules_path(kept: Kept) -> None:
    program = kept.home / "greet"
    program.write_text("#!/bin/sh\necho hello\n")
    program.chmod(0o755)
    kept.run("one", "greet", environment={"PATH": f"/nowhere:{kept.home}:/bin"})
    assert kept.log("one") == "hello\n"


REFUSALS = {
    "missing": (["{home}/nothing"], {}, "exec", errno.ENOENT, "{home}/nothing"),
    "not executable": (["{home}/plain"], {}, "exec", errno.EACCES, "{home}/plain"),
    "a folder": (["{home}"], {}, "exec", errno.EACCES, "{home}"),
    "no format": (["{home}/noise"], {}, "exec", errno.ENOEXEC, "{home}/noise"),
    "not in PATH": (["no-such-program"], {}, "exec", errno.ENOENT, "no-such-program"),
    "no such directory": (
        ["/bin/true"],
        {"directory": "{home}/gone"},
        "directory",
        errno.ENOENT,
        "{home}/gone",
    ),
    "a NUL": (["/bin/true", "a\0b"], {}, "exec", None, None),
}


@pytest.mark.parametrize("way", ["spawned", "forked"])
@pytest.mark.parametrize("what", REFUSALS)
def test_what_keeps_a_program_from_running_is_told_with_its_errno(kept: Kept, what: str, way: str) -> None:
    argv, more, step, number, about = REFUSALS[what]
    (kept.home / "plain").write_text("#!/bin/sh\n")
    (kept.home / "noise").write_bytes(b"\0\1\2\3")
    (kept.home / "noise").chmod(0o755)

    def placed(text: str) -> str:
        return text.format(home=kept.home)

    more: dict[str, Any] = {name: placed(value) for name, value in more.items()}
    if way == "forked":
        exited = kept.run("one", *map(placed, argv), **more, **FORKED)
        assert os.waitstatus_to_exitcode(exited["status"]) == 127
    else:
        kept.spawn("one", *map(placed, argv), **more)
        exited = kept.until("refused", "one")
        kept.settle()
        assert "gone" in (kept.home / "keeper.journal").read_text() or step == "fork"
    refusal = exited["refusal"]
    assert (refusal["step"], refusal["errno"]) == (step, number)
    assert refusal["about"] == (placed(about) if about else None)


def test_a_keeper_that_cannot_fork_says_so_and_keeps_nothing_of_the_run(kept: Kept) -> None:
    before = open_fds(kept.keeper)
    kept.spawn("twice", "/bin/sleep", "1000")
    kept.until("spawned", "twice")
    packet = {"say": "spawn", "run": "twice", "launch": kept.launch("twice", "/bin/true")}
    with socket.socketpair()[0] as some:
        kept.kept._send(packet, (some.fileno(),) * 4)
    refusal = kept.until("refused", "twice")["refusal"]
    assert (refusal["step"], refusal["errno"]) == ("fork", errno.EEXIST)
    kept.kept.kill("twice")
    kept.until("exited", "twice")
    kept.kept.forget("twice")
    kept.settle()
    assert open_fds(kept.keeper) <= before + 1  # the journal


def test_three_hundred_at_once_are_started_in_order(kept: Kept) -> None:
    keys = [f"n{number}" for number in range(300)]
    for key in keys:
        kept.spawn(key, "/bin/true")
    assert kept.kept._outbox  # more than the socket takes
    heard = [kept.next() for _ in range(2 * len(keys))]
    assert [message["run"] for message in heard if message["say"] == "spawned"] == keys
    assert sorted(message["run"] for message in heard if message["say"] == "exited") == sorted(keys)
    for key in keys:
        kept.kept.forget(key)
    kept.settle()
    assert list((kept.home / "r").iterdir()) == []


# Ends


def test_exit_statuses_reach_nexusd(kept: Kept) -> None:
    assert os.waitstatus_to_exitcode(kept.run("a", "/bin/sh", "-c", "exit 7")["status"]) == 7
    assert (
        os.waitstatus_to_exitcode(kept.run("b", "/bin/sh", "-c", "kill -SEGV $$")["status"])
        == -signal.SIGSEGV
    )
    assert kept.run("c", "/bin/true")["status"] == 0


def test_an_end_is_kept_until_it_is_forgotten_and_told_to_each_nexusd(kept: Kept) -> None:
    kept.spawn("one", "/bin/sh", "-c", "exit 3")
    kept.spawn("two", "/nowhere", **FORKED)
    kept.all_said("exited", ["one", "two"])
    for _ in range(2):
        kept.leave()
        rows = {row["run"]: row for row in kept.connect() if row["say"] == "run"}
        assert os.waitstatus_to_exitcode(rows["one"]["ended"]["status"]) == 3
        assert rows["one"]["ended"]["at"] <= time.monotonic()
        assert rows["two"]["refusal"]["errno"] == errno.ENOENT
    for key in ("one", "two"):
        kept.kept.forget(key)
    kept.kept.hold("a socket", os.open(os.devnull, os.O_RDONLY))  # so that the keeper stays
    kept.settle()
    kept.leave()
    assert not [row for row in kept.connect() if row["say"] == "run"]


def test_what_ends_while_nexusd_is_away_is_told_when_it_is_back(kept: Kept) -> None:
    os.mkfifo(kept.home / "go")
    pid = kept.start("one", "/bin/sh", "-c", "read line < go; exit 4")
    kept.start("two", "/bin/sleep", "1000")
    kept.leave()
    (kept.home / "go").write_text("now\n")
    kept.wait(lambda: not Path(f"/proc/{pid}").exists())
    rows = {row["run"]: row for row in kept.connect() if row["say"] == "run"}
    assert os.waitstatus_to_exitcode(rows["one"]["ended"]["status"]) == 4
    assert rows["two"]["ended"] is None and rows["two"]["running"]


TREES = {
    "children": "sleep 1000 & sleep 1000 & sleep 1000",
    "setsid": "setsid sleep 1000 & sleep 1000",
    "a double fork": "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; sleep 1000",
    "grandchildren": "sh -c 'sh -c \"sleep 1000 & sleep 1000\" & sleep 1000' & sleep 1000",
    "no NEXUS_RUN": "(env -i sleep 1000 &) ; sleep 1000",
    "deaf to SIGTERM": "trap '' TERM; sleep 1000 & sleep 1000 & wait; wait",
}


@pytest.mark.parametrize("way", ["kill", "the leader dies"])
@pytest.mark.parametrize("tree", TREES)
def test_nothing_of_a_run_is_left_when_its_end_is_told(kept: Kept, tree: str, way: str) -> None:
    pid = kept.start("one", "/bin/sh", "-c", TREES[tree])
    kept.wait(lambda: len(processes_of(kept.home)) >= 3)  # the keeper, the shell, and a sleep
    if way == "kill":
        kept.kept.kill("one")
    else:
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(kept.until("exited", "one")["status"]) == -signal.SIGKILL
    assert processes_of(kept.home) == [kept.keeper]


def test_a_run_that_forks_while_it_is_killed_leaves_nothing(kept: Kept) -> None:
    # Each leaves its parent and its session, lives for a moment, and has a successor.
    hare = "import os, time\nwhile True:\n  if os.fork(): time.sleep(0.01); os._exit(0)\n  os.setsid()\n"
    kept.start("one", "/bin/sh", "-c", f'for n in 1 2 3; do python3 -c "{hare}" & done; wait; sleep 1000')
    kept.wait(lambda: len(processes_of(kept.home)) > 4)
    kept.kept.kill("one")
    kept.until("exited", "one")
    assert processes_of(kept.home) == [kept.keeper]


def test_a_signal_reaches_the_whole_run_or_the_leader_only(kept: Kept) -> None:
    (kept.home / "deaf").write_text(
        'trap "echo $1 usr1" USR1\n[ $1 = outer ] && sh deaf inner &\n'
        "echo $1\nwhile :; do sleep 1000 & wait $!; done\n"
    )
    kept.start("one", "/bin/sh", "deaf", "outer")
    kept.wait(lambda: {"inner", "outer"} <= set(kept.log("one").split()))
    kept.kept.signal("one", signal.SIGUSR1, leader_only=True)
    kept.wait(lambda: "outer usr1" in kept.log("one"))
    assert "inner usr1" not in kept.log("one")
    kept.kept.signal("one", signal.SIGUSR1)
    kept.wait(lambda: "inner usr1" in kept.log("one"))


def test_the_run_next_door_is_left_alone(kept: Kept) -> None:
    other = kept.start("other", "/bin/sh", "-c", "setsid sleep 1000 & sleep 1000")
    kept.start("one", "/bin/sh", "-c", "setsid sleep 1000 & sleep 1000")
    kept.kept.kill("one")
    kept.until("exited", "one")
    assert is_alive(other) and len(processes_of(kept.home)) == 4  # keeper, shell, two sleeps


# Notices


def tell(kept: Kept, key: str, message: bytes, fds: tuple[int, ...] = ()) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(20)
        sock.connect(str(kept.path(key, "notify")))
        protocol.send(sock, message, fds)


def test_notices_reach_nexusd(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    tell(kept, "one", b"READY=1\nSTATUS=h\xc3\xa9llo = there\nNONSENSE")
    assert kept.until("notify", "one")["notices"] == {"READY": "1", "STATUS": "héllo = there"}


def test_notices_that_come_while_nexusd_is_away_are_remembered(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.leave()
    tell(kept, "one", b"READY=1")
    for number in range(50):
        tell(kept, "one", b"STATUS=%d" % number)
    rows = kept.connect()
    if rows[0]["notices"].get("STATUS") != "49":  # the last ones may have come after the table was told
        kept.until("notify")
    assert kept.kept._table.runs["one"].notices == {"READY": "1", "STATUS": "49"}


def test_a_module_cannot_fill_the_keeper_with_names_of_its_own(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.leave()
    for number in range(300):
        tell(kept, "one", b"X%d=" % number + b"x" * 1000)
    tell(kept, "one", b"\n".join([b"READY=1", b"STATUS=" + b"\1" * 4000]))
    kept.connect()
    assert kept.kept._table.runs["one"].notices is not None
    assert set(kept.kept._table.runs["one"].notices) <= {"READY", "STATUS"}


def test_a_barrier_is_released_at_once_and_its_descriptor_does_not_stay(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.settle()
    before = open_fds(kept.keeper)
    for number in range(200):
        reading, writing = os.pipe()
        tell(kept, "one", b"BARRIER=1" if number % 2 else b"STATUS=%d" % number, (writing,))
        os.close(writing)
        assert os.read(reading, 1) == b""  # the keeper has closed its copy
        os.close(reading)
    assert open_fds(kept.keeper) == before


def test_a_run_that_floods_its_notify_socket_does_not_keep_others_waiting(kept: Kept) -> None:
    flood = (
        "import os, socket\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n"
        "s.connect(os.environ['NOTIFY_SOCKET'])\nwhile True: s.send(b'STATUS=again')"
    )
    kept.start("loud", "python3", "-c", flood)
    kept.until("notify", "loud")
    assert kept.run("quiet", "/bin/true")["status"] == 0


# The spare

MODULE = (
    "from nexusd.sdk import Module\nclass One(Module):\n    async def start(self):\n        print('here')\n"
)


@pytest.fixture
def module(kept: Kept) -> dict[str, Any]:
    (kept.home / "one.py").write_text(MODULE)
    (kept.home / "config.json").write_text("{}")
    return {"python": "one:One", "folder": str(kept.home)}


def test_a_python_module_is_started_in_the_spare_and_another_is_made(
    kept: Kept, module: dict[str, Any]
) -> None:
    spare = kept.await_spare()
    assert kept.start("one", **module) == spare
    kept.wait(lambda: kept.log("one") == "here\n")
    assert kept.await_spare() != spare


def test_a_spare_that_was_killed_keeps_no_module_from_being_started(
    kept: Kept, module: dict[str, Any]
) -> None:
    spare = kept.await_spare()
    os.kill(spare, signal.SIGKILL)
    await_end(spare)
    pid = kept.start("one", **module)
    kept.wait(lambda: kept.log("one") == "here\n")
    assert pid != spare and is_alive(pid)


def test_the_spare_goes_with_its_keeper(kept: Kept) -> None:
    spare = kept.await_spare()
    kept.kill_keeper()
    await_end(spare)
    kept.until("welcome")
    spare = kept.await_spare()
    kept.leave()
    await_end(spare)


def test_a_spare_is_no_orphan_of_a_run(kept: Kept) -> None:
    spare = kept.await_spare()
    kept.sh("one", "(setsid sleep 1000 &)")
    assert is_alive(spare)


# Nothing leaks


def test_neither_side_keeps_a_descriptor_of_two_hundred_runs(kept: Kept) -> None:
    kept.run("first", "/bin/true")
    kept.settle()
    before = open_fds(kept.keeper), open_fds(os.getpid())
    for number in range(200):
        kept.run(f"n{number % 3}", *(["/bin/true"] if number % 2 else ["/nowhere"]), **FORKED)
        kept.run(f"n{number % 3}", "/bin/true")
    kept.settle()
    assert (open_fds(kept.keeper), open_fds(os.getpid())) == before
    assert list((kept.home / "r").iterdir()) == []


def test_the_keepers_log_holds_complaints_and_nothing_else(kept: Kept) -> None:
    for number in range(5):
        kept.run(f"n{number}", "/bin/sh", "-c", "echo out; echo err >&2; exit 1")
    kept.replace_keeper()
    kept.leave()
    kept.connect()
    assert kept.keeper_log.read_text() == ""


# Words that are none


BAD_PACKETS = {
    "no JSON": b"hello",
    "no object": b"[1]",
    "not UTF-8": b"\xff\xfe{}",
    "too long": b'{"say": "note", "name": "x", "text": "' + b"x" * 200_000 + b'"}',
    "too deep": b"[" * 100_000,
    "an unknown word": b'{"say": "dance"}',
    "no word": b'{"run": "one"}',
    "a word that is a list": b'{"say": ["kill"], "run": "one"}',
    "a missing field": b'{"say": "kill"}',
    "a wrong type": b'{"say": "kill", "run": {"one": 1}}',
    "a spawn without descriptors": b'{"say": "spawn", "run": "two", "launch": {}}',
    "an adoption of nothing": b'{"say": "adopt", "run": "two", "entry": {}, "running": true, "notices": {}}',
    "a hold without a socket": b'{"say": "hold", "name": "x"}',
    "a signal that there is not": b'{"say": "signal", "run": "one", "signal": 4711}',
}


@pytest.mark.parametrize("what", BAD_PACKETS)
def test_a_packet_that_is_no_word_does_no_harm_and_leaves_a_complaint(kept: Kept, what: str) -> None:
    pid = kept.start("one", "/bin/sleep", "1000")
    before = open_fds(kept.keeper)
    with socket.socketpair()[0] as some:
        protocol.send(kept.kept._sock, BAD_PACKETS[what], (some.fileno(),) * 3)  # type: ignore[arg-type]
    kept.settle()
    assert is_alive(pid)
    assert kept.keeper_log.read_text().startswith("nexus-keeper: ")
    assert open_fds(kept.keeper) == before
    assert not any(message["say"] == "lost" for message in kept.unheard)


def test_a_packet_with_more_descriptors_than_fit_does_no_harm(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    with socket.socketpair()[0] as some:
        protocol.send(kept.kept._sock, b'{"say": "warm"}', (some.fileno(),) * 200)  # type: ignore[arg-type]
    kept.settle()
    assert "cut short" in kept.keeper_log.read_text()


def test_more_listening_sockets_than_a_packet_takes_are_refused_to_the_caller(kept: Kept) -> None:
    for number in range(61):
        kept.kept.hold(f"s{number}", os.open(os.devnull, os.O_RDONLY))
    with pytest.raises(protocol.TooLong, match="61 listening sockets: 60 can be handed over"):
        kept.spawn("one", "/bin/true", listening=[f"s{number}" for number in range(61)])
    assert list((kept.home / "r").iterdir()) == []


def test_a_note_that_is_too_long_is_not_remembered_and_hurts_nobody(kept: Kept) -> None:
    kept.kept.note("big", "x" * 300_000)
    assert kept.run("one", "/bin/true")["status"] == 0


@pytest.mark.skipif(os.getuid() != 0, reason="takes two users")
def test_another_user_is_not_heard(kept: Kept) -> None:
    pid = kept.start("one", "/bin/sleep", "1000")
    kept.home.chmod(0o755)
    (kept.home / "keeper.sock").chmod(0o777)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            os.setresuid(65534, 65534, 65534)
            sock = raw(kept)
            protocol.send(sock, b'{"say": "kill", "run": "one"}')
            sock.recv(1)
        os._exit(0)
    await_end(child)
    kept.settle()
    assert is_alive(pid) and kept.kept.connected


def test_a_nexusd_that_does_not_read_is_let_go_and_told_the_table_later(kept: Kept) -> None:
    os.mkfifo(kept.home / "go")
    kept.start("one", "/bin/sh", "-c", "read line < go; exit 5")
    (kept.home / "go").write_text("now\n")
    sock = kept.kept._sock
    assert sock is not None
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        while True:  # it asks and asks; the client reads nothing as long as its loop does not run
            select.select([], [sock], [], 20)
            with contextlib.suppress(BlockingIOError):
                protocol.send(sock, b'{"say": "ping"}')
    assert "nexusd does not read" in kept.keeper_log.read_text()
    kept.until("lost")
    (row,) = kept.table()
    assert os.waitstatus_to_exitcode(row["ended"]["status"]) == 5
