"""Replicas as processes of the keeper: what a launch consists of, and what the keeper's news mean.

Implements `ports.Processes`. Environment, working folder, limits and sockets of a process are decided here
from the manifest; forking is the keeper's.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from signal import SIGCONT
from typing import Any, Protocol

import msgspec

from nexusd.domain import runs
from nexusd.domain.addresses import parse_listen
from nexusd.domain.decoding import prepare
from nexusd.domain.manifest import Definition, Manifest
from nexusd.domain.module import Module
from nexusd.domain.replica import Exit, Replica
from nexusd.domain.units import unit_number
from nexusd.ports import Configs, Copies, Logs
from nexusd.system.containment import Containment
from nexusd.system.listening import open_socket, socket_name
from nexusd.system.users import User, look_up

# nexusd's own, which mean something else, or nothing, to a module (sd_notify(3), sd_listen_fds(3)).
OWN_PREFIXES = ("NEXUS_", "NOTIFY_SOCKET", "WATCHDOG_", "LISTEN_", "JOURNAL_STREAM")

_NOT_FOR_CHECKS = (
    "LISTEN_FDNAMES",
    "WATCHDOG_USEC",
    "NEXUS_FORMER_STATE",
)  # they speak of the replica itself


class Keeper(Protocol):
    """The keeper's client, as far as launching goes."""

    def spawn(self, key: str, launch: dict[str, Any], listening: Iterable[str] = ()) -> None: ...
    async def probe(self, launch: dict[str, Any], timeout_s: float) -> dict[str, Any] | None: ...
    def signal(self, key: str, number: int, leader_only: bool = False) -> None: ...
    def kill(self, key: str) -> None: ...
    def forget(self, key: str) -> None: ...
    def note(self, name: str, text: str | None) -> None: ...
    def hold(self, name: str, fd: int) -> None: ...
    def release(self, name: str) -> None: ...
    def holds(self, name: str) -> bool: ...
    def held_names(self) -> list[str]: ...


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


class ReplicaProcesses:
    def __init__(
        self,
        keeper: Keeper,
        runtime: str,
        logs: Logs,
        configs: Configs,
        copies: Copies,
        host_program: str,
        containment: Containment,
    ) -> None:
        self._keeper = keeper
        self._runtime = runtime
        self._logs = logs
        self._configs = configs
        self._copies = copies
        self._remembered: dict[str, Definition] = {}
        self._host_program = host_program
        self._containment = containment
        self.holds_back = False
        self._inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(OWN_PREFIXES)
        }

    def spawn(self, run: str, replica: Replica, module: Module) -> None:
        """While it holds back nothing is started: the keeper's table, told before, would not have the run, and
        it would be started a second time when the fleet is held against the table.
        """
        if self.holds_back:
            return
        definition = module.definition_of(replica)
        manifest = definition.manifest
        user = look_up(manifest.run.user, manifest.run.group)
        config = self._configs.write(module, definition, replica.generation)
        if module.count > 1:  # only these can be half way through a rolling reload
            self._copies.keep(definition)
        names = self._listening(module.id, manifest)
        launch = {
            **self._program(definition.folder, manifest, user, definition.folder != module.folder),
            "environment": self._environment(run, replica, module.folder, manifest, user, config)
            | self._predecessor(replica, module),
            "directory": os.path.join(module.folder, manifest.run.directory or ""),
            "limits": self._containment.rlimits(_limits(manifest)),
            **self._containment.launch(run, manifest),
            "user": _change_of_user(user),
            "log": self._log(replica, manifest),
            "notify_path": self.socket_path(run, "notify"),
            "control_path": self.socket_path(run, "control"),
        }
        self._keeper.spawn(run, launch, names)

    async def check(
        self, run: str, replica: Replica, module: Module, argv: Sequence[str], timeout_s: float
    ) -> dict[str, Any] | None:
        """Run a check program as the replica itself would be run; how it ended, as the keeper tells it.

        None: nothing is known. Raises OSError or ValueError when it can't be tried.
        """
        definition = module.definition_of(replica)
        manifest = definition.manifest
        user = look_up(manifest.run.user, manifest.run.group)
        config = self._configs.path(definition, replica.generation)
        environment = self._environment(run, replica, module.folder, manifest, user, config)
        launch = {
            "argv": _argv(module.folder, argv),
            "environment": {name: text for name, text in environment.items() if name not in _NOT_FOR_CHECKS},
            "directory": os.path.join(module.folder, manifest.run.directory or ""),
            "limits": _limits(manifest),
            "user": _change_of_user(user),
        }
        return await self._keeper.probe(launch, timeout_s)

    def terminate(self, run: str, signal: int) -> None:
        """With a SIGCONT after it: to a process that is held by SIGSTOP the signal would come too late."""
        self._keeper.signal(run, signal)
        self._keeper.signal(run, SIGCONT)

    def signal_leader(self, run: str, signal: int) -> None:
        """Only the replica's first process: what its own children do with a SIGHUP is not ours to say."""
        self._keeper.signal(run, signal, leader_only=True)

    def kill(self, run: str) -> None:
        self._keeper.kill(run)

    def forget(self, run: str) -> None:
        self._keeper.forget(run)

    def remember(self, module_id: str, module: Module | None) -> None:
        if module is None or module.definition is None or not (module.asked or module.replicas):
            self._keeper.note(module_id, None)
            self._keeper.note(definition_note(module_id), None)
            self._remembered.pop(module_id, None)
            return
        note = Note(module.generation, module.since, module.replicas)
        self._keeper.note(module_id, msgspec.json.encode(note).decode())
        self._remember_definition(module.definition)
        if module.upgrade is None:
            self._release_unused(module)

    def _remember_definition(self, definition: Definition) -> None:
        """The one in force: a manifest that is broken later, while nexusd is away, does not end what runs."""
        if self._remembered.get(definition.id) is not definition:
            text = msgspec.json.encode(definition, enc_hook=unit_number).decode()
            self._keeper.note(definition_note(definition.id), text)
            self._remembered[definition.id] = definition

    def _release_unused(self, module: Module) -> None:
        """Listening sockets stay open while the module is wanted, whether or not a replica runs just now."""
        in_use = module.wanted or module.is_active
        entries = module.definition.manifest.run.listen if module.definition and in_use else ()
        needed = {socket_name(module.id, entry) for entry in entries}
        for name in self._keeper.held_names():
            if name.startswith(socket_name(module.id, "")) and name not in needed:
                self._keeper.release(name)

    def socket_path(self, run: str, kind: str) -> str:
        """sun_path holds 107 bytes: the token alone names the run."""
        return os.path.join(self._runtime, "r", f"{runs.token(run)}.{kind}")

    def _program(self, folder: str, manifest: Manifest, user: User | None, is_copy: bool) -> dict[str, Any]:
        """Of a copy also the arguments that name code; the working folder is the module's own."""
        run = manifest.run
        if run.python is None:
            assert run.exec is not None  # exactly one of the two (manifest_rules)
            return {"argv": _argv(folder, run.exec, is_copy)}
        # Forked from the keeper another user's process could read in its memory what is not that user's to know.
        if run.interpreter is not None or user is not None:
            return {"argv": [run.interpreter or sys.executable, self._host_program, run.python, folder]}
        return {"python": run.python, "folder": folder}

    def _environment(
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
            "NOTIFY_SOCKET": self.socket_path(run, "notify"),
        }
        if (state := self._configs.former_state(replica)) is not None:
            environment["NEXUS_FORMER_STATE"] = state
        if manifest.health.watchdog is not None:
            environment["WATCHDOG_USEC"] = str(int(manifest.health.watchdog * 1_000_000))
        if manifest.run.listen:
            environment["LISTEN_FDNAMES"] = ":".join(_fd_name(entry) for entry in manifest.run.listen)
        return environment

    def _predecessor(self, replica: Replica, module: Module) -> dict[str, str]:
        """Where the replica that this one replaces can be asked for its connections."""
        former = (
            one.run
            for one in module.replicas
            if one.index == replica.index and one.generation < replica.generation and one.run is not None
        )
        run = next(former, None)
        return {} if run is None else {"NEXUS_PREDECESSOR": self.socket_path(run, "control")}

    def _log(self, replica: Replica, manifest: Manifest) -> dict[str, Any]:
        path = self._logs.path(replica.name)
        log = {"path": path, "max_bytes": int(manifest.log.max_size), "files": manifest.log.files}
        in_journal = manifest.log.target == "journal"
        return {**log, "journal": runs.journal_identifier(replica.module_id)} if in_journal else log

    def _listening(self, module_id: str, manifest: Manifest) -> list[str]:
        """Opened once, at the first start; replicas and generations share them."""
        names = []
        for entry in manifest.run.listen:
            name = socket_name(module_id, entry)
            if not self._keeper.holds(name):
                self._keeper.hold(name, open_socket(entry))
            names.append(name)
        return names


