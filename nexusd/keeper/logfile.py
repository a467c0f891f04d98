"""One log file of a replica: moves bytes from the replica's pipe to disk, turns the file over between two lines.

It decides where a file ends and what happens when the disk takes no more; when the pipe is looked at is the
keeper's. The kernel moves the bytes itself (splice): a keeper that is killed has none of them in its hands.
"""

import ctypes
import os
import time

PIECE_BYTES = 1 << 20
HELD_BYTES = 4 << 20  # what is kept in memory while the disk takes nothing
RETRY_S = 1.0
_LOOK_BYTES = 1 << 16  # how far ahead the end of a line is looked for at a time
_libc = ctypes.CDLL(None, use_errno=True)


class LogFile:
    """Appends to `path`; at `max_bytes` it becomes `path.1`, the older ones move up, `files` in all remain."""

    def __init__(self, path: str, max_bytes: int, files: int) -> None:
        self.path = path
        self.bound(max_bytes, files)
        self.written = 0  # bytes since this keeper opened it
        self.lost = 0  # bytes dropped since the last line that says so
        self.trouble: str | None = None
        self._held = bytearray()
        self._retry_at = 0.0
        self._fd = -1

    def bound(self, max_bytes: int, files: int) -> None:
        self.max_bytes = max_bytes
        self.files = max(files, 1)

    @property
    def held(self) -> int:
        """Bytes that are in memory only."""
        return len(self._held)

    def take(self, pipe: int) -> int:
        """Move up to PIECE_BYTES, return how many; 0: nobody writes any more. Raises BlockingIOError: none yet.

        A disk that takes nothing keeps nobody from writing: bytes are held, past HELD_BYTES counted as lost.
        """
        if self.trouble is None:
            try:
                return self._splice(pipe)
            except BlockingIOError:
                raise
            except OSError:  # the disk is full, or the file system cannot splice
                self._retry_at = 0.0
        piece = os.read(pipe, PIECE_BYTES)
        self._hold(piece)
        self.retry()
        return len(piece)

    def retry(self) -> None:
        """Write what is held, when that is due again."""
        if time.monotonic() < self._retry_at:
            return
        try:
            self._write_held()
            self.trouble = None
        except OSError as error:
            self.trouble = f"{self.path}: {error.strerror}"
            self._retry_at = time.monotonic() + RETRY_S

    def close(self) -> None:
        """What is held and can't be written now is lost."""
        if self._held:
            self._retry_at = 0.0
            self.retry()
        self._close_file()

    def _splice(self, pipe: int) -> int:
        size = self._present_size()
        count = self.max_bytes - size
        if count <= 0:
            ahead = _peek(pipe)
            if not ahead:
                return 0
            count = self._rest_of_line(size, ahead)
        if count == 0:
            self._turn_over()
            return self._splice(pipe)
        count = min(count, PIECE_BYTES)
        moved = self._move(pipe, count, size)
        if moved == self.max_bytes - size:
            moved += self._finish_line(pipe, size + moved)
        return moved

    def _finish_line(self, pipe: int, size: int) -> int:
        """At once: else the other generation, which logs into the same file, could write into the line."""
        try:
            ahead = _peek(pipe)
        except BlockingIOError:
            return 0
        count = self._rest_of_line(size, ahead) if ahead else 0
        return self._move(pipe, count, size) if count else 0

    def _move(self, pipe: int, count: int, size: int) -> int:
        moved = os.splice(pipe, self._fd, count, offset_dst=size, flags=os.SPLICE_F_NONBLOCK)
        self.written += moved
        return moved

    def _write_held(self) -> None:
        while self._held:
            size = self._present_size()
            count = self.max_bytes - size
            if count <= 0:
                count = self._rest_of_line(size, self._held[:_LOOK_BYTES])
            if count == 0:
                self._turn_over()
                continue
            written = os.pwrite(self._fd, self._held[:count], size)
            self.written += written
            del self._held[:written]
            if not self._held and self.lost:
                self._confess()

    def _hold(self, piece: bytes) -> None:
        """Once something is lost all that follows is, until the gap can be told where it is."""
        room = 0 if self.lost else HELD_BYTES - len(self._held)
        self._held += piece[:room]
        self.lost += len(piece[room:])

    def _confess(self) -> None:
        self._held += b"\n[nexus-keeper: %d bytes lost here: %s]\n" % (self.lost, str(self.trouble).encode())
        self.lost = 0

    def _rest_of_line(self, size: int, ahead: bytes | bytearray) -> int:
        """How many of the bytes ahead still belong into the file that has reached its bound."""
        # A "line" of twice the file's bound is cut all the same: the bound is a promise too.
        if size >= 2 * self.max_bytes or os.pread(self._fd, 1, size - 1) == b"\n":
            return 0
        return min(ahead.find(b"\n") + 1 or len(ahead), 2 * self.max_bytes - size)

    def _turn_over(self) -> None:
        """Raises OSError at any step; the next try goes on from there."""
        number = self.files
        while os.path.exists(f"{self.path}.{number}"):  # more than remain by the present bound
            os.unlink(f"{self.path}.{number}")
            number += 1
        for number in range(self.files - 1, 0, -1):
            older = self.path if number == 1 else f"{self.path}.{number - 1}"
            if os.path.exists(older):
                os.replace(older, f"{self.path}.{number}")
        if self.files == 1:
            os.unlink(self.path)
        self._close_file()

    def _present_size(self) -> int:
        """Opens the file if need be: at first, after a turn, and when somebody has removed it."""
        if self._fd >= 0:
            found = os.fstat(self._fd)
            if found.st_nlink > 0:
                return found.st_size
            self._close_file()
        self._fd = _open(self.path)
        return os.fstat(self._fd).st_size

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _open(path: str) -> int:
    # Not O_APPEND, into which splice is EINVAL; to be read, too: how the last line ends.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o640)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
        return os.open(path, flags, 0o640)


def _peek(pipe: int) -> bytes:
    """What comes next in a pipe, without taking it out; b"": nobody writes any more. Raises BlockingIOError."""
    reading, writing = os.pipe()
    try:
        count = _libc.tee(pipe, writing, _LOOK_BYTES, os.SPLICE_F_NONBLOCK)
        if count < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return os.read(reading, count) if count else b""
    finally:
        os.close(reading)
        os.close(writing)
