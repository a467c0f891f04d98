"""One log file: where it is turned over, and what happens while the disk takes nothing."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nexusd.keeper import logfile
from nexusd.keeper.logfile import HELD_BYTES, LogFile


class Pipe:
    """A replica's output."""

    def __init__(self) -> None:
        self.reading, self.writing = os.pipe()
        os.set_blocking(self.reading, False)
        os.set_blocking(self.writing, False)

    def write(self, data: bytes, log: LogFile) -> None:
        """Through the pipe into the file, as much as there is."""
        while data:
            data = data[os.write(self.writing, data[:65536]) :]
            self.drain(log)

    def drain(self, log: LogFile) -> None:
        while True:
            try:
                log.take(self.reading)
            except BlockingIOError:
                return


class Disk:
    """os, as logfile sees it, with a disk that can be full."""

    def __init__(self, room: int | None = None) -> None:
        self.room = room

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def splice(self, source: int, target: int, count: int, **more: Any) -> int:
        return self._spend(lambda most: os.splice(source, target, most, **more), count)

    def pwrite(self, fd: int, data: bytes, at: int) -> int:
        return self._spend(lambda most: os.pwrite(fd, data[:most], at), len(data))

    def _spend(self, act: Any, count: int) -> int:
        if self.room is None:
            return int(act(count))
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        spent = int(act(min(count, self.room)))
        self.room -= spent
        return spent


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    os.close(pipe.reading)
    if pipe.writing >= 0:
        os.close(pipe.writing)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Full. Trying again is always due."""
    disk = Disk(0)
    monkeypatch.setattr(logfile, "os", disk)
    monkeypatch.setattr(logfile, "RETRY_S", 0.0)
    return disk


def files(path: Path) -> list[str]:
    """The contents, the oldest first."""
    numbered = sorted(path.parent.glob(f"{path.name}.*"), key=lambda one: -int(one.suffix[1:]))
    return [one.read_text() for one in (*numbered, *([path] if path.exists() else []))]


def test_bytes_go_into_the_file_and_nothing_is_made_before_there_are_any(tmp_path: Path, pipe: Pipe) -> None:
    log = LogFile(str(tmp_path / "a" / "b" / "0.log"), 1000, 3)
    with pytest.raises(BlockingIOError):
        log.take(pipe.reading)
    pipe.write(b"hello\n", log)
    assert (tmp_path / "a" / "b" / "0.log").read_text() == "hello\n"
    assert (log.written, log.held, log.trouble) == (6, 0, None)


def test_the_end_of_the_pipe_is_told_by_nothing_moved(tmp_path: Path, pipe: Pipe) -> None:
    log = LogFile(str(tmp_path / "0.log"), 1000, 3)
    os.write(pipe.writing, b"last")
    os.close(pipe.writing)
    pipe.writing = -1
    assert (log.take(pipe.reading), log.take(pipe.reading)) == (4, 0)


def test_a_file_that_is_there_is_gone_on_with(tmp_path: Path, pipe: Pipe) -> None:
    path = tmp_path / "0.log"
    path.write_text("before\n")
    pipe.write(b"after\n", LogFile(str(path), 1000, 3))
    assert path.read_text() == "before\nafter\n"


@pytest.mark.parametrize("piece", [1, 7, 10, 64, 1000])
def test_a_file_is_turned_over_between_two_lines_however_they_come(
    tmp_path: Path, pipe: Pipe, piece: int
) -> None:
    path = tmp_path / "0.log"
    log = LogFile(str(path), 50, 1000)
    text = "".join(f"line {number}\n" for number in range(200))
    for at in range(0, len(text), piece):
        pipe.write(text[at : at + piece].encode(), log)
    parts = files(path)
    assert "".join(parts) == text
    assert all(part.endswith("\n") and 50 <= len(part) < 60 for part in parts[:-1])


def test_only_so_many_files_remain(tmp_path: Path, pipe: Pipe) -> None:
    path = tmp_path / "0.log"
    log = LogFile(str(path), 10, 3)
    for number in range(9):
        pipe.write(b"%09d\n" % number, log)
    assert files(path) == [f"{number:09}\n" for number in (6, 7, 8)]
    log.bound(10, 2)
    pipe.write(b"%09d\n" % 9, log)
    assert files(path) == [f"{number:09}\n" for number in (8, 9)]


def test_with_one_file_the_old_one_goes(tmp_path: Path, pipe: Pipe) -> None:
    log = LogFile(str(tmp_path / "0.log"), 10, 1)
    pipe.write(b"123456789\nnext\n", log)
    assert files(tmp_path / "0.log") == ["next\n"]


def test_a_line_longer_than_the_bound_is_whole_up_to_twice_the_bound(tmp_path: Path, pipe: Pipe) -> None:
    path = tmp_path / "0.log"
    log = LogFile(str(path), 100, 1000)
    pipe.write(b"x" * 150 + b"\n" + b"y" * 450 + b"\nshort\n", log)
    assert files(path) == ["x" * 150 + "\n", "y" * 200, "y" * 200, "y" * 50 + "\nshort\n"]


def test_a_file_that_somebody_removed_is_made_anew(tmp_path: Path, pipe: Pipe) -> None:
    path = tmp_path / "0.log"
    log = LogFile(str(path), 1000, 3)
    pipe.write(b"one\n", log)
    path.unlink()
    pipe.write(b"two\n", log)
    assert path.read_text() == "two\n"


def test_a_file_that_somebody_emptied_goes_on_from_there(tmp_path: Path, pipe: Pipe) -> None:
    path = tmp_path / "0.log"
    log = LogFile(str(path), 1000, 3)
    pipe.write(b"one\n", log)
    path.write_text("")
    pipe.write(b"two\n", log)
    assert path.read_text() == "two\n"


def test_a_file_system_that_cannot_splice_gets_the_bytes_all_the_same(
    tmp_path: Path, pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Plain(Disk):
        def splice(self, *_: Any, **__: Any) -> int:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(logfile, "os", Plain())
    path = tmp_path / "0.log"
    log = LogFile(str(path), 50, 1000)
    text = "".join(f"line {number}\n" for number in range(50))
    pipe.write(text.encode(), log)
    assert "".join(files(path)) == text and len(files(path)) > 5
    assert log.trouble is None


# A disk that takes nothing


def test_a_full_disk_blocks_nobody_and_bytes_are_held(tmp_path: Path, pipe: Pipe, disk: Disk) -> None:
    path = tmp_path / "0.log"
    log = LogFile(str(path), 1 << 30, 3)
    pipe.write(b"a line\n" * 100_000, log)
    assert log.trouble == f"{path}: No space left on device"
    assert (log.held, log.lost) == (700_000, 0)
    disk.room = None
    log.retry()
    assert path.read_bytes() == b"a line\n" * 100_000
    assert (log.held, log.trouble) == (0, None)


def test_what_is_lost_beyond_that_is_confessed_where_it_is_missing(
    tmp_path: Path, pipe: Pipe, disk: Disk
) -> None:
    path = tmp_path / "0.log"
    log = LogFile(str(path), 1 << 30, 3)
    before = b"".join(b"%09d\n" % number for number in range(HELD_BYTES // 10))
    pipe.write(before + b"0123456789" * 1_000, log)
    assert log.held == HELD_BYTES and log.lost == len(before) + 10_000 - HELD_BYTES
    disk.room = 100_000  # not enough: what comes now is still behind the gap
    pipe.write(b"lost, too\n", log)
    disk.room = None
    pipe.write(b"after\n", log)
    text = path.read_bytes()
    confession = re.search(rb"\n\[nexus-keeper: (\d+) bytes lost here: .*No space left on device\]\n", text)
    assert confession is not None
    kept = text[: confession.start()]
    assert kept == (before + b"0123456789" * 1_000)[: len(kept)]
    assert int(confession[1]) == len(before) + 10_000 + 16 - len(kept)
    assert text[confession.end() :] == b""
    pipe.write(b"again\n", log)
    assert path.read_bytes().endswith(b"]\nagain\n")


def test_the_count_of_lost_bytes_survives_further_failing_tries(
    tmp_path: Path, pipe: Pipe, disk: Disk
) -> None:
    log = LogFile(str(tmp_path / "0.log"), 1 << 30, 3)
    pipe.write(b"x" * (HELD_BYTES + 5000), log)
    for _ in range(10):
        log.retry()
    disk.room = HELD_BYTES
    log.retry()
    disk.room = 10  # in the middle of the confession
    log.retry()
    disk.room = None
    log.retry()
    assert b"[nexus-keeper: 5000 bytes lost here: " in (tmp_path / "0.log").read_bytes()[-200:]


def test_held_bytes_are_turned_over_between_two_lines_too(tmp_path: Path, pipe: Pipe, disk: Disk) -> None:
    path = tmp_path / "0.log"
    log = LogFile(str(path), 50, 1000)
    text = "".join(f"line {number}\n" for number in range(200))
    pipe.write(text.encode(), log)
    while log.held:
        disk.room = 7
        log.retry()
    assert "".join(files(path)) == text
    assert all(part.endswith("\n") for part in files(path))


def test_a_folder_that_cannot_be_made_is_trouble_and_no_exception(tmp_path: Path, pipe: Pipe) -> None:
    (tmp_path / "logs").write_text("a file")
    log = LogFile(str(tmp_path / "logs" / "0.log"), 1000, 3)
    pipe.write(b"hello\n", log)
    assert log.trouble is not None and log.held == 6
    log.close()
    assert log.held == 6  # whoever closes it can tell


def test_closing_writes_what_is_held(tmp_path: Path, pipe: Pipe, disk: Disk) -> None:
    log = LogFile(str(tmp_path / "0.log"), 1000, 3)
    pipe.write(b"hello\n", log)
    disk.room = None
    log.close()
    assert (tmp_path / "0.log").read_text() == "hello\n"
