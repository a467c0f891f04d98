"""When systemd hears what: READY=1 once, WATCHDOG=1 only after a full pass, a plea while something moves."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusd.domain import lifecycle
from nexusd.domain.fleet import Fleet, Module
from nexusd.domain.lifecycle import Replica
from nexusd.domain.runs import RunKey
from nexusd.rpc.knock import knock
from nexusd.system.herald import Herald
from nexusd.system.notify import Notifier
from tests.fakes import definition

RUN = RunKey("a/b", 0, 1, "00000000").text()
STARTING, STARTED = lifecycle.Starting(RUN, 1e9), lifecycle.Started(RUN, 1)
BOUND_S = 20.0


def fleet(state: lifecycle.State) -> Fleet:
    replica = Replica("a/b", 0, 1, 0.0, True, state)
    return Fleet({"a/b": Module("a/b", "/m", definition("a/b"), 0.0, True, True, replicas=(replica,))})


class Desk:
    """A herald, the fleet that it sees, and what systemd hears."""

    def __init__(self, ear: socket.socket, watchdog_s: float | None = None) -> None:
        self.ear = ear
        self.fleet = Fleet()
        self.missed: str | None = None
        self.passes: asyncio.Queue[float] = asyncio.Queue()
        self.herald = Herald(Notifier(ear.getsockname()), watchdog_s, lambda: self.fleet)

    async def reach(self, patience_s: float) -> str | None:
        self.passes.put_nowait(patience_s)
        return self.missed

    def see(self, state: lifecycle.State) -> None:
        before, self.fleet = self.fleet, fleet(state)
        self.herald.observe(before, self.fleet, frozenset({"a/b"}))

    async def hears(self, word: str) -> list[str]:
        """All that is heard until a message holds the word."""
        told: list[str] = []
        async with asyncio.timeout(BOUND_S):
            while not told or word not in told[-1]:
                told.append((await asyncio.get_running_loop().sock_recv(self.ear, 65536)).decode())
        return told


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        ear.setblocking(False)
        yield ear


def test_ready_is_said_once_when_the_last_module_is_there(ear: socket.socket) -> None:
    async def story() -> None:
        desk = Desk(ear)
        desk.see(STARTING)
        desk.herald.serves(desk.reach)
        (first,) = await desk.hears("STATUS=starting: waiting for a/b")
        assert "READY" not in first
        desk.see(STARTED)
        told = await desk.hears("READY=1")
        assert told[-1] == "READY=1\nSTATUS=1/1 module healthy"
        desk.see(STARTED)
        desk.see(lifecycle.Failed())
        assert await desk.hears("failed") == ["STATUS=0/1 module healthy, a/b failed"]
        desk.herald.close()

    asyncio.run(story())


def test_a_slow_start_asks_for_as_much_time_as_its_modules_have(ear: socket.socket) -> None:
    async def story() -> None:
        desk = Desk(ear)
        desk.see(STARTING)
        desk.herald.serves(desk.reach)
        told = await desk.hears("EXTEND_TIMEOUT_USEC=")
        (usec,) = re.findall(r"EXTEND_TIMEOUT_USEC=(\d+)", told[-1])
        assert int(usec) > 60_000_000
        desk.herald.close()

    asyncio.run(story())


def test_the_watchdog_hears_nothing_while_something_cannot_be_reached(
    ear: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        desk = Desk(ear, watchdog_s=0.15)
        desk.missed = "the keeper has not answered"
        desk.herald.serves(desk.reach)
        async with asyncio.timeout(BOUND_S):
            for _ in range(3):
                await desk.passes.get()
        desk.missed = None
        told = await desk.hears("WATCHDOG=1")
        assert [one for one in told if "WATCHDOG" in one] == ["WATCHDOG=1"]
        assert desk.passes.qsize() >= 1  # the pass came first
        desk.herald.close()

    asyncio.run(story())
    assert "no word to the watchdog: the keeper has not answered" in caplog.text


def test_a_pass_that_meets_a_defect_is_told_with_its_traceback_and_the_next_one_counts(
    ear: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async def story() -> None:
        desk = Desk(ear, watchdog_s=0.15)
        defects = [RuntimeError("nobody thought of this")]

        async def reach(_patience_s: float) -> str | None:
            if defects:
                raise defects.pop()
            return None

        desk.herald.serves(reach)
        await desk.hears("WATCHDOG=1")
        assert defects == []
        desk.herald.close()

    asyncio.run(story())
    assert "the pass met a defect" in caplog.text and "nobody thought of this" in caplog.text


def test_who_takes_over_feeds_the_watchdog_from_the_start_and_is_ready_as_soon_as_it_serves(
    ear: socket.socket,
) -> None:
    """A module that is still starting holds a start up; a service that was ready is not to be killed for it."""

    async def story() -> None:
        former = Desk(ear)
        former.herald.serves(former.reach)
        await former.hears("READY=1")
        assert former.herald.hands_over("2.1.0")
        told = await former.hears("STATUS=giving way to nexusd 2.1.0")
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", told[-2])
        former.herald.close()

        desk = Desk(ear, watchdog_s=0.15)
        desk.herald.takes_over(was_ready=True)
        for _ in range(3):
            assert await desk.hears("WATCHDOG=1") == ["WATCHDOG=1"]
        desk.see(STARTING)
        assert desk.passes.empty()
        desk.herald.serves(desk.reach)
        assert (await desk.hears("READY=1"))[-1] == "READY=1\nSTATUS=0/1 module healthy, a/b starting"
        await desk.passes.get()
        desk.herald.close()

    asyncio.run(story())


def test_who_takes_over_from_one_that_was_not_ready_gets_ready_itself(ear: socket.socket) -> None:
    async def story() -> None:
        former = Desk(ear)
        former.see(STARTING)
        former.herald.serves(former.reach)
        assert not former.herald.hands_over("2.1.0")
        former.herald.close()
        desk = Desk(ear, watchdog_s=1.0)
        desk.herald.takes_over(was_ready=False)
        desk.see(STARTING)
        desk.herald.serves(desk.reach)
        desk.see(STARTED)
        told = await desk.hears("READY=1")
        assert not any("RELOADING" in one or "WATCHDOG" in one for one in told)
        desk.herald.close()

    asyncio.run(story())


def test_a_reload_says_when_it_began_and_is_over_in_any_case(ear: socket.socket) -> None:
    async def story() -> None:
        desk = Desk(ear)
        desk.herald.serves(desk.reach)
        await desk.hears("READY=1")
        with pytest.raises(KeyError), desk.herald.reloading():
            raise KeyError
        told = await desk.hears("READY=1")
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", told[0])
        desk.herald.close()

    asyncio.run(story())


def test_the_way_out_is_told_and_no_reload_says_ready_any_more(ear: socket.socket) -> None:
    async def story() -> None:
        desk = Desk(ear)
        desk.see(STARTED)
        desk.herald.serves(desk.reach)
        await desk.hears("READY=1")
        with desk.herald.reloading():
            desk.herald.leave()
        desk.herald.close()
        told = await desk.hears("STATUS=stopping: a/b still to end")
        assert "STOPPING=1" in told
        with pytest.raises(BlockingIOError):
            ear.recv(65536)

    asyncio.run(story())


def test_a_knock_tells_a_door_that_answers_from_one_that_does_not(tmp_path: Path) -> None:
    async def story() -> None:
        place = tmp_path / "api"
        assert "No such file" in str(await knock(place, 1))
        answering = await asyncio.start_unix_server(lambda _, writer: writer.close(), place)
        assert await knock(place, BOUND_S) is None
        answering.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.bind(str(tmp_path / "silent"))
            silent.listen()
            assert "has not answered" in str(await knock(tmp_path / "silent", 0.1))

    asyncio.run(story())
