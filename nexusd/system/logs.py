"""Reads the replicas' log files that the keeper writes: where they are, their last lines, what is new.

Implements `ports.Logs`. It follows a file over its rotation; it never writes one.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

CHUNK = 1 << 16
FOLLOW_S = 0.1
LONGEST_READ = 1 << 20

Push = Callable[[str, list[str]], None]


class LogFolder:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def path(self, replica_name: str) -> str:
        """`vitals/heartbeat-client#0` logs to FOLDER/vitals/heartbeat-client/0.log."""
        module_id, _, index = replica_name.rpartition("#")
        return os.path.join(self._folder, module_id, f"{index}.log")

    def tail(self, replica_name: str, lines: int) -> list[str]:
        """The last lines, over the rotated files if need be, at most LONGEST_READ bytes; [] without a file."""
        path = self.path(replica_name)
        found: list[str] = []
        for number in range(100):
            part = _last_lines(path if number == 0 else f"{path}.{number}", lines - len(found))
            if part is None:
                break
            found = part + found
            if len(found) >= lines:
                break
        return found[-lines:] if lines else []

    def follow(self, replica_names: Iterable[str], push: Push) -> Coroutine[Any, Any, None]:
        """Pushes what comes from now on, by replica, until cancelled."""
        return _push_new_lines({name: Follower(self.path(name)) for name in replica_names}, push)


class Follower:
    """New whole lines of one log file, from its present end on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""
        self._open()
        if self._file is not None:
            os.lseek(self._file, 0, os.SEEK_END)

    def read(self) -> list[str]:
        """What has come since the last call; after a rotation first the old file's end, then the new file."""
        lines = self._read_open()
        if self._was_rotated():
            lines += self._read_open()
            self.close()
            self._open()
            lines += self._read_open()
        return lines

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _open(self) -> None:
        try:
            self._file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._file = None

    def _was_rotated(self) -> bool:
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        if self._file is None:
            return True
        mine = os.fstat(self._file)
        return (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino)

    def _read_open(self) -> list[str]:
        if self._file is None:
            return []
        data = self._rest + os.read(self._file, LONGEST_READ)
        *whole, self._rest = data.split(b"\n")
        return [line.decode(errors="replace") for line in whole]


async def _push_new_lines(followers: dict[str, Follower], push: Push) -> None:
    """By asking again and again: it costs a stat a replica, and only while somebody looks on."""
    try:
        while True:
            for name, follower in followers.items():
                if lines := follower.read():
                    push(name, lines)
            await asyncio.sleep(FOLLOW_S)
    finally:
        for follower in followers.values():
            follower.close()


def _last_lines(path: str, lines: int) -> list[str] | None:
    """None when there is no such file."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        data = _read_back(file, lines)
    finally:
        os.close(file)
    return [line.decode(errors="replace") for line in data.splitlines()[-lines:]] if lines > 0 else []


def _read_back(file: int, lines: int) -> bytes:
    """The end of the file, back to where enough lines begin."""
    end = os.lseek(file, 0, os.SEEK_END)
    data = b""
    while end > 0 and data.count(b"\n") <= lines and len(data) < LONGEST_READ:
        start = max(0, end - CHUNK)
        data = os.pread(file, end - start, start) + data
        end = start
    return data if end == 0 else data.partition(b"\n")[2]
