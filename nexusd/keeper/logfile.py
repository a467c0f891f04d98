"""One log file of a replica: takes bytes in large pieces, turns the file over between two lines.

It decides where a file ends and what happens when the disk takes no more; who reads the pipe is the keeper's.
"""

import errno
import os
import time

HELD_BYTES = 4 << 20  # what is kept in memory while the disk takes nothing
RETRY_S = 1.0
_PASSING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class LogFile:
    """Appends to `path`; at `max_bytes` it becomes `path.1`, the older ones move up, `files` in all remain."""

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self.files = max(files, 1)
        self.written = 0  # bytes since this keeper opened it
        self.lost = 0  # bytes dropped since the last line that says so
        self.trouble: str | None = None
        self._held = bytearray()
        self._retry_at = 0.0
        self._fd = -1
        self._size = 0
        self._full = False
        self._attempt(b"")

    def write(self, piece: bytes | memoryview) -> None:
        """Never raises and never blocks on a full disk: bytes are held, and past HELD_BYTES counted as lost."""
        if self.trouble is None:
            self._attempt(piece)
            return
        self._hold(piece)
        if time.monotonic() >= self._retry_at:
            self._attempt(b"")

    def close(self) -> None:
        if self._held:
            self._attempt(b"")
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _attempt(self, piece: bytes | memoryview) -> None:
        if self._held:
            piece = b"".join((self._held, self._confession(), piece))
            self._held.clear()
        rest = memoryview(piece)
        try:
            if self._fd < 0:
                self._open()
            while rest:
                rest = rest[self._append(rest) :]
            self.trouble = None
        except OSError as error:
            if error.errno not in _PASSING and not isinstance(error, FileNotFoundError | PermissionError):
                raise
            self.trouble = f"{self.path}: {error.strerror}"
            self._retry_at = time.monotonic() + RETRY_S
            self._hold(rest)

    def _hold(self, piece: bytes | memoryview) -> None:
        room = HELD_BYTES - len(self._held)
        self._held += piece[:room]
        self.lost += len(piece) - min(room, len(piece))

    def _confession(self) -> bytes:
        if not self.lost:
            return b""
        lost, self.lost = self.lost, 0
        return b"\n[nexus-keeper: %d bytes lost here: %s]\n" % (lost, (self.trouble or "").encode())

    def _append(self, piece: memoryview) -> int:
        """Write at most to the end of the line with which the file is full. Returns the bytes written."""
        if self._full:
            self._turn_over()
        cut = len(piece)
        if self._size + cut >= self.max_bytes:
            cut = self._line_end(piece, max(self.max_bytes - self._size - 1, 0))
        written = os.write(self._fd, piece[:cut])
        self._size += written
        self.written += written
        # A "line" of twice the file's bound is cut all the same: the bound is a promise too.
        whole_line = written > 0 and piece[written - 1] == 0x0A
        self._full = self._size >= self.max_bytes and (whole_line or self._size >= 2 * self.max_bytes)
        return written

    @staticmethod
    def _line_end(piece: memoryview, at: int) -> int:
        """Just past the first newline at or after `at`; the whole piece when the line goes on beyond it."""
        found = bytes(piece[at:]).find(b"\n")
        return len(piece) if found < 0 else at + found + 1

    def _turn_over(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        for number in range(self.files - 1, 0, -1):
            older = self.path if number == 1 else f"{self.path}.{number - 1}"
            if os.path.exists(older):
                os.replace(older, f"{self.path}.{number}")
        if self.files == 1:
            os.unlink(self.path)
        self._open()
        self._full = False

    def _open(self) -> None:
        os.makedirs(os.path.dirname(self.path), mode=0o750, exist_ok=True)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size = os.fstat(self._fd).st_size
