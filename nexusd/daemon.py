"""UniversalDaemon: the parts put together, and the order in which they come up and go down.

It decides nothing about modules (the supervisor's domain does) and nothing about requests (`rpc`).
"""

import asyncio
import fcntl
import logging
import os
import signal
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from msgspec.structs import replace

from nexusd import __version__
from nexusd.config import Config, InvalidConfig, Options, read_config
from nexusd.domain.access import SecurityContext, authority, permits
from nexusd.domain.errors import NotPossible, ShuttingDown
from nexusd.domain.fleet import Fleet, Module, Put, Want, graph_of
from nexusd.domain.graph import cycles
from nexusd.domain.manifest import Definition, Fault
from nexusd.keeper import host
from nexusd.keeper.client import KeeperClient
from nexusd.operations import Operations
from nexusd.rpc.connection import Limits
from nexusd.rpc.dispatch import Dispatcher
from nexusd.rpc.methods import Api, Identity
from nexusd.rpc.server import RpcServer
from nexusd.supervisor import Supervisor
from nexusd.system.clock import LoopClock
from nexusd.system.configs import ConfigFiles
from nexusd.system.control import ControlSockets
from nexusd.system.events import EventLog
from nexusd.system.keeper_news import KeeperNews
from nexusd.system.logs import LogFolder
from nexusd.system.manifests import Found, discover, missing_paths, read_module
from nexusd.system.processes import ReplicaProcesses
from nexusd.system.store import SqliteStore, StoredModule

log = logging.getLogger("nexusd")

EXIT_GAVE_UP = 10
WELCOME_S = 30.0


