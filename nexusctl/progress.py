"""What happens while a command waits: a line per module on the terminal, drawn from the daemon's events.

It only informs: without a terminal, with -o json, or if the events may not be read, there is none.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from nexusctl.client import Client, RpcError
from nexusctl.invocation import Invocation
from nexusctl.output import Page, clean, page_of, span
from nexusctl.unreachable import TIMED_OUT, Unreachable

FIRST_DRAWN_AFTER_S = 0.4  # what is quicker than this needs no progress
DRAWN_EVERY_S = 0.2
UP_AND_CLEAR = "\r\x1b[{lines}A\x1b[J"  # the terminal may have echoed ^C at the beginning of the line


class Board:
    """What is known of the modules waited for, and how it looks. Pure: events in, lines out."""

    def __init__(self, ids: Sequence[str]) -> None:
        self.waited = list(ids)
        self._states: dict[str, str] = {}
        self._replicas: dict[str, dict[str, str]] = {}
        self._reasons: dict[str, str] = {}
        self._experiments: dict[str, str] = {}

    def take(self, event: dict[str, Any]) -> None:
        module_id, to = event.get("module_id"), event.get("to")
        if module_id and str(event.get("kind")).startswith("chaos."):
            self._experiments[module_id] = _experiment(event)
        if not module_id or not to:
            return
        if event.get("kind") == "replica.state" and event.get("replica"):
            number = "#" + str(event["replica"]).rpartition("#")[2]
            self._replicas.setdefault(module_id, {})[number] = clean(to)
        elif event.get("kind") == "module.state":
            self._states[module_id] = clean(to)
        self._reasons[module_id] = clean(event.get("reason") or "")

    def done(self, module_id: str) -> None:
        if module_id in self.waited:
            self.waited.remove(module_id)

    def lines(self, page: Page, height: int, waited_s: float) -> list[str]:
        """At most `height` lines, the last of them saying how many modules are left out."""
        shown = self.waited if len(self.waited) <= height else self.waited[: height - 1]
        more = len(self.waited) - len(shown)
        told = [self._line(one, page, waited_s) for one in shown]
        return [*told, f"and {more} more"] if more else told

    def _line(self, module_id: str, page: Page, waited_s: float) -> str:
        """A line that wraps could not be erased again: what does not fit is cut off."""
        replicas = sorted(self._replicas.get(module_id, {}).items(), key=lambda one: (len(one[0]), one[0]))
        state = self._states.get(module_id, "" if replicas else "waiting")
        parts = [(module_id, None), (state, "state"), (span(waited_s), "dim")]
        parts.append((self._experiments.get(module_id, ""), None))
        parts += [(f"{number} {state}", None) for number, state in replicas]
        reason = self._reasons.get(module_id, "")
        is_said = reason in {state, *(state for _, state in replicas)}
        parts.append(("" if is_said else reason, "dim"))
        line, room = "", (page.width or 80) - 1
        for text, colour in parts:
            if text := text[: max(room, 0)]:
                room -= len(text) + 2
                line += ("  " if line else "") + (
                    page.state(text) if colour == "state" else page.paint(text, colour)
                )
        return line


def _experiment(event: dict[str, Any]) -> str:
    """`c12 injected, Ctrl-C rolls back`; the id leads the reason of each event of an experiment."""
    words = clean(event.get("reason") or "").split(maxsplit=1)
    phase = str(event["kind"]).removeprefix("chaos.").replace("_", " ")
    way_out = ", Ctrl-C rolls back" if phase in ("started", "injected") else ""
    return f"{words[0].rstrip(':') if words else 'the experiment'} {phase}{way_out}"


class Progress:
    """Draws a Board on stderr while the with-block runs; `aside` makes room for printing a result."""

    def __init__(self, invocation: Invocation, ids: Sequence[str]) -> None:
        self._invocation = invocation
        self._board = Board(ids)
        self._page = page_of(sys.stderr)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._drawn = 0
        self._begun = time.monotonic()
        self._threads: list[threading.Thread] = []
        self._events = invocation.client(timeout=DRAWN_EVERY_S)

    def __enter__(self) -> Progress:
        if self._board.waited and not self._invocation.is_json and _can_be_redrawn():
            self._threads = [
                threading.Thread(target=work, daemon=True) for work in (self._listen, self._draw)
            ]
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self._erase()
        self._events.close()

    @contextmanager
    def aside(self, module_id: str) -> Iterator[None]:
        """Take the lines away, let the caller print what became of the module, and wait for one less."""
        with self._lock:
            self._erase()
            self._board.done(module_id)
            yield

    def _listen(self) -> None:
        try:
            subscription = self._events.subscribe("subscribe_events", {})
            for event in subscription.first.get("events", []):
                self._board.take(event)
            while not self._over.is_set():
                self._take_next(self._events)
        except (RpcError, Unreachable):
            return  # progress is a courtesy: the outcome comes on the other connection

    def _take_next(self, events: Client) -> None:
        try:
            event = events.next_notification(timeout=DRAWN_EVERY_S).get("event") or {}
        except Unreachable as error:
            if error.cause != TIMED_OUT:
                raise
            return
        with self._lock:
            self._board.take(event)

    def _draw(self) -> None:
        pause = FIRST_DRAWN_AFTER_S
        while not self._over.wait(pause):
            pause = DRAWN_EVERY_S
            with self._lock:
                self._erase()
                height = max(os.get_terminal_size(sys.stderr.fileno()).lines - 2, 2)
                lines = self._board.lines(self._page, height, time.monotonic() - self._begun)
                print(*lines, sep="\n", end="\n" if lines else "", file=sys.stderr, flush=True)
                self._drawn = len(lines)

    def _erase(self) -> None:
        if self._drawn:
            print(UP_AND_CLEAR.format(lines=self._drawn), end="", file=sys.stderr, flush=True)
            self._drawn = 0


def _can_be_redrawn() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
