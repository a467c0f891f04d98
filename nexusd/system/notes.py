"""What the keeper remembers of a module for a later nexusd: its replicas, and the definition in force.

Reading them back, after a start of nexusd, is `keeper_news`'s.
"""

from typing import Protocol

import msgspec

from nexusd.domain.decoding import prepare
from nexusd.domain.manifest import Definition
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica
from nexusd.domain.units import unit_number


class Keeper(Protocol):
    """The keeper's client, as far as notes go."""

    def note(self, name: str, text: str | None) -> None: ...


class Note(msgspec.Struct, frozen=True):
    """What the keeper remembers of a module for a later nexusd."""

    generation: int
    since: float
    replicas: tuple[Replica, ...]


prepare(Note)

DEFINITION_NOTE = "definition "


def definition_note(module_id: str) -> str:
    """The name of the note with a module's definition; that with its replicas bears the module's id."""
    return DEFINITION_NOTE + module_id


class Notes:
    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._definitions: dict[str, Definition] = {}

    def write(self, module: Module, definition: Definition) -> None:
        note = Note(module.generation, module.since, module.replicas)
        self._keeper.note(module.id, msgspec.json.encode(note).decode())
        self._write_definition(definition)

    def drop(self, module_id: str) -> None:
        self._keeper.note(module_id, None)
        self._keeper.note(definition_note(module_id), None)
        self._definitions.pop(module_id, None)

    def _write_definition(self, definition: Definition) -> None:
        """The one in force: a manifest that is broken later, while nexusd is away, does not end what runs."""
        if self._definitions.get(definition.id) is not definition:
            text = msgspec.json.encode(definition, enc_hook=unit_number).decode()
            self._keeper.note(definition_note(definition.id), text)
            self._definitions[definition.id] = definition
