"""Writes each module's effective configuration where its processes read it (NEXUS_CONFIG).

Implements `ports.Configs`. The file is the module's user's alone: values may be secrets.
"""

import json
import os
import pwd
from collections.abc import Callable

from nexusd.domain.fleet import Module
from nexusd.domain.settings import effective


class ConfigFiles:
    def __init__(self, path_of: Callable[[str], str]) -> None:
        self._path_of = path_of

    def write(self, module: Module) -> None:
        """Replaced as a whole: a module that starts meanwhile reads the old or the new. Raises OSError."""
        assert module.definition is not None
        manifest = module.definition.manifest
        path = self._path_of(module.id)
        fresh = f"{path}.new"
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(effective(manifest, module.configured), file)
            if manifest.run.user is not None:
                os.fchown(descriptor, _uid(manifest.run.user), -1)
        os.replace(fresh, path)


def _uid(user: str) -> int:
    try:
        return int(user) if user.isdigit() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise OSError(f"there is no user {user!r}") from None
