"""Check programs under a real keeper: answers, refusals, time-outs, floods, and deaths of everybody concerned."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusd.keeper.probe import LINE_LENGTH, MOST_BYTES
from tests.integration.kept import Kept, Message, await_end, is_alive


@pytest.fixture
def kept() -> Iterator[Kept]:
    with Kept() as kept:
        yield kept


def launch(kept: Kept, *argv: str, **more: Any) -> Message:
    environment = {"PATH": os.environ["PATH"], "HOME_OF_TEST": str(kept.home)}
    return {"argv": list(argv), "directory": str(kept.home), **more, "environment": environment}


def probe(kept: Kept, *argv: str, timeout: float = 20.0, **more: Any) -> Message | None:
    told: Message | None = kept.do(kept.kept.probe(launch(kept, *argv, **more), timeout))
    return told


def sh(kept: Kept, script: str, timeout: float = 20.0) -> Message:
    told = probe(kept, "/bin/sh", "-c", script, timeout=timeout)
    assert told is not None
    return told


def pid_in(path: Path) -> int:
    return int(path.read_text())


def test_the_exit_status_and_the_last_line_are_told(kept: Kept) -> None:
    told = sh(kept, "echo one; echo the disk is full; echo; exit 3")
    assert (os.waitstatus_to_exitcode(told["status"]), told["line"]) == (3, "the disk is full")
    assert (told["timed_out"], told["refusal"], told["flooded"]) == (False, None, False)
    assert told["tail"] == "one\nthe disk is full\n\n"
    assert sh(kept, "exit 0")["status"] == 0
    assert sh(kept, "echo x >&2")["line"] == "x"


def test_it_runs_in_the_directory_and_environment_it_was_given_and_has_no_control_socket(kept: Kept) -> None:
    assert (
        sh(kept, 'echo "$PWD $HOME_OF_TEST ${NEXUS_CONTROL_FD-none}"')["line"]
        == f"{kept.home} {kept.home} none"
    )


def test_a_program_that_is_not_there_is_refused_with_its_name(kept: Kept) -> None:
    told = probe(kept, "./no-such-check")
    assert told is not None and told["refusal"]["about"] == "./no-such-check"
    assert told["refusal"]["reason"] == "No such file or directory"


def test_at_the_time_out_it_ends_with_all_that_it_started(kept: Kept) -> None:
    pids = [kept.home / name for name in ("leader", "child", "away")]
    script = (
        'trap "" TERM; echo $$ > leader; sleep 1000 & echo $! > child; '
        'setsid sh -c "echo \\$\\$ > away; exec sleep 1000" & echo hm; wait'
    )
    told = sh(kept, script, timeout=0.7)
    assert (told["timed_out"], told["status"], told["line"]) == (True, None, "hm")
    for path in pids:
        await_end(pid_in(path))


def test_what_it_leaves_behind_ends_with_it(kept: Kept) -> None:
    told = sh(kept, "setsid sleep 1000 > /dev/null 2>&1 & echo $! > child; exit 0")
    assert told["status"] == 0
    await_end(pid_in(kept.home / "child"))


def test_a_flood_is_not_read_to_its_end_and_a_long_line_is_cut(kept: Kept) -> None:
    told = sh(kept, f"{sys.executable} -c \"print('x' * {10 * MOST_BYTES})\"")
    assert told["flooded"]
    assert len(sh(kept, f"{sys.executable} -c \"print('x' * 5000)\"")["line"]) == LINE_LENGTH


def test_several_at_once_are_told_apart(kept: Kept) -> None:
    async def all_at_once() -> list[Message | None]:
        numbers = range(20)
        script = "sleep 0.0$1; exit $1"
        work = [kept.kept.probe(launch(kept, "/bin/sh", "-c", script, "sh", str(n)), 20) for n in numbers]
        return [await one for one in map(kept.loop.create_task, work)]

    told = kept.do(all_at_once())
    assert [os.waitstatus_to_exitcode(one["status"]) for one in told if one] == list(range(20))


def test_a_run_may_end_while_a_probe_goes_on(kept: Kept) -> None:
    """Its end is told at once, and the probe is not taken for something that it left behind."""
    kept.start("a", "/bin/sh", "-c", "sleep 1000")

    async def both() -> Message | None:
        asked = kept.loop.create_task(
            kept.kept.probe(launch(kept, "/bin/sh", "-c", "echo b > b; sleep 0.5"), 20)
        )
        kept.kept.kill("a")
        return await asked

    told = kept.do(both())
    assert told is not None and told["status"] == 0
    assert kept.until("exited", "a")["status"] == signal.SIGKILL


async def until_written(kept: Kept, path: Path) -> int:
    """The number in a file, once it is there: what a program writes nobody tells of."""
    while not path.exists() or not path.read_text().endswith("\n"):
        await kept.loop.run_in_executor(None, os.sched_yield)
    return int(path.read_text())


def asked_meanwhile(
    kept: Kept, script: str, then: Callable[[], None], timeout: float = 20.0
) -> Message | None:
    """What is told of a program that has written `leader` when `then` is done."""

    async def ask() -> Message | None:
        work = kept.kept.probe(launch(kept, "/bin/sh", "-c", script), timeout)
        asked = kept.loop.create_task(work)
        await until_written(kept, kept.home / "leader")
        then()
        return await asked

    told: Message | None = kept.do(ask())
    return told


def test_it_dies_with_the_keeper_and_whoever_waits_is_told_nothing(kept: Kept) -> None:
    kept.start("a", "/bin/sleep", "1000")
    script = "sleep 1000 & echo $! > child; echo $$ > leader; wait"
    assert asked_meanwhile(kept, script, kept.kill_keeper) is None
    await_end(pid_in(kept.home / "leader"))
    kept.until("lost")
    assert probe(kept, "/bin/true") is None  # nobody is there to ask
    kept.table()
    await_end(pid_in(kept.home / "child"))  # the kernel let it live, the next keeper did not
    assert sh(kept, "exit 7")["status"] == 7 << 8


def test_what_is_under_way_ends_with_a_keeper_that_is_dismissed() -> None:
    with Kept() as kept:
        script = "sleep 1000 & echo $! > child; echo $$ > leader; wait"
        asked_meanwhile(kept, script, lambda: kept.kept.dismiss(), timeout=0.1)
        for name in ("leader", "child"):
            await_end(pid_in(kept.home / name))
        kept.leave()


def test_it_is_ended_at_its_time_when_nexusd_has_gone(kept: Kept) -> None:
    kept.start("a", "/bin/sleep", "1000")  # or the keeper would leave

    async def ask() -> None:
        asked = kept.loop.create_task(
            kept.kept.probe(launch(kept, "/bin/sh", "-c", "echo $$ > leader; exec sleep 1000"), 0.5)
        )
        await until_written(kept, kept.home / "leader")
        asked.cancel()

    kept.do(ask())
    kept.leave()
    await_end(pid_in(kept.home / "leader"))
    kept.connect()
    assert is_alive(kept.keeper)
