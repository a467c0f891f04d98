"""What of nexusd.toml a reload puts in force: who may do what, and which share of unhealthy modules is too large.

Folders and sockets stay as they are until the next start; what else a reload does is the daemon's.
"""

import os
from collections.abc import Callable

from nexusd.config import Config, InvalidConfig, Options, changed_since, read_config
from nexusd.domain.access import Caller, Grants, SecurityContext, authority
from nexusd.domain.errors import NotPossible


class Terms:
    """In force from `begin` on."""

    grants: Grants
    most_unhealthy: float
    _authorise: Callable[[Caller, str], None]

    def __init__(self, config: Config, context: SecurityContext, warn: Callable[[str], None]) -> None:
        self._config = config
        self._context = context
        self._warn = warn
        try:
            self._file_at_start = self._read_again()
        except InvalidConfig:  # a configuration that was handed in, without a file
            self._file_at_start = config
        self._file_in_force = self._file_at_start

    def begin(self) -> None:
        self._apply(self._config)

    def authorise(self, caller: Caller, wish: str) -> None:
        self._authorise(caller, wish)

    def fresh(self) -> Config | None:
        """The file as it is by now; None where there is none. Raises NotPossible with its faults."""
        try:
            return self._read_again()
        except InvalidConfig as error:
            if not os.path.exists(self._config.config_path):
                return None
            reason = "; ".join(str(fault) for fault in error.faults)
            raise NotPossible(
                "the configuration has faults, the one in force stays", reason=reason
            ) from error

    def renew(self, fresh: Config) -> dict[str, list[str]]:
        """Put it in force. What of it has changed, and what waits for a restart."""
        self._apply(fresh)
        changes = changed_since(self._file_at_start, self._file_in_force, fresh)
        self._file_in_force = fresh
        return changes

    def _apply(self, config: Config) -> None:
        self.most_unhealthy = config.health.most_unhealthy
        self.grants = config.access.grants(os.getuid())
        for role in self.grants.undefined_roles():
            self._warn(f"{config.config_path}: there is no role {role}")
        self._authorise = authority(self.grants, self._context)

    def _read_again(self) -> Config:
        """Without what the command line said, which is not told apart from the file in `config`."""
        return read_config(Options(config=self._config.config_path), os.environ, os.getuid())
