"""Which part of nexusd gets which: each is made here and joined with the others, and none of them begins.

When they begin and end is the daemon's to say. `Ground` is opened first: the rest is made from what it remembers.
"""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from nexusd import __version__
from nexusd.catalogue import Catalogue
from nexusd.chaos import Conductor
from nexusd.config import Config
from nexusd.domain.access import SecurityContext
from nexusd.domain.replacing import Here
from nexusd.keeper import host, protocol
from nexusd.keeper.client import KeeperClient
from nexusd.keeper.proctable import is_any_stopped
from nexusd.operations import Operations
from nexusd.ports import Daemon, Replaceable
from nexusd.reexec import Replacement
from nexusd.rpc.identity import Identity
from nexusd.rpc.under_way import CommandsUnderWay
from nexusd.supervisor import Supervisor
from nexusd.system.asking import Asking
from nexusd.system.audit import AuditLog
from nexusd.system.clock import LoopClock, LoopLag, Retries
from nexusd.system.configs import ConfigFiles
from nexusd.system.containment import contain
from nexusd.system.control import ControlSockets
from nexusd.system.copies import CodeCopies
from nexusd.system.events import KEPT, EventLog
from nexusd.system.fdstore import DescriptorStore
from nexusd.system.figures import Figures
from nexusd.system.health_checks import HealthChecks
from nexusd.system.herald import Herald
from nexusd.system.http import HttpServer
from nexusd.system.keeper_news import KeeperNews
from nexusd.system.logs import LogFolder
from nexusd.system.notify import Given, Notifier
from nexusd.system.processes import ReplicaProcesses
from nexusd.system.store import SqliteStore
from nexusd.terms import Terms

if TYPE_CHECKING:
    from nexusd.rpc.server import RpcServer


@dataclass(frozen=True, slots=True)
class Whole:
    """What the parts ask of the daemon that they make up."""

    config: Config
    given: Given
    context: SecurityContext
    terms: Terms
    started_at: float  # monotonic seconds
    daemon: Daemon
    replaceable: Replaceable
    warn: Callable[[str], None]
    warnings: Callable[[], list[str]]
    gave_up: Callable[[str], None]
    cut_short: Callable[[], list[str]]
    is_running: Callable[[], bool]
    is_leaving: Callable[[], bool]


class Ground:
    """Keeper, store and audit log."""

    def __init__(self, config: Config, given: Given, hear: Callable[[dict[str, Any]], None]) -> None:
        self.store = SqliteStore(os.path.join(config.state, "nexus.db"))
        self.descriptors = DescriptorStore(given.variables.get("NOTIFY_SOCKET", ""), given.stored)
        self.keeper = KeeperClient(
            config.runtime,
            os.path.join(config.logs, "keeper.log"),
            hear,
            as_json=_json,
            journald=config.daemon.journald,
            soft_files=given.handed.soft_files if given.handed else None,
            store=self.descriptors,
        )
        self.containment = contain(config.daemon.cgroups, self.keeper.leaf)  # the keeper is born in our leaf
        self.audit = AuditLog(
            os.path.join(config.logs, "audit"),
            os.path.join(config.state, "audit.head"),
            max_size=config.audit.max_size,
            files=config.audit.files,
        )

    def open(self, warn: Callable[[str], None]) -> None:
        """Raises store.Unusable, OSError."""
        self.keeper.open()  # first: it boots while the rest is read
        try:
            self.store.open()
            if self.store.set_aside:
                warn(f"the database was damaged and is set aside: {self.store.set_aside}")
            self.audit.open(version=__version__)
        except BaseException:
            self.keeper.close()  # nobody is there yet to hear what it has to say
            raise