class UniversalDaemon:
    """One nexusd. Call initialize, discover_and_load_modules, start, run, in that order; shutdown ends run."""

    def __init__(self, security_context: SecurityContext | None = None, config: Config | None = None) -> None:
        self.security_context = security_context or SecurityContext()
        self.config = config or read_config(Options(), os.environ, os.getuid())
        self.exit_status = 0
        self._started_at = time.monotonic()
        self._leaving = asyncio.Event()
        self._warnings: list[str] = []
        self._stored: dict[str, StoredModule] = {}

    # Coming up

    async def initialize(self) -> None:
        """Folders, lock, store and keeper. Raises NotPossible, store.Unusable, OSError."""
        config = self.config
        _make_folders(config)
        self._lock = _lock(os.path.join(config.runtime, "nexusd.lock"))
        self._store = SqliteStore(os.path.join(config.state, "nexus.db"))
        self._keeper = KeeperClient(config.runtime, os.path.join(config.logs, "keeper.log"), self._hear)
        self._keeper.open()  # first: it boots while the rest is read
        self._store.open()
        if self._store.set_aside:
            self._warn(f"the database was damaged and is set aside: {self._store.set_aside}")
        self._stored = self._store.modules()
        self._build()

    def _build(self) -> None:
        config = self.config
        logs = LogFolder(config.logs)
        self._events = EventLog(self._store.append_events, self._store.events(2000))
        self._configs = ConfigFiles(config.runtime)
        self._processes = ReplicaProcesses(self._keeper, config.runtime, logs, self._configs, host.__file__)
        self._clock = LoopClock(lambda: self.supervisor.expire_deadlines())
        self.supervisor = Supervisor(self._processes, self._clock, self._gave_up)
        self.supervisor.observers.append(self._events.observe)
        self._news = KeeperNews(
            self._processes, self.supervisor.handle, lambda: self.supervisor.fleet, self._events.add
        )
        self._operations = Operations(
            self.supervisor,
            self._store,
            ControlSockets(self._processes.socket_path),
            logs,
            self._configs,
            self._reread,
            self._processes.signal_leader,
            self._events.add,
        )
        self._grant(config)
        api = Api(self.supervisor, self._operations, self, self._identity(), logs, self._events)
        dispatcher = Dispatcher(api.methods, authorise=lambda caller, wish: self._allow(caller, wish))
        self._server = RpcServer(dispatcher, _limits(config), group=config.api.group)

    def _grant(self, config: Config) -> None:
        self._grants = config.access.grants(os.getuid())
        for role in self._grants.undefined_roles():
            self._warn(f"{config.config_path}: there is no role {role}")
        self._allow = authority(self._grants, self.security_context)

    def _identity(self) -> Identity:
        return Identity(
            __version__,
            os.getpid(),
            self._started_at,
            self.security_context,
            lambda: self._grants,
            lambda: {"pid": self._keeper.pid, "connected": self._keeper.connected},
            lambda: self._warnings,
        )

    async def discover_and_load_modules(self, paths: Iterable[str | Path] | None = None) -> None:
        """Find the modules and put them into the fleet; what a former nexusd left running is adopted."""
        if paths is not None:
            self.config = _with_modules(self.config, paths)
        found = await self._discover()
        if any(one.definition and one.definition.manifest.run.python for one in found):
            self._keeper.warm()
        async with asyncio.timeout(WELCOME_S):
            await self._news.welcomed.wait()
        for one in found:
            self._load(one)
        known = {one.id for one in found}
        for module_id in self._news.forgotten(known):
            self._processes.remember(module_id, None)

    async def start(self) -> None:
        """Adopt what runs, start what is wanted, open the API socket."""
        await self._server.serve(self.config.socket)
        self._news.begin()
        fresh = [
            module.id for module in self.supervisor.fleet.modules.values() if self._is_to_be_started(module)
        ]
        if fresh:
            self.supervisor.handle(Want(tuple(fresh), True))
        log.info(
            "nexusd %s serves %s, %d modules",
            __version__,
            self.config.socket,
            len(self.supervisor.fleet.modules),
        )

    def _is_to_be_started(self, module: Module) -> bool:
        return module.definition is not None and not module.asked and self._wish(module.id, module.definition)

    def _wish(self, module_id: str, definition: Definition) -> bool:
        """What the operator last said; what the manifest says where nobody ever said anything."""
        stored = self._stored.get(module_id)
        asked = stored.started if stored else None
        return definition.manifest.autostart if asked is None else asked

    # Modules

    async def _discover(self) -> list[Found]:
        """In a thread: it reads and hashes files."""
        found = await asyncio.to_thread(discover, self.config.modules)
        for fault in await asyncio.to_thread(missing_paths, self.config.modules):
            self._warn(str(fault))
        return [self._judged(one) for one in _without_cycles(found)]

    def _judged(self, found: Found) -> Found:
        """A module may ask for permissions; where the daemon's security context lacks one it is not loaded."""
        asked = found.definition.manifest.permissions if found.definition else ()
        missing = [one for one in asked if not permits(self.security_context.permissions, one)]
        if not missing:
            return found
        holder = f"permissions that {self.security_context.principal} holds"
        fault = Fault(f"{found.folder}/module.toml", "permissions", holder, ", ".join(missing))
        return replace(found, definition=None, faults=(fault,))

    def _load(self, found: Found) -> None:
        definition = found.definition
        now = self._clock.now()
        module = Module(found.id, found.folder, definition, now, faults=found.faults)
        if definition is None:
            self.supervisor.handle(Put(found.id, module))
            return
        stored = self._stored.get(found.id, StoredModule())
        count = definition.manifest.replicas if stored.count is None else stored.count
        module = replace(module, count=count, configured=stored.configured)
        note = self._news.restored(found.id)
        if note is not None:
            module = replace(
                module,
                wanted=self._wish(found.id, definition),
                asked=True,
                generation=note.generation,
                since=note.since,
                replicas=note.replicas,
                pending=definition if note.digest != definition.digest else None,
            )
        elif stored.started is False:
            module = replace(module, asked=True)
        self.supervisor.handle(Put(found.id, module))

    async def reload(self) -> dict[str, list[str]]:
        """Read nexusd.toml and all manifests again. What runs goes on; a changed module waits for its reload."""
        self._refuse_when_leaving()
        self._reload_config()
        before = dict(self.supervisor.fleet.modules)
        found = {one.id: one for one in await self._discover()}
        added = [one for one in found if one not in before]
        for module_id in added:
            self._load(found[module_id])
        changed = [one for one in found if one in before and self._refresh(found[one])]
        removed = [one for one in before if one not in found and self._miss(before[one])]
        fresh = [one for one in added if self._is_to_be_started(self.supervisor.fleet.modules[one])]
        if fresh:
            self.supervisor.handle(Want(tuple(fresh), True))
        invalid = [one for one in found if found[one].faults]
        self._events.add("daemon.reloaded")
        return {"added": added, "changed": changed, "removed": removed, "invalid": invalid}

    def _reload_config(self) -> None:
        """Who may do what. Folders and sockets stay as they are until the next start."""
        try:
            fresh = read_config(Options(config=self.config.config_path), os.environ, os.getuid())
        except InvalidConfig as error:
            if not os.path.exists(self.config.config_path):
                return
            reason = "; ".join(str(fault) for fault in error.faults)
            raise NotPossible(
                "the configuration has faults, the one in force stays", reason=reason
            ) from error
        self._warnings.clear()
        self._grant(fresh)

    def _refresh(self, found: Found) -> bool:
        """Hold a module in the fleet against its folder; True when the folder has something new."""
        module = self.supervisor.fleet.modules[found.id]
        if module.definition is None:
            if found.definition is not None:
                self._load(found)
                self.supervisor.handle(Want((found.id,), self._wish(found.id, found.definition)))
            elif found.faults != module.faults:
                self.supervisor.handle(Put(found.id, replace(module, faults=found.faults)))
            return found.definition is not None
        is_new = found.definition is not None and found.definition.digest != module.definition.digest
        pending = found.definition if is_new else None
        fresh = replace(module, pending=pending, faults=found.faults, gone=False)
        if is_new and not module.is_active:
            fresh = replace(fresh, definition=pending, pending=None, generation=module.generation + 1)
        if fresh != module:
            self.supervisor.handle(Put(found.id, fresh))
        return is_new

    def _miss(self, module: Module) -> bool:
        """A module whose folder is gone: dropped, or kept as it is while it runs."""
        if module.is_active or module.wanted:
            if not module.gone:
                self.supervisor.handle(Put(module.id, replace(module, gone=True)))
            return not module.gone
        self.supervisor.handle(Put(module.id, None))
        return True

    async def _reread(self, module: Module) -> Definition | None:
        found = self._judged(await asyncio.to_thread(read_module, Path(module.folder), module.id))
        if found.definition is None:
            self._refresh(found)
        return found.definition

    # Going on and going down

    async def run(self) -> int:
        """Until shutdown, a signal, or a module that the daemon must not outlive. Returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.shut_down)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._errand(self._reload_on_signal()))
        await self._leaving.wait()
        await self._stop_modules()
        await self._close()
        return self.exit_status

    def shut_down(self) -> None:
        """Have `run` stop all modules and return."""
        if not self._leaving.is_set():
            log.info("shutting down")
            self._leaving.set()

    async def shutdown(self) -> None:
        """The same for a caller in this process."""
        self.shut_down()

    def _refuse_when_leaving(self) -> None:
        if self._leaving.is_set():
            raise ShuttingDown("nexusd is shutting down")

    def _errand(self, work: "asyncio.coroutines.Coroutine[None, None, None]") -> None:  # type: ignore[name-defined]
        self._task = asyncio.get_running_loop().create_task(work)

    async def _reload_on_signal(self) -> None:
        try:
            told = await self.reload()
        except NotPossible as error:
            log.error("%s: %s", error, error.reason)
            return
        log.info("reloaded: %s", ", ".join(f"{len(ids)} {what}" for what, ids in told.items()))

    async def _stop_modules(self) -> None:
        """In reverse order of dependency; each has its own time-out, so this ends."""
        ids = tuple(self.supervisor.fleet.modules)
        self.supervisor.handle(Want(ids, False))
        await self.supervisor.until(ids, _nothing_runs, None)

    async def _close(self) -> None:
        await self._server.close()
        self._keeper.dismiss()
        await self._events.flush()
        self._store.close()
        os.close(self._lock)

    def _hear(self, message: dict[str, object]) -> None:
        self._news.hear(message)

    def _gave_up(self, module_id: str) -> None:
        definition = self.supervisor.fleet.modules[module_id].definition
        if definition is not None and definition.manifest.on_give_up == "exit":
            log.error("%s has failed for good, and nexusd is not to go on without it", module_id)
            self.exit_status = EXIT_GAVE_UP
            self.shut_down()

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        if text not in self._warnings:
            self._warnings.append(text)


def _nothing_runs(fleet: Fleet) -> bool:
    return not any(module.is_active and not _is_stuck(module) for module in fleet.modules.values())


def _is_stuck(module: Module) -> bool:
    return all(replica.state_name == "stuck" for replica in module.replicas if replica.run is not None)


def _limits(config: Config) -> Limits:
    api = config.api
    return Limits(
        api.message_bytes, api.batch, api.in_flight, api.connections, api.request_timeout_s, api.unsent_bytes
    )


def _with_modules(config: Config, paths: Iterable[str | Path]) -> Config:
    values = {name: getattr(config, name) for name in Config.__slots__}
    return Config(**{**values, "modules": tuple(os.path.abspath(path) for path in paths)})


def _make_folders(config: Config) -> None:
    """The runtime folder is passable, not readable: modules of other users reach their own sockets in it."""
    _make_runtime(config.runtime)
    for name in ("r", "config"):
        os.makedirs(os.path.join(config.runtime, name), mode=0o711, exist_ok=True)
    for folder in (config.state, config.logs):
        os.makedirs(folder, mode=0o750, exist_ok=True)


def _make_runtime(folder: str) -> None:
    os.makedirs(folder, mode=0o711, exist_ok=True)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (0, os.getuid()):
        raise NotPossible(f"{folder} is not a folder of {os.getuid()} or root", hint="nexusd --runtime DIR")


def _lock(path: str) -> int:
    """One nexusd for a runtime folder. The lock goes with the process, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        os.close(descriptor)
        raise NotPossible(
            f"another nexusd (pid {holder}) runs in {os.path.dirname(path)}",
            hint="nexusctl status, or nexusd --runtime DIR for a second one",
        ) from None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _without_cycles(found: list[Found]) -> list[Found]:
    """Modules that wait for each other in a circle could never start: each is told the whole circle."""
    modules = [Module(one.id, one.folder, one.definition, 0.0) for one in found]
    circle_of: dict[str, tuple[str, ...]] = {}
    for circle in cycles(graph_of(modules)):
        for module_id in circle:
            circle_of.setdefault(module_id, circle)
    return [_in_circle(one, circle_of[one.id]) if one.id in circle_of else one for one in found]


def _in_circle(found: Found, circle: tuple[str, ...]) -> Found:
    fault = Fault(f"{found.folder}/module.toml", "requires", "no circle of modules", " → ".join(circle))
    return replace(found, definition=None, faults=(*found.faults, fault))
