"""What /proc says of processes, read from real ones."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kept import await_end

from nexusd.keeper import proctable
from nexusd.keeper.proctable import Stat, Stray

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a shell script in a session of its own; whatever is left of the sessions is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["/bin/sh", "-c", script],
            env={"PATH": os.environ["PATH"], **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        for pid in _below(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _below(pid: int) -> list[int]:
    return [found for child in proctable.children(pid) for found in (*_below(child), child)]


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def known(pid: int) -> Stat:
    found = proctable.stat(pid)
    assert found is not None
    return found


def none() -> list[Stray]:
    return []


def test_a_living_process_is_described(start: Start) -> None:
    process = start("echo; sleep 1000; true")
    line(process)
    found = known(process.pid)
    assert (found.pid, found.ppid, found.session) == (process.pid, os.getpid(), process.pid)
    assert found.state in "RSD" and found.start_ticks > 0


def test_a_name_may_hold_anything(start: Start) -> None:
    process = start("printf 'a) Z 1 (' > /proc/$$/comm; echo; sleep 1000; true")
    line(process)
    assert known(process.pid).ppid == os.getpid()


def test_a_zombie_is_told_from_a_process_whose_main_thread_has_ended(start: Start) -> None:
    zombie = subprocess.Popen(["true"])
    await_end(zombie.pid)
    assert known(zombie.pid).state == "Z"
    zombie.wait()
    assert proctable.stat(zombie.pid) is None
    headless = (
        "import ctypes, threading, time\n"
        "threading.Thread(target=lambda: (print('there', flush=True), time.sleep(1000))).start()\n"
        "ctypes.CDLL(None).pthread_exit(None)"
    )
    process = subprocess.Popen([sys.executable, "-c", headless], stdout=subprocess.PIPE, text=True)
    assert line(process) == "there"
    main_thread = Path(f"/proc/{process.pid}/task/{process.pid}/stat")
    while "Z" not in main_thread.read_text().rpartition(")")[2]:
        pass
    assert known(process.pid).state == "S"
    assert [one.pid for one in proctable.members("none", known(process.pid), none)] == [process.pid]
    process.kill()
    process.communicate()


def test_children_of_all_threads_are_found(start: Start) -> None:
    code = (
        "import subprocess, threading\n"
        "def child(): print(subprocess.Popen(['sleep', '1000']).pid, flush=True); threading.Event().wait()\n"
        "threading.Thread(target=child).start(); child()"
    )
    process = start(f'exec {sys.executable} -c "$CODE"', CODE=code)
    pids = {int(line(process)), int(line(process))}
    assert set(proctable.children(process.pid)) == pids
    assert proctable.children(2**22 + 1) == []


def test_members_are_the_leader_and_all_below_it(start: Start) -> None:
    process = start(
        """sh -c 'sleep 1000 & echo $! $$; setsid sh -c "echo \\$\\$; sleep 1000; true"' & wait"""
    )
    pids = {process.pid, *map(int, line(process).split()), *map(int, line(process).split())}
    found = {one.pid for one in proctable.members("none", known(process.pid), none)}
    assert len(pids) == 4 and pids <= found


def test_strays_belong_by_session_or_by_run(start: Start) -> None:
    leader = start("echo; sleep 1000; true")
    of_run = start("echo; sleep 1000; true", NEXUS_RUN="test/one#0@1~aa")
    of_another = start("echo; sleep 1000; true", NEXUS_RUN="test/one#0@1~aab")
    for process in (leader, of_run, of_another):
        line(process)
    strays = [proctable.stray(known(one.pid)) for one in (of_run, of_another)]
    assert [one.run for one in strays] == ["test/one#0@1~aa", "test/one#0@1~aab"]
    found = {one.pid for one in proctable.members("test/one#0@1~aa", known(leader.pid), lambda: strays)}
    assert of_run.pid in found and leader.pid in found and of_another.pid not in found
    kept_session = Stray(known(of_another.pid)._replace(session=leader.pid), None)
    found = {one.pid for one in proctable.members("none", known(leader.pid), lambda: [kept_session])}
    assert of_another.pid in found


def test_a_pid_that_was_given_away_since_makes_nobody_a_member(start: Start) -> None:
    process = start("sleep 1000 & echo; wait")
    line(process)
    former = known(process.pid)._replace(start_ticks=1)
    of_its_session = [Stray(known(pid), None) for pid in proctable.children(process.pid)]
    assert proctable.members("none", former, lambda: of_its_session) == []


def test_signals_reach_the_very_process_and_no_successor_in_its_pid(start: Start) -> None:
    process = start("trap 'echo heard; exit' TERM; echo; while :; do sleep 0.01; done")
    line(process)
    assert not proctable.send_signal(known(process.pid)._replace(start_ticks=1), signal.SIGKILL)
    assert proctable.send_signal(known(process.pid), signal.SIGTERM)
    assert line(process) == "heard"
    gone = subprocess.Popen(["true"])
    found = known(gone.pid)
    gone.wait()
    assert not proctable.send_signal(found, signal.SIGTERM)


def test_the_parentless_are_found_with_their_runs(start: Start) -> None:
    """Ours is the next process above that orphans are handed to, if it asks for them; else one further up."""
    process = start("(sleep 1000 & echo $!)", NEXUS_RUN="test/one#0@1~aa")
    orphan = int(line(process))
    process.wait()
    if known(orphan).ppid == os.getpid():
        pytest.skip("this process is a subreaper")
    assert "test/one#0@1~aa" in [one.run for one in proctable.parentless() if one.process.pid == orphan]


def test_the_title_shows_in_proc_and_carries_the_run() -> None:
    code = (
        "import sys; from nexusd.keeper.proctable import Title; title = Title()\n"
        "title.show('nexus-keeper-and-more', 'nexus-keeper ' + 'x' * 5000); title.carry('test/one#0@1~aa')\n"
        "print(open('/proc/self/comm').read().strip(), len(open('/proc/self/cmdline').read()))\n"
        "print(open('/proc/self/cmdline').read(13))\n"
        "print('NEXUS_RUN=test/one#0@1~aa\\0' in open('/proc/self/environ').read())\n"
    )
    environment = {**os.environ, "NEXUS_RUN": proctable.RUN_ROOM}
    told = subprocess.run(
        [sys.executable, "-c", code, "room"], env=environment, capture_output=True, text=True
    )
    comm, title, carried = told.stdout.splitlines()
    assert comm.split()[0] == "nexus-keeper-an" and title == "nexus-keeper " and carried == "True"


def test_the_boot_has_an_id() -> None:
    assert len(proctable.boot_id()) == 36


def test_a_stopped_descendant_is_seen_from_its_ancestor(start: Start) -> None:
    process = start("sleep 1000 & echo $!; read line")
    child = int(line(process))
    assert not proctable.is_any_stopped(process.pid)
    os.kill(child, signal.SIGSTOP)
    while not proctable.is_any_stopped(process.pid):  # the signal is sent, and taken soon
        os.sched_yield()
    os.kill(child, signal.SIGCONT)
    while proctable.is_any_stopped(process.pid):
        os.sched_yield()


def test_of_a_process_that_is_gone_nothing_is_stopped(start: Start) -> None:
    process = start("exit 0")
    await_end(process.pid)
    assert not proctable.is_any_stopped(process.pid)
