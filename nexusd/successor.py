"""What the installed nexusd says of itself when the running one tries it (`nexusd check --successor NOTES`).

It starts nothing and writes nothing: whether it may take over is decided by the one that asks (`domain/replacing.py`).
"""

import json
import os
from collections.abc import Mapping

import msgspec

from nexusd import __version__
from nexusd.config import Config
from nexusd.domain.replacing import FORMAT, Report
from nexusd.keeper import protocol
from nexusd.system.keeper_news import read_note
from nexusd.system.store import SqliteStore


def introduce(config: Config, notes_path: str) -> str:
    """One line for the one that asks. Raises database.Unusable, OSError, and whatever a broken installation raises."""
    _import_the_rest()
    database = os.path.join(config.state, "nexus.db")
    if os.path.exists(database):  # else it would use another folder, which is for the one that asks to judge
        SqliteStore(database).examine()
    with open(notes_path, encoding="utf-8") as file:
        unread = _unread(json.load(file))
    report = Report(
        __version__, protocol.VERSION, FORMAT, config.runtime, config.state, config.socket, tuple(unread)
    )
    return msgspec.json.encode(report).decode()


def _import_the_rest() -> None:
    """All that a nexusd and its keeper need later than at their start."""
    import nexusd.api  # noqa: PLC0415
    import nexusd.keeper.host  # noqa: PLC0415
    import nexusd.keeper.process  # noqa: F401, PLC0415


def _unread(notes: Mapping[str, str]) -> list[str]:
    unread = []
    for name, text in notes.items():
        try:
            read_note(name, text)
        except ValueError:
            unread.append(name)
    return unread
