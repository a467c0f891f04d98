"""Writes each module's effective configuration where its processes read it (NEXUS_CONFIG).

Implements `ports.Configs`. The file is the module's user's alone: values may be secrets.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from nexusd.domain.errors import NotPossible
from nexusd.domain.manifest import Definition
from nexusd.domain.module import Module, next_generation
from nexusd.domain.replica import Replica
from nexusd.domain.settings import effective
from nexusd.system.users import uid_of

# "a/one.2" has files of its own, which no pattern for those of "a/one" may match: hence the whole name.
_OF_A_GENERATION = re.compile(r"(?P<stem>.+)\.(?P<generation>\d+)(?:\.json|(?P<state>\.\d+\.state))")


class ConfigFiles:
    def __init__(self, runtime: str) -> None:
        self._folder = os.path.join(runtime, "config")
        self._nothing: str | None = None  # the file of modules without keys, once there is one

    def write(self, module: Module, definition: Definition, generation: int) -> str:
        """Replaced as a whole: a module that starts meanwhile reads the old or the new. Returns its path.

        Modules without keys share one. Raises NotPossible.
        """
        path = self.path(definition, generation)
        if not definition.manifest.config:
            if self._nothing is None:
                self._write(path, {}, definition.id, None, 0o444)
                self._nothing = path
            return path
        values = effective(definition.manifest, module.configured)
        self._write(path, values, definition.id, definition.manifest.run.user)
        return path

    def path(self, definition: Definition, generation: int) -> str:
        """The file that `write` has written."""
        name = f"{_stem(definition.id)}.{generation}" if definition.manifest.config else "none"
        return os.path.join(self._folder, f"{name}.json")

    def hand_over(self, module: Module, states: Mapping[int, Any]) -> None:
        """Put what each replica exported where the next generation finds it. Raises NotPossible."""
        self.tidy([module])  # of a reload that was refused the generation's number comes again
        for index, state in states.items():
            if module.definition is not None:
                path = self._state_path(module.id, next_generation(module), index)
                self._write(path, state, module.id, module.definition.manifest.run.user)

    def former_state(self, replica: Replica) -> str | None:
        """The file for the first start of a replica; one that crashed later begins without."""
        if replica.generation == 1:
            return None
        path = self._state_path(replica.module_id, replica.generation, replica.index)
        return path if replica.history.last_exit is None and os.path.exists(path) else None

    def _state_path(self, module_id: str, generation: int, index: int) -> str:
        return os.path.join(self._folder, f"{_stem(module_id)}.{generation}.{index}.state")

    def _write(self, path: str, value: Any, module_id: str, user: str | None, mode: int = 0o600) -> None:
        try:
            _write_whole(path, json.dumps(value), user, mode)
        except (OSError, ValueError) as error:  # ValueError: its user is not known on this host
            reason = getattr(error, "strerror", None) or error
            raise NotPossible(f"cannot write {path}: {reason}", module_id=module_id) from error

    def tidy(self, modules: Iterable[Module]) -> None:
        """Remove the files of generations that these modules have no more, in one pass over the folder."""
        kept = {_stem(module.id): _generations(module) for module in modules}
        for entry in tuple(os.scandir(self._folder)):
            match = _OF_A_GENERATION.fullmatch(entry.name)
            generations = kept.get(match["stem"]) if match else None
            if match and generations and (match["state"] or int(match["generation"]) not in generations):
                os.unlink(entry.path)


def _stem(module_id: str) -> str:
    return module_id.replace("/", "@")


def _generations(module: Module) -> set[int]:
    return {module.generation, *(replica.generation for replica in module.replicas)}


def _write_whole(path: str, text: str, user: str | None, mode: int) -> None:
    """For its owner, and whole: who opens it meanwhile reads the old or the new."""
    fresh = f"{path}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if user is not None:
            os.fchown(descriptor, uid_of(user), -1)
    os.replace(fresh, path)
