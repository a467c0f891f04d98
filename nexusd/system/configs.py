"""Writes each module's effective configuration where its processes read it (NEXUS_CONFIG).

Implements `ports.Configs`. The file is the module's user's alone: values may be secrets.
"""

import json
import os
from glob import escape, glob

from nexusd.domain.errors import NotPossible
from nexusd.domain.fleet import Module
from nexusd.domain.manifest import Definition
from nexusd.domain.settings import effective
from nexusd.system.users import uid_of


class ConfigFiles:
    def __init__(self, runtime: str) -> None:
        self._folder = os.path.join(runtime, "config")

    def path(self, module_id: str, generation: int) -> str:
        return f"{self._stem(module_id)}.{generation}.json"

    def _stem(self, module_id: str) -> str:
        return os.path.join(self._folder, module_id.replace("/", "@"))

    def write(self, module: Module, definition: Definition, generation: int) -> None:
        """Replaced as a whole: a module that starts meanwhile reads the old or the new. Raises NotPossible."""
        try:
            self._write(module, definition, generation)
        except (OSError, ValueError) as error:  # ValueError: its user is not known on this host
            path = self.path(module.id, generation)
            reason = getattr(error, "strerror", None) or error
            raise NotPossible(f"cannot write {path}: {reason}", module_id=module.id) from error

    def _write(self, module: Module, definition: Definition, generation: int) -> None:
        manifest = definition.manifest
        path = self.path(module.id, generation)
        fresh = f"{path}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(effective(manifest, module.configured), file)
            if manifest.run.user is not None:
                os.fchown(descriptor, uid_of(manifest.run.user), -1)
        os.replace(fresh, path)

    def tidy(self, module: Module) -> None:
        """Remove the files of generations that are no more."""
        kept = {self.path(module.id, module.generation)}
        kept |= {self.path(module.id, replica.generation) for replica in module.replicas}
        stem = f"{self._stem(module.id)}."
        for path in set(glob(escape(stem) + "*.json")) - kept:
            if path[len(stem) :].removesuffix(".json").isdecimal():  # "a/one.2" has files of its own
                os.unlink(path)
