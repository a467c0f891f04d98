"""The hash chain of the audit log: how a line is sealed, and what is found in lines that were tampered with.

Standard library only, and nothing of ours: nexusctl proves a log with this file where no daemon is at hand.
Reading the files is for others.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import Any

CURRENT = "audit.log"  # the newest file; an older one is named for its first record
OLDER = re.compile(r"audit\.(\d{12})\.log")
GENESIS = "0" * 64  # what the first record of all names as the hash before it

_LINE = re.compile(rb'(\{"seq":(\d{1,18}),.*"prev":"([0-9a-f]{64})"),"hash":"([0-9a-f]{64})"\}', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the chain: a record's number and its hash."""

    seq: int = 0
    hash: str = GENESIS


@dataclass(frozen=True, slots=True)
class Link:
    """What the chain knows of one line."""

    seq: int
    prev: str
    hash: str
    is_intact: bool  # whether the hash is that of the line's content

    @property
    def mark(self) -> Mark:
        return Mark(self.seq, self.hash)


@dataclass(frozen=True, slots=True)
class Head:
    """What is noted outside of the log: its last record, and the first that rotation has left in it."""

    last: Mark
    first: Mark = Mark(1, GENESIS)  # `hash` is the one that the first record names as the one before


@dataclass(frozen=True, slots=True)
class Place:
    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file} line {self.line}"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `problem`: changed, unreadable, missing, out of place, repeated or cut off."""

    file: str
    line: int
    problem: str
    text: str

    def __str__(self) -> str:
        return f"{self.file} line {self.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Verdict:
    findings: tuple[Finding, ...]
    records: int
    first: int | None  # numbers of the first and the last record
    last: Mark | None
    after_head: int  # records that follow the one which the head names

    @property
    def is_whole(self) -> bool:
        return not self.findings

    def told(self, most: int | None = None) -> dict[str, Any]:
        """In the shape of the API's answer. most: findings; all of them are counted."""
        return {
            "whole": self.is_whole,
            "records": self.records,
            "first": self.first,
            "last": asdict(self.last) if self.last else None,
            "after_head": self.after_head,
            "findings": [asdict(one) for one in self.findings[:most]],
            "findings_total": len(self.findings),
        }


def sealed(content: bytes, before: Mark) -> tuple[bytes, Mark]:
    """The next record after `before`: its line without a newline, and its mark. `content` is a JSON object."""
    seq = before.seq + 1
    body = b'{"seq":%d,%b,"prev":"%b"' % (seq, content[1:-1], before.hash.encode())
    digest = sha256(body).hexdigest()
    return b'%b,"hash":"%b"}' % (body, digest.encode()), Mark(seq, digest)


def link_of(line: bytes) -> Link | None:
    """None where the line is no record."""
    match = _LINE.fullmatch(line)
    if match is None:
        return None
    body, seq, prev, told = match.groups()
    digest = sha256(body).hexdigest()
    return Link(int(seq), prev.decode(), told.decode(), digest == told.decode())


def in_order(names: Iterable[str]) -> list[str]:
    """The files of a log, oldest first; other names are left out."""
    found = set(names)
    return [*sorted(name for name in found if OLDER.fullmatch(name)), *({CURRENT} & found)]


def head_text(head: Head) -> str:
    marks = {"last": head.last, "first": head.first}
    return json.dumps({of: {"seq": mark.seq, "hash": mark.hash} for of, mark in marks.items()})


def head_of(text: str) -> Head | None:
    """None where the text is no head."""
    try:
        noted = json.loads(text)
        last, first = (Mark(int(noted[of]["seq"]), str(noted[of]["hash"])) for of in ("last", "first"))
    except (ValueError, KeyError, TypeError):
        return None
    return Head(last, first)


@dataclass(slots=True)
class _Gap:
    """Numbers that do not stand where they belong: before the line at `place`."""

    first: int
    last: int
    place: Place
    unreadable: int  # lines just before that may have been these records
    strays: int = 0


