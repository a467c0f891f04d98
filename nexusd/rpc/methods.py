"""The table of methods: name, permission, parameters, handler, one line of help each.

A handler only asks: what a command does stands in `nexusd.operations`, what is shown in `views`.
"""

import time
from collections.abc import Iterable
from typing import Any

from nexusd.domain import health, settings
from nexusd.domain.access import effective_permissions
from nexusd.domain.fleet import Fleet
from nexusd.operations import Operations
from nexusd.ports import CheckResults, Containment, Daemon, Edits, EventSource, LogReader, Outputs
from nexusd.reach import Patience
from nexusd.rpc import discover, views
from nexusd.rpc.call import Call, Method, NoParams
from nexusd.rpc.history import History
from nexusd.rpc.identity import Identity
from nexusd.rpc.parameters import Configure, GetConfig, OneModule, Reload, Restart, Start, Stop
from nexusd.supervisor import Supervisor


class Api:
    """The handlers, bound to one daemon."""

    def __init__(
        self,
        supervisor: Supervisor,
        operations: Operations,
        daemon: Daemon,
        identity: Identity,
        logs: LogReader,
        events: EventSource,
        checks: CheckResults,
        containment: Containment,
        outputs: Outputs,
        edits: Edits,
        families: Iterable[Method] = (),
    ) -> None:
        """families: the rows that stand in files of their own."""
        self._supervisor = supervisor
        self._operations = operations
        self._daemon = daemon
        self._identity = identity
        self._logs = logs
        self._checks = checks
        self._containment = containment
        self._outputs = outputs
        self._edits = edits
        self._page = views.StatusPage()
        self._history = History(operations, logs, events, outputs)
        self.methods = [*self._table(), *families]

    def _table(self) -> list[Method]:
        return [
            Method(
                "get_status",
                self.get_status,
                "The daemon with all modules, or one module",
                OneModule,
                "status.read",
            ),
            Method("check_liveness", self.check_liveness, "Whether the daemon lives"),
            Method("check_readiness", self.check_readiness, "Whether the modules can do their work"),
            Method("check_critical_modules", self.check_critical, "Whether every critical module is healthy"),
            Method(
                "start_module", self.start, "Start a module and what it requires", Start, "module.start", True
            ),
            Method("stop_module", self.stop, "Stop a module", Stop, "module.stop", True),
            Method(
                "restart_module",
                self.restart,
                "Stop a module, or one replica of it, and start it again",
                Restart,
                "module.start",
                True,
                also="module.stop",
            ),
            Method(
                "reload_module", self.reload, "Put the code on disk in force", Reload, "module.reload", True
            ),
            Method(
                "configure", self.configure, "Set a configuration value", Configure, "module.configure", True
            ),
            Method("get_config", self.get_config, "A module's configuration", GetConfig, "status.read"),
            *self._history.methods,
            Method(
                "reload_daemon", self.reload_daemon, "Read manifests again", NoParams, "daemon.reload", True
            ),
            Method(
                "shutdown", self.shutdown, "Stop all modules and the daemon", NoParams, "daemon.admin", True
            ),
            Method("whoami", self.whoami, "Who the caller is and what it may do"),
            Method("rpc.discover", self.discover, "This table as an OpenRPC document"),
        ]

    # Status

    def get_status(self, _call: Call, params: OneModule) -> Any:
        if params.module_id is not None:
            module = self._operations.module(params.module_id)
            graph = self._supervisor.fleet.graph
            seen = self._checks.last
            shown = views.detail(module, graph, self._logs.path, seen, self._containment, self._edits)
            return {**shown, "journal": views.journal(module, self._outputs)}
        identity = self._identity
        return {
            "running": identity.is_running(),
            "version": identity.version,
            "level": views.level(views.FEATURES),
            "pid": identity.pid,
            "instance": identity.instance,
            "replaced": identity.replaced,
            "uptime_seconds": round(time.monotonic() - identity.started_at, 3),
            "security": identity.context.as_status(),
            "features": views.FEATURES,
            **self._page.parts(self._fleet),
            "keeper": identity.keeper(),
            "warnings": identity.warnings(),
            "module_paths": identity.module_paths(),
        }

    def check_liveness(self, _call: Call, _params: NoParams) -> dict[str, Any]:
        return {"live": True, "timestamp": time.time(), "daemon_running": self._identity.is_running()}

    def check_readiness(self, _call: Call, _params: NoParams) -> dict[str, Any]:
        readiness = health.readiness(self._fleet.modules.values(), self._identity.most_unhealthy())
        details = {
            "total_modules": readiness.statistics.total,
            "healthy_modules": readiness.statistics.healthy,
            "unhealthy_modules": readiness.statistics.unhealthy,
            "health_ratio": readiness.ratio,
        }
        ready = {"ready": readiness.ready, "timestamp": time.time(), "details": details}
        return {**ready, "reasons": readiness.reasons}

    def check_critical(self, _call: Call, _params: NoParams) -> dict[str, Any]:
        modules = health.critical(self._fleet.modules.values())
        healthy = sum(health.is_healthy(module) for module in modules)
        return {
            "healthy": healthy == len(modules),
            "timestamp": time.time(),
            "details": {"total": len(modules), "healthy": healthy},
            "modules": {module.id: str(health.health_of(module)[0]) for module in modules},
        }

    # Commands

    async def start(self, _call: Call, params: Start) -> dict[str, Any]:
        return await self._operations.start(params.module_id, _patience(params))

    async def stop(self, _call: Call, params: Stop) -> dict[str, Any]:
        return await self._operations.stop(params.module_id, params.cascade, _patience(params))

    async def restart(self, _call: Call, params: Restart) -> dict[str, Any]:
        return await self._operations.restart(params.module_id, _patience(params), params.replica)

    async def reload(self, _call: Call, params: Reload) -> dict[str, Any]:
        return await self._operations.reload(params.module_id, params.strategy, _patience(params))

    async def configure(self, _call: Call, params: Configure) -> dict[str, Any]:
        return await self._operations.configure(params.module_id, params.key, params.value)

    async def reload_daemon(self, _call: Call, _params: NoParams) -> dict[str, Any]:
        return {"reloaded": True, **await self._daemon.reload()}

    def shutdown(self, _call: Call, _params: NoParams) -> dict[str, Any]:
        self._daemon.shut_down()
        return {"shutting_down": True}

    # Reading

    def get_config(self, _call: Call, params: GetConfig) -> dict[str, Any]:
        module = self._operations.module(params.module_id)
        manifest = module.definition.manifest if module.definition else None
        keys = manifest.config if manifest else {}
        if params.key is not None:
            settings.key_named(module.id, keys, params.key)
        effective = settings.effective(manifest, module.configured) if manifest else {}
        shown = {
            name: views.setting(key, effective[name], name in module.configured)
            for name, key in keys.items()
            if params.key in (None, name)
        }
        return {"module_id": module.id, "config": shown}

    def whoami(self, call: Call, _params: NoParams) -> dict[str, Any]:
        caller, grants = call.caller, self._identity.grants()
        return {
            "principal": caller.principal,
            "uid": caller.uid,
            "gid": caller.gid,
            "groups": sorted(caller.group_names),
            "roles": list(grants.roles_of(caller)),
            "permissions": list(effective_permissions(caller, grants, self._identity.context)),
        }

    def discover(self, _call: Call, _params: NoParams) -> Any:
        return discover.document(self.methods, title="nexusd", version=self._identity.version)

    @property
    def _fleet(self) -> Fleet:
        return self._supervisor.fleet


def _patience(params: Start | Restart | Stop | Reload) -> Patience:
    return Patience(params.wait, params.timeout)
