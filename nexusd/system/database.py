"""Opens nexusd's SQLite file: made where it is missing, proved, set aside where it is damaged.

On a disk that is full it is read into memory, whole, so that nexusd can come back. What stands in it is `store`'s.
"""

import os
import sqlite3
import time
from contextlib import closing
from urllib.parse import quote

VERSION = 1


class Unusable(Exception):
    """The state folder can't be used; the text says why and what to do."""


def connect(path: str, schema: str) -> sqlite3.Connection:
    """For reading and writing. Raises Unusable without rights or folder, sqlite3.Error."""
    _make_private(path)
    database = sqlite3.connect(path, check_same_thread=False, timeout=5)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        _prove(database)
        if not _has_schema(database):
            database.executescript(f"{schema}PRAGMA user_version = {VERSION};")
    except BaseException:
        database.close()
        raise
    return database


def connect_to_read(path: str) -> sqlite3.Connection:
    """Beside a nexusd that has it open. Raises Unusable where a newer one made the tables, sqlite3.Error."""
    database = sqlite3.connect(f"file:{quote(path)}?mode=ro", uri=True, timeout=5)
    try:
        (found,) = database.execute("PRAGMA user_version").fetchone()
        if found > VERSION:
            raise Unusable(f"{path} is of a newer nexusd: its tables are {found}, not {VERSION}")
    except BaseException:
        database.close()
        raise
    return database


def read_into_memory(path: str) -> sqlite3.Connection:
    """All that the file and its journal hold, without a byte for the disk. Raises sqlite3.Error.

    Exclusive locking keeps SQLite's index of the journal in memory, where it would be a file else; nobody but
    this nexusd uses the file, its lock on the folder says so.
    """
    memory = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        with closing(sqlite3.connect(path, timeout=5)) as database:
            database.execute("PRAGMA locking_mode = EXCLUSIVE")
            _prove(database)
            if not _has_schema(database):
                raise sqlite3.OperationalError("there was never room for it")
            database.backup(memory)
    except BaseException:
        memory.close()
        raise
    return memory


def write_something(database: sqlite3.Connection) -> None:
    """Raises sqlite3.Error while the disk takes nothing. What is written stands there already."""
    database.execute(f"PRAGMA user_version = {VERSION}")


def set_aside(path: str) -> str:
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


def is_damage(error: sqlite3.Error) -> bool:
    code = _code(error)
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return "damaged" in str(error) if code is None else code in damaged


def is_lack_of_room(error: sqlite3.Error) -> bool:
    """A full disk shows in several ways, by what SQLite wanted to write there first."""
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)


def in_words(path: str, error: sqlite3.Error) -> str:
    reasons = {
        sqlite3.SQLITE_FULL: "the disk is full",
        sqlite3.SQLITE_READONLY: "it is read-only",
        sqlite3.SQLITE_CANTOPEN: "it cannot be opened: is the folder there, and writable?",
        sqlite3.SQLITE_IOERR: "the disk gave an error, or is full",
    }
    return f"{path}: {reasons.get(_code(error) or 0, str(error))}"


def _prove(database: sqlite3.Connection) -> None:
    (verdict,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"file is damaged: {verdict}")


def _has_schema(database: sqlite3.Connection) -> bool:
    """Looked at first: making sure of what is there already would need room on the disk."""
    found: tuple[int] = database.execute("PRAGMA user_version").fetchone()
    return found == (VERSION,)


def _code(error: sqlite3.Error) -> int | None:
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _make_private(path: str) -> None:
    """Configured values may be secrets. Before SQLite opens it: its companions get the rights of the file."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
