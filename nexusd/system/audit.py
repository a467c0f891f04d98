"""The audit log as the API's border uses it: a line is safe before its command runs, and no disk holds the loop.

Implements `ports.AuditLog`. One thread of its own writes; all lines that wait share one fdatasync. Lines that tell
how a command ended wait for nobody: a power cut may lose them, never the line that says that it began.
"""

import asyncio
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from nexusd.domain.audit import BEGUN, INTERRUPTED, Entry, own_entry
from nexusd.domain.chain import Verdict, Verification
from nexusd.domain.errors import NotPossible
from nexusd.system.audit_files import AuditFiles, lines_from_the_end, open_all

KEPT_FOR_LATER = 1000  # lines about what has happened already, while the disk takes none
BREATH_LINES = 64  # the interpreter is handed over so often while a log is proved or searched

log = logging.getLogger("nexusd.audit")

Subscriber = Callable[[bytes], None]
_T = TypeVar("_T")


@dataclass(slots=True)
class _Job:
    content: bytes
    waiting: "asyncio.Future[int] | None" = None
    seq: int = 0
    line: bytes = b""


@dataclass(slots=True)
class _Gap:
    """The line that tells since when the log could not be written, why, and what that cost."""

    entry: Entry
    job: _Job
    lost: int = 0

    def lose(self, count: int) -> None:
        self.lost += count
        params = {**self.entry.params, "lines_lost": self.lost}
        self.job.content = replace(self.entry, params=params).content()


