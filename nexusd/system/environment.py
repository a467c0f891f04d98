"""The environment that a replica's process is born with: what nexusd itself was started with, the module's, ours."""

import os
from collections.abc import Callable

from nexusd.domain.addresses import parse_listen
from nexusd.domain.manifest import Manifest
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica
from nexusd.ports import Configs
from nexusd.system.users import User

# nexusd's own, which mean something else, or nothing, to a module (sd_notify(3), sd_listen_fds(3)).
_OWN_PREFIXES = ("NEXUS_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "JOURNAL_STREAM")

NOT_FOR_CHECKS = ("LISTEN_FDNAMES", "WATCHDOG_USEC", "NEXUS_FORMER_STATE")  # they speak of the replica itself


class Environments:
    def __init__(self, configs: Configs, socket_path: Callable[[str, str], str]) -> None:
        """socket_path: of a run, and of what kind."""
        self._configs = configs
        self._socket_path = socket_path
        self._inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(_OWN_PREFIXES)
        }

    def of(
        self,
        run: str,
        replica: Replica,
        folder: str,
        manifest: Manifest,
        user: User | None,
        config: str,
    ) -> dict[str, str]:
        environment = dict(self._inherited)
        if user is not None and user.name is not None and user.home is not None:
            environment |= {"HOME": user.home, "USER": user.name, "LOGNAME": user.name}
        if manifest.run.environment_file is not None:
            environment |= read_environment(os.path.join(folder, manifest.run.environment_file))
        environment |= manifest.run.environment
        environment |= {
            "NEXUS_MODULE_ID": replica.module_id,
            "NEXUS_REPLICA": str(replica.index),
            "NEXUS_GENERATION": str(replica.generation),
            "NEXUS_RUN": run,
            "NEXUS_STOP_TIMEOUT": f"{manifest.stop.timeout:g}",
            "NEXUS_CONFIG": config,
            "NOTIFY_SOCKET": self._socket_path(run, "notify"),
        }
        if (state := self._configs.former_state(replica)) is not None:
            environment["NEXUS_FORMER_STATE"] = state
        if manifest.health.watchdog is not None:
            environment["WATCHDOG_USEC"] = str(int(manifest.health.watchdog * 1_000_000))
        if manifest.run.listen:
            environment["LISTEN_FDNAMES"] = ":".join(_fd_name(entry) for entry in manifest.run.listen)
        return environment

    def predecessor(self, replica: Replica, module: Module) -> dict[str, str]:
        """Where the replica that this one replaces can be asked for its connections."""
        former = (
            one.run
            for one in module.replicas
            if one.index == replica.index and one.generation < replica.generation and one.run is not None
        )
        run = next(former, None)
        return {} if run is None else {"NEXUS_PREDECESSOR": self._socket_path(run, "control")}


def read_environment(path: str) -> dict[str, str]:
    """NAME=value lines, `#` comments, values in quotes if wanted (systemd.exec(5), EnvironmentFile=)."""
    environment = {}
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text or text.startswith(("#", ";")):
                continue
            name, equals, value = text.partition("=")
            if not equals or not name.strip():
                raise ValueError(f"{path} line {number}: expected NAME=value")
            environment[name.strip()] = _unquoted(value.strip())
    return environment


def _unquoted(value: str) -> str:
    quoted = len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def _fd_name(entry: str) -> str:
    """Colons part the names in LISTEN_FDNAMES; a socket without one is "unknown" (sd_listen_fds(3))."""
    return parse_listen(entry).name or "unknown"
