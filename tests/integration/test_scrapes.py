"""Pages as they are made: facts on the event loop, text in a thread, one scrape for a storm of them."""

import asyncio
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nexusd.domain import events
from nexusd.system.figures import Figures, Sources
from nexusd.system.module_questions import Answer
from nexusd.system.scrapes import Scrapes
from tests.fakes import Rehearsal, module

ONE = "vitals/one"


class FakeKeeper:
    """Implements `figures.Keeper`. `asked` counts the scrapes."""

    connected = True

    def __init__(self) -> None:
        self.asked = 0

    def processes(self) -> dict[str, tuple[int, int, str | None]]:
        return {}

    def journal(self, _run: str) -> None: ...

    async def log_bytes(self, patience_s: float) -> Mapping[str, int]:
        self.asked += 1
        return {}


class House:
    def __init__(self, folder: Path) -> None:
        self.fleet = Rehearsal(module(ONE))
        self.fleet.want(ONE)
        self.fleet.news(ONE, events.Ready)
        self.keeper = FakeKeeper()
        control = folder / "control"
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(control))
        self.listener.listen()
        self.scrapes = Scrapes(
            Sources(
                version="2.0.0",
                started_at=0.0,
                fleet=lambda: self.fleet.fleet,
                figures=Figures(),
                keeper=self.keeper,
                log_path=str,
                control_path=lambda _: str(control),
                connections=lambda: 0,
                audit_lines=lambda: 12,
                most_unhealthy=lambda: 0.2,
            )
        )

    def close(self) -> None:
        self.scrapes.close()
        self.listener.close()


@pytest.fixture
def house(tmp_path: Path) -> Any:
    house = House(tmp_path)
    yield house
    house.close()


def test_a_storm_of_scrapes_costs_one(house: House) -> None:
    async def storm() -> list[tuple[str, bytes]]:
        return await asyncio.gather(*(house.scrapes.page(patience_s=0.05) for _ in range(50)))

    pages = asyncio.run(storm())
    assert house.keeper.asked == 1
    assert len(set(pages)) == 1
    assert b"nexus_audit_lines_total 12.0" in pages[0][1]


def test_who_hangs_up_does_not_end_the_scrape_of_others(house: House) -> None:
    async def story() -> bytes:
        first = asyncio.create_task(house.scrapes.page(patience_s=0.2))
        second = asyncio.create_task(house.scrapes.page(patience_s=0.2))
        await asyncio.sleep(0)
        first.cancel()
        return (await second)[1]

    assert b"nexus_ready 1.0" in asyncio.run(story())
    assert house.keeper.asked == 1


def test_a_module_that_hangs_leaves_the_event_loop_free(house: House) -> None:
    async def story() -> int:
        page = asyncio.create_task(house.scrapes.page(patience_s=0.3))
        turns = 0
        while not page.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(story()) > 10


def test_what_a_replica_failed_to_say_before_and_what_it_says_now_are_both_heard(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (ONE, 0, 1)
    both = [Answer(key, "a 1\n"), Answer(key, failure="silent"), Answer(key)]
    monkeypatch.setattr(house.scrapes._questions, "answers", lambda deadline: both)
    _, text = asyncio.run(house.scrapes.page())
    assert b'a{module="vitals/one",replica="0"} 1.0\n' in text
    _, text = asyncio.run(house.scrapes.page())
    assert b'nexus_module_scrape_errors_total{module="vitals/one",reason="silent"} 1.0' in text


def test_the_page_is_made_in_a_thread(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    write = house.scrapes._modules.write

    def watched(*facts: Any) -> list[str]:
        threads.append(threading.current_thread())
        return write(*facts)

    monkeypatch.setattr(house.scrapes._modules, "write", watched)
    asyncio.run(house.scrapes.page(patience_s=0.01))
    assert threads != [threading.current_thread()]
