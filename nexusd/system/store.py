"""What survives a reboot, in SQLite: wanted states, replica counts, configured values, events, experiments.

Implements `ports.Store` and `ports.ExperimentStore`. One thread does the writing, since synchronous=FULL
waits for the disk. A row that can't be read is passed over. On a full disk the store is what the file held, in
memory, and takes nothing until there is room. How the file is opened and judged is `database`'s.
"""

import asyncio
import json
import logging
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nexusd.domain.errors import NotPossible
from nexusd.ports import StoredExperiment
from nexusd.system import database
from nexusd.system.database import Unusable

KEPT_EVENTS = 10_000
KEPT_EXPERIMENTS = 200
_SCHEMA = """
CREATE TABLE IF NOT EXISTS wanted (module_id TEXT PRIMARY KEY, started INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS replicas (module_id TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS configured (module_id TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (module_id, key));
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, event TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS experiments (number INTEGER PRIMARY KEY, report TEXT NOT NULL, lease TEXT);
"""
_T = TypeVar("_T")

log = logging.getLogger("nexusd.store")


@dataclass(slots=True)
class StoredModule:
    started: bool | None = None
    count: int | None = None
    configured: dict[str, Any] = field(default_factory=dict)


class SqliteStore:
    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database: sqlite3.Connection
        self._is_in_memory = False  # the disk was full at the start: nothing of it is ever written
        self._trouble: str | None = None  # why the disk took nothing the last time
        self.set_aside: str | None = None  # where a damaged file went

    @property
    def troubles(self) -> list[str]:
        """What an operator must know: for the warnings of the status."""
        return [f"nothing can be stored: {self._trouble}"] if self._trouble else []

    def open(self) -> None:
        """Raises Unusable when there is no such folder, no permission, or no room for a first file."""
        try:
            self._database = database.connect(self._path, _SCHEMA)
            self._look_for_room()  # reading needs none: that there is none is to be said all the same
        except sqlite3.DatabaseError as error:
            if database.is_damage(error):
                self.set_aside = database.set_aside(self._path)
                self._database = self._begin_anew()
            elif database.is_lack_of_room(error):
                self._go_on_in_memory(error)
            else:
                raise Unusable(database.in_words(self._path, error)) from error

    def _begin_anew(self) -> sqlite3.Connection:
        try:
            return database.connect(self._path, _SCHEMA)
        except sqlite3.Error as error:
            raise Unusable(database.in_words(self._path, error)) from error

    def _go_on_in_memory(self, reason: sqlite3.DatabaseError) -> None:
        """What runs and what is wanted is more than what can be stored meanwhile."""
        try:
            self._database = database.read_into_memory(self._path)
        except sqlite3.Error:
            raise Unusable(database.in_words(self._path, reason)) from reason
        self._is_in_memory = True
        self._note(reason)

    def _note(self, reason: sqlite3.Error) -> None:
        if self._trouble is None:
            log.error("nothing can be stored: %s", reason)
        self._trouble = database.in_words(self._path, reason)

    def try_again(self) -> None:
        """Look whether the disk takes something by now, if it did not."""
        if self._trouble is not None:
            self._thread.submit(self._look_for_room)

    def _look_for_room(self) -> None:
        with suppress(sqlite3.Error, Unusable):
            self._on_disk(lambda: database.write_something(self._database))

    def examine(self) -> None:
        """Whether `open` would go well, while another nexusd has the file. Raises Unusable."""
        try:
            with closing(database.connect_to_read(self._path)) as self._database:
                self.modules(), self.events(1), self.experiments()
        except sqlite3.DatabaseError as error:
            raise Unusable(database.in_words(self._path, error)) from error

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._database.close()

    def modules(self) -> dict[str, StoredModule]:
        found: defaultdict[str, StoredModule] = defaultdict(StoredModule)
        for module_id, started in self._numbers("wanted", "started"):
            found[module_id].started = bool(started)
        for module_id, count in self._numbers("replicas", "count"):
            found[module_id].count = count
        columns = "CAST(module_id AS BLOB), CAST(key AS BLOB), CAST(value AS BLOB)"
        for *names, raw in self._rows(f"SELECT {columns} FROM configured"):
            module_id, key = map(_text, names)
            for value in _readable(raw, f"{module_id} {key}"):
                found[module_id].configured[key] = value
        return dict(found)

    def _numbers(self, table: str, column: str) -> Iterator[tuple[str, int]]:
        """By module."""
        number = f"CASE typeof({column}) WHEN 'integer' THEN {column} END"
        for raw, found in self._rows(f"SELECT CAST(module_id AS BLOB), {number} FROM {table}"):
            if found is None or found < 0:
                _pass_over(f"{column} of {_text(raw)}")
            else:
                yield _text(raw), found

    def events(self, most: int) -> list[dict[str, Any]]:
        """The last events, oldest first."""
        newest_first = "SELECT seq, CAST(event AS BLOB) FROM events ORDER BY seq DESC LIMIT ?"
        rows = self._rows(newest_first, most)
        return [
            {**event, "seq": seq} for seq, raw in reversed(rows) for event in _object(raw, f"event {seq}")
        ]

    def experiments(self) -> list[StoredExperiment]:
        """The last ones, oldest first, and all with a lease: also with one that can't be read, empty then."""
        rows = self._rows(
            "SELECT number, CAST(report AS BLOB), CAST(lease AS BLOB) FROM experiments ORDER BY number"
        )
        found = []
        for number, raw, lease in rows:
            report = next(_object(raw, f"experiment {number}"), None)
            if report or lease is not None:  # what is to be undone does not need its report
                found.append(StoredExperiment(number, report or {}, None if lease is None else _lease(lease)))
        return found

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Text is asked for as a BLOB: where it is no UTF-8, SQLite gives nothing of the table. Raises Unusable."""
        try:
            return self._database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise Unusable(database.in_words(self._path, error)) from error

    async def save_wanted(self, wanted: Mapping[str, bool]) -> None:
        rows = [(module_id, int(started)) for module_id, started in wanted.items()]
        await self._write("INSERT OR REPLACE INTO wanted VALUES (?, ?)", rows)

    async def save_count(self, module_id: str, count: int) -> None:
        await self._write("INSERT OR REPLACE INTO replicas VALUES (?, ?)", [(module_id, count)])

    async def save_value(self, module_id: str, key: str, value: Any) -> None:
        row = (module_id, key, json.dumps(value))
        await self._write("INSERT OR REPLACE INTO configured VALUES (?, ?, ?)", [row])

    async def forget_value(self, module_id: str, key: str) -> None:
        await self._write("DELETE FROM configured WHERE module_id = ? AND key = ?", [(module_id, key)])

    async def save_experiment(self, number: int, report: Mapping[str, Any], lease: str | None) -> None:
        row = (number, json.dumps(report), lease)

        def write() -> None:
            with self._database:
                self._database.execute("INSERT OR REPLACE INTO experiments VALUES (?, ?, ?)", row)
                old = (number - KEPT_EXPERIMENTS,)
                self._database.execute("DELETE FROM experiments WHERE number <= ? AND lease IS NULL", old)

        await self._in_thread(write)

    async def append_events(self, events: Iterable[tuple[int, str]]) -> None:
        """History need not survive a power cut to the last event: no waiting for the disk."""
        rows = list(events)
        if not rows:
            return

        def append() -> None:
            self._database.execute("PRAGMA synchronous = NORMAL")
            try:
                with self._database:
                    self._database.executemany("INSERT OR REPLACE INTO events VALUES (?, ?)", rows)
                    self._database.execute("DELETE FROM events WHERE seq <= ?", (rows[-1][0] - KEPT_EVENTS,))
            finally:
                self._database.execute("PRAGMA synchronous = FULL")

        await self._in_thread(append)

    async def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        def write() -> None:
            with self._database:  # one transaction, rolled back as a whole
                self._database.executemany(statement, rows)

        await self._in_thread(write)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._on_disk, work)
        except (sqlite3.Error, Unusable) as error:
            text = database.in_words(self._path, error) if isinstance(error, sqlite3.Error) else str(error)
            raise NotPossible(f"not stored: {text}", reason=str(error), hint=f"df -h {self._path}") from error

    def _on_disk(self, work: Callable[[], _T]) -> _T:
        """In the thread: write, on the disk and never in memory alone; and know for the status how it went."""
        try:
            if self._is_in_memory:
                self._database, self._is_in_memory = database.connect(self._path, _SCHEMA), False
            done = work()
        except sqlite3.Error as error:
            if database.is_lack_of_room(error):
                self._note(error)
            raise
        if self._trouble is not None:
            log.warning("what is to be kept is stored again")
            self._trouble = None
        return done


def _readable(raw: bytes, what: str) -> Iterator[Any]:
    """The JSON value, or nothing: a bit that fell over need not cost more than its row."""
    try:
        yield json.loads(raw)
    except (ValueError, RecursionError):
        _pass_over(what)


def _object(raw: bytes, what: str) -> Iterator[dict[str, Any]]:
    for value in _readable(raw, what):
        if isinstance(value, dict):
            yield value
        else:
            _pass_over(what)


def _pass_over(what: str) -> None:
    log.error("%s can't be read from the database: passed over", what)


def _text(raw: bytes) -> str:
    """A name that is damaged is nobody's, and can be told."""
    return raw.decode(errors="replace")


def _lease(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return ""
