"""The API socket and the metrics port put together from the daemon's parts: table, dispatcher, servers, bounds.

Apart from `daemon` because it is slow to import: jsonrpcserver brings jsonschema with it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nexusd import pages
from nexusd.chaos import Conductor
from nexusd.config import Api as Bounds
from nexusd.domain.access import Caller
from nexusd.domain.errors import ShuttingDown
from nexusd.operations import Operations
from nexusd.ports import AuditLog, CheckResults, Containment, Daemon, EventSource, LogReader, Replaceable
from nexusd.rpc.audit import AuditReading, AuditTrail
from nexusd.rpc.call import Call, Method, NoParams
from nexusd.rpc.chaos import ChaosMethods
from nexusd.rpc.connection import Limits
from nexusd.rpc.dispatch import Dispatcher, Observer
from nexusd.rpc.identity import Identity
from nexusd.rpc.methods import Api
from nexusd.rpc.metrics import CallCounter, Metrics
from nexusd.rpc.reexec import Replacing
from nexusd.rpc.server import RpcServer
from nexusd.rpc.under_way import CommandsUnderWay
from nexusd.rpc.upkeep import Upkeep
from nexusd.supervisor import Supervisor
from nexusd.system.edits import Edits
from nexusd.system.figures import Figures, Keeper, Sources
from nexusd.system.http import Handler, HttpServer


@dataclass(frozen=True, slots=True)
class Parts:
    """What the handlers speak to, and who decides whether they may."""

    supervisor: Supervisor
    operations: Operations
    chaos: Conductor
    daemon: Daemon
    replaceable: Replaceable
    identity: Identity
    logs: LogReader
    events: EventSource
    checks: CheckResults
    containment: Containment
    authorise: Callable[[Caller, str], None]
    is_leaving: Callable[[], bool]
    audit: AuditLog
    web: HttpServer
    figures: Figures
    keeper: Keeper
    control_path: Callable[[str], str]  # of a run's control socket
    under_way: CommandsUnderWay


def build_server(parts: Parts, bounds: Bounds, *, audits_reads: bool = False) -> RpcServer:
    scrapes = pages.PagesOnDemand(_sources(parts, lambda: server.connections))
    families: list[Method] = []
    families += AuditReading(parts.audit).methods
    families += ChaosMethods(parts.operations, parts.chaos).methods
    families += Upkeep(parts.operations).methods
    families += Replacing(parts.replaceable).methods
    families += Metrics(scrapes, parts.operations).methods
    api = Api(
        parts.supervisor,
        parts.operations,
        parts.daemon,
        parts.identity,
        parts.logs,
        parts.events,
        parts.checks,
        parts.containment,
        parts.keeper,
        Edits(),
        families,
    )
    # First: what the others say of a call is said when its line is safe.
    observers: list[Observer] = [AuditTrail(parts.audit, parts.operations.is_secret, audits_reads)]
    observers.append(_ClosingTime(parts.is_leaving))
    observers.append(CallCounter(parts.figures))
    observers.append(parts.under_way)
    dispatcher = Dispatcher(api.methods, authorise=parts.authorise, observers=observers)
    server = RpcServer(dispatcher, _limits(bounds), group=bounds.group)
    parts.web.offer(_routes(scrapes, api), scrapes.close, pages.LONG)
    return server


def _sources(parts: Parts, connections: Callable[[], int]) -> Sources:
    return Sources(
        parts.identity.version,
        parts.identity.started_at,
        lambda: parts.supervisor.fleet,
        parts.figures,
        parts.keeper,
        parts.logs.path,
        parts.control_path,
        connections,
        lambda: parts.audit.lines,
        parts.identity.most_unhealthy,
    )


def _routes(scrapes: pages.PagesOnDemand, api: Api) -> dict[str, Handler]:
    """For probes without a caller: whoever reaches the port may ask."""
    nobody = Call(Caller(uid=-1, gid=-1, user=""), lambda _: None)
    return pages.routes(
        scrapes,
        lambda: api.check_liveness(nobody, NoParams()),
        lambda: api.check_readiness(nobody, NoParams()),
    )


def _limits(bounds: Bounds) -> Limits:
    return Limits(
        message_bytes=bounds.message_bytes,
        batch=bounds.batch,
        in_flight=bounds.in_flight,
        connections=bounds.connections,
        user_share=bounds.user_share,
        request_timeout_s=bounds.request_timeout_s,
        unsent_bytes=bounds.unsent_bytes,
    )


class _ClosingTime:
    """Takes no more commands once the daemon is leaving: a module started now would hold it up."""

    def __init__(self, is_leaving: Callable[[], bool]) -> None:
        self._is_leaving = is_leaving

    def admit(self, _call: Call, method: Method, _params: Mapping[str, Any]) -> Awaitable[None] | None:
        return self._refuse_late() if method.audited else None

    async def _refuse_late(self) -> None:
        """Awaited after the audit log: what was in time before may be late now."""
        if self._is_leaving():
            raise ShuttingDown("nexusd is shutting down")

    def done(self, *_what: object) -> None:
        """Nothing to be done about it."""