@dataclass(slots=True)
class Verification:
    """Takes lines in their order and remembers what does not fit. Its memory grows with the damage alone."""

    head: Head | None = None
    anchors: Mapping[int, str] = field(default_factory=dict)  # hashes of records, noted elsewhere
    _findings: list[Finding] = field(default_factory=list)
    _gaps: list[_Gap] = field(default_factory=list)
    _strays: list[tuple[Link, Place]] = field(default_factory=list)
    _last: Link | None = None
    _last_at: Place = Place("the log", 0)
    _at: Place = Place("the log", 0)
    _first: int | None = None
    _records: int = 0
    _unreadable: int = 0

    def read(self, file: str, lines: Iterable[bytes]) -> None:
        """The lines of one file, without their newlines; files come oldest first."""
        for number, line in enumerate(lines, 1):
            self.take(Place(file, number), line)

    def take(self, place: Place, line: bytes) -> None:
        link = link_of(line)
        if link is None:
            self._unreadable += 1
            self._find(place, "unreadable", "this is no record of the audit log")
        else:
            self._records += 1
            self._judge(link, place)
            self._place(link, place)
        self._at = place

    def _judge(self, link: Link, place: Place) -> None:
        """What can be said of a record by itself."""
        if not link.is_intact:
            self._find(
                place, "changed", f"record {link.seq} was changed: its hash is not that of its content"
            )
        elif any(seq == link.seq and noted != link.hash for seq, noted in self._noted()):
            self._find(place, "changed", f"record {link.seq} is not the one whose hash was noted")

    def _noted(self) -> list[tuple[int, str]]:
        head = [(self.head.last.seq, self.head.last.hash)] if self.head else []
        return [*head, *self.anchors.items()]

    def _place(self, link: Link, place: Place) -> None:
        """Where the record stands among the others."""
        before = self._before(link)
        if not link.is_intact and before is not None and link.seq != before.seq + 1:
            self._unreadable += 1  # its number may be what was changed
            return
        if before is None:
            self._first = link.seq
        elif link.seq <= before.seq:
            self._strays.append((link, place))
            return
        elif link.seq > before.seq + 1:
            self._gaps.append(_Gap(before.seq + 1, link.seq - 1, place, self._unreadable))
        elif link.prev != before.hash:
            self._find_replaced(link, place)
        self._first = self._first or link.seq
        self._last, self._last_at, self._unreadable = link, place, 0

    def _before(self, link: Link) -> Mark | None:
        """The record that should come before this one; None at a start that nobody noted.

        An older start than the one noted is a file that rotation was about to remove.
        """
        if self._last is not None:
            return self._last.mark
        if self.head is not None and link.seq >= self.head.first.seq:
            return Mark(self.head.first.seq - 1, self.head.first.hash)
        return Mark() if link.seq == 1 else None

    def _find_replaced(self, link: Link, place: Place) -> None:
        if self._last is None:
            text = f"record {link.seq} does not follow the one that was noted before it"
            self._find(place, "changed", text)
        else:
            text = f"record {self._last.seq} was replaced: record {link.seq}, the next, follows another"
            self._find(self._last_at, "changed", text)

    def verdict(self) -> Verdict:
        """What came out, once all lines were taken."""
        for link, place in self._strays:
            self._find_stray(link, place)
        for gap in self._gaps:
            self._find_missing(gap)
        self._find_cut_end()
        last = self._last.mark if self._last else None
        after = max(last.seq - self.head.last.seq, 0) if last and self.head else 0
        return Verdict(tuple(self._findings), self._records, self._first, last, after)

    def _find_stray(self, link: Link, place: Place) -> None:
        gap = next((gap for gap in self._gaps if gap.first <= link.seq <= gap.last), None)
        if gap is not None:
            gap.strays += 1
        if gap is not None or link.seq < (self._first or 0):
            text = f"record {link.seq} is out of place"
            if gap is not None:
                text += f": it belongs before {gap.place}"
            self._find(place, "out of place", text)
        else:
            self._find(place, "repeated", f"record {link.seq} stands here once more")

    def _find_missing(self, gap: _Gap) -> None:
        missing = gap.last - gap.first + 1
        if gap.strays < missing and gap.unreadable < missing:
            self._find(gap.place, "missing", f"{_records(gap.first, gap.last)} missing before this line")

    def _find_cut_end(self) -> None:
        noted = max((seq for seq, _ in self._noted()), default=0)
        begin = self.head.first.seq if self.head else 1
        there = self._last.seq if self._last else begin - 1
        if there < noted:
            text = f"the end is cut off: {_records(there + 1, noted)} missing after this line"
            self._find(self._at, "cut off", text)

    def _find(self, place: Place, problem: str, text: str) -> None:
        self._findings.append(Finding(place.file, place.line, problem, text))


def _records(first: int, last: int) -> str:
    return f"record {first} is" if first == last else f"records {first} to {last} are"