class Composition:
    """All parts but the API's server, which is made later: see `api_server`."""

    def __init__(self, whole: Whole, ground: Ground) -> None:
        self.store, self.keeper = ground.store, ground.keeper
        self.containment, self.audit, self.descriptors = ground.containment, ground.audit, ground.descriptors
        self._make_processes(whole.config)
        self._make_supervisor(whole)
        self._make_observers(whole.given)
        self._make_catalogue(whole)
        self._make_operations()
        self._make_chaos()
        self._make_replacement(whole)
        self.lag = LoopLag(self.figures.lagged)
        self.retries = Retries(self.store.try_again, self.audit.try_again)

    def _make_processes(self, config: Config) -> None:
        self.logs = LogFolder(config.logs)
        self.configs = ConfigFiles(config.runtime)
        self.copies = CodeCopies(config.state)
        self.processes = ReplicaProcesses(
            self.keeper,
            config.runtime,
            self.logs,
            self.configs,
            self.copies,
            host.__file__,
            self.containment,
        )
        self.processes.holds_back = True
        self.control = ControlSockets(self.processes.socket_path)

    def _make_supervisor(self, whole: Whole) -> None:
        self.clock = LoopClock(lambda: self.supervisor.expire_deadlines())
        self.supervisor = Supervisor(self.processes, self.clock, whole.gave_up)
        self.events = EventLog(self.store.append_events, self.store.events(KEPT))
        self.news = KeeperNews(
            self.processes, self.supervisor.handle, lambda: self.supervisor.fleet, self.events.add
        )

    def _make_observers(self, given: Given) -> None:
        notifier = Notifier(given.variables.get("NOTIFY_SOCKET", ""))
        self.herald = Herald(notifier, given.watchdog_s, lambda: self.supervisor.fleet)
        self.web = HttpServer()
        self.figures = Figures()
        self.keeper.on_pong = self.figures.took_round_trip
        asking = Asking(self.control, self.processes)
        self.checks = HealthChecks(asking, self.supervisor.handle, lambda: self.supervisor.fleet)
        for observer in (self.events, self.herald, self.figures, self.checks):
            self.supervisor.observers.append(observer.observe)

    def _make_catalogue(self, whole: Whole) -> None:
        self.catalogue = Catalogue(
            whole.config.modules,
            self.supervisor,
            whole.context,
            self.store.modules,
            self.news.restored,
            whole.warn,
            self.copies.holds,
        )

    def _make_operations(self) -> None:
        self.operations = Operations(
            self.supervisor,
            self.store,
            self.control,
            self.logs,
            self.configs,
            self.catalogue.reread,
            self.processes.signal_leader,
            self.events.add,
            self.copies,
        )
        self.under_way = CommandsUnderWay()

    def _make_chaos(self) -> None:
        self.chaos_clock = LoopClock(lambda: self.chaos.expire())
        self.chaos = Conductor(
            self.supervisor,
            self.keeper,
            is_any_stopped,
            self.store,
            self.chaos_clock,
            self.events,
            self.events.add,
        )
        self.supervisor.observers.append(self.chaos.observe)
        self.operations.before_reload.append(
            lambda module_id: self.chaos.release(module_id, "the module is being reloaded")
        )

    def _make_replacement(self, whole: Whole) -> None:
        config, given = whole.config, whole.given
        here = Here(config.runtime, config.state, None if given.api else config.socket)
        self.replacement = Replacement(given.command, given.variables, here, self.keeper, whole.cut_short)


def api_server(whole: Whole, parts: Composition) -> "RpcServer":
    # Slow to import: the door has it done in a thread, and not before it is needed.
    from nexusd.api import Parts, build_server  # noqa: PLC0415

    return build_server(
        Parts(
            parts.supervisor,
            parts.operations,
            parts.chaos,
            whole.daemon,
            whole.replaceable,
            _identity(whole, parts),
            parts.logs,
            parts.events,
            parts.checks,
            parts.containment,
            whole.terms.authorise,
            whole.is_leaving,
            parts.audit,
            parts.web,
            parts.figures,
            parts.keeper,
            lambda run: parts.processes.socket_path(run, "control"),
            parts.under_way,
        ),
        whole.config.api,
        audits_reads=whole.config.audit.reads,
    )


def _identity(whole: Whole, parts: Composition) -> Identity:
    handed = whole.given.handed
    return Identity(
        __version__,
        os.getpid(),
        whole.started_at,
        whole.context,
        lambda: whole.terms.grants,
        lambda: {"pid": parts.keeper.pid, "connected": parts.keeper.connected},
        whole.warnings,
        lambda: parts.catalogue.paths,
        whole.is_running,
        secrets.token_hex(8),
        {"from": handed.version, "failure": handed.failure} if handed else None,
        lambda: whole.terms.most_unhealthy,
    )


def _json(message: dict[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(message)
    except UnicodeEncodeError:  # an environment may hold bytes that are no UTF-8
        return protocol.as_json(message)
