"""Events: what of the fleet's changes becomes one, who hears it, and what is stored."""

import asyncio
import json
import logging
from collections.abc import Iterable
from typing import Any

import pytest

from nexusd.domain.errors import NotPossible
from nexusd.system import events
from nexusd.system.events import EventLog
from tests.fakes import Rehearsal, module


class Stored:
    """A store that can refuse, or take its time."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str]] = []
        self.batches = 0
        self.refuses = False

    async def save(self, rows: Iterable[tuple[int, str]]) -> None:
        await asyncio.sleep(0)
        if self.refuses:
            raise NotPossible("not stored: the disk is full")
        self.batches += 1
        self.rows += rows


def log_in(stored: Stored, former: list[dict[str, Any]] | None = None) -> EventLog:
    return EventLog(stored.save, former or [])


def test_events_are_numbered_on_from_what_was_stored_and_come_back_the_same() -> None:
    stored = Stored()

    async def story() -> list[dict[str, Any]]:
        log = log_in(stored, [{"seq": 41, "kind": "old", "module_id": None}])
        log.add("daemon.reloaded")
        log.add("module.configured", "test/one", reason="é")
        await log.flush()
        return log.since(0)

    kept = asyncio.run(story())
    assert [event["seq"] for event in kept] == [41, 42, 43]
    assert [json.loads(text) for _, text in stored.rows] == kept[1:]
    assert kept[2].keys() >= {"seq", "time", "kind", "module_id", "replica", "from", "to", "reason"}


def test_a_thousand_at_once_are_stored_in_order_in_few_transactions() -> None:
    stored = Stored()

    async def story() -> None:
        log = log_in(stored)
        for number in range(1000):
            log.add("test", f"m/{number}")
        await log.flush()

    asyncio.run(story())
    assert [seq for seq, _ in stored.rows] == list(range(1, 1001)) and stored.batches <= 2


def test_what_is_asked_for_is_the_last_of_all_or_of_one_module() -> None:
    async def story() -> None:
        log = log_in(Stored())
        for number in range(10):
            log.add("test", f"m/{number % 2}")
        assert [event["seq"] for event in log.last(3)] == [8, 9, 10]
        assert [event["seq"] for event in log.last(2, "m/0")] == [7, 9]
        assert log.last(0) == []
        assert [event["seq"] for event in log.since(7, "m/1")] == [8, 10]
        await log.flush()

    asyncio.run(story())


def test_a_bounded_number_is_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KEPT", 100)

    async def story() -> None:
        log = log_in(Stored())
        for _ in range(250):
            log.add("test")
        assert [event["seq"] for event in log.since(0)] == list(range(151, 251))
        await log.flush()

    asyncio.run(story())


def test_a_store_that_refuses_is_told_of_and_the_next_events_are_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored = Stored()

    async def story() -> None:
        log = log_in(stored)
        stored.refuses = True
        log.add("lost")
        await log.flush()
        stored.refuses = False
        log.add("stored")
        await log.flush()
        assert len(log.since(0)) == 2

    with caplog.at_level(logging.ERROR, "nexusd.events"):
        asyncio.run(story())
    assert "events are kept in memory only: not stored: the disk is full" in caplog.text
    assert [json.loads(text)["kind"] for _, text in stored.rows] == ["stored"]


def test_subscribers_hear_until_they_leave_and_a_failing_one_stops_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[int] = []

    def fails(_: Any) -> None:
        raise RuntimeError("gone")

    async def story() -> None:
        log = log_in(Stored())
        log.subscribe(fails)
        leave = log.subscribe(lambda event: heard.append(event["seq"]))
        log.add("one")
        log.add("two")
        leave()
        log.add("three")
        await log.flush()

    asyncio.run(story())
    assert heard == [1, 2]
    assert caplog.text.count("a subscriber of events failed") == 1


def test_a_life_reads_like_a_log() -> None:
    async def story() -> list[str]:
        log = log_in(Stored())
        rehearsal = Rehearsal(module("test/one"))

        def observed(act: Any) -> None:
            before = rehearsal.fleet
            act()
            log.observe(before, rehearsal.fleet, frozenset(["test/one"]))

        observed(lambda: rehearsal.want("test/one"))
        observed(lambda: rehearsal.ready("test/one"))
        observed(lambda: rehearsal.exits("test/one"))
        observed(lambda: rehearsal.unwant("test/one"))
        await log.flush()
        return [
            f"{event['from']} → {event['to']}" + (f": {event['reason']}" if event["reason"] else "")
            for event in log.since(0)
            if event["kind"] == "module.state"
        ]

    told = asyncio.run(story())
    assert told[0].startswith("loaded → starting") and told[1] == "starting → started"
    assert any("exit status 1" in line for line in told)
    assert told[-1] == "starting → stopping"


def test_modules_that_changed_together_come_in_the_order_of_their_names() -> None:
    async def story() -> list[str]:
        log = log_in(Stored())
        names = [f"test/{name}" for name in "edcba"]
        before = Rehearsal()
        after = Rehearsal(*(module(name) for name in names))
        log.observe(before.fleet, after.fleet, frozenset(names))
        await log.flush()
        return [event["module_id"] for event in log.since(0) if event["kind"] == "module.loaded"]

    assert asyncio.run(story()) == [f"test/{name}" for name in "abcde"]
