"""The record of what `aeon link` made below a prefix: read with distrust, written anew each time.

What may stand in it is the layout's (aeon_layout.py).
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nexusctl.trust import BY_OTHERS, user

NAME = ".nexusctl-aeon-link.json"
MOST_BYTES = 65536  # ours have about two thousand


class BadRecord(Exception):
    """One line that says which file it is and why it can't be believed."""


@dataclass(frozen=True, slots=True)
class Record:
    links: dict[str, str] = field(default_factory=dict)  # path -> target
    folders: list[str] = field(default_factory=list)


def read(path: Path, links: Collection[str], folders: Collection[str]) -> Record:
    """Only these links and folders may be named. Raises BadRecord, OSError."""
    text = _text(path)
    if text is None:
        return Record()
    try:
        record = _parsed(json.loads(text))
    except (ValueError, RecursionError):
        raise BadRecord(f"{path} is no record of nexusctl aeon link") from None
    for one in (*record.links.keys() - set(links), *set(record.folders) - set(folders)):
        raise BadRecord(f"{path} names {one}, which is none of the places that belong to {path.parent}")
    return record


def write(path: Path, record: Record) -> None:
    """Beside it first, under a name that must be new: nothing that stands there is followed or written to."""
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(json.dumps({"links": record.links, "folders": record.folders}, indent=2) + "\n")
    fresh.replace(path)


def _text(path: Path) -> bytes | None:
    """None where there is no record."""
    try:
        # a fifo would keep a plain open waiting for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise BadRecord(f"{path} is not a regular file") from None
        raise
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if fault := _fault(found):
            raise BadRecord(f"{path} {fault}")
        return file.read(MOST_BYTES)


def _fault(found: os.stat_result) -> str:
    if not stat.S_ISREG(found.st_mode):
        return "is not a regular file"
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to {user(found.st_uid)}"
    if found.st_mode & BY_OTHERS:
        return f"may be written to by others ({stat.filemode(found.st_mode)})"
    return f"has more than {MOST_BYTES} bytes" if found.st_size > MOST_BYTES else ""


def _parsed(given: Any) -> Record:
    links, folders = (given.get("links"), given.get("folders")) if isinstance(given, dict) else (None, None)
    if not isinstance(links, dict) or not isinstance(folders, list):
        raise ValueError("not the two fields")
    if not all(isinstance(one, str) for one in (*links.values(), *folders)):
        raise ValueError("not paths")
    return Record(links, folders)
