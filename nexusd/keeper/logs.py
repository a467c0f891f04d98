"""The log files that runs write to: opened for the first of them, closed after the last; what was written to each.

How a file takes bytes, and what it does while the disk takes none, is `logfile`'s.
"""

import math
from collections.abc import Callable

from nexusd.keeper.logfile import RETRY_S, LogFile
from nexusd.keeper.protocol import Message


class Logs:
    def __init__(self, complain: Callable[[str], None]) -> None:
        self._complain = complain
        self._files: dict[str, LogFile] = {}
        self._users: dict[str, int] = {}
        self._written: dict[str, int] = {}  # bytes of those that were closed since
        self._troubled: dict[str, LogFile] = {}

    def enter(self, log: Message) -> None:
        """One more run writes to it. log: as of a launch."""
        path = log["path"]
        if path not in self._files:
            self._files[path] = LogFile(path, log["max_bytes"], log["files"])
        self._files[path].bound(log["max_bytes"], log["files"])
        self._users[path] = self._users.get(path, 0) + 1

    def leave(self, path: str) -> None:
        self._users[path] -= 1
        if not self._users[path]:
            del self._users[path]
            self._drop(self._files[path])

    def take(self, path: str, pipe: int) -> int:
        """One piece of what is in the pipe. Returns and raises what LogFile.take does."""
        log = self._files[path]
        moved = log.take(pipe)
        if log.trouble is not None:
            self._troubled[path] = log
        return moved

    def patience(self) -> float:
        """Seconds until there is something to do."""
        return RETRY_S if self._troubled else math.inf

    def retry(self) -> None:
        for log in tuple(self._troubled.values()):
            log.retry()
            if log.trouble is None:
                del self._troubled[log.path]
                self._drop(log)

    def troubles(self) -> list[str | None]:
        return [log.trouble for log in self._troubled.values()]

    def written_now(self) -> int:
        """Bytes of all that are open."""
        return sum(log.written for log in self._files.values())

    def written(self) -> dict[str, int]:
        """Bytes of each since this keeper began, also of those nobody writes to now."""
        written = dict(self._written)
        for path, log in self._files.items():
            written[path] = written.get(path, 0) + log.written
        return written

    def close(self) -> None:
        for log in self._files.values():
            log.close()
            if log.held or log.lost:
                self._complain(f"{log.held + log.lost} bytes lost: {log.trouble}")

    def _drop(self, log: LogFile) -> None:
        """Nobody writes to it any more; what a full disk has not taken yet is waited for."""
        if log.path not in self._troubled and log.path not in self._users:
            del self._files[log.path]
            log.close()
            self._written[log.path] = self._written.get(log.path, 0) + log.written
