"""Who tries the installed nexusd: through the keeper, one at a time, and never while something stands in the way."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nexusd.domain import replacing
from nexusd.domain.errors import Busy, NotPossible
from nexusd.domain.replacing import Command, Here, Report
from nexusd.reexec import Replacement

COMMAND = Command("/opt/nexusd", ("/opt/nexusd", "--config", "x"))


class Keeper:
    """Runs no program: it answers what it is told to, and keeps what it was asked."""

    def __init__(self, *answers: dict[str, Any] | None) -> None:
        self.answers = list(answers)
        self.launches: list[dict[str, Any]] = []
        self.read: list[dict[str, str]] = []
        self.notes = {"a/b": "{}"}
        self.asked = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    async def probe(self, launch: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        self.launches.append(launch)
        self.read.append(json.loads(Path(launch["argv"][-1]).read_text()))
        self.asked.set()
        await self.go_on.wait()
        return self.answers.pop(0)


def good(here: Path) -> dict[str, Any]:
    report = Report("2.1.0", 5, replacing.FORMAT, str(here), "/state", "/socket")
    return {"status": 0, "tail": msgspec.json.encode(report).decode(), "line": "…", "refusal": None}


def replacement(
    keeper: Keeper, here: Path, under_way: Iterable[str] = (), command: Command | None = COMMAND
) -> Replacement:
    variables = {"NOTIFY_SOCKET": "/n", "STATE_DIRECTORY": "/state", "LISTEN_FDS": "1"}
    place = Here(str(here), "/state", "/socket")
    return Replacement(command, variables, place, keeper, lambda: list(under_way))


def test_it_is_tried_as_it_would_be_started_and_reads_what_is_remembered(tmp_path: Path) -> None:
    async def story() -> None:
        keeper = Keeper(good(tmp_path))
        report = await replacement(keeper, tmp_path).try_out(False, None)
        assert report.version == "2.1.0"
        (launch,) = keeper.launches
        notes = f"{tmp_path}/successor.json"
        assert launch["argv"] == ["/opt/nexusd", "--config", "x", "check", "--successor", notes]
        assert launch["directory"] == os.getcwd()
        assert launch["environment"]["STATE_DIRECTORY"] == "/state"
        assert not {"NOTIFY_SOCKET", "LISTEN_FDS"} & launch["environment"].keys()
        assert keeper.read == [{"a/b": "{}"}]
        assert list(tmp_path.iterdir()) == []

    asyncio.run(story())


def test_after_a_refusal_it_can_be_tried_again_after_a_success_it_is_decided(tmp_path: Path) -> None:
    async def story() -> None:
        bad = {"status": 256, "line": "SyntaxError", "refusal": None}  # of a keeper that tells one line
        one = replacement(Keeper(bad, good(tmp_path)), tmp_path)
        with pytest.raises(NotPossible, match="status 1") as refusal:
            await one.try_out(False, None)
        assert refusal.value.details["log"] == ["SyntaxError"]
        await one.try_out(False, None)
        with pytest.raises(Busy, match="already"):
            await one.try_out(True, None)

    asyncio.run(story())


def test_a_second_one_is_refused_while_the_first_is_tried(tmp_path: Path) -> None:
    async def story() -> None:
        keeper = Keeper(good(tmp_path))
        keeper.go_on.clear()
        one = replacement(keeper, tmp_path)
        first = asyncio.create_task(one.try_out(False, None))
        await keeper.asked.wait()
        with pytest.raises(Busy):
            await one.try_out(False, None)
        keeper.go_on.set()
        assert (await first).version == "2.1.0"

    asyncio.run(story())


def test_what_begins_during_the_trial_stands_in_the_way_as_well_unless_by_force(tmp_path: Path) -> None:
    async def story() -> None:
        under_way: list[str] = []
        keeper = Keeper(good(tmp_path), good(tmp_path))
        keeper.go_on.clear()
        one = Replacement(COMMAND, {}, Here(str(tmp_path), "/state", "/socket"), keeper, lambda: under_way)
        trying = asyncio.create_task(one.try_out(False, None))
        await keeper.asked.wait()
        under_way.append("a reload of a/b")
        keeper.go_on.set()
        with pytest.raises(Busy, match="a reload of a/b"):
            await trying
        assert (await one.try_out(True, None)).version == "2.1.0"

    asyncio.run(story())


def test_without_a_keeper_nothing_can_be_tried(tmp_path: Path) -> None:
    with pytest.raises(NotPossible, match="while there is no keeper"):
        asyncio.run(replacement(Keeper(None), tmp_path).try_out(False, None))


def test_what_cannot_be_handed_to_the_keeper_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotPossible, match="cannot be tried"):
        asyncio.run(replacement(Keeper(), tmp_path / "gone").try_out(False, None))


def test_a_daemon_within_another_program_is_not_replaced(tmp_path: Path) -> None:
    keeper = Keeper()
    with pytest.raises(NotPossible, match="part of another program"):
        asyncio.run(replacement(keeper, tmp_path, command=None).try_out(True, None))
    assert keeper.launches == []