class AuditLog:
    def __init__(self, folder: str, head_path: str, *, max_size: int, files: int) -> None:
        self._files = AuditFiles(folder, head_path, max_size, files)
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="audit")
        self._jobs: deque[_Job] = deque()
        self._late: deque[_Job] = deque()
        self._gap: _Gap | None = None  # the last one; its line is among those until it is written
        self._subscribers: set[Subscriber] = set()
        self._trouble: str | None = None  # why the last line could not be written
        self._contradictions: list[str] = []
        self.lines = 0

    @property
    def troubles(self) -> list[str]:
        """What an operator must know: for the warnings of the status."""
        trouble = self._trouble
        now = [f"the audit log cannot be written, so commands are refused: {trouble}"] if trouble else []
        return [*now, *self._contradictions]

    def open(self, **about: Any) -> None:
        """Say that nexusd began, and what a former one left without an end. Returns at once."""
        self._loop = asyncio.get_running_loop()
        self._thread.submit(self._open, about)

    def begin(self, entry: Entry) -> Awaitable[int]:
        """Done when the line is safe, with its number. Raises NotPossible."""
        job = _Job(entry.content(), asyncio.get_running_loop().create_future())
        self._submit(job)
        assert job.waiting is not None
        return job.waiting

    def add(self, entry: Entry) -> None:
        """A line about what has happened; kept for later where the disk does not take it."""
        self._submit(_Job(entry.content()))

    def try_again(self) -> None:
        """Look whether the disk takes lines by now, if it did not."""
        if self._trouble is not None:
            self._thread.submit(self._write_all)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Called with each line from now on; returns the way out."""
        self._subscribers.add(subscriber)
        return lambda: self._subscribers.discard(subscriber)

    async def records(self, most: int, since: int, module_id: str | None) -> list[bytes]:
        """The last lines, oldest first, of records with a greater number than `since`."""
        return await self._reading(self._records, most, since, module_id)

    async def verify(self, anchors: Mapping[int, str]) -> Verdict:
        return await self._reading(self._verify, anchors)

    async def _reading(self, read: Callable[..., _T], *of: Any) -> _T:
        try:
            return await asyncio.to_thread(read, *of)
        except OSError as error:
            raise NotPossible(f"the audit log cannot be read: {error.filename}: {error.strerror}") from error

    def close(self) -> None:
        """Write what is left, and that nexusd ends."""
        self._submit(_Job(_own("stop", {}).content()))
        self._thread.shutdown(wait=True)
        self._files.close()

    # In the thread

    def _submit(self, job: _Job) -> None:
        self._jobs.append(job)
        self._thread.submit(self._write_all)

    def _open(self, about: dict[str, Any]) -> None:
        try:
            left_open = list(self._left_open())
        except OSError:  # the first write meets it too, and tells of it
            left_open = []
        first = [*reversed(left_open), _own("start", about)]
        self._jobs.extendleft(_Job(entry.content()) for entry in reversed(first))
        self._write_all()
        mark = self._files.mark  # whoever keeps this line elsewhere can hold the log against it
        log.info("the audit log goes on at record %d, hash %s", mark.seq, mark.hash)

    def _left_open(self) -> Iterator[Entry]:
        """What a former nexusd began and did not end: it was killed meanwhile."""
        ended: set[int] = set()
        for line in _unhurried(lines_from_the_end(self._folder) if os.path.isdir(self._folder) else ()):
            seen = _seen(line)
            if seen is None:
                continue
            if seen.method == "nexusd.start":
                return
            if seen.begun is not None:
                ended.add(seen.begun)
            elif seen.outcome == BEGUN and seen.seq not in ended:
                yield seen.interrupted(_now())

    def _write_all(self) -> None:
        """Everything that is due, in one go; only lines that somebody waits for are made safe at once."""
        jobs = [*self._late, *(self._jobs.popleft() for _ in range(len(self._jobs)))]
        self._late.clear()
        if not jobs:
            return
        failure: OSError | None = None
        try:
            told = self._files.ready()
            if told is not None:
                jobs.insert(0, self._contradicted(told))
            for job in jobs:
                job.seq, job.line = self._files.append(job.content)
            if any(job.waiting is not None for job in jobs):
                self._files.sync()
            self._files.note_head()
        except OSError as error:
            failure = error
        except Exception:  # the thread's border: nobody may wait for ever
            log.exception("the audit log met a defect")
            failure = OSError(errno.EIO, "a defect of nexusd, told in its log", self._folder)
        begins_gap = failure is not None and self._trouble is None
        self._note(failure)
        if begins_gap:
            self._begin_gap()
        self._settle(jobs, failure)
        if begins_gap and self._gap is not None:  # the log tells of it itself, as soon as it can
            self._keep_for_later([self._gap.job])

    def _contradicted(self, told: dict[str, Any]) -> _Job:
        """The log is not as nexusd left it: that stands in the log itself, and in the status."""
        words = ", ".join(f"{what}: {how}" for what, how in told.items())
        log.warning("the audit log is not as it was left: %s", words)
        if told.keys() - {"half_line", "after_head"}:  # what a power cut or a kill leaves behind
            self._contradictions.append(
                f"the audit log is not as it was left ({words}); nexusctl audit verify"
            )
        return _Job(_own("recovered", told).content())

    def _note(self, failure: OSError | None) -> None:
        if failure is not None:
            if self._trouble is None:
                log.error("the audit log cannot be written: %s", failure)
            self._trouble = f"{failure.filename or self._folder}: {failure.strerror}"
            self._files.close()
        elif self._trouble is not None:
            log.warning("the audit log can be written again")
            self._trouble = None

    def _settle(self, jobs: list[_Job], failure: OSError | None) -> None:
        written = [job for job in jobs if job.line]
        self.lines += len(written)
        self._keep_for_later(job for job in jobs if not job.line and job.waiting is None)
        waiting = [job for job in jobs if job.waiting is not None]
        if waiting or self._subscribers:
            self._loop.call_soon_threadsafe(self._tell, written, waiting, failure)

    def _begin_gap(self) -> _Gap:
        entry = _own("gap", {"reason": self._trouble})
        self._gap = _Gap(entry, _Job(entry.content()))
        return self._gap

    def _keep_for_later(self, jobs: Iterable[_Job]) -> None:
        """Of too many the oldest go; not the line that tells since when, and how many went."""
        self._late.extend(jobs)
        if len(self._late) <= KEPT_FOR_LATER:
            return
        gap = self._gap
        if gap is None or gap.job.line:  # that line could be written, and these could not
            gap = self._begin_gap()
            self._late.appendleft(gap.job)
        gap.lose(len(self._late) - KEPT_FOR_LATER)
        while len(self._late) > KEPT_FOR_LATER:
            del self._late[1 if self._late[0] is gap.job else 0]

    def _records(self, most: int, since: int, module_id: str | None) -> list[bytes]:
        found: list[bytes] = []
        for line in _unhurried(lines_from_the_end(self._folder)):
            seen = _seen(line)
            if seen is None:
                continue
            if len(found) >= most or seen.seq <= since:
                break
            if module_id in (None, seen.params.get("module_id")):
                found.append(line)
        return found[::-1]

    def _verify(self, anchors: Mapping[int, str]) -> Verdict:
        verification = Verification(self._thread.submit(self._files.head).result(), anchors)
        with ExitStack() as stack:
            for file in [stack.enter_context(file) for file in open_all(self._folder)]:
                lines = (line.removesuffix(b"\n") for line in file)
                verification.read(os.path.basename(file.name), _unhurried(lines))
        return verification.verdict()

    # Back in the loop

    def _tell(self, written: list[_Job], waiting: list[_Job], failure: OSError | None) -> None:
        for job in waiting:
            assert job.waiting is not None
            if job.waiting.cancelled():
                continue
            if failure is None:
                job.waiting.set_result(job.seq)
            else:
                job.waiting.set_exception(_refusal(failure, self._folder))
        for job in written:
            for subscriber in tuple(self._subscribers):
                subscriber(job.line)


class _Seen(msgspec.Struct):
    """Of a line that was written, what is needed to find it and to go on from it."""

    seq: int
    method: str
    outcome: str
    principal: str
    uid: int
    pid: int | None = None
    begun: int | None = None
    params: dict[str, Any] = {}

    def interrupted(self, time: str) -> Entry:
        return Entry(
            time, self.principal, self.uid, self.pid, self.method, self.params, INTERRUPTED, begun=self.seq
        )


_decode = msgspec.json.Decoder(_Seen).decode


def _seen(line: bytes) -> _Seen | None:
    try:
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # not ours: `verify` finds it
        return None


def _unhurried(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines; in between the loop gets the interpreter."""
    for number, line in enumerate(lines):
        if number % BREATH_LINES == 0:
            time.sleep(0)
        yield line


def _refusal(failure: OSError, folder: str) -> NotPossible:
    return NotPossible(
        "refused, since the audit log cannot be written",
        reason=f"{failure.filename or folder}: {failure.strerror}",
        hint=f"df -h {folder}",
    )


def _own(what: str, params: Mapping[str, Any]) -> Entry:
    return own_entry(os.getuid(), os.getpid(), what, params, time=_now())


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
