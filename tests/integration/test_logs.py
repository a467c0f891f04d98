"""The log files as readers see them: the last lines, and what is new, over any number of rotations."""

import asyncio
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from nexusd.domain.errors import Busy
from nexusd.keeper.logfile import LogFile
from nexusd.system import logs
from nexusd.system.logs import LONGEST_READ, Follower, LogFolder

NAME = "test/module#0"


class Writer:
    """The keeper's part."""

    def __init__(self, folder: LogFolder, max_bytes: int = 1000, files: int = 5) -> None:
        self.log = LogFile(folder.path(NAME), max_bytes, files)
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)

    def write(self, text: str) -> None:
        data = text.encode()
        while data:
            data = data[os.write(self.writing, data[:65536]) :]
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.log.take(self.reading)

    def close(self) -> None:
        self.log.close()
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def folder(tmp_path: Path) -> LogFolder:
    return LogFolder(str(tmp_path))


@pytest.fixture
def writer(folder: LogFolder) -> Iterator[Writer]:
    writer = Writer(folder)
    yield writer
    writer.close()


def lines(first: int, last: int) -> list[str]:
    return [f"line {number}" for number in range(first, last + 1)]


def text(first: int, last: int) -> str:
    return "".join(f"{line}\n" for line in lines(first, last))


# The last lines


def test_a_replica_without_a_log_has_no_lines(folder: LogFolder) -> None:
    assert folder.tail(NAME, 10) == []


def test_the_last_lines_go_back_over_rotations(folder: LogFolder, writer: Writer) -> None:
    writer.write(text(1, 300))
    assert folder.tail(NAME, 0) == []
    assert folder.tail(NAME, 5) == lines(296, 300)
    assert folder.tail(NAME, 250) == lines(51, 300)
    assert folder.tail(NAME, 1000) == lines(1, 300)


def test_just_after_a_turn_the_lines_of_the_former_file_are_the_last(
    folder: LogFolder, writer: Writer
) -> None:
    writer.write(text(1, 100))
    os.rename(folder.path(NAME), folder.path(NAME) + ".1")
    assert folder.tail(NAME, 3) == lines(98, 100)


def test_a_line_that_is_not_ended_is_shown_and_a_carriage_return_ends_none(
    folder: LogFolder, writer: Writer
) -> None:
    writer.write("10 %\r20 %\r30 %\nnot ended")
    assert folder.tail(NAME, 10) == ["10 %\r20 %\r30 %", "not ended"]


def test_empty_lines_are_lines_and_bytes_that_are_no_utf8_are_shown(
    folder: LogFolder, writer: Writer
) -> None:
    writer.write("one\n\n\n")
    os.write(writer.writing, b"\xff\n")
    writer.write("end\n")
    assert folder.tail(NAME, 10) == ["one", "", "", "\ufffd", "end"]


def test_of_a_line_longer_than_all_that_is_read_the_end_is_shown(folder: LogFolder) -> None:
    writer = Writer(folder, max_bytes=10 << 20)
    writer.write("x" * 2 * LONGEST_READ)
    (line,) = folder.tail(NAME, 10)
    assert 0 < len(line) <= LONGEST_READ + logs.CHUNK
    writer.close()


# Following


def test_a_follower_begins_at_the_end_and_loses_and_repeats_nothing(
    folder: LogFolder, writer: Writer
) -> None:
    writer.write(text(1, 500))
    follower = Follower(folder.path(NAME))
    assert follower.read() == []
    seen = []
    for number in range(501, 5000):
        writer.write(text(number, number))
        if number % 17 == 0:
            seen += follower.read()
    seen += follower.read()
    assert seen == lines(501, 4999)
    follower.close()


def test_several_rotations_between_two_looks_lose_nothing(folder: LogFolder, writer: Writer) -> None:
    writer.write(text(1, 50))
    follower = Follower(folder.path(NAME))
    writer.write(text(51, 300))
    assert follower.read() == lines(51, 300)
    follower.close()


