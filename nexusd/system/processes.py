"""Replicas as processes of the keeper: what a launch consists of.

Implements `ports.Processes`. Working folder, limits and sockets of a process are decided here from the manifest;
forking is the keeper's.
"""

import os
import sys
from collections.abc import Iterable, Sequence
from signal import SIGCONT
from typing import Any, Protocol

from nexusd.domain import runs
from nexusd.domain.manifest import Manifest
from nexusd.domain.module import Module
from nexusd.domain.replica import Replica
from nexusd.ports import Configs, Copies, Logs
from nexusd.system.containment import Containment
from nexusd.system.environment import NOT_FOR_CHECKS, Environments
from nexusd.system.listening import open_socket, socket_name
from nexusd.system.notes import Notes
from nexusd.system.users import User, look_up


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
        self._environments = Environments(configs, self.socket_path)
        self._notes = Notes(keeper)
        self._logs = logs
        self._configs = configs
        self._copies = copies
        self._host_program = host_program
        self._containment = containment
        self.holds_back = False

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
            "environment": self._environments.of(run, replica, module.folder, manifest, user, config)
            | self._environments.predecessor(replica, module),
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
        environment = self._environments.of(run, replica, module.folder, manifest, user, config)
        launch = {
            "argv": _argv(module.folder, argv),
            "environment": {name: text for name, text in environment.items() if name not in NOT_FOR_CHECKS},
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
            self._notes.drop(module_id)
            return
        self._notes.write(module, module.definition)
        if module.upgrade is None:
            self._release_unused(module)

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


def _limits(manifest: Manifest) -> dict[str, int]:
    """What rlimits can hold: a process's own memory and files. cpu and tasks want a cgroup (`Containment`)."""
    limits = manifest.limits
    wanted = {"memory": limits.memory, "files": limits.files}
    return {name: int(value) for name, value in wanted.items() if value is not None}


def _change_of_user(user: User | None) -> dict[str, Any] | None:
    return None if user is None else {"uid": user.uid, "gid": user.gid, "groups": user.groups}
