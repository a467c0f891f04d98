"""How values become text: colours, columns, spans of time, JSON. What is shown, the commands decide."""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TextIO

FORMATS = ("table", "json", "jsonl", "name")
GAP = "  "
NARROWEST = 20  # what is narrower than this is not worth breaking text for
MOST_LINES_OF_A_NOTE = 3
ANSI = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "cyan": "36"}
COLOUR_OF = {
    "started": "green",
    "healthy": "green",
    "starting": "cyan",
    "stopping": "cyan",
    "waiting": "cyan",
    "not ready": "yellow",
    "backoff": "yellow",
    "degraded": "yellow",
    "failed": "red",
    "stuck": "red",
    "invalid": "red",
    "unhealthy": "red",
    "stopped": "dim",
    "loaded": "dim",
}


class Page:
    """What can be shown where the output goes: colours or none, so many columns (None: no limit)."""

    def __init__(self, colour: bool, width: int | None) -> None:
        self.colour = colour
        self.width = width

    def narrower(self, columns: int) -> Page:
        return Page(self.colour, None if self.width is None else self.width - columns)

    def paint(self, text: str, colour: str | None) -> str:
        if not self.colour or colour is None or not text:
            return text
        return f"\x1b[{ANSI[colour]}m{text}\x1b[0m"

    def state(self, word: str) -> str:
        return self.paint(word, COLOUR_OF.get(word))


def page_of(stream: TextIO) -> Page:
    """Plain and unlimited for everything but a terminal; NO_COLOR as on no-color.org."""
    if not stream.isatty():
        return Page(False, None)
    plain = bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
    return Page(not plain, _width(stream))


def _width(stream: TextIO) -> int:
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def clean(text: object) -> str:
    """One line without control characters: what a module prints must not command the operator's terminal."""
    return "".join(c if c.isprintable() else "?" for c in str(text).rstrip().expandtabs(4).replace("\n", " "))


def clipped(text: str, width: int | None) -> str:
    if width is None or len(text) <= width:
        return text
    return text[: max(width - 1, 0)] + "…"


def wrapped(text: str, width: int | None) -> list[str]:
    """Lines of at most `width`, broken at spaces; a word that is longer is broken anywhere."""
    lines: list[str] = []
    while width is not None and len(text) > (room := max(width, NARROWEST)):
        at = text.rfind(" ", 1, room + 1)
        at = room if at < 0 else at
        lines.append(text[:at].rstrip())
        text = text[at:].lstrip()
    return [*lines, text] if text or not lines else lines


def hanging(indent: str, text: str, page: Page) -> list[str]:
    """Wrapped text, what follows the first line two columns further in."""
    first, *rest = wrapped(text, page.narrower(len(indent) + len(GAP)).width)
    return [indent + first, *(indent + GAP + line for line in rest)]


def folded(line: str, page: Page) -> list[str]:
    """A line that may have colours, broken at spaces, what follows the first two columns further in."""
    lines = [""]
    for word in line.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if page.width is not None and lines[-1].strip() and len(_visible(longer.rstrip())) > page.width:
            lines.append(GAP + word if word else "")
        else:
            lines[-1] = longer
    return [one.rstrip() for one in lines]


def columns(rows: Sequence[Sequence[str]], page: Page, right: frozenset[int] = frozenset()) -> list[str]:
    """Rows as aligned lines; the first row is the heading, words for states are painted."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [page.paint(_line(rows[0], widths, right, None), "dim")]
    return lines + [_line(row, widths, right, page) for row in rows[1:]]


def _line(cells: Sequence[str], widths: Sequence[int], right: frozenset[int], page: Page | None) -> str:
    padded: list[str] = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - len(cell))
        shown = page.state(cell) if page else cell
        padded.append(space + shown if i in right else shown + space)
    return GAP.join(padded).rstrip()


def fitting(
    rows: Sequence[Sequence[str]], page: Page, right: frozenset[int] = frozenset(), least: int = 3
) -> list[str]:
    """As `columns`; where the width is too small, without the last of them, down to the `least` first."""
    while page.width is not None and len(rows[0]) > least and _table_width(rows) > page.width:
        rows = [row[:-1] for row in rows]
    if page.width is not None and (over := _table_width(rows) - page.width) > 0:
        room = max(max(len(row[-1]) for row in rows) - over, len(rows[0][-1]), NARROWEST)
        rows = [(*row[:-1], clipped(row[-1], room)) for row in rows]
    return columns(rows, page, right)


def fits(rows: Sequence[Sequence[str]], page: Page) -> bool:
    return page.width is None or _table_width(rows) <= page.width


def _table_width(rows: Sequence[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + len(GAP) for column in zip(*rows, strict=True)) - len(GAP)


def with_notes(table: Sequence[str], title: str, notes: Sequence[str], page: Page) -> list[str]:
    """A last column of notes if all of them fit in the width, else each note below its row."""
    if not any(notes):
        return list(table)
    plain = [_visible(line) for line in table]
    left = max(map(len, plain)) + len(GAP)
    if page.width is not None and left + max(map(len, [title, *notes])) > page.width:
        below = [[], *(_below(note, page) for note in notes)]
        return [part for line, note in zip(table, below, strict=True) for part in (line, *note)]
    texts = [page.paint(title, "dim"), *notes]
    rows = zip(table, plain, texts, strict=True)
    return [f"{line}{' ' * (left - len(bare))}{text}" if text else line for line, bare, text in rows]


def _below(note: str, page: Page) -> list[str]:
    if not note:
        return []
    lines = hanging("    ", note, page)
    if len(lines) > MOST_LINES_OF_A_NOTE:
        *lines, last = lines[:MOST_LINES_OF_A_NOTE]
        lines.append(clipped(f"{last} …", page.width))
    return lines


def _visible(line: str) -> str:
    """The line without its colours."""
    first, *rest = line.split("\x1b[")
    return first + "".join(part.partition("m")[2] for part in rest)


def span(seconds: float | None) -> str:
    """The two largest units: 3d 4h, 2h 5m, 7m 3s, 12s. A dash where nothing is known."""
    if seconds is None:
        return "-"
    left = max(int(seconds), 0)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])


def moment(epoch: float | None) -> str:
    return "-" if epoch is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(epoch))


def value_text(value: object) -> str:
    """A configuration value for reading: text as it is, everything else as JSON."""
    return clean(value) if isinstance(value, str) else compact(value)


def compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


def indented(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def pairs(
    entries: Mapping[str, Any] | Sequence[tuple[str, Any]], indent: str = "  ", width: int | None = None
) -> list[str]:
    """`name  value` lines under each other; a list of values takes a line each, a long value several."""
    items = list(entries.items() if hasattr(entries, "items") else entries)
    names = max((len(name) for name, _ in items), default=0)
    page = Page(False, width).narrower(len(indent) + names)
    lines = []
    for name, value in items:
        values = value if isinstance(value, list) else [value]
        parts = [part for one in values for part in hanging(GAP, str(one), page)]
        lines += [f"{indent}{'' if i else name:<{names}}{part}".rstrip() for i, part in enumerate(parts)]
    return lines
