"""What the keeper remembers beyond its death: its runs and nexusd's notes, kept in the journal as well as it goes.

A disk that is full stops no run; what the journal lacks is written when it takes something again.
"""

from collections.abc import Callable

from nexusd.keeper.journal import Entry, Journal


class Memory:
    def __init__(
        self, journal: Journal, entries: Callable[[], dict[str, Entry]], complain: Callable[[str], None]
    ) -> None:
        """entries: of the runs there are, by key."""
        self.notes: dict[str, str] = {}
        self._journal = journal
        self._entries = entries
        self._complain = complain
        self._behind = False  # whether the journal lacks something

    @property
    def path(self) -> str:
        return self._journal.path

    def run(self, entry: Entry) -> None:
        self._write_down(lambda: self._journal.run(entry))

    def gone(self, key: str) -> None:
        self._write_down(lambda: self._journal.gone(key))

    def note(self, name: str, text: str | None) -> None:
        if text is None:
            self.notes.pop(name, None)
        else:
            self.notes[name] = text
        self._write_down(lambda: self._journal.note(name, text))
        self.keep_short()

    def recall(self) -> dict[str, Entry]:
        """The runs of a keeper before this one, by key; its notes are ours from now on, below newer ones."""
        entries, notes = self._journal.read()
        self.notes = {**notes, **self.notes}
        return entries

    def write_anew(self) -> None:
        self._behind = True
        self.keep_short()

    def keep_short(self) -> None:
        if self._behind or self._journal.is_long:
            self._behind = False
            self._write_down(lambda: self._journal.rewrite(self._entries(), self.notes))

    def remove(self) -> None:
        self._journal.remove()

    def _write_down(self, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            self._behind = True
            self._complain(f"{self.path}: {error.strerror}")
