"""The keeper's own death: what it kept goes on, and its successor, or a later nexusd, has all of it."""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from kept import Kept, ThirdHolder, await_end, is_alive, open_fds, processes_of

from nexusd.keeper import birth, proctable, protocol, recovery
from nexusd.keeper.client import KeeperClient, restart_delay_s
from tests.kernel import PIDFDS_TELL


@pytest.fixture
def kept() -> Iterator[Kept]:
    with Kept() as kept:
        yield kept


@pytest.fixture
def go(kept: Kept) -> Path:
    """A fifo: what reads it goes on when something is written there."""
    os.mkfifo(kept.home / "go")
    return kept.home / "go"


def rows_of(table: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["run"]: row for row in table if row["say"] == "run"}


def tell(kept: Kept, key: str, message: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(message, str(kept.path(key, "notify")))


# Between fork and gate


@pytest.mark.parametrize("spare", [False, True])
def test_a_child_whose_keeper_dies_before_it_was_told_what_to_be_ends(spare: bool) -> None:
    reading, writing = os.pipe()
    keeper = os.fork()
    if keeper == 0:  # as the keeper does it, up to the point where it would write the run down
        newborn = birth.fork(None, spare)
        os.write(writing, str(newborn.pid).encode())
        signal.pause()
    child = int(os.read(reading, 20))
    os.kill(keeper, signal.SIGKILL)
    os.waitpid(keeper, 0)
    await_end(child)
    for fd in (reading, writing):
        os.close(fd)


# A new keeper


class _OtherVersionOnce(int):
    """A version that the first keeper that is asked does not have."""

    asked = False

    def __ne__(self, other: object) -> bool:
        first, self.asked = not self.asked, True
        return first or not int.__eq__(self, other)


def test_a_keeper_of_another_version_is_replaced_and_its_runs_go_on(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, former = kept.start("one", "/bin/sleep", "1000"), kept.keeper
    kept.leave()
    monkeypatch.setattr(protocol, "VERSION", _OtherVersionOnce(protocol.VERSION))
    assert rows_of(kept.connect())["one"]["entry"]["pid"] == pid
    assert kept.keeper != former and is_alive(pid)


def test_keepers_that_are_killed_in_a_row_are_replaced_at_once_and_one_that_cannot_live_ever_later() -> None:
    now, restarts, waits = 100.0, [], []
    for _ in range(9):
        waits.append(restart_delay_s(restarts, now))
        restarts.append(now)
        now += waits[-1] + 0.1
    assert waits[:3] == [0, 0, 0]
    assert waits[3:8] == sorted(waits[3:8]) and waits[3] > 0
    assert waits[7] == waits[8] == 5
    assert restart_delay_s(restarts, now + 60) == 0


def test_runs_go_on_under_a_new_keeper_with_their_notices(kept: Kept) -> None:
    pid = kept.start("one", "/bin/sh", "-c", "sleep 1000; true")
    tell(kept, "one", b"READY=1")
    kept.until("notify")
    former = kept.keeper
    row = rows_of(kept.replace_keeper())["one"]
    assert kept.keeper != former and row["entry"]["pid"] == pid and is_alive(pid)
    assert row["running"] and row["notices"] == {"READY": "1"}
    tell(kept, "one", b"STATUS=still here")
    assert kept.until("notify")["notices"] == {"STATUS": "still here"}


def test_the_status_of_a_run_that_outlived_its_keeper_is_told_by_whoever_reaped_it(
    kept: Kept, go: Path
) -> None:
    kept.start("one", "/bin/sh", "-c", "read line < go; exit 9")
    kept.replace_keeper()
    go.write_text("now\n")
    assert os.waitstatus_to_exitcode(kept.until("exited", "one")["status"]) == 9


def test_a_run_that_ended_together_with_its_keeper_is_told_with_its_status(kept: Kept, go: Path) -> None:
    pid = kept.start("one", "/bin/sh", "-c", "read line < go; exit 9")
    os.kill(kept.keeper, signal.SIGSTOP)
    go.write_text("now\n")
    kept.wait(lambda: not is_alive(pid))
    kept.kill_keeper()
    kept.until("lost")
    ended = rows_of(kept.table())["one"]["ended"] or kept.until("exited", "one")
    assert os.waitstatus_to_exitcode(ended["status"]) == 9


NINE = 9 << 8 if PIDFDS_TELL else None


def test_where_nobody_of_ours_could_reap_it_a_pidfd_tells_the_status(kept: Kept, go: Path) -> None:
    pid = kept.start("one", "/bin/sh", "-c", "read line < go; exit 9")
    kept.replace_keeper()
    go.write_text("now\n")
    await_end(pid)
    os.waitpid(pid, 0)  # as init would have
    assert kept.until("exited", "one")["status"] == NINE


TREES = {
    "children": "sleep 1000 & sleep 1000",
    "setsid": "setsid sleep 1000 & sleep 1000",
    "a double fork": "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; sleep 1000",
}


@pytest.mark.parametrize("way", ["kill", "the leader dies"])
@pytest.mark.parametrize("tree", TREES)
def test_nothing_of_an_adopted_run_is_left_when_its_end_is_told(kept: Kept, tree: str, way: str) -> None:
    pid = kept.start("one", "/bin/sh", "-c", TREES[tree])
    kept.wait(lambda: len(processes_of(kept.home)) >= 3)
    kept.replace_keeper()
    if way == "kill":
        kept.kept.kill("one")
    else:
        os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(kept.until("exited", "one")["status"]) == -signal.SIGKILL
    assert processes_of(kept.home) == [kept.keeper]


def test_spawns_that_were_under_way_run_once_or_not_at_all(kept: Kept) -> None:
    keys = [f"n{number}" for number in range(150)]
    for key in keys:
        kept.spawn(key, "/bin/sleep", "1000")
    for _ in range(20):
        kept.until("spawned")
    kept.kill_keeper()
    kept.until("lost")
    known = {key for key, row in rows_of(kept.table()).items() if row["ended"] is None}
    ended = {message["run"] for message in kept.unheard if message["say"] == "exited"}
    kept.settle()
    ended |= {message["run"] for message in kept.unheard if message["say"] == "exited"}
    running = {
        run.removeprefix("NEXUS_RUN=")
        for pid in processes_of(kept.home)
        for run in Path(f"/proc/{pid}/environ").read_text().split("\0")
        if run.startswith("NEXUS_RUN=n")
    }
    assert 20 <= len(known) < len(keys)
    assert running == known - ended
    assert set(kept.keys()) >= running


def test_a_spawn_before_the_welcome_is_not_tried(kept: Kept) -> None:
    kept.kill_keeper()
    kept.until("lost")
    kept.spawn("one", "/bin/true")
    assert rows_of(kept.table()) == {}
    assert kept.keys() == [] and not list((kept.home / "r").iterdir())


def test_what_is_held_and_noted_is_told_to_the_next_keeper_and_the_next_nexusd(kept: Kept) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        kept.kept.hold("web", os.dup(server.fileno()))
    kept.kept.note("test/module", "what was wanted")
    kept.settle()
    kept.replace_keeper()
    kept.settle()
    kept.leave()
    told = kept.connect()
    assert {"say": "note", "name": "test/module", "text": "what was wanted"} in told
    assert kept.kept.held_names() == ["web"]
    with socket.create_connection(address):
        pass


def test_keepers_that_die_leave_no_descriptors_behind(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.replace_keeper()
    kept.settle()
    before = open_fds(os.getpid()), open_fds(kept.keeper)
    for _ in range(2):
        kept.replace_keeper()
    kept.settle()
    assert (open_fds(os.getpid()), open_fds(kept.keeper)) == before


def test_a_nexusd_that_comes_back_to_the_keeper_it_had_changes_nothing(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.kept.hold("something", os.open(os.devnull, os.O_RDONLY))
    kept.settle()
    before = open_fds(os.getpid()), open_fds(kept.keeper)
    intruder = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    intruder.connect(str(kept.home / "keeper.sock"))  # takes the client's place
    former = kept.keeper
    kept.until("lost")
    row = rows_of(kept.table())["one"]
    intruder.close()
    kept.settle()
    assert kept.keeper == former and row["ended"] is None
    assert (open_fds(os.getpid()), open_fds(kept.keeper)) == before
    kept.kept.kill("one")
    assert os.waitstatus_to_exitcode(kept.until("exited", "one")["status"]) == -signal.SIGKILL


# Both dead


def kill_both(kept: Kept) -> None:
    keeper = kept.keeper
    kept.leave()
    os.kill(keeper, signal.SIGKILL)
    await_end(keeper)


def test_when_both_were_killed_the_journal_and_proc_bring_everything_back(kept: Kept, go: Path) -> None:
    os.mkfifo(kept.home / "on")
    script = "echo before; read line < go; echo between; read line < on; echo after; exit 6"
    pid = kept.start("one", "/bin/sh", "-c", script)
    kept.kept.note("test/module", "what was wanted")
    kept.settle()
    kill_both(kept)
    go.write_text("now\n")
    told = kept.connect()
    row = rows_of(told)["one"]
    assert row["entry"]["pid"] == pid and row["running"] and row["ended"] is None
    assert {"say": "note", "name": "test/module", "text": "what was wanted"} in told
    tell(kept, "one", b"READY=1")
    assert kept.until("notify")["notices"] == {"READY": "1"}
    kept.wait(lambda: "between" in kept.log("one"))
    (kept.home / "on").write_text("now\n")
    assert os.waitstatus_to_exitcode(kept.until("exited", "one")["status"]) == 6
    assert kept.log("one") == "before\nbetween\nafter\n"


def test_a_program_whose_pid_was_never_written_down_is_found_by_the_key_in_its_environment(
    kept: Kept,
) -> None:
    pid = kept.start("one", "/bin/sleep", "1000")
    kept.settle()
    kill_both(kept)
    journal = kept.home / "keeper.journal"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    before = next(line for line in lines if "run" in line)
    assert before["run"]["pid"] == 0
    never = {**before, "run": {**before["run"], "key": "never"}}
    journal.write_text(f"{json.dumps(before)}\n{json.dumps(never)}\n")
    rows = rows_of(kept.connect())
    assert {key: row["entry"]["pid"] for key, row in rows.items()} == {"one": pid}


def test_a_notice_that_no_keeper_has_read_is_told_by_the_next(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    os.kill(kept.keeper, signal.SIGSTOP)
    tell(kept, "one", b"READY=1")
    kept.kept._table.runs["one"].entry = None  # as if the keeper had been killed before it told of the run
    kept.kill_keeper()
    kept.until("lost")
    assert rows_of(kept.table())["one"]["notices"] == {"READY": "1"}


@pytest.mark.parametrize(
    ("answer", "is_ready"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{"ready":true}}\n', True),
        (b'{"jsonrpc":"2.0","id":1,"result":{"ready":false}}\n', False),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":-32601,"message":"no such method"}}\n', False),
        (b"[" * 4000, False),
        (b"\xff\n", False),
        (b"", False),
    ],
)
def test_only_a_run_that_says_so_is_known_to_be_ready(answer: bytes, is_ready: bool) -> None:
    ours, its = socket.socketpair()
    with ours, its:
        its.sendall(answer)
        its.shutdown(socket.SHUT_WR)
        assert recovery.says_ready(ours) is is_ready


def test_a_run_that_never_answers_leaves_no_question_behind(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.settle()
    kill_both(kept)
    kept.connect()
    tell(kept, "one", b"READY=1")
    assert kept.until("notify", "one")["notices"] == {"READY": "1"}
    before = open_fds(kept.keeper)
    kept.kept.kill("one")
    kept.until("exited", "one")
    kept.kept.forget("one")
    kept.settle()
    assert open_fds(kept.keeper) == before - 4  # log, notify socket, pidfd and the question


def test_a_third_holder_has_the_last_words_of_a_run_that_ended_while_both_were_dead(
    kept: Kept, go: Path
) -> None:
    kept.third = ThirdHolder()
    kept.leave()
    kept.connect()
    pid = kept.start("one", "/bin/sh", "-c", "echo first; read line < go; echo last; exit 9")
    kept.settle()
    kill_both(kept)
    tell(kept, "one", b"STATUS=last words")
    go.write_text("now\n")
    await_end(pid)
    _reap(pid)
    kept.connect()
    assert kept.until("notify", "one")["notices"] == {"STATUS": "last words"}
    assert kept.until("exited", "one")["status"] == NINE
    assert kept.log("one") == "first\nlast\n"
    kept.kept.forget("one")
    assert kept.third.held == {}


def test_a_third_holder_has_the_word_of_a_run_that_got_ready_while_both_were_dead(kept: Kept) -> None:
    kept.third = ThirdHolder()
    kept.leave()
    kept.connect()
    kept.start("one", "/bin/sleep", "1000")
    kept.settle()
    kill_both(kept)
    tell(kept, "one", b"READY=1")
    kept.connect()
    assert kept.until("notify", "one")["notices"] == {"READY": "1"}


def test_a_third_holder_has_the_listening_socket_that_nobody_uses_just_then(kept: Kept) -> None:
    kept.third = ThirdHolder()
    kept.leave()
    kept.connect()
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    kept.kept.hold("a/net", listening.detach())
    kill_both(kept)
    kept.connect()
    assert kept.kept.holds("a/net")
    socket.create_connection(("127.0.0.1", port)).close()
    kept.kept.release("a/net")
    assert kept.third.held == {}


def test_the_third_holder_keeps_nothing_of_a_run_that_the_keeper_does_not_know(kept: Kept) -> None:
    kept.third = ThirdHolder()
    for name in ("log=gone", "notify=gone", "pid=gone"):
        kept.third.keep(name, 0)
    kept.leave()
    kept.connect()
    assert kept.third.held == {}


def _reap(pid: int) -> None:
    """As init would, if the kernel made the run ours."""
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


def test_a_run_that_ended_while_both_were_dead_is_told_as_ended(kept: Kept, go: Path) -> None:
    pid = kept.start("one", "/bin/sh", "-c", "read line < go")
    kept.settle()
    kill_both(kept)
    go.write_text("now\n")
    await_end(pid)
    kept.connect()
    kept.until("exited", "one")


def test_the_new_notify_socket_outlives_a_further_keeper(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.settle()
    kill_both(kept)
    kept.connect()
    kept.replace_keeper()
    tell(kept, "one", b"READY=1")
    assert kept.until("notify")["notices"] == {"READY": "1"}


def test_a_stranger_that_has_the_pid_now_is_neither_taken_over_nor_read_nor_killed(kept: Kept) -> None:
    stranger = kept.start("stranger", "/bin/sh", "-c", "setsid sleep 1000 & echo secret; sleep 1000")
    kept.settle()
    kill_both(kept)
    journal = kept.home / "keeper.journal"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    entry = next(line["run"] for line in reversed(lines) if "run" in line)
    older = entry | {
        "key": "older",
        "start_ticks": entry["start_ticks"] - 1,
        "log": kept.launch("older")["log"],
    }
    older |= {"notify_path": str(kept.path("older", "notify"))}
    line = {"run": older, "boot": proctable.boot_id()}
    journal.write_text(json.dumps(line) + "\n" + journal.read_text())
    kept.connect()
    assert kept.until("exited", "older")["status"] is None
    kept.kept.kill("older")
    kept.settle()
    assert is_alive(stranger) and kept.log("older") == ""


def test_a_run_whose_output_goes_elsewhere_is_taken_over_without_reading_there(kept: Kept) -> None:
    elsewhere = kept.home / "elsewhere"
    elsewhere.write_text("not ours\n")
    kept.start("one", "/bin/sh", "-c", f"exec < {elsewhere} >> {elsewhere} 2>&1; sleep 1000; true")
    kept.settle()
    kill_both(kept)
    assert rows_of(kept.connect())["one"]["ended"] is None
    assert "its log pipe is out of reach" in kept.keeper_log.read_text()
    kept.kept.kill("one")
    kept.until("exited", "one")
    assert kept.log("one") == ""


def test_a_journal_that_another_version_wrote_is_passed_over_with_a_complaint(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.settle()
    kill_both(kept)
    journal = kept.home / "keeper.journal"
    strange = {"run": {"key": "strange", "process": 7}, "boot": proctable.boot_id()}
    journal.write_text(
        json.dumps(strange) + '\n["what"]\n5\n{"run": 5}\n' + journal.read_text() + '{"run": {"ke'
    )
    assert list(rows_of(kept.connect())) == ["one"]
    assert "a run that can't be read: pid is None" in kept.keeper_log.read_text()


def test_runs_of_a_former_boot_are_not_looked_for(kept: Kept) -> None:
    kept.start("one", "/bin/sleep", "1000")
    kept.settle()
    kill_both(kept)
    journal = kept.home / "keeper.journal"
    journal.write_text(journal.read_text().replace(proctable.boot_id(), "another"))
    assert rows_of(kept.connect()) == {}


@pytest.mark.skipif(os.getuid() != 0, reason="takes two users")
def test_a_run_of_another_user_may_still_notify_after_both_were_killed(kept: Kept) -> None:
    kept.home.chmod(0o711)
    (kept.home / "r").chmod(0o711)
    kept.start("one", "/bin/sleep", "1000", user={"uid": 65534, "gid": 65534, "groups": []})
    kept.settle()
    kill_both(kept)
    kept.connect()
    found = kept.path("one", "notify").stat()
    assert (found.st_uid, found.st_mode & 0o777) == (65534, 0o600)


# Hanging


def test_a_keeper_that_hangs_is_replaced_and_its_runs_go_on() -> None:
    with Kept(hung_s=0.3) as kept:
        pid = kept.start("one", "/bin/sleep", "1000")
        former = kept.keeper
        os.kill(former, signal.SIGSTOP)
        kept.until("lost")
        assert rows_of(kept.table())["one"]["entry"]["pid"] == pid
        assert kept.keeper != former and is_alive(pid) and not is_alive(former)


def test_a_new_nexusd_replaces_a_keeper_that_hangs_already() -> None:
    with Kept(hung_s=0.3) as kept:
        pid = kept.start("one", "/bin/sleep", "1000")
        former = kept.keeper
        kept.leave()
        os.kill(former, signal.SIGSTOP)
        client = KeeperClient(str(kept.home), str(kept.keeper_log), kept._hear, kept.hung_s)
        kept.client = client
        kept.do(_open(client))
        assert client.pid == former
        kept.until("lost")
        assert rows_of(kept.table())["one"]["entry"]["pid"] == pid and kept.keeper != former


def test_a_keeper_that_answers_is_left_alone_however_long_nexusd_itself_hung() -> None:
    with Kept(hung_s=0.2) as kept:
        former = kept.keeper
        kept.wait(lambda: kept.kept._asked_at is not None)
        signal.sigtimedwait([signal.SIGUSR1], 0.5)  # nexusd's loop stands still meanwhile
        kept.wait(lambda: kept.kept._asked_at is None)
        assert kept.keeper == former and is_alive(former)


def test_the_answer_that_somebody_waits_for_is_not_taken_for_that_of_another_ping() -> None:
    with Kept() as kept:
        trips: list[float] = []
        kept.kept.on_pong = trips.append
        os.kill(kept.keeper, signal.SIGSTOP)
        kept.do(_ping(kept.kept))
        kept.kept._take({"say": "pong", "id": 0, "troubles": []}, [])
        assert trips == [] and kept.kept._asked_at is not None
        os.kill(kept.keeper, signal.SIGCONT)
        kept.wait(lambda: trips)
        assert kept.kept._asked_at is None and kept.do(kept.kept.answers(20.0))
        assert len(trips) == 1


async def _ping(client: KeeperClient) -> None:
    client._ping()


async def _open(client: KeeperClient) -> None:
    client.open()


# Leaving


def test_a_keeper_with_nothing_to_keep_goes_with_its_nexusd(kept: Kept) -> None:
    keeper = kept.keeper
    kept.leave()
    await_end(keeper)
    assert not (kept.home / "keeper.sock").exists()


def test_notes_outlive_a_keeper_that_had_nothing_else_to_keep(kept: Kept) -> None:
    kept.kept.note("test/module", "what was wanted")
    kept.settle()
    keeper = kept.keeper
    kept.leave()
    await_end(keeper)
    assert {"say": "note", "name": "test/module", "text": "what was wanted"} in kept.connect()


def test_a_dismissed_keeper_hears_it_even_when_much_waits_to_be_sent(kept: Kept) -> None:
    keeper = kept.keeper
    for number in range(3000):
        kept.kept.note(f"m{number}", "x" * 100)
    assert kept.kept._outbox
    kept.kept.dismiss()
    kept.leave()
    await_end(keeper)
    assert not (kept.home / "keeper.journal").exists()


if sys.version_info >= (3, 12):
    pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