def test_what_is_deleted_before_it_was_looked_at_is_lost_and_the_rest_is_not(
    folder: LogFolder, writer: Writer
) -> None:
    writer.write(text(1, 50))
    follower = Follower(folder.path(NAME))
    writer.write(text(51, 3000))
    seen = follower.read()
    end = seen.index("line 3000")
    assert seen[end - 300 : end + 1] == lines(2700, 3000) and end == len(seen) - 1
    assert len(set(seen)) == len(seen)
    follower.close()


def test_a_rotation_while_the_next_file_is_being_opened_loses_nothing(
    folder: LogFolder, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(text(1, 50))
    follower = Follower(folder.path(NAME))
    writer.write(text(51, 200))
    opened = logs._opened
    turns = iter([text(201, 400), text(401, 600)])

    def slowly(path: str) -> int | None:
        writer.write(next(turns, ""))
        return opened(path)

    monkeypatch.setattr(logs, "_opened", slowly)
    assert follower.read() == lines(51, 600)
    follower.close()


def test_a_line_that_was_cut_over_two_files_is_one_line(folder: LogFolder, writer: Writer) -> None:
    writer.write("begin\n")
    follower = Follower(folder.path(NAME))
    writer.write("x" * 5000 + "\nend\n")
    assert follower.read() == ["x" * 5000, "end"]
    follower.close()


def test_lines_come_whole(folder: LogFolder, writer: Writer) -> None:
    follower = Follower(folder.path(NAME))  # there is no file yet
    writer.write("half")
    assert follower.read() == []
    writer.write(" and half\n")
    assert follower.read() == ["half and half"]
    follower.close()


def _parts(follower: Follower) -> Iterator[list[str]]:
    """Until there is nothing more; a part of a line that goes on is none."""
    idle = 0
    while idle < 3:
        part = follower.read()
        idle = 0 if part else idle + 1
        if part:
            yield part


def test_much_at_once_is_read_to_its_end_in_parts(folder: LogFolder) -> None:
    writer = Writer(folder, max_bytes=2 << 20)
    follower = Follower(folder.path(NAME))
    writer.write(text(1, 300_000))
    assert [line for part in _parts(follower) for line in part] == lines(1, 300_000)
    writer.write("x" * 3 * LONGEST_READ + "\n")
    parts = list(_parts(follower))
    assert "".join(line for part in parts for line in part) == "x" * 3 * LONGEST_READ
    assert max(len(line) for part in parts for line in part) <= 2 * LONGEST_READ
    follower.close()
    writer.close()


def test_following_pushes_by_replica_until_it_is_cancelled(folder: LogFolder, writer: Writer) -> None:
    before = len(os.listdir("/proc/self/fd"))

    async def story() -> None:
        heard: asyncio.Queue[tuple[str, list[str]]] = asyncio.Queue()
        writer.write("before\n")
        feed = folder.follow([NAME, "test/other#0"], lambda *what: heard.put_nowait(what))
        writer.write("after\n")  # from the call on, whenever it is first awaited
        task = asyncio.create_task(feed.run())
        assert await asyncio.wait_for(heard.get(), 20) == (NAME, ["after"])
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        feed.close()

    asyncio.run(story())
    assert len(os.listdir("/proc/self/fd")) == before + 1  # the writer's


def test_a_tail_has_a_bound_over_all_files_and_shows_the_end_of_a_line_that_is_longer(
    folder: LogFolder, writer: Writer
) -> None:
    writer.write(text(1, 300))
    found = folder.tail(NAME, 300, 500)
    assert 30 < len(found) < 60
    assert found == lines(301 - len(found), 300)
    writer.write("x" * 600 + "\n")
    assert folder.tail(NAME, 300, 500) == ["x" * 499]


def test_without_a_free_descriptor_nothing_is_left_open_and_the_caller_is_told(
    folder: LogFolder, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(text(1, 3))
    opened: list[str] = []
    real = os.open

    def scarce(path: str, flags: int) -> int:
        if len(opened) == 3:
            raise OSError(errno.EMFILE, "Too many open files", path)
        opened.append(path)
        return real(path, flags)

    for index in range(1, 4):
        Path(folder.path(f"test/module#{index}")).touch()
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(logs.os, "open", scarce)
    with pytest.raises(Busy, match="too many files are open"):
        folder.follow([f"test/module#{index}" for index in range(4)], lambda _name, _lines: None)
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before
