"""Pages as they are made: in pieces on the event loop, one scrape for a storm of them."""

import asyncio
import socket
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

    async def answers(*_: Any, **__: Any) -> list[Answer]:
        return both

    monkeypatch.setattr(house.scrapes._questions, "answers", answers)
    _, text = asyncio.run(house.scrapes.page())
    assert b'a{module="vitals/one",replica="0"} 1.0\n' in text
    _, text = asyncio.run(house.scrapes.page())
    assert b'nexus_module_scrape_errors_total{module="vitals/one",reason="silent"} 1.0' in text


def test_pages_of_several_kinds_at_once_are_made_one_after_the_other(house: House) -> None:
    async def story() -> list[tuple[str, bytes]]:
        page = house.scrapes.page
        accepts = ("", "application/openmetrics-text")
        return await asyncio.gather(
            *(page(accept, patience_s=0.05) for accept in accepts), page("", ONE, patience_s=0.05)
        )

    plain, opened, one = [text for _, text in asyncio.run(story())]
    assert opened.endswith(b"# EOF\n") and not plain.endswith(b"# EOF\n")
    for text in (plain, opened, one):
        assert text.count(b'nexus_module_state{module="vitals/one",state="started"} 1.0') == 1
    assert b"nexus_ready" in plain and b"nexus_ready" not in one


def test_a_long_text_of_a_module_is_parsed_while_the_event_loop_goes_on(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(f'a{{n="{number}"}} 1\n' for number in range(9000))

    async def answers(*_: Any, **__: Any) -> list[Answer]:
        return [Answer((ONE, 0, 1), text)]

    monkeypatch.setattr(house.scrapes._questions, "answers", answers)

    async def story() -> tuple[int, bytes]:
        page = asyncio.create_task(house.scrapes.page())
        turns = 0
        while not page.done():
            await asyncio.sleep(0.001)
            turns += 1
        return turns, page.result()[1]

    turns, text_of_page = asyncio.run(story())
    assert text_of_page.count(b"\na{") == 9000
    assert turns > 10
