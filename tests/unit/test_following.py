"""What clients may read of logs: files that are followed, lines of one answer, and what a refusal says."""

import asyncio
import os
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from nexusd.domain.access import Caller
from nexusd.domain.errors import Busy, InvalidParams
from nexusd.rpc import following
from nexusd.rpc.call import Call
from nexusd.rpc.following import Following, Push
from nexusd.system.logs import Feed, LogFolder


def call() -> Call:
    return Call(Caller(uid=1, gid=1, user="viewer"), lambda _: None)


def names(number: int) -> list[str]:
    return [f"a/many#{index}" for index in range(number)]


def silent(_replica: str, _lines: list[str]) -> None: ...


class Shelf:
    """Implements `ports.LogReader`: 100 lines in each log, and who reads them."""

    def __init__(self, folder: Path) -> None:
        self._folder = LogFolder(str(folder))
        self.threads: set[threading.Thread] = set()
        self.rooms: set[int] = set()

    def path(self, replica_name: str) -> str:
        return self._folder.path(replica_name)

    def tail(self, replica_name: str, lines: int, room: int = 0, /) -> list[str]:
        self.threads.add(threading.current_thread())
        self.rooms.add(room)
        return [f"line {number}" for number in range(lines)]

    def follow(self, replica_names: Iterable[str], push: Push) -> Feed:
        return self._folder.follow(replica_names, push)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    for index in range(10):
        path = tmp_path / "a" / "many" / f"{index}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return Shelf(tmp_path)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_hundred_lines_of_200_replicas_are_one_answer_read_in_a_thread(shelf: Shelf) -> None:
    found = asyncio.run(Following(shelf).last_lines(names(200), 100))
    assert len(found) == 20_000
    assert threading.main_thread() not in shelf.threads
    assert shelf.rooms == {following.ANSWER_BYTES // 200}


def test_more_lines_than_one_answer_holds_are_refused_with_what_to_ask_instead(shelf: Shelf) -> None:
    with pytest.raises(InvalidParams) as refused:
        asyncio.run(Following(shelf).last_lines(names(40), 10_000))
    assert refused.value.hint == "ask for one `replica`, or for at most 1250 `lines`"
    assert shelf.threads == set()


def test_a_connection_follows_a_number_of_files_and_gives_them_back(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "MOST_OF_ONE", 25)

    async def story() -> None:
        desk, one, other = Following(shelf), call(), call()
        before = descriptors()
        for _ in range(2):
            desk.start(one, desk.open(one, names(10), silent))
        with pytest.raises(Busy, match="a connection follows at most 25 log files, and that would be 30"):
            desk.open(one, names(10), silent)
        desk.start(other, desk.open(other, names(10), silent))
        assert descriptors() == before + 30
        one.closed()  # before the task of any has had its first step
        while descriptors() > before + 10:
            await asyncio.sleep(0)
        desk.open(one, names(10), silent).close()
        other.closed()
        while descriptors() > before:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(story(), 20))


def test_all_connections_together_follow_a_number_of_files(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "MOST_OF_ALL", 25)

    async def story() -> None:
        desk, calls = Following(shelf), [call() for _ in range(3)]
        feeds = [desk.open(each, names(10), silent) for each in calls[:2]]
        with pytest.raises(Busy, match="all connections together follow at most 25 log files"):
            desk.open(calls[2], names(10), silent)
        desk.end(calls[0], feeds[0])
        feeds[0] = desk.open(calls[2], names(10), silent)
        for feed in feeds:
            feed.close()

    asyncio.run(story())
