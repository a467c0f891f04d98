"""The keeper's memory on disk (tmpfs as a rule): what runs, and nexusd's notes, one JSON object a line.

It lets a new keeper find the runs when the old one and nexusd were both killed: a run is written down
before its first instruction. It decides nothing; a line that was cut by the crash is passed over.
"""

import errno
import json
import os
from typing import Any

Entry = dict[str, Any]

COMPACT_BYTES = 4 << 20


class Journal:
    """Each writer raises OSError when the disk does not take it; what was written before stays readable."""

    def __init__(self, path: str, boot: str) -> None:
        self.path = path
        self._boot = boot
        self._fd = -1
        self._size = 0

    def read(self) -> tuple[dict[str, Entry], dict[str, str]]:
        """The runs that were not forgotten, by key, and the notes, by name; of this boot, whose clock they go by."""
        runs: dict[str, Entry] = {}
        notes: dict[str, str] = {}
        try:
            with open(self.path, "rb") as file:
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return runs, notes
        for line in lines:
            try:
                entry = json.loads(line)
                if entry["boot"] == self._boot:
                    _apply(entry, runs, notes)
            except (ValueError, TypeError, KeyError):
                continue  # the last line of a keeper that was killed while it wrote
        return runs, notes

    def rewrite(self, runs: dict[str, Entry], notes: dict[str, str]) -> None:
        """Put the present state in place of the history."""
        lines = [self._line({"run": entry}) for entry in runs.values()]
        lines += [self._line({"note": name, "text": text}) for name, text in notes.items()]
        fresh = f"{self.path}.new"
        with open(fresh, "wb", opener=_private) as file:
            file.writelines(lines)
        os.replace(fresh, self.path)
        self.close()

    def run(self, entry: Entry) -> None:
        self._append({"run": entry})

    def gone(self, key: str) -> None:
        self._append({"gone": key})

    def note(self, name: str, text: str | None) -> None:
        self._append({"note": name, "text": text})

    @property
    def is_long(self) -> bool:
        return self._size > COMPACT_BYTES

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def remove(self) -> None:
        self.close()
        if os.path.exists(self.path):
            os.unlink(self.path)

    def _append(self, entry: Entry) -> None:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        line = self._line(entry)
        written = os.write(self._fd, line)
        if written < len(line):  # else the next line would be spoilt, too
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self._size += written

    def _line(self, entry: Entry) -> bytes:
        return json.dumps({**entry, "boot": self._boot}, separators=(",", ":")).encode() + b"\n"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _apply(entry: Entry, runs: dict[str, Entry], notes: dict[str, str]) -> None:
    if "run" in entry:
        runs[entry["run"]["key"]] = entry["run"]
    elif "gone" in entry:
        runs.pop(entry["gone"], None)
    elif entry["text"] is None:
        notes.pop(entry["note"], None)
    else:
        notes[entry["note"]] = entry["text"]
