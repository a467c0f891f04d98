"""The files of the audit log: one write for each line, rotation that keeps the chain, the head outside of them.

`audit.log` is the newest; an older file is named for its first record. Called from one thread at a time. What the
lines say is `domain.audit`'s, how they hang together `domain.chain`'s; when they must be safe, `system.audit` says.
"""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import IO, Any

from nexusd.domain.chain import (
    CURRENT,
    GENESIS,
    Head,
    Link,
    Mark,
    head_of,
    head_text,
    in_order,
    link_of,
    sealed,
)

HEAD_BYTES = 512  # one sector: written over in place, it is the old one or the new one
SHOWN_OF_A_HALF_LINE = 1000
BLOCK = 64 * 1024

log = logging.getLogger("nexusd.audit")


class AuditFiles:
    """Every method may raise OSError; after one the files are to be closed, and are opened anew."""

    def __init__(self, folder: str, head_path: str, max_size: int, files: int) -> None:
        self.folder = folder
        self._head_path = head_path
        self._max_size = max_size
        self._most = files
        self._mark: Mark | None = None  # of the last record; None before the first look
        self._first = Mark(1, GENESIS)
        self._begins = 1  # number of the first record in the current file
        self._file: int | None = None
        self._head: int | None = None
        self._size = 0

    @property
    def mark(self) -> Mark:
        return self._mark or Mark()

    def ready(self) -> dict[str, Any] | None:
        """Open what is not open. What came back is something that the log itself must tell of."""
        if self._file is not None and self._is_ours():
            return None
        was_open = self._file is not None
        self.close()
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        os.chmod(self.folder, 0o700)
        self._head = _open_private(self._head_path, os.O_RDWR)
        self._file = self._open_log()
        _sync_folder(self.folder)
        told = self._resume()
        return told or ({"touched": "the file was changed by another while nexusd ran"} if was_open else None)

    def append(self, content: bytes) -> tuple[int, bytes]:
        """Write one record; its number and its line. On the disk it is safe after `sync`."""
        line, mark = sealed(content, self.mark)
        if self._size and self._size + len(line) >= self._max_size:
            self._rotate()
        self._write(line + b"\n")
        self._mark = mark
        return mark.seq, line

    def sync(self) -> None:
        assert self._file is not None
        os.fdatasync(self._file)

    def note_head(self) -> None:
        """After the lines, never before: a head that is ahead means that lines were taken away."""
        assert self._head is not None
        head = Head(self.mark, self._first)
        os.pwrite(self._head, head_text(head).ljust(HEAD_BYTES - 1).encode() + b"\n", 0)

    def head(self) -> Head:
        return Head(self.mark, self._first)

    def close(self) -> None:
        for descriptor in (self._file, self._head):
            if descriptor is not None:
                os.close(descriptor)
        self._file = self._head = None

    # Writing

    def _open_log(self) -> int:
        """Open the newest file, which one nexusd alone may write."""
        descriptor = _open_private(self._path, os.O_RDWR | os.O_APPEND)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OSError(errno.EBUSY, "another nexusd writes it", self._path) from None
        return descriptor

    @property
    def _path(self) -> str:
        return os.path.join(self.folder, CURRENT)

    def _is_ours(self) -> bool:
        """Whether the open file is the one at its path, and as long as we made it."""
        assert self._file is not None and self._head is not None
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        has_head = os.fstat(self._head).st_nlink > 0
        return has_head and os.path.samestat(there, os.fstat(self._file)) and there.st_size == self._size

    def _write(self, line: bytes) -> None:
        assert self._file is not None
        written = os.write(self._file, line)
        if written < len(line):  # the disk is full: no half line stays behind
            os.ftruncate(self._file, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
        self._size += written

    def _rotate(self) -> None:
        """One rename. The new file's first record names the hash of this one's last."""
        assert self._file is not None
        self.sync()
        os.rename(self._path, os.path.join(self.folder, f"audit.{self._begins:012d}.log"))
        os.close(self._file)
        self._file = None
        self._file = self._open_log()
        _sync_folder(self.folder)
        self._size, self._begins = 0, self.mark.seq + 1
        log.info("audit log turned over after record %d, hash %s", self.mark.seq, self.mark.hash)
        self._remove_oldest()

    def _remove_oldest(self) -> None:
        """The head says first where the log begins now: then a file that is gone without it was taken away."""
        paths = older_files(self.folder)
        left = paths[max(len(paths) - (self._most - 1), 0) :]
        if len(left) == len(paths):
            return
        link = _first_link(left[0]) if left else None
        self._first = Mark(link.seq, link.prev) if link else Mark(self._begins, self.mark.hash)
        self.note_head()
        for path in paths[: len(paths) - len(left)]:
            os.unlink(path)

    # Going on where a former nexusd, or a failed write, left off

    def _resume(self) -> dict[str, Any] | None:
        """Find the last record. Where the head knows of later ones the chain goes on from the head, so that
        what is missing stays missing for everybody who verifies it.
        """
        assert self._file is not None
        half_line = self._cut_half_line()
        self._size = os.fstat(self._file).st_size
        first = _first_link(self._path)
        told: dict[str, Any] = {"half_line": half_line} if half_line is not None else {}
        there = self._last_mark()
        if self._mark is not None:  # what this process wrote it knows better than any file
            told |= _contradiction(self._mark, there, beyond="added")
        elif (head := read_head(self._head_path)) is not None:
            told |= _contradiction(head.last, there, beyond="after_head")
            self._mark = there if there and there.seq > head.last.seq else head.last
            self._first = head.first
        else:
            told |= {"head": "was not there"} if there else {}
            self._mark = there or Mark()
            self._first = self._oldest() or Mark(1, GENESIS)
        self._begins = first.seq if first else self.mark.seq + 1
        return told or None

    def _cut_half_line(self) -> str | None:
        """Take a line without an end off the file: the next record tells of it."""
        assert self._file is not None
        size = os.fstat(self._file).st_size
        if size == 0:
            return None
        reach = min(size, 1 << 20)
        tail = os.pread(self._file, reach, size - reach)
        _, newline, half = tail.rpartition(b"\n")
        if not half:
            return None
        keep = size - len(half) if newline else size - reach
        os.ftruncate(self._file, keep)
        return half[:SHOWN_OF_A_HALF_LINE].decode(errors="backslashreplace")

    def _last_mark(self) -> Mark | None:
        for line in lines_from_the_end(self.folder):
            link = link_of(line)
            if link is not None:
                return link.mark
        return None

    def _oldest(self) -> Mark | None:
        for path in [*older_files(self.folder), self._path]:
            link = _first_link(path)
            if link is not None:
                return Mark(link.seq, link.prev)
        return None


def _contradiction(known: Mark, there: Mark | None, beyond: str) -> dict[str, Any]:
    """What differs between the last record that is known of and the last one that is there."""
    if there is None:
        return {"missing": f"all records up to {known.seq}"} if known.seq else {}
    if there.seq < known.seq:
        return {"missing": f"records {there.seq + 1} to {known.seq}"}
    if there.seq > known.seq:  # at a start: nexusd was killed before it noted them, most likely
        return {beyond: there.seq - known.seq}
    return {"changed": f"record {there.seq}"} if there.hash != known.hash else {}


def older_files(folder: str) -> list[str]:
    """The files that were turned over, oldest first."""
    return [os.path.join(folder, name) for name in in_order(os.listdir(folder)) if name != CURRENT]


def open_all(folder: str) -> list[IO[bytes]]:
    """All files, oldest first; opened so that a rotation meanwhile neither hides nor doubles one."""
    while True:
        paths = [os.path.join(folder, name) for name in in_order(os.listdir(folder))]
        opened: list[IO[bytes]] = []
        with suppress(FileNotFoundError):
            opened += (open(path, "rb") for path in paths)  # noqa: SIM115  closed by who asked, or below
            same = all(os.path.samestat(os.fstat(one.fileno()), os.stat(one.name)) for one in opened)
            if same and len(opened) == len(paths):
                return opened
        for one in opened:
            one.close()


def read_head(path: str) -> Head | None:
    """None where there is none, or none that can be read."""
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return head_of(file.read(HEAD_BYTES))
    except FileNotFoundError:
        return None


def _first_link(path: str) -> Link | None:
    try:
        with open(path, "rb") as file:
            return link_of(file.readline().rstrip(b"\n"))
    except FileNotFoundError:
        return None


def lines_from_the_end(folder: str) -> Iterator[bytes]:
    """The newest line first, over all files, read in blocks: as a rule the first few are all that is wanted."""
    with ExitStack() as stack:
        for file in reversed([stack.enter_context(file) for file in open_all(folder)]):
            yield from _backwards(file)


def _backwards(file: IO[bytes]) -> Iterator[bytes]:
    left, rest = file.seek(0, os.SEEK_END), b""
    while left:
        size = min(BLOCK, left)
        left -= size
        file.seek(left)
        rest, *lines = (file.read(size) + rest).split(b"\n")
        yield from filter(None, reversed(lines))
    if rest:
        yield rest


def _open_private(path: str, flags: int) -> int:
    """Its owner's alone, also where it lay open before; never through a link that somebody put there."""
    descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
