"""What survives a reboot, in SQLite: wanted states, replica counts, configured values, events, experiments.

Implements `ports.Store` and `ports.ExperimentStore`. One thread does the writing, since synchronous=FULL
waits for the disk. A damaged file is set aside, never overwritten. A row that can't be read is passed over.
"""

import asyncio
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from nexusd.domain.errors import NotPossible
from nexusd.ports import StoredExperiment

KEPT_EVENTS = 10_000
KEPT_EXPERIMENTS = 200
_SCHEMA = """
CREATE TABLE IF NOT EXISTS wanted (module_id TEXT PRIMARY KEY, started INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS replicas (module_id TEXT PRIMARY KEY, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS configured (module_id TEXT, key TEXT, value TEXT NOT NULL, PRIMARY KEY (module_id, key));
CREATE TABLE IF NOT EXISTS events (seq INTEGER PRIMARY KEY, event TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS experiments (number INTEGER PRIMARY KEY, report TEXT NOT NULL, lease TEXT);
PRAGMA user_version = 1;
"""
_T = TypeVar("_T")

log = logging.getLogger("nexusd.store")


@dataclass(slots=True)
class StoredModule:
    started: bool | None = None
    count: int | None = None
    configured: dict[str, Any] = field(default_factory=dict)


class Unusable(Exception):
    """The state folder can't be used; the text says why and what to do."""


class SqliteStore:
    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._database: sqlite3.Connection
        self.set_aside: str | None = None  # where a damaged file went

    def open(self) -> None:
        """Raises Unusable when there is no such folder, no permission, no space."""
        try:
            self._database = _connect(self._path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise Unusable(_in_words(self._path, error)) from error
            self.set_aside = _set_aside(self._path)
            self._database = _connect_anew(self._path)

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self._database.close()

    def modules(self) -> dict[str, StoredModule]:
        found: dict[str, StoredModule] = {}
        for module_id, started in self._database.execute("SELECT module_id, started FROM wanted"):
            found.setdefault(module_id, StoredModule()).started = bool(started)
        for module_id, count in self._database.execute("SELECT module_id, count FROM replicas"):
            found.setdefault(module_id, StoredModule()).count = count
        rows = self._database.execute("SELECT module_id, key, CAST(value AS BLOB) FROM configured")
        for module_id, key, raw in rows:
            for value in _readable(raw, f"{module_id} {key}"):
                found.setdefault(module_id, StoredModule()).configured[key] = value
        return found

    def events(self, most: int) -> list[dict[str, Any]]:
        """The last events, oldest first."""
        newest_first = "SELECT seq, CAST(event AS BLOB) FROM events ORDER BY seq DESC LIMIT ?"
        rows = self._database.execute(newest_first, (most,)).fetchall()
        return [event for seq, raw in reversed(rows) for event in _readable(raw, f"event {seq}")]

    def experiments(self) -> list[StoredExperiment]:
        """The last ones, oldest first, and all with a lease."""
        rows = self._database.execute(
            "SELECT number, CAST(report AS BLOB), lease FROM experiments ORDER BY number"
        )
        found = []
        for number, raw, lease in rows:
            report = next(_readable(raw, f"experiment {number}"), None)
            if report or lease is not None:  # what is to be undone does not need its report
                found.append(StoredExperiment(number, report or {}, lease))
        return found

    async def save_wanted(self, wanted: Mapping[str, bool]) -> None:
        rows = [(module_id, int(started)) for module_id, started in wanted.items()]
        await self._write("INSERT OR REPLACE INTO wanted VALUES (?, ?)", rows)

    async def save_count(self, module_id: str, count: int) -> None:
        await self._write("INSERT OR REPLACE INTO replicas VALUES (?, ?)", [(module_id, count)])

    async def save_value(self, module_id: str, key: str, value: Any) -> None:
        row = (module_id, key, json.dumps(value))
        await self._write("INSERT OR REPLACE INTO configured VALUES (?, ?, ?)", [row])

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
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.Error as error:
            text = _in_words(self._path, error)
            raise NotPossible(f"not stored: {text}", reason=str(error), hint=f"df -h {self._path}") from error


def _connect_anew(path: str) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.Error as error:
        raise Unusable(_in_words(path, error)) from error


def _connect(path: str) -> sqlite3.Connection:
    _make_private(path)
    database = sqlite3.connect(path, check_same_thread=False, timeout=5)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(f"file is damaged: {verdict}")
        database.executescript(_SCHEMA)
    except BaseException:
        database.close()
        raise
    return database


def _make_private(path: str) -> None:
    """Configured values may be secrets. Before SQLite opens it: its companions get the rights of the file."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error


def _readable(raw: bytes, what: str) -> Iterator[Any]:
    """The JSON value, or nothing: a bit that fell over need not cost more than its row."""
    try:
        yield json.loads(raw)
    except ValueError:
        log.warning("%s can't be read from the database: passed over", what)


def _is_damage(error: sqlite3.DatabaseError) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return "damaged" in str(error) if code is None else code & 0xFF in damaged


def _set_aside(path: str) -> str:
    """Move the file and its companions out of the way, whole, for somebody to look at."""
    aside = stem = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while os.path.exists(aside):
        number += 1
        aside = f"{stem}-{number}"
    for suffix in ("", "-wal", "-shm"):
        if os.path.exists(path + suffix):
            os.rename(path + suffix, aside + suffix)
    return aside


def _in_words(path: str, error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    reasons = {
        sqlite3.SQLITE_FULL: "the disk is full",
        sqlite3.SQLITE_READONLY: "it is read-only",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened: is the folder there, and writable?",
        sqlite3.SQLITE_IOERR: "the disk gave an error, or is full",
    }
    return f"{path}: {reasons.get(code, str(error))}"
