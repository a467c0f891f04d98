"""Reads the replicas' log files that the keeper writes: where they are, their last lines, what is new.

Implements `ports.Logs`. It follows a file over its rotation; it never writes one.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from nexusd.domain.errors import Busy

CHUNK = 1 << 16
FOLLOW_S = 0.1
LONGEST_READ = 1 << 20
MOST_FILES = 100  # of a replica, the older ones are not looked at

Push = Callable[[str, list[str]], None]


class LogFolder:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def path(self, replica_name: str) -> str:
        """`vitals/heartbeat-client#0` logs to FOLDER/vitals/heartbeat-client/0.log."""
        module_id, _, index = replica_name.rpartition("#")
        return os.path.join(self._folder, module_id, f"{index}.log")

    def tail(self, replica_name: str, lines: int, room: int = LONGEST_READ, /) -> list[str]:
        """The last lines, over the rotated files if need be, at most `room` bytes; [] without a file."""
        path = self.path(replica_name)
        room = min(room, LONGEST_READ)
        found: list[str] = []
        for number, file in enumerate(_files(path)):
            end = _end_of(file, lines - len(found), room)
            if end is None:
                if number > 0:
                    break
                continue
            if end.is_half_a_line and found:
                break
            found = _lines(end.data, lines - len(found)) + found
            room -= len(end.data)
            if len(found) >= lines or not end.is_all:
                break
        return found

    def follow(self, replica_names: Iterable[str], push: Push) -> "Feed":
        feed = Feed(push)
        try:
            for name in replica_names:
                feed.add(name, self.path(name))
        except BaseException:
            feed.close()
            raise
        return feed


class Feed:
    """Log files that are followed for one client."""

    def __init__(self, push: Push) -> None:
        self._push = push
        self._followers: dict[str, Follower] = {}

    @property
    def files(self) -> int:
        return len(self._followers)

    def add(self, name: str, path: str) -> None:
        self._followers[name] = Follower(path)

    async def run(self) -> None:
        """By asking again and again: it costs a stat a replica, and only while somebody looks on."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            for name, follower in self._followers.items():
                if lines := _new_lines(follower):
                    self._push(name, lines)
                await asyncio.sleep(0)  # hundreds of files at once would keep everybody else waiting

    def close(self) -> None:
        for follower in self._followers.values():
            follower.close()


class Follower:
    """New whole lines of one log file, from its present end on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""
        newest = next((one for one in _files(path) if _identity(one)), path)
        self._file = _opened(newest)
        if self._file is not None:
            os.lseek(self._file, 0, os.SEEK_END)

    def read(self) -> list[str]:
        """What has come since the last call, over as many rotations as there were.

        Of more than LONGEST_READ bytes the first part: a module that writes a gigabyte must not have us hold it.
        """
        lines: list[str] = []
        room = LONGEST_READ
        while True:
            following = self._open_following()
            # After that question: if there is a next file, this one gets no more.
            while room > 0 and self._file is not None and (data := os.read(self._file, room)):
                room -= len(data)
                lines += self._whole_lines(data)
            if following is None:
                return lines
            if room <= 0:
                os.close(following)
                return lines
            self.close()
            self._file = following

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open_following(self) -> int | None:
        """The next file, also when it is turned over while it is being opened."""
        while (path := self._following()) is not None:
            file = _opened(path)
            if file is None:
                continue
            present = self._following()
            if present is not None and _identity(present) == _identity(file):
                return file
            os.close(file)
        return None

    def _following(self) -> str | None:
        """The file that was begun after the open one; None while the open one is the last."""
        mine = _identity(self._file) if self._file is not None else None
        newer: str | None = None
        for path in _files(self._path):
            if (there := _identity(path)) is None:
                continue
            if there == mine:
                return newer
            newer = path
        return newer  # the oldest: there was none before, or ours is deleted already

    def _whole_lines(self, data: bytes) -> list[str]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST_READ:
            lines.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace") for line in lines]


class _End(NamedTuple):
    data: bytes
    is_all: bool  # of its file
    is_half_a_line: bool  # of one that is longer than all that is read


def _opened(path: str) -> int | None:
    """None when there is no such file. Raises Busy when no descriptor is free."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise Busy("no log can be read: too many files are open") from error
        raise


def _new_lines(follower: Follower) -> list[str]:
    """Without a free descriptor for the next file none: the next look finds what there is."""
    try:
        return follower.read()
    except Busy:
        return []


def _end_of(path: str, lines: int, room: int) -> _End | None:
    """None when there is no such file."""
    file = _opened(path)
    if file is None:
        return None
    try:
        return _read_back(file, lines, room)
    finally:
        os.close(file)


def _lines(data: bytes, lines: int) -> list[str]:
    found = data.removesuffix(b"\n").split(b"\n") if data else []
    return [line.decode(errors="replace") for line in found[-lines:]] if lines > 0 else []


def _read_back(file: int, lines: int, room: int) -> _End:
    """The end of the file, back to where enough lines begin."""
    end = os.lseek(file, 0, os.SEEK_END)
    data = b""
    while end > 0 and data.count(b"\n") <= lines and len(data) < room:
        start = max(0, end - min(CHUNK, room - len(data)))
        data = os.pread(file, end - start, start) + data
        end = start
    cut = data.find(b"\n", 0, -1) + 1 if end > 0 else 0
    return _End(data[cut:], end == 0, end > 0 and cut == 0)


def _files(path: str) -> Iterator[str]:
    """Where the files of a replica may be, newest first. After a turn the first is there with the next byte."""
    yield path
    for number in range(1, MOST_FILES):
        yield f"{path}.{number}"


def _identity(file: str | int) -> tuple[int, int] | None:
    """Device and inode; None when there is no such file."""
    try:
        found = os.stat(file)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