def _argv(folder: str, command: Sequence[str], is_copy: bool = False) -> list[str]:
    program, *arguments = command
    arguments = [_in_copy(folder, word) for word in arguments] if is_copy else arguments
    return [os.path.join(folder, program) if "/" in program else program, *arguments]


def _in_copy(folder: str, word: str) -> str:
    path = os.path.join(folder, word)
    return path if os.path.isfile(path) and not os.path.islink(path) else word


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


def _limits(manifest: Manifest) -> dict[str, int]:
    """What rlimits can hold: a process's own memory and files. cpu and tasks want a cgroup (`Containment`)."""
    limits = manifest.limits
    wanted = {"memory": limits.memory, "files": limits.files}
    return {name: int(value) for name, value in wanted.items() if value is not None}


def _change_of_user(user: User | None) -> dict[str, Any] | None:
    return None if user is None else {"uid": user.uid, "gid": user.gid, "groups": user.groups}


def _fd_name(entry: str) -> str:
    """Colons part the names in LISTEN_FDNAMES; a socket without one is "unknown" (sd_listen_fds(3))."""
    return parse_listen(entry).name or "unknown"


def exit_of(status: int | None, refusal: Mapping[str, Any] | None) -> Exit:
    """The keeper's wait status (None: nobody of ours could reap it) in the domain's terms."""
    if refusal is not None:
        return Exit(cause=refused(refusal))
    if status is None:
        return Exit()
    if os.WIFSIGNALED(status):
        return Exit(signal=os.WTERMSIG(status))
    return Exit(code=os.waitstatus_to_exitcode(status))


def refused(refusal: Mapping[str, Any]) -> str:
    """Why the module's own code was never reached."""
    about, reason = refusal["about"], refusal["reason"]
    if refusal["step"] != "exec" or about is None:
        return f"cannot be started ({refusal['step']}): {reason}" + (f": {about}" if about else "")
    if os.path.isdir(about):
        return f"cannot execute {about}: it is a directory"
    if refusal["errno"] == 2 and os.path.exists(about):
        return f"cannot execute {about}: the interpreter in its first line is not there"
    return f"cannot execute {about}: {reason}"
